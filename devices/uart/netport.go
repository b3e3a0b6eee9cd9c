package uart

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// netPort is a serial server's TCP connection with the methods of a serial port.
type netPort struct {
	conn net.Conn
	addr string

	mu      sync.Mutex
	timeout time.Duration
}

// dial connects within 2 s.
func dial(ctx context.Context, addr string) (*netPort, error) {
	d := net.Dialer{Timeout: 2 * time.Second}
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, &Error{"unreachable", addr + " does not answer (" + reason(err) + "): is the serial server switched on?", err}
	}
	return &netPort{conn: c, addr: addr, timeout: -1}, nil
}

// reason is why a connection failed, as people say it.
func reason(err error) string {
	var dns *net.DNSError
	var timeout net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH):
		return "no route"
	case errors.As(err, &dns):
		return "the name is not known"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "timed out"
	}
	return err.Error()
}

func (n *netPort) SetReadTimeout(d time.Duration) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.timeout = d
	return nil
}

func (n *netPort) Read(b []byte) (int, error) {
	n.mu.Lock()
	d := n.timeout
	n.mu.Unlock()
	deadline := time.Time{}
	if d >= 0 {
		deadline = time.Now().Add(d)
	}
	n.conn.SetReadDeadline(deadline)
	k, err := n.conn.Read(b)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = nil
	}
	return k, n.lost(err)
}

func (n *netPort) Write(b []byte) (int, error) {
	n.conn.SetWriteDeadline(time.Now().Add(2 * time.Second))
	k, err := n.conn.Write(b)
	return k, n.lost(err)
}

func (n *netPort) lost(err error) error {
	if err == nil {
		return nil
	}
	return &Error{"unreachable", fmt.Sprintf("%s closed the connection (%s)", n.addr, reason(err)), err}
}

func (n *netPort) Close() error { return n.conn.Close() }
