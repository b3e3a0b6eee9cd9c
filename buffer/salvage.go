package buffer

import (
	"cmp"
	"database/sql/driver"
	"fmt"
	"slices"
	"time"
)

const (
	salvageRate  = 2 << 20 // bytes a second
	salvageChunk = 256 << 10
)

// salvage takes what can be read out of a file that was put aside and appends
// it again: records under new numbers in the lowest lane, in their old order,
// with their boots and stream numbers, for consumers matched by name. It reads
// pages itself, so that nothing in the file can hurt SQLite or be refused by it.
type salvage struct {
	s     *Store
	path  string
	known map[int]*Consumer // what consumers wanted, by their slots in the file; nil: as the file says
	p     *pages
	buf   []byte
	spent int // bytes since the last pause

	last    int64 // the last segment that is done
	lastSeq uint64

	streams  map[StreamID]string
	boots    map[int64]*boot
	sessions map[int64]Session
	subs     []subscribed
	segs     []foundSegment

	ids      map[int]ConsumerID // slot in the file -> consumer now
	bootIDs  map[int64]int64
	found    int
	rescued  map[int]int // slot -> records appended again
	damaged  map[int]int // slot -> records in segments that cannot be decoded
	appended int
}

type subscribed struct {
	session int64
	sub     Subscription
}

type foundSegment struct {
	id int64
	at cell
}

func (v *salvage) run() (err error) {
	if v.p, err = openPages(v.path); err != nil {
		return err
	}
	defer v.p.close()
	fromFile := map[int]*Consumer{}
	for no := uint32(1); no <= v.p.n; no++ {
		if err := v.pause(pageSize); err != nil {
			return err
		}
		for _, c := range v.p.cells(no, v.buf) {
			if id, cols, err := v.p.row(c, v.buf); err == nil {
				v.sort(c, id, cols, fromFile)
			}
		}
	}
	if v.known == nil {
		v.known = fromFile
	}
	v.tables()
	if err := v.consumers(); err != nil {
		return err
	}
	slices.SortFunc(v.segs, func(a, b foundSegment) int { return cmp.Compare(a.id, b.id) })
	upTo := [lanes]uint64{}
	upTo[v.last>>laneShift] = v.lastSeq
	for _, g := range v.segs {
		if g.id < v.last {
			continue
		}
		if err := v.segment(g, &upTo); err != nil {
			return err
		}
	}
	v.account()
	return nil
}

// pause keeps the reading below salvageRate, and ends it with the store.
func (v *salvage) pause(n int) error {
	if v.spent += n; v.spent < salvageChunk {
		return nil
	}
	wait := time.Duration(v.spent) * time.Second / salvageRate
	v.spent = 0
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-v.s.ending:
		return ErrClosed
	case <-t.C:
		return nil
	}
}

// shape writes the types of a row's columns: n null, i integer, t text, b blob.
func shape(cols []any) string {
	b := make([]byte, 0, maxColumns)
	for _, c := range cols {
		switch c.(type) {
		case nil:
			b = append(b, 'n')
		case int64:
			b = append(b, 'i')
		case string:
			b = append(b, 't')
		case []byte:
			b = append(b, 'b')
		default:
			b = append(b, '?')
		}
	}
	return string(b)
}

// sort keeps a row of a table; its shape says of which.
func (v *salvage) sort(at cell, id int64, cols []any, consumers map[int]*Consumer) {
	num := func(i int) int64 { return cols[i].(int64) }
	str := func(i int) string { return cols[i].(string) }
	bin := func(i int) []byte { return cols[i].([]byte) }
	switch shape(cols) {
	case "niiiiibib":
		if _, err := parseHeader([]driver.Value{id, cols[1], cols[2], cols[3], cols[4], cols[5], cols[6], int64(len(bin(8)))}); err == nil {
			v.segs = append(v.segs, foundSegment{id, at})
		}
	case "ntiiiiiiibib":
		open, err := parseLeases(bin(11))
		heads, err2 := parseHeads([lanes]uint64{uint64(num(5)), uint64(num(6)), uint64(num(7)), uint64(num(8))}, bin(9), open)
		c := &Consumer{slot: int(id), name: str(1), kind: Kind(num(2)), stream: StreamID(num(3)), ord: uint64(num(10)), open: open, heads: heads}
		if err != nil || err2 != nil || id < 0 || id >= maxConsumers || c.kind > SessionLog {
			return
		}
		if old := consumers[c.slot]; old == nil || old.heads[0][0].done <= heads[0][0].done && old.ord <= c.ord {
			consumers[c.slot] = c // the newer of two, when a stale page was found
		}
	case "ntii":
		v.streams[StreamID(id)] = str(1)
	case "nttii":
		v.boots[id] = &boot{id: id, label: str(1), kernel: str(2), offset: time.Duration(num(3)) * time.Millisecond, quality: Quality(num(4))}
	case "ntb":
		v.sessions[id] = Session{Client: str(1), Data: slices.Clone(bin(2))}
	case "nitb":
		if len(v.subs) < maxSubscriptions {
			v.subs = append(v.subs, subscribed{num(1), Subscription{Filter: str(2), Data: slices.Clone(bin(3))}})
		}
	case "ntbb":
		v.change(Retained{Topic: str(1), Data: bin(2), Payload: bin(3)})
	case "ntib":
		v.change(Fact{Key: str(1), Value: bin(3)})
	}
}

