package console

import (
	"context"
	"sync"
	"time"
)

// Room is a part of the gateway. Alive returns nil when it has given a sign of
// life, or says why there is none; a part that is stuck may hold it for ever.
type Room struct {
	Name  string
	Alive func(context.Context) error
}

const (
	askEvery = 3 * time.Second
	patience = 10 * time.Second // without a sign of life
)

// health knows when each room last made progress.
type health struct {
	rooms []Room

	mu   sync.Mutex
	seen []time.Time // of each room; zero before start
}

func newHealth(rooms []Room) *health {
	return &health{rooms: rooms, seen: make([]time.Time, len(rooms))}
}

// start asks each room by a goroutine of its own, until ctx ends: one that is
// stuck holds up no other.
func (h *health) start(ctx context.Context, wg *sync.WaitGroup) {
	for i := range h.rooms {
		h.note(i)
		wg.Go(func() { h.ask(ctx, i) })
	}
}

func (h *health) ask(ctx context.Context, i int) {
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for {
		if h.rooms[i].Alive(ctx) == nil {
			h.note(i)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (h *health) note(i int) {
	now := time.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seen[i] = now
}

// stuck names the first room without progress; "" when there is none.
func (h *health) stuck() string {
	now := time.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, at := range h.seen {
		if !at.IsZero() && now.Sub(at) > patience {
			return h.rooms[i].Name
		}
	}
	return ""
}
