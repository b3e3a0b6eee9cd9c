package uplink

import (
	"fmt"
	"sync"
	"time"
)

// vitals is what the watchdog of a connection looks at. The owner of the link
// writes it; the watchdog has a goroutine of its own, so that it also closes
// when the owner is held up.
type vitals struct {
	mu     sync.Mutex
	since  time.Time // nothing acknowledged since, though something is owed; zero: nothing is
	oldest time.Time // when the oldest unanswered packet left
	ping   time.Time // PINGREQ without PINGRESP; zero: none
}

func (v *vitals) set(since, oldest, ping time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.since, v.oldest, v.ping = since, oldest, ping
}

// verdict is why the connection must be closed now, nil while it is well. It is
// not enough to look for any acknowledgement: AWS discards above its limits
// without a PUBACK and goes on acknowledging the rest.
func (v *vitals) verdict(now time.Time, t timing) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case !v.ping.IsZero() && now.Sub(v.ping) >= t.ping:
		return &closing{reason: "ping-timeout", err: fmt.Errorf("no PINGRESP in %v", t.ping)}
	case !v.since.IsZero() && now.Sub(v.since) >= t.ack:
		return &closing{reason: "ack-timeout", err: fmt.Errorf("nothing acknowledged for %v", t.ack)}
	case !v.oldest.IsZero() && now.Sub(v.oldest) >= 2*t.ack:
		return &closing{reason: "ack-oldest", err: fmt.Errorf("a message is not acknowledged after %v", 2*t.ack)}
	}
	return nil
}

// watch looks at each tick until done is closed. Writes have deadlines of their own.
func (v *vitals) watch(w *wire, t timing, done <-chan struct{}) {
	tick := time.NewTicker(t.tick)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case now := <-tick.C:
			if why := v.verdict(now, t); why != nil {
				w.close(why)
			}
		}
	}
}
