package buffer

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
)

// Defaults and limits of consumers.
const (
	maxWindow          = 8192 // a lease is 24 bytes of RAM; packet ids repeat after 65,535
	defaultWindow      = 100
	defaultWindowExact = 20

	defaultQuotaBytes   = 64 << 20
	defaultQuotaRecords = 100000

	// Of the column open. maxWindow leases fit even when no two of them make a
	// run; those of a window usually make a few.
	maxOpenBytes  = 128 << 10
	maxOpenLeases = 1 << 16 // read back of it
)

// Consumer is somebody durable that records wait for. All methods are safe for
// concurrent use; Next serves one caller at a time.
type Consumer struct {
	s    *Store
	slot int
	name string
	kind Kind
	live reader // of Next and ReadFrom
	late reader // of NextBacklog

	noting sync.Mutex // held while an Ack is noted; Store.mu may be taken under it
	note   []byte     // guarded by noting

	// guarded by Store.mu
	o       ConsumerOptions
	stream  StreamID
	start   uint64 // records below are not its own
	heads   [lanes][]head
	jumped  bool    // Live was called: Next reads the last heads of the readings
	open    []lease // an uplink's leases by ord, dense; a session's marks by seq
	ord     uint64  // highest number given to a delivery
	again   uint64  // leases from this ord on are handed out again
	streak  int     // windows taken in a row while a lower lane waited
	gen     uint64  // counts what makes a read in progress worthless
	n       int     // records that wait, see Pending
	bytes   int64
	acks    int    // since it was saved
	parts   []part // of a session, see tidy
	untidy  bool
	created Ticket
	lost    map[string]uint64 // by reason, since the start
	dirty   bool
	gone    bool
}

// reader is one place that a consumer reads at.
type reader struct {
	turn  chan struct{} // held by the running call
	wake  chan struct{} // there may be something new
	marks [lanes]mark   // guarded by Store.mu
}

func newReader() reader { return reader{turn: make(chan struct{}, 1), wake: make(chan struct{}, 1)} }

// State of a lease.
const (
	stateSent = iota
	stateReleased
	stateDone
)

// lease is a delivery that is not finished, or finished ahead of an older one.
type lease struct {
	ord   uint64 // of a session: the caller's tag
	seq   uint64
	size  uint32
	lane  uint8
	state uint8
}

// Consumer creates a consumer, durable on return, or resumes the one of that
// name with what waits for it. A new consumer gets records that are appended
// from now on. The options hold until the next call.
func (s *Store) Consumer(name string, o ConsumerOptions) (*Consumer, error) {
	if o.Window == 0 {
		o.Window = defaultWindow
		if o.Exact {
			o.Window = defaultWindowExact
		}
	}
	o.Window = min(max(o.Window, 1), maxWindow)
	if o.Kind == SessionLog && o.QuotaBytes == 0 {
		o.QuotaBytes = defaultQuotaBytes
	}
	if o.Kind == SessionLog && o.QuotaRecords == 0 {
		o.QuotaRecords = defaultQuotaRecords
	}
	stream := s.Stream(o.Stream)
	s.mu.Lock()
	c := s.names[name]
	if c != nil && c.kind != o.Kind {
		s.mu.Unlock()
		return nil, fmt.Errorf("consumer %q: it exists with another kind", name)
	}
	if s.closing {
		s.mu.Unlock()
		return nil, ErrClosed
	}
	isNew := c == nil
	if isNew {
		slot := s.freeSlotLocked()
		if slot < 0 {
			s.mu.Unlock()
			return nil, ErrTooManyConsumers
		}
		c = newConsumer(s, slot, name, o.Kind)
		c.beginLocked(s.nextSeq)
		s.slots[slot], s.names[name] = c, c
	}
	save := isNew || c.stream != stream.idOrZero()
	c.o, c.stream = o, stream.idOrZero()
	t := c.created // perhaps by a call that still waits
	if save {
		t = s.persistLocked(c)
		c.created = t
	}
	if s.state == stateReadOnly { // it lives in RAM until the disk is back
		t = Ticket{}
	}
	s.mu.Unlock()
	if err := t.Wait(context.Background()); err != nil {
		return nil, fmt.Errorf("consumer %q: %w", name, err)
	}
	return c, nil
}

func newConsumer(s *Store, slot int, name string, kind Kind) *Consumer {
	return &Consumer{s: s, slot: slot, name: name, kind: kind, again: 1, live: newReader(), late: newReader()}
}

// freeSlotLocked finds a slot, going round so that ids are reused late.
func (s *Store) freeSlotLocked() int {
	for i := range maxConsumers {
		slot := (s.lastSlot + 1 + i) % maxConsumers
		if s.slots[slot] == nil && !s.leaving[slot] {
			s.lastSlot = slot
			return slot
		}
	}
	return -1
}

