package main

import (
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"busgate/buffer"
)

// Growth of the heap before it is collected, in percent of what is alive.
const (
	quietGrowth = 100 // Go's own
	busyGrowth  = 400
)

// slowFlush is how long a flush takes on average where others are to run beside it.
const slowFlush = time.Millisecond

// besideFlushes lets others run while a slow disk flushes, also on one core. Go
// gives such a machine one processor, and a system call keeps it until the
// runtime looks, which is up to 10 ms later: for that long no client is heard
// and no bus is asked. On a fast disk one processor is better: a second one
// tears apart what would share a commit. Where GOMAXPROCS is set, somebody has
// decided.
func besideFlushes(s buffer.Stats) {
	if s.FlushTime < slowFlush*time.Duration(max(s.Flushes, 1)) || os.Getenv("GOMAXPROCS") != "" {
		return
	}
	if runtime.GOMAXPROCS(0) == 1 {
		runtime.GOMAXPROCS(2)
	}
}

// heapPace lets the heap grow further while it is collected often. Alive are
// two or three megabytes: at the full speed of the LAN they would be gone
// through a hundred times a second, which takes a sixth of a core. A gateway
// that is quiet keeps its few megabytes. GOMEMLIMIT holds for both.
type heapPace struct {
	often time.Duration // between two collections: busy from then on
	rare  time.Duration // between two collections: quiet again
	grow  func(percent int)

	mu      sync.Mutex
	last    time.Time // of the last collection
	busy    bool
	stopped bool
}

// paceHeap follows the collections of this process until stop is called. Where
// GOGC is set, somebody has decided, and nothing is done.
func paceHeap() (stop func()) {
	if os.Getenv("GOGC") != "" {
		return func() {}
	}
	h := &heapPace{often: 100 * time.Millisecond, rare: time.Second, grow: func(percent int) { debug.SetGCPercent(percent) }}
	h.follow()
	return h.stop
}

// follow has collected called once after each collection.
func (h *heapPace) follow() {
	runtime.AddCleanup(new(*heapPace), func(h *heapPace) {
		if h.collected(time.Now()) {
			h.follow()
		}
	}, h)
}

// collected notes a collection; false: there is nothing to follow any more.
func (h *heapPace) collected(now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stopped {
		return false
	}
	since := now.Sub(h.last)
	h.last = now
	switch {
	case !h.busy && since < h.often:
		h.busy = true
		h.grow(busyGrowth)
	case h.busy && since >= h.rare:
		h.busy = false
		h.grow(quietGrowth)
	}
	return true
}

// stop leaves the heap as it was found.
func (h *heapPace) stop() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stopped = true
	if h.busy {
		h.grow(quietGrowth)
	}
}
