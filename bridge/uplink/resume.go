package uplink

import (
	"fmt"
	"time"
)

// prepare brings the store and the session to what the broker has kept.
func (l *Link) prepare(e *epoch) error {
	if l.s.busy { // a release of the connection before
		if err := l.await(); err != nil {
			return err
		}
		l.s.durable()
	}
	if !e.present {
		l.s.wiped()
		l.filters = nil
		if l.s.taken() || l.repack {
			if err := l.restart(); err != nil {
				l.clean = l.set.identity() // the new session must not be taken for the old one
				return err
			}
		}
	}
	if id := l.set.identity(); l.o.Keep != nil && l.kept != id {
		l.kept = id
		l.o.Keep(factIdentity, []byte(id), func(error) {})
	}
	if l.set.cfg.Order == "live_first" && l.waiting() > l.set.window {
		l.fetch.live()
	}
	if l.hook != nil {
		l.hook(hookResume)
	}
	return nil
}

// restart is the rule for a lost session: R := C, durable, and everything that
// is leased comes again from the source.
func (l *Link) restart() error {
	l.fetch.stop()
	l.src.Unrelease(l.answer())
	if err := l.await(); err != nil {
		return err
	}
	l.acknowledge()
	l.again()
	return nil
}

// again makes everything that is in flight come from the source again, to be
// packed anew.
func (l *Link) again() {
	l.s.drop()
	l.ready, l.late, l.aside, l.packed = nil, nil, nil, nil
	l.repack = false
	clear(l.bounds)
	l.fetch.rewind()
}

// answer is where the store tells the outcome of one request; a late answer to
// an earlier one finds nobody.
func (l *Link) answer() func(error) {
	ch := make(chan error, 1)
	l.released = ch
	return func(err error) { ch <- err }
}

// await waits for the answer of the store.
func (l *Link) await() error {
	t := time.NewTimer(l.timing.release)
	defer t.Stop()
	select {
	case err := <-l.released:
		if err != nil {
			return l.unkept(err)
		}
		return nil
	case <-t.C:
		return l.hanging()
	}
}

// unkept takes the answer that the store did not keep a release.
func (l *Link) unkept(err error) error {
	l.s.unsettled()
	return &closing{reason: "release", err: fmt.Errorf("note what the cloud has received: %w", err)}
}

func (l *Link) hanging() error {
	return &closing{reason: "release-timeout", err: fmt.Errorf("the store did not answer in %v", l.timing.release)}
}