// Forget removes a consumer; what waits for it alone is deleted. It joins the
// next commit; the ticket tells when that is on disk.
func (s *Store) Forget(name string) Ticket {
	s.mu.Lock()
	c := s.names[name]
	s.mu.Unlock()
	if c == nil {
		return Ticket{}
	}
	return s.Append(nil, Drop{c.ID()})
}

// forgetLocked takes the consumer out of RAM and queues the removal of its row.
func (s *Store) forgetLocked(c *Consumer) {
	for l := range s.lanes {
		segs := s.lanes[l].segs
		for _, h := range segs[s.lanes[l].find(c.posLocked(l)):] {
			if !h.dead && h.has(c.slot) && c.needsLocked(h) {
				s.passLocked(h)
			}
		}
	}
	c.gone, c.dirty = true, false
	c.n, c.bytes, c.open = 0, 0, nil
	s.forgetLossesLocked(c.slot)
	s.slots[c.slot] = nil
	s.leaving[c.slot] = true
	delete(s.names, c.name)
	s.batch.drops = append(s.batch.drops, c)
	s.batch.do(sqlNoConsumer, c.slot)
	c.wakeUp()
}

// ID is the name of the consumer in Record.To.
func (c *Consumer) ID() ConsumerID { return ConsumerID(c.slot + 1) }

// Name is what the consumer was registered as.
func (c *Consumer) Name() string { return c.name }

func (c *Consumer) wakeUp() {
	signal(c.live.wake)
	signal(c.late.wake)
}

func (c *Consumer) dirtyLocked() {
	c.dirty = true
	c.s.dirtyLocked()
}

// row is the arguments of sqlConsumer.
func (c *Consumer) row() []any {
	a := []any{c.slot, c.name, uint8(c.kind), uint32(c.stream), c.start}
	for l := range lanes {
		a = append(a, c.posLocked(l))
	}
	return append(a, appendSpans(nil, &c.heads), c.ord, appendLeases(nil, c.open))
}

// openRuns begins the column open when it is made of runs. Without it each entry
// is one lease, as it was written first: no lease has the number that a column
// of that form would begin with.
const openRuns = 1

// appendLeases writes the column open as runs of leases whose numbers follow each
// other, in one lane and state: a window of thousands is on disk in a few bytes.
// Of their sizes the sum is kept. What does not fit is left out from the end:
// those deliveries may be repeated after a restart.
func appendLeases(dst []byte, open []lease) []byte {
	if len(open) == 0 {
		return dst
	}
	dst = append(dst, openRuns)
	var at lease
	for i := 0; i < len(open); {
		l, n, size := open[i], 1, uint64(open[i].size)
		for ; i+n < len(open) && open[i+n].follows(l, n); n++ {
			size += uint64(open[i+n].size)
		}
		before := len(dst)
		dst = binary.AppendVarint(dst, int64(l.ord-at.ord))
		dst = binary.AppendVarint(dst, int64(l.seq-at.seq))
		dst = append(dst, l.lane|l.state<<2)
		dst = binary.AppendUvarint(dst, size)
		dst = binary.AppendUvarint(dst, uint64(n))
		if len(dst) > maxOpenBytes {
			return dst[:before]
		}
		i += n
		at = open[i-1]
	}
	return dst
}

// follows says whether a lease is the nth after from in a run.
func (l lease) follows(from lease, n int) bool {
	return l.ord == from.ord+uint64(n) && l.seq == from.seq+uint64(n) && l.lane == from.lane && l.state == from.state
}

// parseLeases reads the column open.
func parseLeases(b []byte) ([]lease, error) {
	f := fields{b: b}
	runs := len(b) > 0 && b[0] == openRuns
	if runs {
		f.byte()
	}
	var open []lease
	var at lease
	for len(f.b) > 0 {
		at.ord += uint64(f.varint())
		at.seq += uint64(f.varint())
		x := f.byte()
		at.lane, at.state = x&3, x>>2
		size, n := f.uvarint(1<<45), uint64(1)
		if runs {
			n = f.uvarint(maxOpenLeases)
		}
		if f.bad || at.state > stateDone || n == 0 || len(open)+int(n) > maxOpenLeases || size/n >= 1<<31 {
			return nil, fmt.Errorf("%w: open deliveries", errDamaged)
		}
		for i := range n {
			at.size = uint32(size / n)
			if i == 0 {
				at.size += uint32(size % n)
			} else {
				at.ord, at.seq = at.ord+1, at.seq+1
			}
			open = append(open, at)
		}
	}
	return slices.Clip(open), nil
}
