package uplink

import (
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// bufferedPipe is a connection in memory whose writes do not wait for the
// reader, as those of TCP: two ends that both write first do not lock each
// other. It works in virtual time.
func bufferedPipe() (net.Conn, net.Conn) {
	x, y := newHalf(), newHalf()
	return &pipeEnd{in: x, out: y}, &pipeEnd{in: y, out: x}
}

// half is one direction.
type half struct {
	mu       sync.Mutex
	data     []byte
	closed   bool
	deadline time.Time
	changed  chan struct{} // closed and replaced at each change
}

func newHalf() *half { return &half{changed: make(chan struct{})} }

func (h *half) change(fn func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	fn()
	close(h.changed)
	h.changed = make(chan struct{})
}

func (h *half) read(p []byte) (int, error) {
	for {
		h.mu.Lock()
		if len(h.data) > 0 {
			n := copy(p, h.data)
			h.data = h.data[n:]
			h.mu.Unlock()
			return n, nil
		}
		closed, deadline, changed := h.closed, h.deadline, h.changed
		h.mu.Unlock()
		if closed {
			return 0, io.EOF
		}
		var late <-chan time.Time
		if !deadline.IsZero() {
			d := time.Until(deadline)
			if d <= 0 {
				return 0, os.ErrDeadlineExceeded
			}
			t := time.NewTimer(d)
			defer t.Stop()
			late = t.C
		}
		select {
		case <-changed:
		case <-late:
			return 0, os.ErrDeadlineExceeded
		}
	}
}

type pipeEnd struct{ in, out *half }

func (p *pipeEnd) Read(b []byte) (int, error) { return p.in.read(b) }

func (p *pipeEnd) Write(b []byte) (n int, err error) {
	p.out.change(func() {
		if p.out.closed {
			err = io.ErrClosedPipe
			return
		}
		p.out.data = append(p.out.data, b...)
		n = len(b)
	})
	return n, err
}

func (p *pipeEnd) Close() error {
	p.in.change(func() { p.in.closed = true })
	p.out.change(func() { p.out.closed = true })
	return nil
}

func (p *pipeEnd) SetReadDeadline(t time.Time) error {
	p.in.change(func() { p.in.deadline = t })
	return nil
}

func (p *pipeEnd) SetWriteDeadline(time.Time) error { return nil }
func (p *pipeEnd) SetDeadline(t time.Time) error    { return p.SetReadDeadline(t) }
func (p *pipeEnd) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (p *pipeEnd) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
