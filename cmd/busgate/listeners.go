package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"

	"busgate/config"
	"busgate/embeddedbroker"
)

// listeners are the addresses of the broker: plain, TLS, WebSocket and unix socket. A changed
// address is bound before the old one closes; clients that are connected stay.
type listeners struct {
	g    *gateway
	more chan struct{} // to Run: there are new ones

	mu    sync.Mutex
	shut  bool          // for good
	cfg   config.Broker // that the doors are of
	doors [doorKinds]door
	fresh []net.Listener // not yet taken by Run
}

// doorKinds are plain, TLS, WebSocket and unix socket, in the order of embeddedbroker.Listen.
const doorKinds = 4

// door is one open address.
type door struct {
	key  string // what it depends on; "" = not wanted
	addr string
	ln   net.Listener
}

// wanted are the doors that a configuration asks for.
func wanted(b *config.Broker) (d [doorKinds]door) {
	if !b.Enabled {
		return d
	}
	files := fmt.Sprintf(" %q %q %q", b.TLS.Cert, b.TLS.Key, b.TLS.ClientCA)
	for i, addr := range []string{b.Listen, b.TLS.Listen, b.WebSocket.Listen, b.Socket} {
		if addr != "" {
			d[i] = door{addr: addr, key: addr}
			switch i {
			case 1:
				d[i].key += files
			case 2:
				d[i].key += files + fmt.Sprintf(" %q", b.WebSocket.Origins)
			}
		}
	}
	return d
}

// openListeners binds what the configuration names, or takes given instead.
func openListeners(g *gateway, b *config.Broker, given net.Listener) (*listeners, error) {
	l := &listeners{g: g, more: make(chan struct{}, 1)}
	if given != nil {
		l.cfg, l.doors = *b, wanted(b)
		l.doors[0].ln = given
		l.fresh = []net.Listener{given}
		return l, nil
	}
	return l, l.Update(b)
}

// Run serves clients until ctx ends, and then ends their connections.
func (l *listeners) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	failed := make(chan error, 1)
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		l.mu.Lock()
		fresh := l.fresh
		l.fresh = nil
		l.mu.Unlock()
		for _, ln := range fresh {
			wg.Go(func() {
				if err := l.g.broker.Serve(ctx, ln); err != nil {
					select {
					case failed <- err:
					default: // the first one ends them all
					}
				}
			})
		}
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			cancel()
			return err
		case <-l.more:
		}
	}
}

// Door lets clients in until ctx ends; those inside stay.
func (l *listeners) Door(ctx context.Context) error {
	<-ctx.Done()
	l.Close()
	return nil
}

// Update binds the addresses of a changed configuration, then closes the old
// ones. An old one that a new one needs, because it is the same or covers it, is
// closed first, and opened again when the new ones cannot be had.
func (l *listeners) Update(b *config.Broker) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.shut {
		return errStopping
	}
	want := wanted(b)
	only := *b // the broker with just the doors that are new
	for i, addr := range []*string{&only.Listen, &only.TLS.Listen, &only.WebSocket.Listen, &only.Socket} {
		was := &l.doors[i]
		if want[i].key == was.key {
			want[i].ln, *addr = was.ln, ""
		}
		if want[i].key == "" {
			*addr = ""
		}
	}
	var shut []int // doors in the way
	for i := range l.doors {
		was := &l.doors[i]
		if want[i].key != was.key && slices.ContainsFunc(want[:], func(d door) bool { return d.ln == nil && d.inTheWayOf(was.addr) }) {
			was.close()
			shut = append(shut, i)
		}
	}
	bound, err := embeddedbroker.Listen(only, l.g.log)
	if err != nil {
		for _, ln := range bound {
			ln.Close()
		}
		return errors.Join(err, l.reopenLocked(shut))
	}
	for i := range want {
		if want[i].key != l.doors[i].key {
			l.doors[i].close()
			if want[i].key != "" {
				want[i].ln, bound = bound[0], bound[1:]
				l.fresh = append(l.fresh, want[i].ln)
			}
		}
	}
	l.cfg, l.doors = *b, want
	l.moreLocked()
	return nil
}

// moreLocked tells Run of fresh listeners.
func (l *listeners) moreLocked() {
	select {
	case l.more <- struct{}{}:
	default: // Run has not looked yet
	}
}

// reopenLocked opens doors again that were closed for others.
func (l *listeners) reopenLocked(shut []int) error {
	only := l.cfg
	for i, addr := range []*string{&only.Listen, &only.TLS.Listen, &only.WebSocket.Listen, &only.Socket} {
		if !slices.Contains(shut, i) {
			*addr = ""
		}
	}
	bound, err := embeddedbroker.Listen(only, l.g.log)
	if err != nil {
		return err
	}
	for k, i := range shut {
		l.doors[i].ln = bound[k]
	}
	l.fresh = append(l.fresh, bound...)
	l.moreLocked()
	return nil
}

// inTheWayOf says whether two addresses cannot be open at once.
func (d *door) inTheWayOf(addr string) bool {
	if d.addr == "" || addr == "" {
		return false
	}
	host, port, err := net.SplitHostPort(d.addr)
	host2, port2, err2 := net.SplitHostPort(addr)
	if err != nil || err2 != nil {
		return d.addr == addr // unix sockets
	}
	every := func(host string) bool { ip := net.ParseIP(host); return host == "" || ip != nil && ip.IsUnspecified() }
	return port == port2 && (host == host2 || every(host) || every(host2))
}

// Close closes the listeners, not the connections. No others are opened.
func (l *listeners) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.shut = true
	for i := range l.doors {
		l.doors[i].close()
	}
}

func (d *door) close() {
	if d.ln != nil {
		d.ln.Close() // that it is closed already is the only error there is
	}
}
