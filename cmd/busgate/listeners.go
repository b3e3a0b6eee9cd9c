package main

import (
	"context"
	"fmt"
	"net"
	"sync"

	"busgate/config"
	"busgate/embeddedbroker"
)

// listeners are the addresses of the broker: plain, TLS and WebSocket. A changed
// address is bound before the old one closes; clients that are connected stay.
type listeners struct {
	g    *gateway
	more chan struct{} // to Run: there are new ones

	mu    sync.Mutex
	doors [doorKinds]door
	fresh []net.Listener // not yet taken by Run
}

// doorKinds are plain, TLS and WebSocket, in the order of embeddedbroker.Listen.
const doorKinds = 3

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
	for i, addr := range []string{b.Listen, b.TLS.Listen, b.WebSocket.Listen} {
		if addr != "" {
			d[i] = door{addr: addr, key: addr}
			if i > 0 {
				d[i].key += files
			}
		}
	}
	return d
}

// openListeners binds what the configuration names, or takes given instead.
func openListeners(g *gateway, b *config.Broker, given net.Listener) (*listeners, error) {
	l := &listeners{g: g, more: make(chan struct{}, 1)}
	if given != nil {
		l.doors = wanted(b)
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
// ones. Where only the certificate of an address is another file, the address
// is closed first.
func (l *listeners) Update(b *config.Broker) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	want := wanted(b)
	only := *b // the broker with just the doors that are new
	for i, addr := range []*string{&only.Listen, &only.TLS.Listen, &only.WebSocket.Listen} {
		was := &l.doors[i]
		if want[i].key == was.key {
			want[i].ln, *addr = was.ln, ""
		} else if want[i].addr == was.addr {
			was.close()
		}
		if want[i].key == "" {
			*addr = ""
		}
	}
	bound, err := embeddedbroker.Listen(only, l.g.log)
	if err != nil {
		return err
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
	l.doors = want
	select {
	case l.more <- struct{}{}:
	default: // Run has not looked yet
	}
	return nil
}

// Close closes the listeners, not the connections.
func (l *listeners) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.doors {
		l.doors[i].close()
	}
}

func (d *door) close() {
	if d.ln != nil {
		d.ln.Close() // that it is closed already is the only error there is
	}
}
