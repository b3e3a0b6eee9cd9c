package buffer

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

var (
	seed  = flag.Uint64("seed", 0, "seed of TestModel; 0: by the clock")
	steps = flag.Int("steps", 3000, "operations of TestModel")
)

// wanted is a record that the model says a consumer must still get.
type wanted struct {
	seq      uint64
	lane     uint8
	text     string
	ord      uint64 // 0: not leased
	released bool
	done     bool
}

// modelled is a consumer of the store and what the model knows of it.
type modelled struct {
	c     *Consumer
	o     ConsumerOptions
	all   []*wanted // in order of seq
	ord   uint64
	again uint64 // leases from here on must come again before anything new
	floor uint64
	live  [lanes]uint64 // Next gives readings from here on
}

// model is a store beside plain slices.
type model struct {
	t     *testing.T
	rnd   *rand.Rand
	path  string
	s     *Store
	by    map[string]*modelled
	names []string
	n     int
	trail []string
}

// TestModel runs random operations against a store and against slices.
func TestModel(t *testing.T) {
	seed := *seed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	m := &model{t: t, rnd: rand.New(rand.NewPCG(seed, 0)), path: shm(t) + "/b.db", by: map[string]*modelled{}}
	defer func() {
		if t.Failed() {
			t.Logf("repeat with -seed %d; the last steps: %v", seed, m.trail[max(len(m.trail)-12, 0):])
		}
	}()
	m.s = open(t, m.path, m.options())
	for range *steps {
		m.step()
		if t.Failed() {
			return
		}
	}
	m.reopen()
	for _, name := range m.names {
		m.drain(name)
	}
	m.sync()
	if st := m.s.Stats(); st.Segments != 0 || st.Records != 0 || st.Bytes != 0 {
		t.Errorf("after all was acknowledged %d segments are left", st.Segments)
	}
}

func (m *model) options() Options { return Options{sys: quiet()} }

func (m *model) step() {
	ops := []struct {
		weight int
		name   string
		do     func()
	}{
		{30, "append", m.append}, {20, "next", m.next}, {15, "ack", m.ack}, {4, "release", m.release},
		{3, "rewind", m.rewind}, {2, "live", m.live}, {6, "backlog", m.backlog}, {15, "read", m.read}, {12, "settle", m.settle},
		{2, "consumer", m.consumer}, {1, "forget", m.forget}, {1, "reopen", m.reopen},
	}
	total := 0
	for _, o := range ops {
		total += o.weight
	}
	k := m.rnd.IntN(total)
	for _, o := range ops {
		if k -= o.weight; k < 0 {
			m.trail = append(m.trail, o.name)
			o.do()
			break
		}
	}
	if m.rnd.IntN(40) == 0 {
		m.check()
	}
}

func (m *model) errorf(format string, a ...any) {
	m.t.Helper()
	m.t.Errorf(format, a...)
}

func (m *model) sync() {
	if err := m.s.Sync(bg); err != nil {
		m.errorf("sync: %v", err)
	}
}

// pick chooses a consumer of a kind; nil: there is none.
func (m *model) pick(kind Kind) *modelled {
	var ks []*modelled
	for _, name := range m.names {
		if c := m.by[name]; c.o.Kind == kind {
			ks = append(ks, c)
		}
	}
	if len(ks) == 0 {
		return nil
	}
	return ks[m.rnd.IntN(len(ks))]
}

func (m *model) consumer() {
	if len(m.names) >= 12 {
		return
	}
	m.n++
	name := fmt.Sprintf("c%d", m.n)
	o := ConsumerOptions{Kind: Kind(m.rnd.IntN(2)), Window: 1 + m.rnd.IntN(60), Exact: m.rnd.IntN(3) == 0, QuotaRecords: -1, QuotaBytes: -1}
	c, err := m.s.Consumer(name, o)
	if err != nil {
		m.errorf("%v", err)
		return
	}
	m.by[name] = &modelled{c: c, o: o, again: 1}
	m.names = append(m.names, name)
}

func (m *model) forget() {
	if len(m.names) < 3 {
		return
	}
	i := m.rnd.IntN(len(m.names))
	name := m.names[i]
	wait(m.t, m.s.Forget(name))
	if _, err := m.by[name].c.Next(bg, 1); err != ErrForgotten {
		m.errorf("next of a forgotten consumer: %v", err)
	}
	m.names = slices.Delete(m.names, i, i+1)
	delete(m.by, name)
}

