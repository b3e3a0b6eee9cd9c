package buffer

import (
	"crypto/rand"
	"database/sql/driver"
	"encoding/base32"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// loadAll reads what RAM keeps of the file: headers, consumers, names.
func (s *Store) loadAll() error {
	for _, f := range []func() error{s.loadMeta, s.loadStreams, s.loadConsumers, s.loadHeaders, s.loadLosses, s.loadTables} {
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

// loadMeta reads the boots and the first guess of the next number.
func (s *Store) loadMeta() error {
	next, err := s.db.integer("SELECT value FROM meta WHERE id=?", metaNextSeq)
	if err != nil {
		return err
	}
	s.nextSeq = uint64(max(next, 1))
	return s.db.query("SELECT id,label,kernel,offset_ms,quality FROM boot", func(v []driver.Value) error {
		b := &boot{id: integer(v[0]), label: text(v[1]), kernel: text(v[2]),
			offset: time.Duration(integer(v[3])) * time.Millisecond, quality: Quality(integer(v[4]))}
		s.boots[b.id] = b
		return nil
	})
}

func (s *Store) loadStreams() error {
	return s.db.query("SELECT id,name,boot,last FROM stream ORDER BY id", func(v []driver.Value) error {
		id := integer(v[0])
		if id <= int64(len(s.streams)) || id > int64(len(s.streams))+1000 {
			return fmt.Errorf("%w: stream %d", errDamaged, id)
		}
		for int64(len(s.streams)) < id-1 {
			s.streams = append(s.streams, &Stream{id: StreamID(len(s.streams) + 1), saved: true})
		}
		s.streams = append(s.streams, &Stream{id: StreamID(id), name: text(v[1]), boot: integer(v[2]), last: uint64(integer(v[3])), saved: true})
		return nil
	})
}

func (s *Store) loadConsumers() error {
	return s.db.query("SELECT slot,name,kind,stream,start,pos0,pos1,pos2,pos3,done,ord,open FROM consumer", func(v []driver.Value) error {
		slot, kind := integer(v[0]), Kind(integer(v[2]))
		open, err := parseLeases(blob(v[11]))
		if err != nil || slot < 0 || slot >= maxConsumers || kind > SessionLog || kind == Uplink && !dense(open) {
			return errors.Join(fmt.Errorf("%w: consumer %d", errDamaged, slot), err)
		}
		c := newConsumer(s, int(slot), text(v[1]), kind)
		c.o = ConsumerOptions{Kind: kind, Window: maxWindow}
		c.stream, c.start, c.ord, c.open = StreamID(integer(v[3])), uint64(integer(v[4])), uint64(integer(v[10])), open
		var pos [lanes]uint64
		for l := range lanes {
			pos[l] = uint64(integer(v[5+l])) & maxSeq
		}
		if c.heads, err = parseHeads(pos, blob(v[9]), open); err != nil {
			return fmt.Errorf("consumer %d: %w", slot, err)
		}
		for l := range lanes {
			s.nextSeq = max(s.nextSeq, c.heads[l][len(c.heads[l])-1].next)
		}
		if kind == Uplink {
			if n := len(open); n > 0 { // the next number follows; more were left out when it was saved
				c.ord = open[n-1].ord
			}
			c.rewindLocked()
		}
		c.untidy = kind == SessionLog
		s.slots[slot], s.names[c.name] = c, c
		s.lastSlot = max(s.lastSlot, int(slot))
		return nil
	})
}

// dense says whether leases are numbered one after the other, as leaseLocked
// counts on.
func dense(open []lease) bool {
	for i, e := range open {
		if e.ord != open[0].ord+uint64(i) {
			return false
		}
	}
	return true
}

// loadHeaders scans table seg and counts what waits for whom.
func (s *Store) loadHeaders() error {
	var bad []int64
	var hs []*header
	err := s.db.query(sqlHeaders, func(v []driver.Value) error {
		h, err := parseHeader(v)
		if err != nil {
			bad = append(bad, integer(v[0]))
			return nil
		}
		hs = append(hs, h)
		return nil
	})
	if err != nil {
		return err
	}
	for i, h := range hs {
		if i+1 < len(hs) && hs[i+1].lane == h.lane { // a wrong end must not take the next ones with it
			h.last = min(h.last, hs[i+1].first-1)
		}
		s.nextSeq = max(s.nextSeq, h.last+1)
		s.addSegmentLocked(h)
	}
	if s.nextSeq > maxSeq/2 { // at a million a second, a thousand years
		return fmt.Errorf("%w: the next number is %d", errDamaged, s.nextSeq)
	}
	s.head = s.nextSeq
	for _, id := range bad {
		s.keepBytes(id)
		s.count.damaged++
		if err := s.db.exec(sqlDeleteSeg, id); err != nil {
			return err
		}
	}
	for _, c := range s.slots {
		if c != nil && c.kind == Uplink {
			s.recount(c)
		}
	}
	return nil
}

func parseHeader(v []driver.Value) (*header, error) {
	id := integer(v[0])
	needs, err := parseNeeds(blob(v[6]))
	h := &header{first: uint64(id) & maxSeq, last: uint64(integer(v[1])), n: uint32(min(uint64(integer(v[2])), segRecords)), ts: integer(v[3]),
		boot: uint32(integer(v[4])), raw: uint32(min(uint64(integer(v[5])), maxRaw)), needs: needs,
		size: uint32(len(blob(v[6]))) + uint32(integer(v[7])), lane: uint8(id >> laneShift)}
	if err != nil || id < 0 || h.lane >= lanes || h.first == 0 || h.last < h.first || h.last >= maxSeq || h.n == 0 {
		return nil, errors.Join(errSegment, err)
	}
	return h, nil
}

func (s *Store) loadLosses() error {
	return s.db.query("SELECT id,slot,stream,boot,lo,hi,dropped,kept,bytes,reason,told FROM loss ORDER BY id", func(v []driver.Value) error {
		l := &loss{id: integer(v[0]), slot: int(integer(v[1])), stream: StreamID(integer(v[2])), boot: integer(v[3]),
			lo: uint64(integer(v[4])), hi: uint64(integer(v[5])), dropped: uint64(integer(v[6])), kept: uint64(integer(v[7])),
			bytes: integer(v[8]), reason: text(v[9]), told: integer(v[10]) != 0}
		if l.slot < 0 || l.slot >= maxConsumers {
			return nil
		}
		s.lastLoss = max(s.lastLoss, l.id)
		s.losses = append(s.losses, l)
		return nil
	})
}

// loadTables reads the names of the small tables.
func (s *Store) loadTables() error {
	t := &s.tables
	byID := map[int64]*sessionRow{}
	err := s.db.query("SELECT id,client FROM session", func(v []driver.Value) error {
		ses := &sessionRow{id: integer(v[0]), subs: map[string]int64{}}
		byID[ses.id], t.sessions[text(v[1])] = ses, ses
		t.nextID = max(t.nextID, ses.id+1)
		return nil
	})
	if err != nil {
		return err
	}
	err = s.db.query("SELECT id,filter FROM subscription", func(v []driver.Value) error {
		id := integer(v[0])
		if ses := byID[id>>subShift]; ses != nil {
			n := id & (1<<subShift - 1)
			ses.subs[text(v[1])] = n
			ses.next = max(ses.next, n+1)
			t.subs++
		}
		return nil
	})
	if err != nil {
		return err
	}
	err = s.db.query("SELECT id,topic,length(CAST(topic AS BLOB))+length(data)+length(payload) FROM retained", func(v []driver.Value) error {
		row := sized{integer(v[0]), integer(v[2])}
		t.retained[text(v[1])] = row
		t.retainedBytes += row.size
		t.nextRetained = max(t.nextRetained, row.id+1)
		return nil
	})
	if err != nil {
		return err
	}
	return s.db.query("SELECT id,key,length(CAST(key AS BLOB))+length(value) FROM fact ORDER BY id", func(v []driver.Value) error {
		row := sized{integer(v[0]), integer(v[2])}
		t.facts[text(v[1])] = row
		t.factOrder = append(t.factOrder, text(v[1]))
		t.factBytes += row.size
		t.nextFact = max(t.nextFact, row.id+1)
		return nil
	})
}

// startBoot closes the numbers of the former boot, writes the row of this one
// and drops boots that nothing names.
func (s *Store) startBoot() error {
	v, err := s.db.value("SELECT value FROM meta WHERE id=?", metaEpoch)
	if err != nil {
		return err
	}
	epoch := text(v)
	last, err := s.db.integer("SELECT value FROM meta WHERE id=?", metaBoot)
	if err != nil {
		return err
	}
	former := s.boots[last]
	if err := s.closeNumbers(former); err != nil {
		return err
	}
	s.boot = &boot{id: s.newBootID(), kernel: s.sys.bootID()}
	ops := []op{{sqlMeta, []any{metaBoot, "boot", s.boot.id}}}
	if epoch == "" {
		epoch = newEpoch()
		ops = append(ops, op{sqlMeta, []any{metaEpoch, "epoch", epoch}})
	}
	s.epoch = epoch
	s.boot.label = bootLabel(epoch, s.boot.id)
	s.boots[s.boot.id] = s.boot
	ops = append(ops, op{sqlBoot, s.boot.row()})
	ops = append(ops, s.takeNotes(former)...)
	for _, id := range s.unusedBoots() {
		delete(s.boots, id)
		ops = append(ops, op{sqlNoBoot, []any{id}})
	}
	return s.db.transaction(func() error { return s.db.all(ops) })
}

// newBootID is above all that were ever used in this file.
func (s *Store) newBootID() int64 {
	id := int64(1)
	for _, b := range s.boots {
		id = max(id, b.id+1)
	}
	return id
}

func newEpoch() string {
	var b [4]byte
	rand.Read(b[:])
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(b[:]))
}

func (b *boot) row() []any {
	return []any{b.id, b.label, b.kernel, b.offset.Milliseconds(), uint8(b.quality)}
}

// keptBoots is how many of the last boots stay without a segment.
const keptBoots = 8

func (s *Store) unusedBoots() []int64 {
	used := map[int64]bool{}
	for l := range s.lanes {
		for _, h := range s.lanes[l].segs {
			used[int64(h.boot)] = true
		}
	}
	for _, l := range s.losses {
		used[l.boot] = true
	}
	var ids []int64
	for id := range s.boots {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	ids = ids[:max(len(ids)-keptBoots, 0)]
	return slices.DeleteFunc(ids, func(id int64) bool { return used[id] })
}

// closeNumbers completes table stream with the segments that were committed
// after it was saved.
func (s *Store) closeNumbers(former *boot) error {
	if former == nil {
		return nil
	}
	upTo, err := s.db.integer("SELECT value FROM meta WHERE id=?", metaStreamsUpTo)
	if err != nil {
		return err
	}
	for l := range s.lanes {
		for _, h := range s.lanes[l].segs[s.lanes[l].find(uint64(upTo)):] {
			if h.dead || int64(h.boot) != former.id {
				continue
			}
			raw, err := s.fetch(h)
			if err != nil {
				continue // the reader finds it, too
			}
			cur := newCursor(raw, h.first)
			for v := (view{}); cur.next(&v) == nil; {
				s.closeRecord(former.id, v.list())
			}
		}
	}
	s.closingBoot, s.closingLast = former.label, map[string]uint64{}
	for _, st := range s.streams {
		if st.boot == former.id && st.last > 0 {
			s.closingLast[st.name] = st.last
		}
	}
	return nil
}

func (s *Store) closeRecord(bootID int64, ns []Number) {
	for _, n := range ns {
		if n.Stream == 0 || int(n.Stream) > len(s.streams) {
			continue
		}
		st := s.streams[n.Stream-1]
		if st.boot != bootID {
			st.boot, st.last = bootID, 0
		}
		if n.N > st.last {
			st.last, st.dirty = n.N, true
		}
	}
}

// Load hands out what an earlier process left, one change at a time: each
// session before its subscriptions and inbound ids, then retained messages,
// facts and released deliveries. It is called at start, before anything is
// appended; fn must not call the store. An error of fn ends it.
func (s *Store) Load(fn func(Change) error) error {
	s.io.Lock()
	defer s.io.Unlock()
	if s.db == nil {
		return nil
	}
	for _, q := range []struct {
		query string
		make  func(v []driver.Value) Change
	}{
		{"SELECT client,data FROM session ORDER BY id",
			func(v []driver.Value) Change { return Session{Client: text(v[0]), Data: blob(v[1])} }},
		{"SELECT s.client,u.filter,u.data FROM subscription u JOIN session s ON s.id=u.session ORDER BY u.id",
			func(v []driver.Value) Change {
				return Subscription{Client: text(v[0]), Filter: text(v[1]), Data: blob(v[2])}
			}},
		{"SELECT s.client,i.id&65535 FROM inbound i JOIN session s ON s.id=i.id>>16 ORDER BY i.id",
			func(v []driver.Value) Change { return Inbound{Client: text(v[0]), ID: uint16(integer(v[1]))} }},
		{"SELECT topic,data,payload FROM retained ORDER BY id",
			func(v []driver.Value) Change {
				return Retained{Topic: text(v[0]), Data: blob(v[1]), Payload: blob(v[2])}
			}},
		{"SELECT key,value FROM fact ORDER BY id",
			func(v []driver.Value) Change { return Fact{Key: text(v[0]), Value: blob(v[1])} }},
	} {
		if err := s.db.query(q.query, func(v []driver.Value) error { return fn(q.make(v)) }); err != nil {
			return fmt.Errorf("load %s: %w", s.path, err)
		}
	}
	for _, r := range s.released() {
		if err := fn(r); err != nil {
			return err
		}
	}
	return nil
}

// released lists what is owed to sessions.
func (s *Store) released() (rs []Released) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.slots {
		if c == nil || c.kind != SessionLog {
			continue
		}
		for _, e := range c.open {
			if e.state == stateReleased {
				rs = append(rs, Released{c.ID(), e.seq, uint16(e.ord)})
			}
		}
	}
	return rs
}
