package modbus

import (
	"testing"
	"time"

	"busgate/config"
)

func TestWindowOfAUnit(t *testing.T) {
	for _, c := range []struct {
		fact              string
		n                 int
		p99, latest, want time.Duration
		timeout           time.Duration
	}{
		{"of one that is not known anything is expected", enough - 1, time.Millisecond, 0, 5 * time.Second, 500 * time.Millisecond},
		{"at least a second", enough, 10 * time.Millisecond, 0, time.Second, 500 * time.Millisecond},
		{"three times what answers take", enough, 700 * time.Millisecond, 0, 2100 * time.Millisecond, 500 * time.Millisecond},
		{"twice the latest", enough, 10 * time.Millisecond, 1800 * time.Millisecond, 3600 * time.Millisecond, 500 * time.Millisecond},
		{"the timeout", enough, 10 * time.Millisecond, 0, 3 * time.Second, 3 * time.Second},
		{"at most five seconds", enough, 4 * time.Second, 9 * time.Second, 5 * time.Second, 500 * time.Millisecond},
		{"or the timeout, if that is longer", enough, 4 * time.Second, 9 * time.Second, 8 * time.Second, 8 * time.Second},
	} {
		u := &unit{p99: c.p99}
		u.answer.n = c.n
		if c.latest > 0 {
			u.tooLate(c.latest)
			u.p99, u.answer.n = c.p99, c.n
		}
		if got := u.window(&config.Bus{Timeout: c.timeout}); got != c.want {
			t.Errorf("%s: %v, want %v", c.fact, got, c.want)
		}
	}
}
