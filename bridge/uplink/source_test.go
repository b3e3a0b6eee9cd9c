package uplink

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"busgate/buffer"
	"busgate/embeddedbroker"
)

// fakeStore is a Source that knows what a kill leaves: acknowledgements are
// durable when save is called, or at once if noted, up to the first that is
// missing; releases when their answer comes, though Owed tells of them before.
// Record i has ord base+i+1.
type fakeStore struct {
	mu       sync.Mutex
	base     uint64
	window   int
	records  []buffer.Record
	leased   int // records handed out ever
	backlog  []buffer.Record
	puts     uint64
	again    []uint64
	acked    map[uint64]bool
	saved    map[uint64]bool // acked, on disk
	asked    map[uint64]bool // released, on disk or not yet
	released map[uint64]bool // on disk
	answers  []func()        // of Release and Unrelease, not yet given; only with manual
	manual   bool            // answers wait for commit
	delay    time.Duration   // of an answer; 0 = at once
	dead     bool
	wake     chan struct{}
	saveAt   int // acks until the next save, counted down
	every    int // acks between two saves; 0 = only by save
	noted    bool
	twice    []uint64
	fail     error // of releases
	acking   func(n int)
	nextErr  error
}

func newFakeStore(base uint64, window int) *fakeStore {
	return &fakeStore{
		base: base, window: window, acked: map[uint64]bool{}, saved: map[uint64]bool{}, asked: map[uint64]bool{}, released: map[uint64]bool{},
		wake: make(chan struct{}),
	}
}

// put appends a record with a stream number.
func (f *fakeStore) put(topic string, payload []byte, kind embeddedbroker.Kind) {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := uint64(len(f.records))
	f.puts++
	f.records = append(f.records, buffer.Record{
		Ord: f.base + i + 1, Topic: topic, Payload: payload, QoS: 1, Kind: uint8(kind), Boot: "k3qz7aa-12",
		Numbers: []buffer.Number{{Stream: 1, N: f.puts}}, At: time.Now(),
	})
	f.signalLocked()
}

func (f *fakeStore) fill(n int) {
	for i := range n {
		f.put("t", fmt.Appendf(nil, "%d", i), embeddedbroker.KindLAN)
	}
}

func (f *fakeStore) signalLocked() {
	close(f.wake)
	f.wake = make(chan struct{})
}

func (f *fakeStore) openLocked() int {
	n := 0
	for i := f.doneLocked(); i < f.leased; i++ {
		if !f.acked[f.base+uint64(i)+1] {
			n++
		}
	}
	return n
}

// doneLocked is the number of records completed from the first on.
func (f *fakeStore) doneLocked() int {
	i := 0
	for i < f.leased && f.acked[f.base+uint64(i)+1] {
		i++
	}
	return i
}

func (f *fakeStore) take(max int) []buffer.Record {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []buffer.Record
	for len(f.again) > 0 && len(out) < max {
		r := f.records[f.again[0]-f.base-1]
		f.again = f.again[1:]
		r.Dup = true
		out = append(out, r)
	}
	room := f.window - f.openLocked()
	for len(out) < max && room > 0 && f.leased < len(f.records) {
		out = append(out, f.records[f.leased])
		f.leased++
		room--
	}
	return out
}

func (f *fakeStore) Next(ctx context.Context, max int) ([]buffer.Record, error) {
	for {
		f.mu.Lock()
		wake, dead, err := f.wake, f.dead, f.nextErr
		f.mu.Unlock()
		if err != nil {
			return nil, err
		}
		if !dead {
			if rs := f.take(max); len(rs) > 0 {
				return rs, nil
			}
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-wake:
		}
	}
}

func (f *fakeStore) Ack(ords ...uint64) {
	if f.acking != nil {
		f.acking(len(ords))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dead {
		return
	}
	for _, o := range ords {
		if f.acked[o] || o <= f.base || o > f.base+uint64(f.leased) {
			f.twice = append(f.twice, o)
		}
		f.acked[o] = true
		if f.saveAt--; f.every > 0 && f.saveAt <= 0 {
			f.saveLocked()
			f.saveAt = f.every
		}
	}
	f.signalLocked()
}

func (f *fakeStore) saveLocked() {
	for o := range f.acked {
		f.saved[o] = true
	}
}

func (f *fakeStore) save() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.saveLocked()
}

