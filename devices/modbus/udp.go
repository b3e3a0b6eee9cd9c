package modbus

import (
	"context"
	"fmt"
	"net"
)

// dialUDP makes a socket that talks to addr only.
func dialUDP(ctx context.Context, addr string) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTimeout}
	conn, err := d.DialContext(ctx, "udp", addr)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, unreachable(addr, err)
	}
	return &datagrams{Conn: conn}, nil
}

// datagrams reads a socket of datagrams as a stream: an answer is one datagram,
// and what is left of one that was too long goes.
type datagrams struct {
	net.Conn
	buf  [maxADU + 1]byte
	rest []byte
}

func (d *datagrams) Read(p []byte) (int, error) {
	if len(d.rest) == 0 {
		n, err := d.Conn.Read(d.buf[:])
		if err != nil {
			return 0, err
		}
		if n > maxADU {
			return 0, fmt.Errorf("a datagram of more than %d bytes", maxADU)
		}
		d.rest = d.buf[:n]
	}
	n := copy(p, d.rest)
	d.rest = d.rest[n:]
	return n, nil
}
