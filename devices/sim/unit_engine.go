package sim

import "time"

// SetSilent makes the unit give no answer to these functions, as cheap devices
// do with those they do not know.
func (u *Unit) SetSilent(functions ...byte) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.silent == nil {
		u.silent = map[byte]bool{}
	}
	for _, f := range functions {
		u.silent[f] = true
	}
}

// Watch shows fn each PDU that the unit is asked, also those it does not answer;
// nil ends that. fn is called with the unit locked.
func (u *Unit) Watch(fn func(pdu []byte)) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.watch = fn
}

// muteLocked says that there is no answer to a PDU.
func (u *Unit) muteLocked(pdu []byte) bool {
	if u.watch != nil {
		u.watch(pdu)
	}
	return u.silent[pdu[0]]
}

// SetQueue makes the unit, or the gateway before it, work on its requests one by
// one and forget none: what comes meanwhile waits.
func (u *Unit) SetQueue(on bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.queue = on
}

// done is when the unit has worked for d on what comes at.
func (u *Unit) done(at, d time.Duration) time.Duration {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.queue {
		at = max(at, u.free)
		u.free = at + d
	}
	return at + d
}
