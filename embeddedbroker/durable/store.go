package durable

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"busgate/buffer"
	"busgate/embeddedbroker"
)

// maxPending is how many bytes may wait for the disk before the store is busy; the
// buffer itself would block at 4 MiB, or at 65,536 appends and records, each of
// which counts for entryWeight here.
const (
	maxPending  = 3 << 20
	entryWeight = 64
)

// maxScratch is how much of the room for properties is kept for the next message.
const maxScratch = 4 << 10

// sessionPrefix keeps sessions apart from uplinks, whose names hold no slash.
const sessionPrefix = "session/"

// Store implements embeddedbroker.Store on a buffer.Store, which it does not
// own: whoever opened it closes it after the broker has ended.
type Store struct {
	s       *buffer.Store
	pending atomic.Int64 // bytes on their way to the disk

	order sync.Mutex // held over an Append: numbers and callbacks keep one order
	work  scratch    // guarded by order

	mu        sync.Mutex // after order
	consumers map[buffer.ConsumerID]*buffer.Consumer
	uplinks   map[buffer.ConsumerID]string // names, which are also those of their streams
	dropped   map[buffer.ConsumerID]uint64
}

var _ embeddedbroker.Store = (*Store)(nil)

// New makes a Store on s.
func New(s *buffer.Store) *Store {
	return &Store{s: s, consumers: map[buffer.ConsumerID]*buffer.Consumer{}, uplinks: map[buffer.ConsumerID]string{},
		dropped: map[buffer.ConsumerID]uint64{}}
}

// Uplink makes a consumer that was opened with its own options known, so that
// Register finds it instead of opening it again with the usual ones.
func (d *Store) Uplink(c *buffer.Consumer) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.consumers[c.ID()] = c
	d.uplinks[c.ID()] = c.Name()
}

