package console

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"busgate/config"
	"busgate/config/report"
)

// Limits of the server.
const (
	headerTime   = 5 * time.Second
	requestTime  = 30 * time.Second // to read a request, and to write its answer
	idleTime     = time.Minute
	headerBytes  = 16 << 10
	stopTime     = 2 * time.Second // for answers under way, when an address closes
	retryEvery   = time.Minute     // an address that cannot be had
	whoConsole   = "console"
	errNoAddress = "console-address" // word of the report
)

// Options are what the console shows and stands on. All functions may be called
// from several goroutines at once.
type Options struct {
	Log    *slog.Logger
	Ladder *report.Ladder

	// Listener, when set, is served instead of binding the address that New is given.
	Listener net.Listener

	Status  func() Status
	Metrics func(m *Metrics, points bool) // adds samples; points: the values of the points, too
	Rooms   []Room                        // asked in turn by /healthz
	Users   func(path string) (Users, error)
}

// Users is one reading of a users file. Check takes the same time for a wrong
// password as for a name that does not exist. Safe for concurrent use.
type Users interface {
	Check(name string, secret []byte) bool
}

// Console is the server. New, then Run once.
type Console struct {
	o      Options
	health *health
	guard  guard
	pages  chan struct{} // who makes or writes a page
	n      counters

	retry time.Duration         // retryEvery, but for tests
	names atomic.Pointer[names] // that a request may call us by

	mu   sync.Mutex
	cfg  config.Web
	ln   net.Listener  // bound, for cfg.Listen; nil: none
	wake chan struct{} // to Run: cfg or ln changed
}

// counters of what was refused, and of logins.
type counters struct {
	host, login, rate, busy, connections, failed atomic.Uint64
	loginsOK, loginsWrong, loginsRefused         atomic.Uint64
}

// New makes the console of a checked configuration. A users file that cannot be
// read is said; until it can be, nobody can log in.
func New(cfg config.Web, o Options) *Console {
	c := &Console{o: o, retry: retryEvery, health: newHealth(o.Rooms), pages: make(chan struct{}, pagesAtOnce), wake: make(chan struct{}, 1), cfg: cfg, ln: o.Listener}
	c.guard = guard{log: o.Log, load: o.Users, hashing: make(chan struct{}, 1)}
	u, err := c.guard.read(cfg.Users)
	if err != nil {
		o.Log.Error("console: nobody can log in: " + err.Error())
	}
	c.guard.use(u)
	c.names.Store(namesOf(&cfg))
	return c
}

// Run serves until ctx ends; answers under way get 2 s more.
func (c *Console) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	asked := false
	for ctx.Err() == nil {
		ln, addr := c.listener()
		if ln == nil {
			c.wait(ctx, addr)
			continue
		}
		if !asked {
			asked = true
			c.health.start(ctx, &wg)
		}
		err := c.serve(ctx, ln)
		c.mu.Lock()
		if c.ln == ln { // nobody replaced it
			c.ln = nil
		}
		c.mu.Unlock()
		if err != nil {
			c.o.Log.Error("console: "+addr+": the listener failed; it is opened again", "err", err)
			c.wait(ctx, addr)
		}
	}
	return nil
}

// wait returns when ctx ends, the configuration changes, or an address that could
// not be had is due again.
func (c *Console) wait(ctx context.Context, addr string) {
	var again <-chan time.Time
	if addr != "" {
		t := time.NewTimer(c.retry)
		defer t.Stop()
		again = t.C
	}
	select {
	case <-ctx.Done():
	case <-c.wake:
	case <-again:
	}
}

// listener is the open one, or a new one; nil when the console is off or its
// address cannot be had, which is said.
func (c *Console) listener() (net.Listener, string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ln != nil || c.cfg.Listen == "" {
		return c.ln, c.cfg.Listen
	}
	ln, err := net.Listen("tcp", c.cfg.Listen)
	if err != nil {
		c.o.Ladder.Fail(report.Report{Err: errNoAddress, Level: slog.LevelError, Who: whoConsole, Text: bindText(c.cfg.Listen, err)})
		return nil, c.cfg.Listen
	}
	c.ln = ln
	return ln, c.cfg.Listen
}

