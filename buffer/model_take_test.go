package buffer

import "slices"

// take takes records and demands that they are what must come: of the new ones
// those that may says.
func (m *model) take(k *modelled, backlog bool, may func(*wanted) bool) {
	m.sync()
	limit := 1 + m.rnd.IntN(30)
	rs, err := poll(k.c, backlog, limit)
	if err != nil || len(rs) > limit {
		m.errorf("next: %d records of %d, %v", len(rs), limit, err)
		return
	}
	var again, fresh []*wanted
	open := 0
	for _, w := range k.all {
		switch {
		case w.ord == 0 && may(w):
			fresh = append(fresh, w)
		case w.ord == 0:
		case w.ord >= k.again && !w.done && !w.released:
			again = append(again, w)
		}
	}
	if first := slices.IndexFunc(k.byOrd(), func(w *wanted) bool { return !w.done }); first >= 0 {
		open = int(k.ord - k.byOrd()[first].ord + 1)
	}
	slices.SortFunc(again, func(a, b *wanted) int { return int(a.ord) - int(b.ord) })
	if len(rs) == 0 {
		if len(again) > 0 || len(fresh) > 0 && open < k.o.Window {
			m.errorf("%s: nothing came, %d again and %d new wait, %d of %d open", k.c.name, len(again), len(fresh), open, k.o.Window)
		}
		return
	}
	for _, r := range rs {
		w := k.find(r.Seq)
		switch {
		case w == nil:
			m.errorf("%s: record %d came and is not wanted", k.c.name, r.Seq)
			return
		case w.text != string(r.Payload) || w.lane != r.Lane:
			m.errorf("%s: record %d has other content", k.c.name, r.Seq)
		case r.Dup:
			if len(again) == 0 || again[0] != w || w.ord != r.Ord {
				m.errorf("%s: %d came again as %d out of order", k.c.name, r.Seq, r.Ord)
				return
			}
			again = again[1:]
			k.again = r.Ord + 1
		default:
			i := slices.IndexFunc(fresh, func(f *wanted) bool { return f.lane == w.lane })
			if len(again) > 0 || i < 0 || fresh[i] != w || r.Ord != k.ord+1 {
				m.errorf("%s: %d (ord %d) came out of order; ord is %d, %d must come again", k.c.name, r.Seq, r.Ord, k.ord, len(again))
				for _, w := range again {
					m.errorf("again %+v; store again %d open %+v; model again %d", *w, k.c.again, k.c.open, k.again)
				}
				return
			}
			fresh = slices.Delete(fresh, i, i+1)
			k.ord++
			w.ord = r.Ord
			k.again = r.Ord + 1
		}
	}
	if open = k.open(); open > k.o.Window {
		m.errorf("%s: %d leases, the window is %d", k.c.name, open, k.o.Window)
	}
}

func (k *modelled) find(seq uint64) *wanted {
	i := slices.IndexFunc(k.all, func(w *wanted) bool { return w.seq == seq })
	if i < 0 {
		return nil
	}
	return k.all[i]
}

// byOrd is the leased records in the order of their numbers.
func (k *modelled) byOrd() (ws []*wanted) {
	for _, w := range k.all {
		if w.ord != 0 {
			ws = append(ws, w)
		}
	}
	slices.SortFunc(ws, func(a, b *wanted) int { return int(a.ord) - int(b.ord) })
	return ws
}

func (k *modelled) open() int {
	for _, w := range k.byOrd() {
		if !w.done {
			return int(k.ord - w.ord + 1)
		}
	}
	return 0
}

// forgetDone drops what the consumer has finished without a gap before it.
func (k *modelled) forgetDone() {
	first := uint64(1 << 62)
	for _, w := range k.all {
		if w.ord != 0 && !w.done {
			first = min(first, w.ord)
		}
	}
	k.all = slices.DeleteFunc(k.all, func(w *wanted) bool { return w.done && w.ord < first })
}

func (m *model) ack() {
	k := m.pick(Uplink)
	if k == nil {
		return
	}
	ws := k.byOrd()
	m.rnd.Shuffle(len(ws), func(i, j int) { ws[i], ws[j] = ws[j], ws[i] })
	if m.rnd.IntN(3) > 0 { // mostly in order
		ws = k.byOrd()
	}
	if len(ws) == 0 {
		return
	}
	ws = ws[:1+m.rnd.IntN(len(ws))]
	for _, w := range ws {
		w.done = true
		k.c.Ack(w.ord)
	}
	k.c.Ack(k.ord + 5) // unknown: counted, nothing else
	k.forgetDone()
}

func (m *model) release() {
	k := m.pick(Uplink)
	if k == nil {
		return
	}
	var ords []uint64
	for _, w := range k.byOrd() {
		if m.rnd.IntN(2) == 0 && !w.done {
			w.released = true
			ords = append(ords, w.ord)
		}
	}
	wait(m.t, k.c.Release(ords...))
	if m.rnd.IntN(3) == 0 {
		wait(m.t, k.c.Unrelease())
		k.c.Rewind()
		k.again = 1
		for _, w := range k.all {
			w.released = false
		}
	}
}

func (m *model) rewind() {
	if k := m.pick(Uplink); k != nil {
		k.c.Rewind()
		k.again = 1
	}
}

func (m *model) read() {
	k := m.pick(SessionLog)
	if k == nil {
		return
	}
	m.sync()
	from, limit := k.floor*uint64(m.rnd.IntN(2)), 1+m.rnd.IntN(20)
	if len(k.all) > 0 && m.rnd.IntN(2) == 0 {
		from = k.all[m.rnd.IntN(len(k.all))].seq
	}
	rs, next, err := k.c.ReadFrom(from, limit, 50000)
	if err != nil {
		m.errorf("read: %v", err)
		return
	}
	var want []*wanted
	for _, w := range k.all {
		if w.seq >= from && !w.done {
			want = append(want, w)
		}
	}
	if len(rs) > limit || len(rs) == 0 && len(want) > 0 {
		m.errorf("%s: %d records from %d, %d are wanted", k.c.name, len(rs), from, len(want))
		return
	}
	for i, r := range rs {
		if i >= len(want) || r.Seq != want[i].seq || string(r.Payload) != want[i].text {
			m.errorf("%s: record %d of the read from %d is %d", k.c.name, i, from, r.Seq)
			return
		}
	}
	if len(rs) < len(want) && next > want[len(rs)].seq || next < from {
		m.errorf("%s: the next read from %d skips record %d", k.c.name, next, want[len(rs)].seq)
	}
}

func (m *model) settle() {
	k := m.pick(SessionLog)
	if k == nil || len(k.all) == 0 {
		return
	}
	m.sync()
	floor := k.all[m.rnd.IntN(len(k.all))].seq
	var done []uint64
	for _, w := range k.all {
		if w.seq >= floor && m.rnd.IntN(6) == 0 && len(done) < 50 {
			w.done = true
			done = append(done, w.seq)
		}
	}
	k.c.Settle(floor, done)
	k.floor = max(k.floor, floor)
	k.all = slices.DeleteFunc(k.all, func(w *wanted) bool { return w.seq < floor })
}
