package devices

import (
	"sync"
	"time"
)

// Mark says what a frame on a wire was.
type Mark string

const (
	MarkOK      Mark = "ok"      // a request of ours, or the answer to it
	MarkCRC     Mark = "crc"     // damaged, or broken off
	MarkForeign Mark = "foreign" // a good frame that nobody here asked for
	MarkLate    Mark = "late"    // an answer after its time, thrown away
	MarkStray   Mark = "stray"   // bytes that are no frame, or stand before one
	MarkEcho    Mark = "echo"    // what we sent, heard again
	MarkSilence Mark = "silence" // no bytes: the answer that did not come
)

// Frame is what one party on a wire said, for those who watch.
type Frame struct {
	At   time.Time // end of its last byte, as far as known
	Out  bool      // we sent it
	Data []byte    // with the check of RTU; over Modbus TCP from the unit on; nil for a silence
	Gap  time.Duration
	RTT  time.Duration // of an answer: end of the request to its first byte; of a silence: how long was waited
	Mark Mark
}

// maxFrames bounds the frames that a Tap remembers, and those that wait for one who watches.
const maxFrames = 256

// Tap is the place where the frames of one bus can be watched. It remembers the
// newest 256. Who watches and does not read loses frames, which are counted;
// the bus never waits. Safe for concurrent use; a nil Tap takes nothing.
type Tap struct {
	mu       sync.Mutex
	ring     [maxFrames]Frame
	n        uint64 // frames ever noted
	watchers map[chan Frame]struct{}
	dropped  uint64
}

// Note shows a frame; Data is copied.
func (t *Tap) Note(f Frame) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	slot := &t.ring[t.n%maxFrames]
	room := slot.Data
	*slot = f
	slot.Data = append(room[:0], f.Data...)
	t.n++
	if len(t.watchers) == 0 {
		return
	}
	f.Data = append([]byte(nil), f.Data...)
	for w := range t.watchers {
		select {
		case w <- f:
		default:
			t.dropped++
		}
	}
}

// Watch gives the frames so far, oldest first, and those to come until stop is called.
func (t *Tap) Watch() (past []Frame, coming <-chan Frame, stop func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := t.n - min(t.n, maxFrames); i < t.n; i++ {
		f := t.ring[i%maxFrames]
		f.Data = append([]byte(nil), f.Data...)
		past = append(past, f)
	}
	w := make(chan Frame, maxFrames)
	if t.watchers == nil {
		t.watchers = map[chan Frame]struct{}{}
	}
	t.watchers[w] = struct{}{}
	return past, w, sync.OnceFunc(func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.watchers, w)
	})
}

// Dropped counts the frames that somebody who watched did not take in time.
func (t *Tap) Dropped() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.dropped
}
