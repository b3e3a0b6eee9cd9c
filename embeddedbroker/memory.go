package embeddedbroker

import (
	"maps"
	"slices"
	"sort"
	"sync"
)

// Bounds of one consumer of a Memory that names none.
const (
	memoryMessages = 100_000
	memoryBytes    = 64 << 20
)

// Memory is the Store in RAM: it commits in Append and forgets everything with
// the process. It serves tests and gateways without a disk.
type Memory struct {
	order sync.Mutex // held over an Append and its completion: they keep one order

	mu        sync.Mutex
	seq       Seq
	last      ConsumerID
	names     map[string]ConsumerID
	consumers map[ConsumerID]*memConsumer
	sessions  map[string]*memSession
	retained  map[string]*Message
}

type memConsumer struct {
	name    string
	o       ConsumerOptions
	list    []memDelivery // in the order of Seq
	bytes   int64
	count   int
	dropped uint64
	marks   map[Seq]MarkOut
}

type memDelivery struct {
	Delivery
	gone bool
}

type memSession struct {
	s    Session
	subs map[string]Subscription
	in   map[uint16]bool
}

// NewMemory returns an empty store.
func NewMemory() *Memory {
	return &Memory{names: map[string]ConsumerID{}, consumers: map[ConsumerID]*memConsumer{},
		sessions: map[string]*memSession{}, retained: map[string]*Message{}}
}

// Restore hands out what a former Broker on the same Memory left.
func (m *Memory) Restore(_ ConsumerOptions, v Visitor) error {
	sessions, kept := m.snapshot()
	for _, s := range sessions {
		if err := v.Session(s.session, s.subs, s.in, s.out); err != nil {
			return err
		}
	}
	for _, msg := range kept {
		if err := v.Retained(msg); err != nil {
			return err
		}
	}
	return nil
}

// memRestored is one session as Restore hands it out.
type memRestored struct {
	session Session
	subs    []Subscription
	in      []uint16
	out     []MarkOut
}

// snapshot copies what is there, so that the visitor may use the store.
func (m *Memory) snapshot() (sessions []memRestored, kept []*Message) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, client := range slices.Sorted(maps.Keys(m.sessions)) {
		s := m.sessions[client]
		r := memRestored{session: s.s, in: slices.Sorted(maps.Keys(s.in))}
		for _, f := range slices.Sorted(maps.Keys(s.subs)) {
			r.subs = append(r.subs, s.subs[f])
		}
		if c := m.consumers[s.s.Consumer]; c != nil {
			for _, seq := range slices.Sorted(maps.Keys(c.marks)) {
				r.out = append(r.out, c.marks[seq])
			}
		}
		sessions = append(sessions, r)
	}
	for _, topic := range slices.Sorted(maps.Keys(m.retained)) {
		kept = append(kept, m.retained[topic])
	}
	return sessions, kept
}

// Register creates or resumes a consumer.
func (m *Memory) Register(name string, o ConsumerOptions) (ConsumerID, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if o.MaxMessages == 0 {
		o.MaxMessages = memoryMessages
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = memoryBytes
	}
	id, ok := m.names[name]
	if !ok {
		m.last++
		id = m.last
		m.names[name] = id
		m.consumers[id] = &memConsumer{name: name, marks: map[Seq]MarkOut{}}
	}
	m.consumers[id].o = o
	return id, nil
}

// Forget removes a consumer.
func (m *Memory) Forget(id ConsumerID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.forgetLocked(id)
}

func (m *Memory) forgetLocked(id ConsumerID) {
	if c := m.consumers[id]; c != nil {
		delete(m.names, c.name)
		delete(m.consumers, id)
	}
}

// Busy is never true.
func (m *Memory) Busy() bool { return false }

// Append keeps the entry and completes it before it returns.
func (m *Memory) Append(e *Entry) error {
	m.order.Lock()
	defer m.order.Unlock()
	m.mu.Lock()
	m.seq++
	e.Seq = m.seq
	for _, op := range e.Ops {
		m.apply(op, e)
	}
	for _, t := range e.Targets {
		if c := m.consumers[t.Consumer]; c != nil {
			c.add(Delivery{Seq: e.Seq, Msg: e.Msg, Ord: t.Ord, QoS: t.QoS, Retain: t.Retain, Shared: t.Shared, SubIDs: t.SubIDs})
		}
	}
	m.mu.Unlock()
	if e.Done != nil {
		e.Done.Committed(e.Seq, nil)
	}
	return nil
}

