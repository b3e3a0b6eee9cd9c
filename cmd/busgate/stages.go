package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// stage is one part of the gateway. run blocks until its ctx ends and has
// cleaned up when it returns; an error other than nil ends the whole process.
type stage struct {
	name  string
	run   func(ctx context.Context) error
	grace time.Duration // how long it may take to stop
}

// moment is what a stage gets to stop when everybody is in a hurry.
const moment = 500 * time.Millisecond

// errHurried says that a stage was left behind because it did not stop in time.
var errHurried = errors.New("did not stop in time")

// runStages starts the stages in order and, when ctx ends or one of them fails,
// stops them in reverse: each one has stopped before the one under it is told
// to. A grace that is over goes on without waiting; once hurry is closed no
// stage gets more than a moment.
func runStages(ctx context.Context, log *slog.Logger, stages []stage, hurry <-chan struct{}) error {
	type running struct {
		stage
		cancel context.CancelFunc
		done   chan struct{}
		err    error
	}
	failed := make(chan struct{}, len(stages))
	started := make([]*running, 0, len(stages))
	var wg sync.WaitGroup
	for _, s := range stages {
		c, cancel := context.WithCancel(context.WithoutCancel(ctx))
		r := &running{stage: s, cancel: cancel, done: make(chan struct{})}
		started = append(started, r)
		wg.Go(func() {
			defer close(r.done)
			if r.err = r.run(c); r.err != nil {
				failed <- struct{}{}
			} else if c.Err() == nil {
				r.err = errors.New("ended by itself")
				failed <- struct{}{}
			}
		})
	}
	select {
	case <-ctx.Done():
	case <-failed:
	}
	var errs []error
	left := false
	for i := len(started) - 1; i >= 0; i-- {
		r := started[i]
		r.cancel()
		t := time.NewTimer(r.grace)
		select {
		case <-r.done:
		case <-t.C:
		case <-hurry:
			t.Reset(moment)
			select {
			case <-r.done:
			case <-t.C:
			}
		}
		t.Stop()
		select {
		case <-r.done:
			if r.err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", r.name, r.err))
			}
		default:
			left = true
			log.Warn("stage left behind", "stage", r.name)
			errs = append(errs, fmt.Errorf("%s: %w", r.name, errHurried))
		}
	}
	if !left {
		wg.Wait()
	}
	return errors.Join(errs...)
}