func (m *model) reopen() {
	shut(m.t, m.s)
	m.s = open(m.t, m.path, m.options())
	for _, name := range m.names {
		k := m.by[name]
		c, err := m.s.Consumer(name, k.o)
		if err != nil {
			m.errorf("%v", err)
			return
		}
		k.c, k.again, k.live = c, 1, [lanes]uint64{}
	}
	m.check()
}

func (m *model) append() {
	var rs []Record
	var to [][]*modelled
	for range m.rnd.IntN(5) {
		m.n++
		r := Record{Lane: uint8(m.rnd.IntN(4)), Topic: fmt.Sprint("t", m.rnd.IntN(5)), Payload: fmt.Append(nil, m.n)}
		if m.rnd.IntN(8) == 0 {
			r.Payload = append(r.Payload, random(m.rnd.IntN(40000))...)
		}
		var ks []*modelled
		for _, name := range m.names {
			if m.rnd.IntN(3) == 0 {
				ks = append(ks, m.by[name])
				r.To = append(r.To, m.by[name].c.ID())
			}
		}
		rs, to = append(rs, r), append(to, ks)
	}
	var k Ticket
	if m.rnd.IntN(2) == 0 {
		k = m.s.AppendLazy(rs)
	} else {
		k = m.s.Append(rs)
		defer wait(m.t, k)
	}
	for i, r := range rs {
		for _, c := range to[i] {
			c.all = append(c.all, &wanted{seq: k.Seq() + uint64(i), lane: r.Lane, text: string(r.Payload)})
		}
	}
}

// next takes records and demands that they are what must come.
func (m *model) next() {
	if k := m.pick(Uplink); k != nil {
		m.take(k, false, func(w *wanted) bool { return w.seq >= k.live[w.lane] })
	}
}

// live jumps over the readings that wait.
func (m *model) live() {
	if k := m.pick(Uplink); k != nil {
		m.sync()
		k.c.Live()
		for l := LaneLive; l < lanes; l++ {
			k.live[l] = m.s.head
		}
	}
}

func (m *model) backlog() {
	if k := m.pick(Uplink); k != nil {
		m.take(k, true, func(w *wanted) bool { return w.seq < k.live[w.lane] })
	}
}

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

// check compares all that can be counted.
func (m *model) check() {
	m.sync()
	if err := audit(m.s); err != nil {
		m.errorf("%v", err)
	}
	for _, k := range m.by {
		waiting := 0
		for _, w := range k.all {
			if !w.done {
				waiting++
			}
		}
		if n, _ := k.c.Pending(); n != waiting {
			m.errorf("%s: %d wait, the model has %d", k.c.name, n, waiting)
		}
		if k.o.Kind == Uplink {
			m.checkOwed(k)
		}
	}
}

func (m *model) checkOwed(k *modelled) {
	want := map[uint64]bool{}
	for _, w := range k.byOrd() {
		if !w.done {
			want[w.ord] = w.released
		}
	}
	got := map[uint64]bool{}
	for _, o := range k.c.Owed() {
		got[o.Ord] = o.Released
	}
	if !maps.Equal(want, got) {
		m.errorf("%s: owed %v, the model has %v", k.c.name, got, want)
	}
}

// drain takes everything and demands that nothing is missing.
func (m *model) drain(name string) {
	k := m.by[name]
	if k.o.Kind == SessionLog {
		if len(k.all) > 0 {
			k.c.Settle(k.all[len(k.all)-1].seq+1, nil)
		}
		return
	}
	for _, w := range k.all {
		if w.released {
			k.c.Ack(w.ord)
			w.done = true
		}
	}
	k.forgetDone()
	for {
		before := k.ord
		m.take(k, false, func(*wanted) bool { return true })
		ws := k.byOrd()
		for _, w := range ws {
			w.done = true
			k.c.Ack(w.ord)
		}
		k.forgetDone()
		if m.t.Failed() {
			return
		}
		if before == k.ord && len(ws) == 0 {
			break
		}
	}
	if len(k.all) != 0 {
		m.errorf("%s: %d records never came", name, len(k.all))
	}
}
