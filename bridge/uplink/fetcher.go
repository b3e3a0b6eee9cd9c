package uplink

import (
	"context"
	"errors"
	"sync"
	"time"

	"busgate/buffer"
)

// fetchPause is the wait after a call of the source that failed.
const fetchPause = time.Second

// fetcher waits in Next so that the link need not. At most one call runs; its
// result stays in got until somebody takes it. It belongs to the link's goroutine.
type fetcher struct {
	src    source
	old    backlogSource // nil: the source has no backlog of its own
	wg     sync.WaitGroup
	got    chan fetched
	cancel context.CancelFunc // of the call that runs; nil: none runs
	asked  int                // of the backlog, by the call that runs
	dry    bool               // the backlog is empty
	after  time.Time          // no call before
	top    uint64             // highest ord that came since the last rewind
}

// fetched is the result of one call.
type fetched struct {
	records []buffer.Record
	late    []buffer.Record // of the backlog
	dry     bool            // the backlog was asked and is empty
	err     error
}

func newFetcher(src source, old backlogSource) *fetcher {
	return &fetcher{src: src, old: old, got: make(chan fetched, 1), dry: true}
}

// live makes the source give the newest first from now on, and the older ones
// as backlog.
func (f *fetcher) live() {
	if f.old != nil {
		f.old.Live()
		f.dry = false
	}
}

// demand asks for at most n records, of the backlog at most m, for which keep are
// kept free, unless a call runs or the last has just failed. A call that waits for
// live records only is ended when the backlog may go on.
func (f *fetcher) demand(n, m, keep int, now time.Time) {
	if f.dry {
		m = 0
	}
	if f.cancel != nil {
		if m > 0 && f.asked == 0 {
			f.cancel()
		}
		return
	}
	if n <= 0 || now.Before(f.after) {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	f.cancel, f.asked = cancel, m
	f.wg.Go(func() { f.got <- f.fetch(ctx, n, min(n, m), keep) })
}

// fetch takes what is there of both, and waits for live records when nothing is.
func (f *fetcher) fetch(ctx context.Context, n, m, keep int) (r fetched) {
	if m > 0 {
		at, cancel := context.WithCancel(ctx)
		cancel() // what is there is returned even so
		if n <= keep {
			r.late, r.err = f.old.NextBacklog(at, m)
			r.dry = len(r.late) == 0 && errors.Is(r.err, context.Canceled)
			return r
		}
		if r.records, r.err = f.src.Next(at, n-keep); r.err != nil && !errors.Is(r.err, context.Canceled) {
			return r
		}
		if m = min(m, n-len(r.records)); m > 0 {
			if r.late, r.err = f.old.NextBacklog(at, m); r.err != nil && !errors.Is(r.err, context.Canceled) {
				return r
			}
			r.dry = len(r.late) == 0
		}
		if len(r.records)+len(r.late) > 0 {
			r.err = nil
			return r
		}
	}
	r.records, r.err = f.src.Next(ctx, n)
	return r
}

// taken must be called with what was received from got. It returns the records
// that are new since the last rewind: after a lease that failed the store gives
// again what is in flight already.
func (f *fetcher) taken(r fetched, now time.Time) ([]lot, error) {
	f.cancel()
	f.cancel = nil
	f.wg.Wait()
	f.dry = f.dry || r.dry
	var lots []lot
	for i, rs := range [][]buffer.Record{r.records, r.late} {
		for _, x := range rs {
			if x.Ord > f.top {
				f.top = x.Ord
				lots = append(lots, lot{Record: x, came: now, late: i == 1})
			}
		}
	}
	if errors.Is(r.err, context.Canceled) {
		r.err = nil
	}
	if r.err != nil {
		f.after = now.Add(fetchPause)
	}
	return lots, r.err
}

// rewind ends the call that runs, forgets its result, and begins again with
// what is leased.
func (f *fetcher) rewind() {
	f.stop()
	f.top = 0
	f.src.Rewind()
}

// stop ends the call that runs and forgets its result; what it leased comes
// again after rewind, or is the next process's.
func (f *fetcher) stop() {
	if f.cancel != nil {
		f.cancel()
		<-f.got
		f.wg.Wait()
		f.cancel = nil
	}
}

// final tells that a source gives nothing more, ever.
func final(err error) bool {
	return errors.Is(err, buffer.ErrClosed) || errors.Is(err, buffer.ErrForgotten)
}