// Restore hands out sessions and retained messages.
func (d *Store) Restore(o embeddedbroker.ConsumerOptions, v embeddedbroker.Visitor) error {
	sessions := map[string]*found{}
	at := func(client string) *found {
		f := sessions[client]
		if f == nil {
			f = &found{}
			sessions[client] = f
		}
		return f
	}
	released := map[buffer.ConsumerID][]embeddedbroker.MarkOut{}
	err := d.s.Load(func(c buffer.Change) error {
		switch c := c.(type) {
		case buffer.Session:
			return at(c.Client).decode(c.Data)
		case buffer.Subscription:
			return at(c.Client).subscribe(c)
		case buffer.Inbound:
			f := at(c.Client)
			f.in = append(f.in, c.ID)
		case buffer.Released:
			released[c.Consumer] = append(released[c.Consumer], embeddedbroker.MarkOut{
				Consumer: embeddedbroker.ConsumerID(c.Consumer), Seq: embeddedbroker.Seq(c.Seq), PID: c.Tag})
		case buffer.Retained:
			m, err := decodeRetained(c)
			if err != nil {
				return err
			}
			return v.Retained(m)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, client := range slices.Sorted(maps.Keys(sessions)) {
		f := sessions[client]
		if f.session.Client == "" { // its row was lost: what is left of it means nothing
			continue
		}
		id, err := d.Register(sessionPrefix+client, o)
		if err != nil {
			return err
		}
		f.session.Consumer = id
		if err := v.Session(f.session, f.subs, f.in, released[buffer.ConsumerID(id)]); err != nil {
			return err
		}
	}
	return nil
}

// Register creates or resumes a consumer; durable on return.
func (d *Store) Register(name string, o embeddedbroker.ConsumerOptions) (embeddedbroker.ConsumerID, error) {
	bo := buffer.ConsumerOptions{Kind: buffer.SessionLog, QuotaRecords: quota(int64(o.MaxMessages)), QuotaBytes: quota(o.MaxBytes)}
	if o.Uplink {
		if id, ok := d.uplink(name); ok {
			return id, nil
		}
		bo = buffer.ConsumerOptions{Kind: buffer.Uplink, Stream: name}
	}
	c, err := d.s.Consumer(name, bo)
	if err != nil {
		return 0, translate(err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.consumers[c.ID()] = c
	if o.Uplink {
		d.uplinks[c.ID()] = name
	}
	return embeddedbroker.ConsumerID(c.ID()), nil
}

// quota is a limit in the buffer's words: negative is none.
func quota(n int64) int64 {
	if n <= 0 {
		return -1
	}
	return n
}

func (d *Store) uplink(name string) (embeddedbroker.ConsumerID, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for id, n := range d.uplinks {
		if n == name {
			return embeddedbroker.ConsumerID(id), true
		}
	}
	return 0, false
}

// Forget removes an uplink.
func (d *Store) Forget(id embeddedbroker.ConsumerID) {
	if c := d.consumer(id); c != nil {
		d.drop(id)
		d.s.Forget(c.Name())
	}
}

func (d *Store) drop(id embeddedbroker.ConsumerID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.consumers, buffer.ConsumerID(id))
	delete(d.uplinks, buffer.ConsumerID(id))
	delete(d.dropped, buffer.ConsumerID(id))
}

func (d *Store) consumer(id embeddedbroker.ConsumerID) *buffer.Consumer {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.consumers[buffer.ConsumerID(id)]
}

// Busy says that what can wait should.
func (d *Store) Busy() bool { return d.pending.Load() > maxPending }

// Append queues the entry as one transaction.
func (d *Store) Append(e *embeddedbroker.Entry) error {
	if e.Msg != nil && !e.Part && d.Busy() {
		return embeddedbroker.ErrBusy
	}
	d.order.Lock()
	defer d.order.Unlock()
	defer d.work.forget()
	changes := d.changes(e)
	records := d.records(e)
	var t buffer.Ticket
	if e.Wait {
		t = d.s.Append(records, changes...)
	} else {
		t = d.s.AppendLazy(records, changes...)
	}
	if err := t.Err(); err != nil {
		return translate(err)
	}
	e.Seq = embeddedbroker.Seq(t.Seq() + uint64(max(len(records), 1)) - 1)
	size := weigh(records, changes)
	d.pending.Add(size)
	n := notes.Get().(*note)
	if n.told == nil {
		n.told = n.fire
	}
	n.d, n.size, n.done, n.seq = d, size, e.Done, e.Seq
	t.Then(n.told)
	return nil
}

// note is what is to be done when an entry is on disk.
type note struct {
	d    *Store
	size int64
	done embeddedbroker.Completion
	seq  embeddedbroker.Seq
	told func(error) // fire, made once
}

var notes = sync.Pool{New: func() any { return new(note) }}

func (n *note) fire(err error) {
	n.d.pending.Add(-n.size)
	done, seq := n.done, n.seq
	n.d, n.done = nil, nil
	notes.Put(n)
	if done != nil {
		done.Committed(seq, translate(err))
	}
}

// translate gives errors of the buffer the names that the broker knows.
func translate(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, buffer.ErrFull), errors.Is(err, buffer.ErrTooManyConsumers):
		return fmt.Errorf("%w: %v", embeddedbroker.ErrFull, err)
	case errors.Is(err, buffer.ErrReadOnly):
		return fmt.Errorf("%w: %v", embeddedbroker.ErrReadOnly, err)
	}
	return err
}

// Read fills one window of a session.
func (d *Store) Read(id embeddedbroker.ConsumerID, from embeddedbroker.Seq, w *embeddedbroker.Window) error {
	w.Deliveries, w.Next = w.Deliveries[:0], from
	c := d.consumer(id)
	if c == nil {
		return nil
	}
	rs, next, err := c.ReadFrom(uint64(from), w.MaxMessages, w.MaxBytes)
	if err != nil && !errors.Is(err, buffer.ErrForgotten) {
		return err
	}
	for i := range rs {
		dl, err := decodeDelivery(&rs[i], id)
		if err != nil {
			return fmt.Errorf("session %s: record %d: %w", strings.TrimPrefix(c.Name(), sessionPrefix), rs[i].Seq, err)
		}
		w.Deliveries = append(w.Deliveries, dl)
	}
	w.Next = max(from, embeddedbroker.Seq(next))
	return nil
}

// Settle takes off what a session has.
func (d *Store) Settle(id embeddedbroker.ConsumerID, floor embeddedbroker.Seq, done []embeddedbroker.Seq) {
	c := d.consumer(id)
	if c == nil {
		return
	}
	var ns []uint64
	for _, s := range done {
		ns = append(ns, uint64(s))
	}
	c.Settle(uint64(floor), ns)
}

// Usage is what waits for a consumer.
func (d *Store) Usage(id embeddedbroker.ConsumerID) (u embeddedbroker.Usage) {
	c := d.consumer(id)
	if c == nil {
		return u
	}
	u.Messages, u.Bytes = c.Pending()
	u.Dropped = d.lost(c)
	return u
}

// lost counts what a session lost. Its rows of the ledger are told here; those
// of an uplink are for whoever reports them upwards.
func (d *Store) lost(c *buffer.Consumer) uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, up := d.uplinks[c.ID()]; up {
		return 0
	}
	var ids []int64
	for _, l := range d.s.Losses(c) {
		d.dropped[c.ID()] += l.Dropped
		ids = append(ids, l.ID)
	}
	if len(ids) > 0 {
		d.s.Told(ids...)
	}
	return d.dropped[c.ID()]
}