func (m *Memory) apply(op Op, e *Entry) {
	switch op := op.(type) {
	case SaveSession:
		if s := m.sessions[op.Session.Client]; s != nil {
			s.s = op.Session
			return
		}
		m.sessions[op.Session.Client] = &memSession{s: op.Session, subs: map[string]Subscription{}, in: map[uint16]bool{}}
	case DropSession:
		delete(m.sessions, op.Client)
		m.forgetLocked(op.Consumer)
	case SaveSubscription:
		if s := m.sessions[op.Client]; s != nil {
			s.subs[op.Subscription.Filter] = op.Subscription
		}
	case DropSubscription:
		if s := m.sessions[op.Client]; s != nil {
			delete(s.subs, op.Filter)
		}
	case SaveRetained:
		if len(e.Msg.Payload) == 0 {
			delete(m.retained, e.Msg.Topic)
		} else {
			m.retained[e.Msg.Topic] = e.Msg
		}
	case DropRetained:
		delete(m.retained, op.Topic)
	case MarkIn:
		if s := m.sessions[op.Client]; s != nil && op.Drop {
			delete(s.in, op.PID)
		} else if s != nil {
			s.in[op.PID] = true
		}
	case MarkOut:
		if c := m.consumers[op.Consumer]; c != nil {
			c.marks[op.Seq] = op
		}
	}
}

// Read fills one window.
func (m *Memory) Read(id ConsumerID, from Seq, w *Window) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	w.Deliveries = w.Deliveries[:0]
	w.Next = max(from, m.seq+1)
	c := m.consumers[id]
	if c == nil {
		return nil
	}
	bytes := 0
	for i := c.search(from); i < len(c.list); i++ {
		d := &c.list[i]
		if d.gone {
			continue
		}
		n := int(size(d.Msg))
		if len(w.Deliveries) > 0 && (len(w.Deliveries) >= w.MaxMessages || bytes+n > w.MaxBytes) {
			w.Next = d.Seq
			return nil
		}
		w.Deliveries = append(w.Deliveries, d.Delivery)
		bytes += n
	}
	return nil
}

// Settle takes off what a consumer has.
func (m *Memory) Settle(id ConsumerID, floor Seq, done []Seq) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.consumers[id]
	if c == nil {
		return
	}
	for i := range c.search(floor) {
		c.take(i)
	}
	for _, seq := range done {
		if i := c.search(seq); i < len(c.list) && c.list[i].Seq == seq {
			c.take(i)
		}
	}
	c.trim()
}

// Usage is what waits.
func (m *Memory) Usage(id ConsumerID) Usage {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.consumers[id]
	if c == nil {
		return Usage{}
	}
	return Usage{Messages: c.count, Bytes: c.bytes, Dropped: c.dropped}
}

func (c *memConsumer) search(seq Seq) int {
	return sort.Search(len(c.list), func(i int) bool { return c.list[i].Seq >= seq })
}

func (c *memConsumer) add(d Delivery) {
	c.list = append(c.list, memDelivery{Delivery: d})
	c.count++
	c.bytes += size(d.Msg)
	for i := 0; c.count > c.o.MaxMessages || c.bytes > c.o.MaxBytes && c.count > 1; i++ {
		if _, marked := c.marks[c.list[i].Seq]; !marked && !c.list[i].gone {
			c.take(i)
			c.dropped++
		}
	}
	c.trim()
}

// take notes that a delivery is needed no more.
func (c *memConsumer) take(i int) {
	d := &c.list[i]
	if d.gone {
		return
	}
	d.gone = true
	c.count--
	c.bytes -= size(d.Msg)
	delete(c.marks, d.Seq)
	d.Msg = nil
}

// trim gives back the room at the front.
func (c *memConsumer) trim() {
	n := 0
	for n < len(c.list) && c.list[n].gone {
		n++
	}
	switch {
	case n == len(c.list):
		c.list = c.list[:0]
	case n > len(c.list)/2 || n > 4096:
		c.list = append(c.list[:0], c.list[n:]...)
	}
}
