package buffer

import (
	"fmt"
	"slices"
	"time"
)

const (
	batchBytes   = 4 << 20
	batchRecords = 65536                // appends and records
	maxVacant    = 4                    // buffers kept for the next builders
	linger       = 5 * time.Millisecond // the most that a commit waits for those who may join it
)

// batch is what the next transaction writes: collected under Store.mu, then
// owned by the committer.
type batch struct {
	segs  []*builder
	open  [lanes]*builder // the one of each lane that still takes records
	ops   []op            // changes of tables, in order
	at    map[int64]int   // rows of table retained written here: index into ops
	save  map[*Consumer]bool
	drops []*Consumer // forgotten here: their slots are free afterwards
	tops  []Number    // highest number of each stream

	bytes, opBytes int
	entries        int
	large          bool      // at least one full segment: commit
	began          time.Time // first entry
	waiters        int
	waiting        time.Time // first waiter
	last           uint64    // highest number given out
	asked          time.Time // when mono was the time since the kernel started
	mono           time.Duration

	thens []func(error)
	fired bool
	err   error
	done  chan struct{}
}

// op is one statement of a transaction.
type op struct {
	query string
	args  []any
}

func newBatch() *batch {
	return &batch{at: map[int64]int{}, save: map[*Consumer]bool{}, done: make(chan struct{})}
}

func (b *batch) empty() bool { return b.entries == 0 && len(b.save) == 0 }
func (b *batch) full() bool  { return b.bytes+b.opBytes >= batchBytes || b.entries >= batchRecords }

// Append queues records and changes as one transaction and asks for its commit
// now. It copies them and does not wait, except when a batch of 4 MiB or 65,536
// entries waits already. The records get consecutive numbers from Ticket.Seq
// on; an Append without records takes one number. Consumers in To that do not
// exist are left out; a record for nobody is not stored. Safe for concurrent use.
func (s *Store) Append(rs []Record, cs ...Change) Ticket { return s.append(rs, cs, true) }

// AppendLazy is Append for what nobody waits for: it is committed with the
// next Append, or after Limits.Sync.
func (s *Store) AppendLazy(rs []Record, cs ...Change) Ticket { return s.append(rs, cs, false) }

func (s *Store) append(rs []Record, cs []Change, wait bool) Ticket {
	if err := s.check(rs); err != nil {
		return Ticket{s: s, err: err}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if err := s.admitLocked(rs, cs, wait); err != nil {
			return Ticket{s: s, err: err}
		}
		if !s.batch.full() {
			break
		}
		s.room.Wait()
	}
	b := s.batch
	t := Ticket{s: s, b: b, seq: s.nextSeq}
	var set []byte
	for i := range rs {
		if i == 0 || !slices.Equal(rs[i].To, rs[i-1].To) {
			set = s.setLocked(rs[i].To)
		}
		s.addLocked(&rs[i], set, s.boot.id)
	}
	if len(rs) == 0 {
		s.nextSeq++
	}
	b.last = s.nextSeq - 1
	for _, c := range cs {
		s.changeLocked(c)
	}
	s.queuedLocked(max(len(rs), 1), wait)
	if s.state == stateReadOnly {
		return Ticket{s: s, seq: t.seq, err: ErrReadOnly, kept: true}
	}
	return t
}

// check refuses records that no segment can hold.
func (s *Store) check(rs []Record) error {
	for i := range rs {
		r := &rs[i]
		switch size := len(r.Topic) + len(r.Payload) + len(r.Props); {
		case size > s.o.MaxMessage:
			return fmt.Errorf("%w: record of %d bytes exceeds max_message %d", ErrTooLarge, size, s.o.MaxMessage)
		case len(r.Topic) > maxTopic:
			return fmt.Errorf("%w: topic of %d bytes exceeds %d", ErrTooLarge, len(r.Topic), maxTopic)
		case len(r.Numbers) > maxNumbers:
			return fmt.Errorf("%w: %d stream numbers exceed %d", ErrTooLarge, len(r.Numbers), maxNumbers)
		case r.Lane >= lanes || r.Level > maxLevel || r.QoS > flagQoS:
			return fmt.Errorf("lane %d, level %d, qos %d: out of range", r.Lane, r.Level, r.QoS)
		}
	}
	return nil
}

// admitLocked refuses an Append as a whole.
func (s *Store) admitLocked(rs []Record, cs []Change, wait bool) error {
	switch {
	case s.closing:
		return ErrClosed
	case s.state == stateReadOnly && (wait || len(cs) > 0 && s.batch.opBytes >= batchBytes/2):
		return ErrReadOnly
	case s.fullErr != nil && wait && s.overLocked() != "" && slices.ContainsFunc(rs, func(r Record) bool { return len(s.setLocked(r.To)) > 0 }):
		return s.fullErr
	}
	return s.tables.admit(cs, s.limits)
}

// queuedLocked counts n entries and wakes the committer when its plan changes.
func (s *Store) queuedLocked(n int, wait bool) {
	b := s.batch
	if b.entries == 0 {
		b.began = time.Now()
		signal(s.wake)
	} else if s.state == stateReadOnly { // what is left of it made no plan for records
		signal(s.wake)
	}
	b.entries += n
	if wait {
		s.urgeLocked()
	}
	if b.bytes+b.opBytes >= segBytes && !b.large {
		b.large = true
		signal(s.wake)
	}
}

