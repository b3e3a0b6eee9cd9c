package buffer

import "context"

// Ticket is the receipt of an Append. The zero Ticket is of nothing and fires
// at once.
type Ticket struct {
	s    *Store
	b    *batch
	seq  uint64
	err  error
	kept bool // in RAM, although err says that it is not on disk
}

// then is a callback with its answer.
type then struct {
	fn  func(error)
	err error
}

// Seq is the number of the first record of the Append, or its place in the
// order when it had none.
func (t Ticket) Seq() uint64 { return t.seq }

// Err is not nil when the Append was refused: ErrFull, ErrReadOnly, ErrClosed,
// ErrTooLarge. Nothing of it was kept then. A lazy Append to a store that is
// read-only is kept in RAM: Err is nil, Wait and Then give ErrReadOnly.
func (t Ticket) Err() error {
	if t.kept {
		return nil
	}
	return t.err
}

// Wait returns nil when everything is on disk. It asks for a commit now. When
// ctx ends the Append still goes on.
func (t Ticket) Wait(ctx context.Context) error {
	if t.b == nil {
		return t.err
	}
	t.s.mu.Lock()
	if t.b == t.s.batch && t.b.waiters == 0 {
		t.s.urgeLocked()
	}
	t.s.mu.Unlock()
	select {
	case <-t.b.done:
		return t.b.err
	default:
	}
	select {
	case <-t.b.done:
		return t.b.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Then calls fn once with the answer of Wait, on the store's own goroutine and
// in the order of the calls of Then. fn must not block and must not wait for
// the store.
func (t Ticket) Then(fn func(error)) {
	if t.s == nil {
		fn(t.err)
		return
	}
	t.s.mu.Lock()
	switch {
	case t.b != nil && !t.b.fired:
		t.b.thens = append(t.b.thens, fn)
	case !t.s.notified:
		t.s.fireLocked(then{fn, t.answer()})
	default: // closed: the notifier has left
		defer fn(t.answer())
	}
	t.s.mu.Unlock()
}

// answer is what a refused or finished Append came to.
func (t Ticket) answer() error {
	if t.b == nil {
		return t.err
	}
	return t.b.err
}

// fireLocked queues callbacks for the notifier.
func (s *Store) fireLocked(ts ...then) {
	s.fired = append(s.fired, ts...)
	signal(s.bell)
}

// notify runs callbacks until the store is closed.
func (s *Store) notify() {
	var todo []then
	for {
		clear(todo) // what it refers to may be large
		s.mu.Lock()
		todo, s.fired = s.fired, todo[:0]
		if len(todo) == 0 && s.stopped {
			s.notified = true
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		for _, t := range todo {
			t.fn(t.err)
		}
		if len(todo) == 0 {
			<-s.bell
		}
	}
}

// signal leaves a note in a channel of capacity 1.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
