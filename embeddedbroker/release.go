package embeddedbroker

import (
	"container/heap"
	"sync"
	"sync/atomic"
	"time"
)

// waker is somebody whose output may go on.
type waker interface{ wake() }

// releaser knows how far the store has flushed and wakes whoever waits for
// more. Entries are released in the order of Seq, so one number says it all.
type releaser struct {
	seq atomic.Uint64 // everything up to here is released

	mu      sync.Mutex
	waiting waitHeap

	sample  atomic.Uint64 // the entry whose commit is timed, 0 = none
	began   atomic.Int64  // ns, when it was appended
	average atomic.Int64  // ns, of what a commit took lately
}

// time begins to time the commit of an entry, one at a time.
func (r *releaser) time(seq Seq) {
	if r.sample.Load() == 0 {
		r.began.Store(time.Now().UnixNano())
		r.sample.Store(uint64(seq))
		if seq <= r.released() { // it was faster
			r.sample.CompareAndSwap(uint64(seq), 0)
		}
	}
}

// timed ends the timing when the entry is released.
func (r *releaser) timed(seq Seq) {
	at := r.sample.Load()
	if at == 0 || uint64(seq) < at {
		return
	}
	took := max(time.Now().UnixNano()-r.began.Load(), 0)
	if old := r.average.Load(); old != 0 {
		took = old + (took-old)/8
	}
	r.average.Store(took)
	r.sample.Store(0)
}

type waiting struct {
	seq Seq
	w   waker
}

func (r *releaser) released() Seq { return Seq(r.seq.Load()) }

// await wakes w when seq is released; false: it is already.
func (r *releaser) await(seq Seq, w waker) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if seq <= r.released() {
		return false
	}
	heap.Push(&r.waiting, waiting{seq, w})
	return true
}

// advance releases everything up to seq. It runs on the committer.
func (r *releaser) advance(seq Seq) {
	if seq <= r.released() {
		return
	}
	r.mu.Lock()
	r.seq.Store(uint64(seq))
	r.timed(seq)
	var up []waker
	for len(r.waiting) > 0 && r.waiting[0].seq <= seq {
		up = append(up, heap.Pop(&r.waiting).(waiting).w)
	}
	r.mu.Unlock()
	for _, w := range up {
		w.wake()
	}
}

// Committed makes the releaser the completion of entries that nobody asks for.
func (r *releaser) Committed(seq Seq, _ error) { r.advance(seq) }

type waitHeap []waiting

func (h waitHeap) Len() int           { return len(h) }
func (h waitHeap) Less(i, j int) bool { return h[i].seq < h[j].seq }
func (h waitHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *waitHeap) Push(x any)        { *h = append(*h, x.(waiting)) }
func (h *waitHeap) Pop() any {
	old := *h
	v := old[len(old)-1]
	old[len(old)-1] = waiting{}
	*h = old[:len(old)-1]
	return v
}
