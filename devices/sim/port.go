package sim

import (
	"fmt"
	"os"
	"syscall"
	"time"
)

// Port is the near end of a Bus, with the methods and habits of a serial port:
// Read returns 0, nil when the time is over, Write does not wait for the wire.
// One goroutine may read while another writes.
type Port struct {
	bus  *Bus
	wake chan struct{}

	// guarded by bus.mu
	timeout time.Duration
	closed  bool
	dead    bool // the adapter went while it was open
}

// SetReadTimeout bounds each Read from now on: 0 does not wait, below 0 waits
// without end.
func (p *Port) SetReadTimeout(d time.Duration) error {
	p.bus.mu.Lock()
	defer p.bus.mu.Unlock()
	p.timeout = d
	return nil
}

// Read hands over what has arrived, at least one byte, or waits for it. 0, nil
// is the end of the read timeout. EIO after Unplug, os.ErrClosed after Close.
func (p *Port) Read(buf []byte) (int, error) {
	b := p.bus
	begin := b.now()
	var timer *time.Timer
	for {
		b.mu.Lock()
		if err := p.errLocked("read"); err != nil {
			b.mu.Unlock()
			return 0, err
		}
		now := b.now()
		b.advanceLocked(now)
		n := b.takeLocked(buf, now)
		due, soon := b.dueLocked()
		limit := p.timeout
		b.mu.Unlock()
		if n > 0 || len(buf) == 0 {
			return n, nil
		}
		end := begin + limit
		if limit >= 0 && now >= end {
			return 0, nil
		}
		var tick <-chan time.Time
		if limit >= 0 && (!soon || end < due) {
			due, soon = end, true
		}
		if soon {
			if timer == nil {
				timer = time.NewTimer(due - now)
				defer timer.Stop()
			} else {
				timer.Reset(due - now)
			}
			tick = timer.C
		}
		select {
		case <-tick:
		case <-p.wake:
		}
	}
}

// Write gives characters to the UART, which sends them one after another.
func (p *Port) Write(buf []byte) (int, error) {
	b := p.bus
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := p.errLocked("write"); err != nil {
		return 0, err
	}
	if len(buf) == 0 {
		return 0, nil
	}
	now := b.now()
	b.advanceLocked(now)
	b.sendLocked(buf, now)
	b.wakeLocked()
	return len(buf), nil
}

// Close gives the bus back and ends a Read that waits. A second Close does nothing.
func (p *Port) Close() error {
	b := p.bus
	b.mu.Lock()
	defer b.mu.Unlock()
	p.closed = true
	p.poke()
	if b.port == p {
		b.port = nil
	}
	return nil
}

func (p *Port) errLocked(what string) error {
	switch {
	case p.closed:
		return fmt.Errorf("%s simulated bus: %w", what, os.ErrClosed)
	case p.dead || p.bus.unplugged:
		return fmt.Errorf("%s simulated bus: %w", what, syscall.EIO)
	}
	return nil
}

// poke makes a Read that waits look again.
func (p *Port) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}