func (f *fakeStore) answer(do func(), then func(error)) {
	run := func() {
		f.mu.Lock()
		dead, err := f.dead, f.fail
		if !dead && err == nil {
			do()
		}
		f.mu.Unlock()
		if !dead {
			then(err)
		}
	}
	switch {
	case f.manual:
		f.answers = append(f.answers, run)
	case f.delay > 0:
		time.AfterFunc(f.delay, run)
	default:
		run()
	}
}

// commit gives one answer that waits.
func (f *fakeStore) commit() bool {
	if len(f.answers) == 0 {
		return false
	}
	run := f.answers[0]
	f.answers = f.answers[1:]
	run()
	return true
}

func (f *fakeStore) Release(then func(error), ords ...uint64) {
	ords = slices.Clone(ords)
	f.mu.Lock()
	for _, o := range ords {
		f.asked[o] = true
	}
	f.mu.Unlock()
	f.answer(func() {
		for _, o := range ords {
			f.released[o] = true
		}
	}, then)
}

func (f *fakeStore) Unrelease(then func(error)) {
	f.mu.Lock()
	clear(f.asked)
	f.mu.Unlock()
	f.answer(func() { clear(f.released) }, then)
}

func (f *fakeStore) Rewind() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dead {
		return
	}
	f.again = nil
	for i := f.doneLocked(); i < f.leased; i++ {
		if o := f.base + uint64(i) + 1; !f.acked[o] && !f.asked[o] {
			f.again = append(f.again, o)
		}
	}
	f.signalLocked()
}

func (f *fakeStore) Owed() []buffer.Owed {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []buffer.Owed
	for i := f.doneLocked(); i < f.leased; i++ {
		if o := f.base + uint64(i) + 1; !f.acked[o] {
			out = append(out, buffer.Owed{Ord: o, Released: f.asked[o]})
		}
	}
	return out
}

// usage is what waits, leased or not.
func (f *fakeStore) usage() (int, int64, time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := len(f.records) - f.leased + f.openLocked() + len(f.backlog)
	return n, int64(n) * 10, 0
}

// empty tells that everything is acknowledged.
func (f *fakeStore) empty() bool {
	n, _, _ := f.usage()
	return n == 0
}

// drained waits until everything is acknowledged.
func (f *fakeStore) drained(ctx context.Context) {
	for {
		f.mu.Lock()
		wake := f.wake
		f.mu.Unlock()
		if n, _, _ := f.usage(); n == 0 {
			return
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return
		}
	}
}

// kill makes the store deaf and returns what another process finds.
func (f *fakeStore) kill() *fakeStore {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dead = true
	g := newFakeStore(f.base, f.window)
	g.records, g.leased, g.every, g.noted, g.delay, g.manual = f.records, f.leased, f.every, f.noted, f.delay, f.manual
	for i := range f.doneLocked() {
		if f.noted {
			f.saved[f.base+uint64(i)+1] = true
		}
	}
	for o := range f.saved {
		g.acked[o], g.saved[o] = true, true
	}
	for o := range f.released {
		if !g.acked[o] {
			g.asked[o], g.released[o] = true, true
		}
	}
	for i := g.doneLocked(); i < g.leased; i++ {
		if o := g.base + uint64(i) + 1; !g.acked[o] && !g.released[o] {
			g.again = append(g.again, o)
		}
	}
	g.twice, g.puts, g.backlog = f.twice, f.puts, f.backlog
	return g
}

// Live makes take give the records from now on; NextBacklog gives the rest.
func (f *fakeStore) Live() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.leased < len(f.records) {
		f.backlog = append(f.backlog, f.records[f.leased])
		f.records = append(f.records[:f.leased:f.leased], f.records[f.leased+1:]...)
	}
}

// NextBacklog gives ords after those given before, as the store does.
func (f *fakeStore) NextBacklog(ctx context.Context, max int) ([]buffer.Record, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []buffer.Record
	for room := f.window - f.openLocked(); len(out) < max && room > 0 && len(f.backlog) > 0; room-- {
		r := f.backlog[0]
		f.backlog = f.backlog[1:]
		f.records = slices.Insert(f.records, f.leased, r)
		f.leased++
		r.Ord = f.base + uint64(f.leased)
		f.records[f.leased-1].Ord = r.Ord
		for i := f.leased; i < len(f.records); i++ {
			f.records[i].Ord = f.base + uint64(i) + 1
		}
		out = append(out, r)
	}
	if len(out) == 0 {
		return nil, ctx.Err()
	}
	return out, nil
}
