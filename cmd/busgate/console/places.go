package console

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
)

// Connections. Some places are for programs on this machine only, so that a crowd
// on the network never makes a health check fail.
const (
	maxConns = 128
	kept     = 16 // of them
)

// places is a listener with so many places; who comes when there is none is
// closed and counted.
type places struct {
	net.Listener
	refused *atomic.Uint64

	mu       sync.Mutex
	all, far int
}

func (p *places) Accept() (net.Conn, error) {
	for {
		c, err := p.Listener.Accept()
		if err != nil {
			return nil, err
		}
		far := !onThisMachine(c.RemoteAddr().String())
		if p.enter(far) {
			return &seat{Conn: c, leave: func() { p.leave(far) }}, nil
		}
		p.refused.Add(1)
		c.Close()
	}
}

func (p *places) enter(far bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.all >= maxConns || far && p.far >= maxConns-kept {
		return false
	}
	p.all++
	if far {
		p.far++
	}
	return true
}

func (p *places) leave(far bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all--
	if far {
		p.far--
	}
}

// seat is a connection that gives its place back once.
type seat struct {
	net.Conn
	once  sync.Once
	leave func()
}

func (s *seat) Close() error {
	s.once.Do(s.leave)
	return s.Conn.Close()
}

// addressOf is the address of "host:port", without a zone.
func addressOf(hostport string) netip.Addr {
	a, err := netip.ParseAddrPort(hostport)
	if err != nil {
		return netip.Addr{}
	}
	return a.Addr().Unmap().WithZone("")
}

func onThisMachine(hostport string) bool { return addressOf(hostport).IsLoopback() }