// urgeLocked counts somebody who waits for the running batch.
func (s *Store) urgeLocked() {
	if s.batch.waiters == 0 {
		s.batch.waiting = time.Now()
		signal(s.wake)
	}
	if s.batch.waiters++; s.batch.waiters == s.expect {
		signal(s.wake)
	}
}

// persistLocked asks for a commit that holds the state of c.
func (s *Store) persistLocked(c *Consumer) Ticket {
	if s.closing {
		return Ticket{s: s, err: ErrClosed}
	}
	s.batch.save[c] = true
	s.batch.last = max(s.batch.last, s.nextSeq-1)
	s.queuedLocked(1, true)
	return Ticket{s: s, b: s.batch, seq: s.nextSeq}
}

// addLocked gives a record of a boot, for the consumers of set, its number and
// puts it into the batch.
func (s *Store) addLocked(r *Record, set []byte, boot int64) {
	r2 := *r
	r = &r2
	r.Seq = s.nextSeq
	s.nextSeq++
	if len(set) == 0 {
		s.count.unwanted++
		return
	}
	if s.fullErr != nil && s.overLocked() != "" {
		s.refuseLocked(r)
		return
	}
	b, numbers := s.batch, r.Numbers
	if boot != s.boot.id {
		numbers = nil
	} else {
		if r.Mono == 0 {
			r.Mono = s.monoLocked()
		}
		if r.At.IsZero() && s.clock.known {
			r.At = s.clock.at(r.Mono)
		}
	}
	for _, n := range numbers {
		i := slices.IndexFunc(b.tops, func(t Number) bool { return t.Stream == n.Stream })
		if i < 0 {
			b.tops = append(b.tops, n)
		} else {
			b.tops[i].N = max(b.tops[i].N, n.N)
		}
	}
	sb := b.open[r.Lane]
	at, fits := sb.place(set, r.bound())
	if !fits || sb.boot != boot {
		sb, at = &builder{lane: r.Lane, boot: boot, raw: s.vacantLocked()}, 0
		b.open[r.Lane] = sb
		b.segs = append(b.segs, sb)
	}
	before := len(sb.raw)
	s.scratch = sb.put(s.scratch, r, set, at)
	b.bytes += len(sb.raw) - before
}

// vacantLocked is an empty buffer for the records of a builder; nil: none is left.
func (s *Store) vacantLocked() []byte {
	n := len(s.vacant)
	if n == 0 {
		return nil
	}
	raw := s.vacant[n-1]
	s.vacant[n-1] = nil
	s.vacant = s.vacant[:n-1]
	return raw[:0]
}

// vacateLocked keeps the buffer of a builder that was packed for the next one.
func (s *Store) vacateLocked(raw []byte) {
	if len(s.vacant) < maxVacant && cap(raw) <= 2*segBytes {
		s.vacant = append(s.vacant, raw)
	}
}

// monoLocked is the time for the stamps of a batch: its first record asks the
// kernel, whose answer costs more than the rest of an Append, and the others
// count on from there.
func (s *Store) monoLocked() time.Duration {
	b := s.batch
	if b.asked.IsZero() {
		b.asked, b.mono = time.Now(), s.sys.mono()
	}
	return b.mono + time.Since(b.asked)
}

// refuseLocked drops a record that nobody waits for and that has no room: the
// newest, because nothing older may go.
func (s *Store) refuseLocked(r *Record) {
	for _, id := range r.To {
		c := s.byIDLocked(id)
		if c == nil {
			continue
		}
		var n uint64
		for _, k := range r.Numbers {
			if k.Stream == c.stream {
				n = k.N
			}
		}
		s.loseLocked(c, s.boot.id, n, n, 1, 0, int64(len(r.Topic)+len(r.Payload)+len(r.Props)), s.overLocked())
	}
}

// bound is about the most that the encoding of a record takes; numbers of many
// streams may exceed it, which only makes a segment a little larger.
func (r *Record) bound() int {
	const overhead = 64
	return len(r.Topic) + len(r.Payload) + len(r.Props) + overhead
}

// setLocked is the set of the consumers in ids that exist; valid until the next call.
func (s *Store) setLocked(ids []ConsumerID) []byte {
	clear(s.setBuf[:])
	n := 0
	for _, id := range ids {
		if c := s.byIDLocked(id); c != nil {
			s.setBuf[c.slot>>3] |= 1 << (c.slot & 7)
			n = max(n, c.slot>>3+1)
		}
	}
	return s.setBuf[:n]
}

// byIDLocked finds a living consumer.
func (s *Store) byIDLocked(id ConsumerID) *Consumer {
	if id == 0 || id > maxConsumers {
		return nil
	}
	return s.slots[id-1]
}

// do adds a statement to the batch.
func (b *batch) do(query string, args ...any) {
	b.ops = append(b.ops, op{query, args})
	b.opBytes += 16
	for _, a := range args {
		switch v := a.(type) {
		case string:
			b.opBytes += len(v)
		case []byte:
			b.opBytes += len(v)
		}
	}
}
