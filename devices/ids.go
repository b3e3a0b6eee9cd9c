package devices

import (
	"slices"
	"time"
)

// idRing remembers the commands of one device by their ID.
type idRing struct {
	byID  map[string]*idEntry
	order []string
}

type idEntry struct {
	at     time.Time
	done   chan struct{}
	result Result
}

func (e *idEntry) finish(r Result) {
	e.result = r
	close(e.done)
}

// remember notes a command under its ID and says whether it is the first. The
// oldest of 1024 is forgotten.
func (f *Fleet) remember(c Command, now time.Time) (*idEntry, bool) {
	e := &idEntry{at: now, done: make(chan struct{})}
	if c.ID == "" {
		return e, true
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	ring := f.ids[c.Device]
	if ring == nil {
		ring = &idRing{byID: map[string]*idEntry{}}
		f.ids[c.Device] = ring
	}
	id := c.Point + "\x00" + c.ID
	if old := ring.byID[id]; old != nil && now.Sub(old.at) < idLife {
		return old, false
	}
	if len(ring.order) >= maxIDs {
		delete(ring.byID, ring.order[0])
		ring.order = ring.order[1:]
	}
	ring.order = append(slices.DeleteFunc(ring.order, func(s string) bool { return s == id }), id)
	ring.byID[id] = e
	return e, true
}

// forget drops a command that was never sent: the same ID may try again.
func (f *Fleet) forget(c Command, e *idEntry) {
	e.finish(Result{Code: "refused", Text: "the first command with this id was not sent"})
	f.mu.Lock()
	defer f.mu.Unlock()
	if ring := f.ids[c.Device]; ring != nil {
		id := c.Point + "\x00" + c.ID
		if ring.byID[id] == e {
			delete(ring.byID, id)
			ring.order = slices.DeleteFunc(ring.order, func(s string) bool { return s == id })
		}
	}
}
