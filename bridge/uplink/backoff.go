package uplink

import (
	"math/rand/v2"
	"time"
)

// backoff spaces the tries to connect: decorrelated jitter after a lost
// connection, a doubling wait after a refusal.
type backoff struct {
	previous time.Duration // of the jitter; 0 = base
	refusal  time.Duration // last wait after a refusal; 0 = none
}

const (
	maxBackoff   = time.Minute
	firstRefusal = time.Minute
	maxRefusal   = 10 * time.Minute
)

// lost is the wait after a connection that failed or ended:
// min(60 s, uniform(base, 3 * previous)).
func (b *backoff) lost(base time.Duration) time.Duration {
	b.refusal = 0
	top := 3 * max(b.previous, base)
	b.previous = min(maxBackoff, base+rand.N(top-base+1))
	return b.previous
}

// refused is the wait after the broker did not want us: 60 s, doubling to 10 min.
func (b *backoff) refused() time.Duration {
	b.refusal = min(max(2*b.refusal, firstRefusal), maxRefusal)
	return b.refusal
}

// progress begins anew. It is called after acknowledged progress, never after
// CONNACK alone: a broker that accepts and then throws out would be hammered.
func (b *backoff) progress() { *b = backoff{} }
