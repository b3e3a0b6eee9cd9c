package buffer

import (
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"time"
)

// mark is where a consumer stopped decoding a segment.
type mark struct {
	h   *header
	cur cursor // without its bytes
}

// findLocked is the first living segment of a lane that c needs and that may
// hold records in [from, to); nil: none.
func (c *Consumer) findLocked(l int, from, to uint64) *header {
	ln := &c.s.lanes[l]
	for _, h := range ln.segs[ln.find(from):] {
		if h.first >= to {
			return nil
		}
		if !h.dead && h.has(c.slot) && c.needsLocked(h) {
			return h
		}
	}
	return nil
}

// load gives the raw records of a segment, from RAM or the disk. It must be
// called without Store.mu.
func (s *Store) load(h *header) ([]byte, error) {
	s.mu.Lock()
	raw := h.ram
	if raw == nil {
		raw = s.cache.get(h)
	}
	s.mu.Unlock()
	if raw != nil {
		return raw, nil
	}
	s.io.Lock()
	raw, err := s.fetch(h)
	s.io.Unlock()
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if h.dead { // rewritten meanwhile: what has its id now may be another
		return nil, fmt.Errorf("read segment %#x: %w", h.id(), errMissing)
	}
	s.cache.put(h, raw)
	s.count.reads++
	return raw, nil
}

var errMissing = errors.New("segment is missing")

// fetch reads, checks and inflates one row. Its caller owns Store.io. A row
// that is not as it was written gives errSegment or errMissing.
func (s *Store) fetch(h *header) ([]byte, error) {
	if s.db == nil {
		return nil, ErrReadOnly
	}
	found := false
	var needs, data []byte
	var sum int64
	err := s.db.query(sqlSelectSeg, func(v []driver.Value) error {
		found, needs, sum, data = true, blob(v[0]), integer(v[1]), blob(v[2])
		return nil
	}, h.id())
	switch {
	case err != nil:
		return nil, fmt.Errorf("read segment %#x: %w", h.id(), err)
	case !found:
		return nil, fmt.Errorf("read segment %#x: %w", h.id(), errMissing)
	case int64(checksum(needs, data)) != sum:
		return nil, fmt.Errorf("read segment %#x: %w: checksum", h.id(), errSegment)
	}
	raw, err := s.inflate.unpack(data)
	if err == nil {
		err = verify(raw, h.first, h.last, int(h.n), len(h.needs))
	}
	if err != nil {
		return nil, fmt.Errorf("read segment %#x: %w", h.id(), err)
	}
	return raw, nil
}

// mine says for each set of a segment whether it has the consumer.
func (h *header) mine(slot int) (m [maxNeeds]bool) {
	for i := range h.needs {
		m[i] = has(h.needs[i].set.Value(), slot)
	}
	return m
}

// from gives a cursor into raw that has not passed seq, as late as m allows.
func (m *mark) from(h *header, raw []byte, seq uint64) cursor {
	if m.h == h && m.cur.off > 0 && m.cur.at.seq < seq {
		cur := m.cur
		cur.raw = raw
		return cur
	}
	return newCursor(raw, h.first)
}

// walk calls fn for the records of h that wait for slot and are at or above
// seq, until fn returns false. It leaves m behind the last record that fn took.
func (m *mark) walk(h *header, raw []byte, slot int, seq uint64, fn func(v *view) bool) error {
	cur := m.from(h, raw, seq)
	mine := h.mine(slot)
	var v view
	for {
		before := cur
		err := cur.next(&v)
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if v.seq >= seq && mine[v.set] && !fn(&v) {
			cur = before
			break
		}
	}
	cur.raw = nil
	*m = mark{h, cur}
	return nil
}

// clock resolves times. Guarded by Store.mu.
type clock struct {
	known  bool
	offset time.Duration // UTC = Unix epoch + offset + mono
}

func (c *clock) at(mono time.Duration) time.Time {
	return time.Unix(0, 0).Add(c.offset + mono).UTC().Truncate(time.Millisecond)
}

// collector makes records of views; the bytes of all lie in memory of their own.
type collector struct {
	s      *Store
	boot   boot // a copy; zero: not known
	arena  []byte
	topics map[string]string
	last   string // topic
	rs     []Record
}

// expect makes room for n records, of the n of a segment with so many bytes.
func (k *collector) expect(n int, h *header) {
	n = min(n, int(h.n))
	k.rs = make([]Record, 0, n)
	k.arena = make([]byte, 0, int(h.raw)/int(h.n)*n)
}

// take appends a record. The boot must have been set for the segment.
func (k *collector) take(v *view) *Record {
	if len(k.rs) < cap(k.rs) {
		k.rs = k.rs[:len(k.rs)+1] // filled in place: a record is large
	} else {
		k.rs = append(k.rs, Record{})
	}
	r := &k.rs[len(k.rs)-1]
	r.Seq, r.QoS, r.Kind, r.Level = v.seq, uint8(v.flags&flagQoS), v.kind, v.level
	r.Retain, r.Thinnable = v.flags&flagRetain != 0, v.flags&flagThin != 0
	r.Topic, r.Payload, r.Props, r.Numbers = k.topic(v.topic), k.copy(v.payload), k.copy(v.props), v.list()
	r.Expires, r.Mono = fromMillis(v.expires), time.Duration(v.mono)*time.Millisecond
	switch {
	case v.wall != 0:
		r.At, r.Clock = fromMillis(v.wall), Clocked
	case k.boot.quality != NoTime:
		c := clock{offset: k.boot.offset}
		r.At, r.Clock = c.at(r.Mono), Redated
	}
	r.Boot = k.boot.label
	return r
}

func (k *collector) copy(b []byte) []byte {
	if len(b) == 0 {
		return nil
	}
	if len(b) > cap(k.arena)-len(k.arena) {
		k.arena = make([]byte, 0, max(4096, len(b)))
	}
	n := len(k.arena)
	k.arena = append(k.arena, b...)
	return k.arena[n:len(k.arena):len(k.arena)]
}

// topic shares equal topics among the records of one read.
func (k *collector) topic(b []byte) string {
	if string(b) == k.last {
		return k.last
	}
	t, ok := k.topics[string(b)]
	if !ok {
		if k.topics == nil {
			k.topics = map[string]string{}
		}
		t = string(b)
		k.topics[t] = t
	}
	k.last = t
	return t
}