// change appends a row of a small table, unless somebody has written it since.
func (v *salvage) change(c Change) {
	v.s.mu.Lock()
	wanted := v.s.tables.rescuedLocked(c)
	v.s.mu.Unlock()
	if wanted {
		v.s.AppendLazy(nil, c)
	}
}

// tables appends sessions and their subscriptions. What was received of QoS 2
// is not: a stale note would swallow a message.
func (v *salvage) tables() {
	for _, ses := range v.sessions {
		v.change(ses)
	}
	for _, u := range v.subs {
		if ses, ok := v.sessions[u.session]; ok {
			u.sub.Client = ses.Client
			v.change(u.sub)
		}
	}
}

// consumers finds or creates whom the records are for.
func (v *salvage) consumers() error {
	for slot, old := range v.known {
		v.s.mu.Lock()
		c := v.s.names[old.name]
		v.s.mu.Unlock()
		if c == nil {
			var err error
			if c, err = v.s.Consumer(old.name, ConsumerOptions{Kind: old.kind, Stream: v.streams[old.stream]}); err != nil {
				return err
			}
		}
		v.s.mu.Lock()
		if c.ord == 0 { // packet ids that a receiver may remember are not used again
			c.ord, c.again = old.ord+maxWindow, old.ord+maxWindow+1
			c.dirtyLocked()
		}
		v.s.mu.Unlock()
		v.ids[slot] = c.ID()
	}
	return nil
}

// wants says whether a consumer of the old file still needed a record.
func (old *Consumer) wants(l int, seq uint64) bool {
	if !needs(old.heads[l], seq, seq) {
		return false
	}
	return !slices.ContainsFunc(old.open, func(e lease) bool {
		return e.seq == seq && (e.state != stateSent) && (old.kind == SessionLog || int(e.lane) == l)
	})
}

// segment appends the records of one segment that are still wanted and were
// not in an older copy of it.
func (v *salvage) segment(g foundSegment, upTo *[lanes]uint64) error {
	if err := v.p.page(g.at.page, v.buf); err != nil {
		return nil // it was readable a moment ago: lost with the disk
	}
	_, cols, err := v.p.row(g.at, v.buf)
	if err != nil || shape(cols) != "niiiiibib" {
		return nil
	}
	needBytes, data := cols[6].([]byte), cols[8].([]byte)
	needs, err := parseNeeds(needBytes)
	if err != nil {
		return nil
	}
	l := int(g.id >> laneShift)
	raw, err := new(codec).unpack(data)
	if err != nil || int64(checksum(needBytes, data)) != cols[7].(int64) {
		for slot := range v.known {
			n, _ := needsOf(needs, slot)
			v.damaged[slot] += n
			v.found += n
		}
		return nil
	}
	cur := newCursor(raw, uint64(g.id)&maxSeq)
	k := collector{s: v.s}
	bootID := v.boot(cols[4].(int64))
	for w := (view{}); cur.next(&w) == nil && w.set < len(needs); {
		if w.seq <= upTo[l] {
			continue
		}
		upTo[l] = w.seq
		var to []ConsumerID
		for slot := range slotsOf(needs[w.set].set.Value()) {
			if old := v.known[slot]; old != nil && old.wants(l, w.seq) {
				to = append(to, v.ids[slot])
				v.rescued[slot]++
			}
		}
		if len(to) == 0 {
			continue
		}
		v.found++
		r := k.take(&w)
		r.To, r.Lane = to, LaneBulk
		if r.Clock != Clocked {
			r.At = time.Time{}
		}
		r.Numbers = v.numbers(r.Numbers)
	}
	v.last, v.lastSeq = g.id, upTo[l]
	if err := v.appendOld(k.rs, bootID); err != nil {
		return err
	}
	v.appended += len(k.rs)
	return v.pause(len(data))
}

// numbers translates the streams of the old file.
func (v *salvage) numbers(ns []Number) (out []Number) {
	for _, n := range ns {
		if st := v.s.Stream(v.streams[n.Stream]); st != nil {
			out = append(out, Number{st.id, n.N})
		}
	}
	return out
}

// boot finds or makes the row of a boot of the old file.
func (v *salvage) boot(old int64) int64 {
	if id, ok := v.bootIDs[old]; ok {
		return id
	}
	s := v.s
	s.mu.Lock()
	defer s.mu.Unlock()
	from := v.boots[old]
	if from == nil {
		from = &boot{label: fmt.Sprintf("lost-%d", old)}
	}
	for _, b := range s.boots {
		if b.label == from.label {
			v.bootIDs[old] = b.id
			return b.id
		}
	}
	b := &boot{id: s.newBootID(), label: from.label, kernel: from.kernel, offset: from.offset, quality: from.quality, dirty: true}
	if b.quality == NoTime && s.clock.known && sameKernel(b, s.boot) {
		b.offset, b.quality = s.clock.offset, Redated
	}
	s.boots[b.id] = b
	s.dirtyLocked()
	v.bootIDs[old] = b.id
	return b.id
}
