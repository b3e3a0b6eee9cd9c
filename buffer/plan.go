package buffer

import "time"

// plan is what the committer does next.
type plan struct {
	due     time.Time // zero: nothing to do
	retry   *commit   // a transaction that failed
	expose  bool      // readings go to RAM: nothing can be written
	house   bool      // cursors, trims and counters are saved, bounds kept
	closing bool
}

// run is the committer: it owns the order of transactions and the flush.
func (s *Store) run() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		s.mu.Lock()
		p := s.planLocked()
		jobs := s.jobs
		s.jobs = nil
		s.mu.Unlock()
		for _, job := range jobs {
			job()
		}
		switch now := time.Now(); {
		case p.due.IsZero():
			<-s.wake
		case now.Before(p.due):
			timer.Reset(p.due.Sub(now))
			select {
			case <-s.wake:
			case <-timer.C:
			}
		case p.expose:
			s.expose()
		case p.retry != nil:
			s.again(p.retry, p.closing)
		default:
			s.work(p)
			if p.closing {
				s.stop()
				return
			}
		}
	}
}

// work commits what is due and keeps the bounds.
func (s *Store) work(p plan) {
	if p.house && !p.closing {
		s.mu.Lock()
		look := time.Since(s.measured) >= houseEvery
		s.mu.Unlock()
		if look {
			s.measure()
			s.keepReserve()
		}
		s.tidy()
		s.rest(s.tend())
	}
	s.mu.Lock()
	t := s.takeBatchLocked(p.house)
	s.mu.Unlock()
	s.perform(t, p.closing)
	if !p.closing {
		s.quotas()
		s.relieve()
	}
}

// planLocked says what is to be done next, and when. What is taken up for
// another try is the caller's from then on.
func (s *Store) planLocked() (p plan) {
	p.closing = s.closing
	sooner := func(t time.Time) bool {
		if p.due.IsZero() || t.Before(p.due) {
			p.due = t
			return true
		}
		return false
	}
	now, b := time.Now(), s.batch
	if s.closing {
		p.due, p.house = now, true
		p.retry, s.failed = s.failed, nil
		return p
	}
	gather := b.began.Add(s.limits.Sync)
	if b.large && b.waiters == 0 || b.full() { // with waiters, one flush is to serve them all
		gather = b.began
	}
	if s.failed != nil {
		p.due = s.retryAt
		if s.state == stateReadOnly && len(b.segs) > 0 && sooner(gather) {
			p.expose = true
		} else if !now.Before(p.due) {
			p.retry, s.failed = s.failed, nil
		}
		return p
	}
	switch {
	case b.entries == 0:
	case b.waiters > 0 && b.waiters >= s.expect: // all who can come are here
		sooner(now)
	case b.waiters > 0: // who was served just now may come again
		from := b.waiting
		if s.servedAt.After(from) {
			from = s.servedAt
		}
		sooner(from.Add(min(linger, 2*s.pace)))
		fallthrough
	default:
		sooner(gather)
	}
	if !s.dirtySince.IsZero() {
		sooner(s.dirtySince.Add(houseEvery))
	}
	p.house = s.hurry || len(s.trims) >= trimMost || !s.dirtySince.IsZero() && now.Sub(s.dirtySince) >= houseEvery
	if p.house {
		sooner(now)
	}
	if !s.saveAt.IsZero() {
		sooner(s.saveAt)
	}
	if s.records > 0 && sooner(s.measured.Add(measureEvery)) && !now.Before(p.due) {
		p.house = true
	}
	return p
}

// dirtyLocked notes that RAM differs from the disk in what can be lost.
func (s *Store) dirtyLocked() {
	if s.dirtySince.IsZero() {
		s.dirtySince = time.Now()
		signal(s.wake)
	}
}

// hurryLocked makes the housekeeping due now.
func (s *Store) hurryLocked() {
	if !s.hurry {
		s.hurry = true
		signal(s.wake)
	}
}

// saveLocked makes the saving of cursors due: with the next commit, or after saveWait.
func (s *Store) saveLocked() {
	if s.saveAt.IsZero() {
		s.saveAt = time.Now().Add(saveWait)
		signal(s.wake)
	}
}
