package modbus

import (
	"errors"
	"net"
	"os"
	"time"
)

// netPort makes a Port of a connection, for RTU over TCP.
type netPort struct {
	conn    net.Conn
	addr    string
	timeout time.Duration
}

func (p *netPort) SetReadTimeout(d time.Duration) error {
	p.timeout = d
	return nil
}

// minRead is the shortest deadline: with one in the past net.Conn does not even look.
const minRead = time.Millisecond

func (p *netPort) Read(b []byte) (int, error) {
	if err := p.conn.SetReadDeadline(time.Now().Add(max(p.timeout, minRead))); err != nil {
		return 0, closedBy(p.addr, err)
	}
	n, err := p.conn.Read(b)
	if n > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		return n, nil
	}
	return 0, closedBy(p.addr, err)
}

func (p *netPort) Write(b []byte) (int, error) {
	if err := p.conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return 0, closedBy(p.addr, err)
	}
	n, err := p.conn.Write(b)
	if err != nil {
		return n, closedBy(p.addr, err)
	}
	return n, nil
}

func (p *netPort) Close() error { return p.conn.Close() }
