package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// demoLink is the way to the demo's cloud: it carries bytes while it is up.
// When it goes down every connection is reset and new ones are closed at once.
type demoLink struct {
	ln     net.Listener
	target string

	mu    sync.Mutex
	up    bool
	since time.Time
	conns map[net.Conn]struct{}
}

func openDemoLink(target string) (*demoLink, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("open the link to the cloud: %w", err)
	}
	return &demoLink{ln: ln, target: target, up: true, since: time.Now(), conns: map[net.Conn]struct{}{}}, nil
}

func (l *demoLink) Addr() string { return l.ln.Addr().String() }

// Set takes the link down or up and says for how long it was the other way.
func (l *demoLink) Set(up bool) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	was := time.Since(l.since)
	l.up, l.since = up, time.Now()
	if !up {
		for c := range l.conns {
			if tcp, ok := c.(*net.TCPConn); ok {
				tcp.SetLinger(0) // a reset, as a modem that loses its cell
			}
			c.Close()
		}
	}
	return was
}

// State says whether the link is up and since when.
func (l *demoLink) State() (up bool, since time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.up, l.since
}

// Run carries connections until ctx ends.
func (l *demoLink) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		l.ln.Close()
		l.Set(false)
	})
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := l.ln.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("link to the cloud: %w", err)
		}
		wg.Go(func() { l.carry(c) })
	}
}

func (l *demoLink) carry(c net.Conn) {
	defer c.Close()
	if !l.enter(c) {
		return
	}
	defer l.leave(c)
	far, err := net.Dial("tcp", l.target)
	if err != nil {
		return
	}
	defer far.Close()
	if !l.enter(far) {
		return
	}
	defer l.leave(far)
	var wg sync.WaitGroup
	for _, way := range [][2]net.Conn{{far, c}, {c, far}} {
		wg.Go(func() {
			io.Copy(way[0], way[1])
			way[0].Close()
			way[1].Close()
		})
	}
	wg.Wait()
}

func (l *demoLink) enter(c net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.up {
		l.conns[c] = struct{}{}
	}
	return l.up
}

func (l *demoLink) leave(c net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, c)
}
