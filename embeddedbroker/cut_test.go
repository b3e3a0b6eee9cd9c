package embeddedbroker

import (
	"slices"
	"sync"
	"testing"

	"busgate/embeddedbroker/packet"
)

// cutStore is a disk that dies after some entries: what came before is there,
// nothing after it ever completes.
type cutStore struct {
	*Memory

	mu   sync.Mutex
	left int           // entries until the end
	lost Seq           // entries after it
	dead chan struct{} // closed at the end
}

func (s *cutStore) Append(e *Entry) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.left <= 0 { // taken, and never on disk
		s.lost++
		e.Seq = 1<<40 + s.lost
		return nil
	}
	if s.left--; s.left == 0 {
		close(s.dead)
	}
	return s.Memory.Append(e)
}

func (s *cutStore) Register(name string, o ConsumerOptions) (ConsumerID, error) {
	if isStopped(s.dead) {
		return 0, ErrReadOnly
	}
	return s.Memory.Register(name, o)
}

func (s *cutStore) Settle(c ConsumerID, floor Seq, done []Seq) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.left > 0 {
		s.Memory.Settle(c, floor, done)
	}
}

// TestEveryCut lets the disk die behind each entry of a short script, with a
// connected subscriber, and goes on in a new process.
func TestEveryCut(t *testing.T) {
	for cut := 1; ; cut++ {
		store := &cutStore{Memory: NewMemory(), left: cut, dead: make(chan struct{})}
		one, two := newSender("one", 1, nil), newSender("two", 2, nil)
		r := &receiver{open: map[uint16]bool{}, got: map[string][]int{}}
		finished := make(chan struct{})
		first := start(t, store)
		var wg sync.WaitGroup
		wg.Go(func() {
			reading := script(first, one, two, r, false)
			close(finished)
			reading.Wait()
		})
		select {
		case <-store.dead:
		case <-finished:
		}
		first.stop()
		wg.Wait()
		complete := !isStopped(store.dead)
		second := start(t, store.Memory)
		script(second, one, two, r, true)
		second.stop()
		r.judge(t, one)
		r.judge(t, two)
		if t.Failed() {
			t.Fatalf("cut behind entry %d", cut)
		}
		if complete {
			t.Logf("%d cuts", cut-1)
			return
		}
	}
}

// script connects a subscriber and two publishers and lets each send a few
// messages. The first time it returns when all are acknowledged and leaves the
// subscriber reading; the last time when everything has arrived.
func script(rig *rig, one, two *sender, r *receiver, last bool) (reading *sync.WaitGroup) {
	reading = &sync.WaitGroup{}
	sub, ok := rig.loose(packet.V311, "sub", persistent)
	if !ok {
		return reading
	}
	sub.try(&packet.Subscribe{PID: 1, Filters: []packet.Filter{{Filter: "k/#", QoS: 2}}})
	if !sub.granted() {
		return reading
	}
	if !last {
		reading.Go(func() { r.run(sub, func() bool { return false }) })
	}
	var wg sync.WaitGroup
	for _, s := range []*sender{one, two} {
		if c, ok := rig.loose(packet.V311, s.id, persistent); ok {
			wg.Go(func() { s.run(c, 4) })
		}
	}
	wg.Wait()
	if last {
		r.run(sub, func() bool {
			a, b := r.got["k/one"], r.got["k/two"]
			return len(a) > 0 && len(b) > 0 && a[len(a)-1] == one.next && b[len(b)-1] == two.next
		})
	}
	return reading
}

// granted waits for SUBACK and takes it out of what has arrived; false when the
// connection ends before.
func (c *client) granted() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		for i, p := range c.got {
			if _, ok := p.(*packet.Suback); ok {
				c.got = slices.Delete(c.got, i, i+1)
				return true
			}
		}
		if c.err != nil {
			return false
		}
		c.cond.Wait()
	}
}
