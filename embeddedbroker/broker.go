package embeddedbroker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"busgate/config"
	"busgate/config/report"
)

// Options are what a Broker needs beside its configuration. All may be empty.
type Options struct {
	Log        *slog.Logger            // nil: silent
	Ladder     *report.Ladder          // nil: one of its own, on Log
	Version    string                  // for $SYS/broker/version
	Reserved   func(topic string) bool // topics that LAN clients may not publish; pure
	ClockKnown func() bool             // whether wall-clock time means something; nil: always
}

// Broker is the MQTT server and router. All methods are safe for concurrent use.
type Broker struct {
	log    *slog.Logger
	ladder *report.Ladder
	opts   Options
	store  Store
	set    settingsPointer
	rel    releaser
	n      counters
	gate   *gatekeeper
	line   line
	quotas *report.Ladder // when a loss is worth a line, by session
	ids    keyLocks       // serialises CONNECTs of one client id
	start  time.Time

	crowded atomic.Bool // some output piles up: readers let the writers run

	serving sync.WaitGroup // Serve calls, each waits for its connections
	work    sync.WaitGroup // goroutines of local subscriptions and estates
	stop    chan struct{}  // closed when Run ends
	timing  chan struct{}  // a deadline was added

	// mu is core.mu: it orders everything that is published or subscribed. Lock
	// order: mu, then one session, then one connection.
	mu        sync.Mutex
	subs      *trie
	kept      retained
	sessions  map[string]*session
	estates   map[string]chan struct{} // sessions that ended and whose messages go to others; closed when done
	uplinks   map[string]*uplink
	locals    map[*localSub]struct{}
	deadlines deadlineHeap
	plan      plan       // scratch of publishLocked
	ending    []*session // found over their quota while publishing
	stopped   bool
}

// New restores what the store holds and starts nothing.
func New(cfg config.Broker, store Store, o Options) (*Broker, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Ladder == nil {
		o.Ladder = report.NewLadder(o.Log)
	}
	if o.ClockKnown == nil {
		o.ClockKnown = func() bool { return true }
	}
	b := &Broker{log: o.Log, ladder: o.Ladder, opts: o, store: store, start: time.Now(), gate: newGatekeeper(), quotas: report.NewLadder(nil),
		stop: make(chan struct{}), timing: make(chan struct{}, 1),
		sessions: map[string]*session{}, estates: map[string]chan struct{}{}, uplinks: map[string]*uplink{}, locals: map[*localSub]struct{}{}}
	set, err := newSettings(cfg)
	if err != nil {
		return nil, fmt.Errorf("broker: %w", err)
	}
	b.set.Store(set)
	b.subs = newTrie(func(s *session, topic string) bool { return b.set.Load().acl.may(s.user, s.id, topic, false) })
	if err := store.Restore(set.sessionOptions(), restorer{b}); err != nil {
		return nil, fmt.Errorf("broker: restore sessions and retained messages: %w", err)
	}
	return b, nil
}

// Run runs the timers until ctx ends, then publishes the wills, closes every
// connection and waits for them and for every Serve.
func (b *Broker) Run(ctx context.Context) error {
	b.runTimers(ctx)
	b.mu.Lock()
	b.stopped = true
	var open []*conn
	for _, s := range b.sessions {
		if s.conn != nil {
			open = append(open, s.conn)
		}
	}
	b.mu.Unlock()
	close(b.stop)
	for _, c := range open {
		c.kick(&ending{code: codeShutdown, text: "busgate stops"})
	}
	b.serving.Wait()
	b.mu.Lock()
	for l := range b.locals {
		l.close()
	}
	b.mu.Unlock()
	b.work.Wait()
	return nil
}

// Serve accepts clients on l until ctx ends or Run returns, then closes l and
// its connections and waits for them. When somebody else closes l, no new
// clients come, those that are connected stay, and Serve returns with the last.
func (b *Broker) Serve(ctx context.Context, l net.Listener) error {
	b.mu.Lock()
	if b.stopped {
		b.mu.Unlock()
		l.Close()
		return nil
	}
	b.serving.Add(1)
	b.mu.Unlock()
	defer b.serving.Done()
	s := &server{b: b, open: map[*conn]struct{}{}}
	done := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case <-ctx.Done():
		case <-b.stop:
		case <-done:
		}
		l.Close()
		s.close()
	})
	err := s.accept(l)
	if errors.Is(err, net.ErrClosed) { // by its owner, or by the end
		s.wg.Wait()
		err = nil
	}
	close(done)
	watch.Wait()
	s.wg.Wait()
	if err == nil || ctx.Err() != nil || isStopped(b.stop) {
		return nil
	}
	return fmt.Errorf("broker: listen on %s: %w", l.Addr(), err)
}

func isStopped(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

// Update applies a changed configuration, all or nothing. Clients stay, except
// those whose user is gone.
func (b *Broker) Update(cfg config.Broker) error {
	set, err := newSettings(cfg)
	if err != nil {
		return fmt.Errorf("broker: %w", err)
	}
	b.apply(set)
	return nil
}

// server is one listener and its connections.
type server struct {
	b    *Broker
	wg   sync.WaitGroup
	mu   sync.Mutex
	open map[*conn]struct{}
	shut bool
}

// accept takes connections at their pace until the listener is closed. Running out
// of file descriptors is waited out; anything else ends the listener.
func (s *server) accept(l net.Listener) error {
	wait := time.Duration(0)
	for {
		s.b.awaitTurn()
		nc, err := l.Accept()
		if err != nil {
			if !isExhausted(err) {
				return err
			}
			wait = min(max(2*wait, 5*time.Millisecond), time.Second)
			s.b.ladder.Fail(report.Report{Err: "accept", Level: slog.LevelError, Who: "broker", Text: err.Error() + ": no more clients until one leaves; raise LimitNOFILE"})
			select {
			case <-time.After(wait):
			case <-s.b.stop:
			}
			continue
		}
		wait = 0
		s.take(nc)
	}
}

// take serves one connection on its own goroutine, or closes it.
func (s *server) take(nc net.Conn) {
	c := newConn(s.b, nc)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shut || !s.b.gate.enter(c) {
		shut(nc)
		return
	}
	s.open[c] = struct{}{}
	s.wg.Add(1)
	go c.serve(func() {
		s.b.gate.leave(c)
		s.mu.Lock()
		delete(s.open, c)
		s.mu.Unlock()
		s.wg.Done()
	})
}

// close ends all connections of the listener.
func (s *server) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shut = true
	for c := range s.open {
		c.kick(&ending{code: codeShutdown, text: "busgate stops"})
	}
}
