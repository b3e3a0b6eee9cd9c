package buffer

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestReadersAgainstTheRewriter lets uplinks take and acknowledge while records
// are appended, the segments under them are joined and squeezed, and reconnects
// rewind what is being read. An ord names the same record for ever, no record
// has two, order holds in each lane, and all come: what was leased before a
// Rewind comes again.
func TestReadersAgainstTheRewriter(t *testing.T) {
	sys := quiet()
	sys.youngest, sys.manySmall = 1, 3
	var mono atomic.Int64
	sys.mono = func() time.Duration { return time.Duration(mono.Add(int64(10 * time.Second))) }
	sys.exec = func(query string) error {
		for range 50 { // a disk is slow: the others come first
			if query == sqlSelectSeg {
				runtime.Gosched()
			}
		}
		return nil
	}
	s := open(t, temp(t), Options{sys: sys})
	const n = 6000
	readers := []*raceReader{
		{c: consumer(t, s, "plain", ConsumerOptions{Window: 64})},
		{c: consumer(t, s, "exact", ConsumerOptions{Window: 20, Exact: true})},
		{c: consumer(t, s, "rare", ConsumerOptions{Window: 30}), every: 17},
	}
	ctx := t.Context() // a record that never comes ends the test by its timeout
	add := func(from, to int) {
		for i := from; i < to && ctx.Err() == nil; i++ {
			rec := Record{Lane: uint8(i % lanes), Topic: "t", Payload: fmt.Append(random(600), i)}
			for _, r := range readers {
				if r.wants(i) {
					rec.To = append(rec.To, r.c.ID())
				}
			}
			if k := s.Append([]Record{rec}); i%40 == 0 {
				wait(t, k)
			}
		}
	}
	add(0, n/2) // there must be something to rewrite
	var wg sync.WaitGroup
	for i, r := range readers {
		r.seqs, r.ords, r.owed = map[uint64]uint64{}, map[uint64]uint64{}, map[uint64]bool{}
		r.kick, r.rewound = make(chan struct{}), make(chan struct{})
		wg.Go(func() { r.err = r.run(ctx, n, rand.New(rand.NewPCG(uint64(i), 1))) })
		wg.Go(r.rewind)
	}
	appended := make(chan struct{})
	wg.Go(func() {
		defer close(appended)
		add(n/2, n)
	})
	wg.Go(func() {
		for ctx.Err() == nil {
			s.Sync(ctx) // each does the housekeeping
			select {
			case <-appended:
				if readers[0].done.Load() && readers[1].done.Load() && readers[2].done.Load() {
					return
				}
			default:
			}
		}
	})
	wg.Wait()
	for _, r := range readers {
		if r.err != nil {
			t.Errorf("%s: %v", r.c.Name(), r.err)
		}
	}
	if s.Stats().Rewritten == 0 {
		t.Error("nothing was rewritten meanwhile")
	}
}

// raceReader is an uplink and what it was given.
type raceReader struct {
	c     *Consumer
	every int               // wants each so manieth record; 0: all
	seqs  map[uint64]uint64 // by ord
	ords  map[uint64]uint64 // by seq
	owed  map[uint64]bool   // ords that must come again
	done  atomic.Bool
	err   error

	kick, rewound chan struct{} // rewind now; it is done
}

// rewind is a reconnect, while Next may be reading.
func (r *raceReader) rewind() {
	for range r.kick {
		r.c.Rewind()
		r.rewound <- struct{}{}
	}
}

func (r *raceReader) wants(i int) bool { return r.every == 0 || i%r.every == 0 }

func (r *raceReader) run(ctx context.Context, n int, rnd *rand.Rand) error {
	defer r.done.Store(true)
	defer close(r.kick)
	want := 0
	for i := range n {
		if r.wants(i) {
			want++
		}
	}
	var open []uint64
	acked := map[uint64]bool{}
	for len(acked) < want {
		lost := rnd.IntN(4) == 0
		if lost {
			r.kick <- struct{}{}
		}
		short, stop := context.WithTimeout(ctx, time.Millisecond)
		rs, err := r.c.Next(short, 1+rnd.IntN(40))
		stop()
		if lost {
			<-r.rewound // it began and ended beside this Next, and beside no other
		}
		if err != nil && (ctx.Err() != nil || short.Err() == nil) {
			return fmt.Errorf("%d of %d: %w", len(acked), want, err)
		}
		if lost { // the connection is gone: they come again, before anything new
			for _, ord := range open {
				r.owed[ord] = true
			}
			open = nil
			for _, rec := range rs { // before the Rewind, or after it
				delete(r.owed, rec.Ord)
			}
		}
		for _, rec := range rs {
			delete(r.owed, rec.Ord)
			if r.seqs[rec.Ord] == 0 && len(r.owed) > 0 && !lost {
				return fmt.Errorf("ord %d came first, before %d of older ones after a Rewind", rec.Ord, len(r.owed))
			}
			if seq, again := r.seqs[rec.Ord]; again && seq != rec.Seq {
				return fmt.Errorf("ord %d was record %d and is %d", rec.Ord, seq, rec.Seq)
			}
			if ord, again := r.ords[rec.Seq]; again && ord != rec.Ord {
				return fmt.Errorf("record %d had ord %d and has %d", rec.Seq, ord, rec.Ord)
			}
			if acked[rec.Ord] {
				return fmt.Errorf("ord %d came after its acknowledgement", rec.Ord)
			}
			r.seqs[rec.Ord], r.ords[rec.Seq] = rec.Seq, rec.Ord
			if !slices.Contains(open, rec.Ord) {
				open = append(open, rec.Ord)
			}
		}
		rnd.Shuffle(len(open), func(i, j int) { open[i], open[j] = open[j], open[i] })
		for _, ord := range open[:len(open)/2+len(open)%2] {
			acked[ord] = true
			r.c.Ack(ord)
		}
		open = open[len(open)/2+len(open)%2:]
	}
	return r.order()
}

// order says whether the ords of each lane rise with the records.
func (r *raceReader) order() error {
	last := [lanes]uint64{}
	for ord := uint64(1); ord <= uint64(len(r.seqs)); ord++ {
		seq := r.seqs[ord]
		l := (seq - r.seqs[1]) % lanes // as appended
		if seq <= last[l] {
			return fmt.Errorf("ord %d is record %d, after %d of its lane", ord, seq, last[l])
		}
		last[l] = seq
	}
	return nil
}