// bindText says why an address cannot be had. Under systemd the holder of a port
// is hidden from us.
func bindText(addr string, err error) string {
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Sprintf("%s is in use by another program (sudo ss -ltnp 'sport = :%s' names it); set listen in [web]", addr, portOf(addr))
	}
	return fmt.Sprintf("%s cannot be opened (%v); set listen in [web]", addr, err)
}

// serve answers on ln until ctx ends, or ln closes, which is no error when it was
// replaced. No connection is left when it returns.
func (c *Console) serve(ctx context.Context, ln net.Listener) error {
	c.o.Log.Info("console: http://" + ln.Addr().String())
	c.o.Ladder.Solve(errNoAddress, whoConsole, func(lasted time.Duration, _ uint64) string {
		return fmt.Sprintf("answers on http://%s after %s", ln.Addr(), report.Duration(lasted))
	})
	var conns sync.WaitGroup
	srv := c.server(&conns)
	failed := make(chan error, 1)
	conns.Go(func() { failed <- srv.Serve(&places{Listener: ln, refused: &c.n.connections}) })
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	late, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
	defer cancel()
	if srv.Shutdown(late) != nil {
		srv.Close() // that connections were open is the only error there is
	}
	conns.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ln != ln || ctx.Err() != nil { // replaced, or the end
		return nil
	}
	return err
}

// server counts its connections in conns, which is not zero before Serve returns.
func (c *Console) server(conns *sync.WaitGroup) *http.Server {
	return &http.Server{
		Handler: c, ReadHeaderTimeout: headerTime, ReadTimeout: requestTime, WriteTimeout: requestTime, IdleTimeout: idleTime,
		MaxHeaderBytes: headerBytes, DisableGeneralOptionsHandler: true, ErrorLog: slog.NewLogLogger(c.o.Log.Handler(), slog.LevelDebug),
		ConnState: func(_ net.Conn, s http.ConnState) {
			switch s {
			case http.StateNew: // before Serve returns
				conns.Add(1)
			case http.StateClosed: // the last thing that the goroutine of a connection does
				conns.Done()
			}
		},
	}
}

// Update takes a changed configuration, or refuses it and changes nothing. A new
// address is bound before the old one closes, where both can be open at once.
func (c *Console) Update(cfg config.Web) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	u, err := c.guard.read(cfg.Users)
	if err != nil && cfg.Users != c.cfg.Users {
		return fmt.Errorf("console: %w", err)
	}
	if cfg.Listen != c.cfg.Listen {
		if err := c.moveLocked(cfg.Listen); err != nil {
			return err
		}
	}
	if err == nil {
		c.guard.use(u)
	}
	c.names.Store(namesOf(&cfg))
	c.cfg = cfg
	select {
	case c.wake <- struct{}{}:
	default: // Run has not looked yet
	}
	return nil
}

// moveLocked replaces the listener. serve notices when its own closes.
func (c *Console) moveLocked(addr string) error {
	was := c.ln
	if addr == "" {
		c.ln = nil
		if was != nil {
			was.Close()
		}
		return nil
	}
	ln, err := net.Listen("tcp", addr)
	if errors.Is(err, syscall.EADDRINUSE) && was != nil && portOf(addr) == portOf(was.Addr().String()) { // by ourselves, perhaps
		old := was.Addr().String()
		was.Close()
		if ln, err = net.Listen("tcp", addr); err != nil {
			back, berr := net.Listen("tcp", old)
			if berr != nil {
				c.o.Log.Error("console: " + bindText(old, berr))
			}
			c.ln = back
		}
	}
	if err != nil {
		return fmt.Errorf("console: %s", bindText(addr, err))
	}
	c.ln = ln
	if was != nil {
		was.Close() // again, perhaps: then nothing happens
	}
	return nil
}

func portOf(addr string) string {
	_, port, _ := net.SplitHostPort(addr) // checked at load
	return port
}
