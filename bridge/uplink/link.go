package uplink

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"busgate/buffer"
	"busgate/config"
	"busgate/config/report"
	"busgate/embeddedbroker"
)

// Options are what a link is given beside its configuration. Everything is
// optional; functions must be safe to call from the link's goroutines.
type Options struct {
	Log    *slog.Logger
	Ladder *report.Ladder // failures and recoveries; nil: one of its own on Log

	// Birth gives what the cloud is told at each connect after the gateway's
	// status and before the backlog: device statuses, info, newest states,
	// alerts, with local topics.
	Birth func() []*embeddedbroker.Message

	// Down publishes locally what came from the cloud and returns when it is
	// durable; only then it is acknowledged. An error leaves it unacknowledged.
	Down func(ctx context.Context, m *embeddedbroker.Message) error

	// Template is the topic of a device's readings as topic_template makes it, see
	// Templates; "" for a device that is not configured.
	Template func(device string) string

	Notify func(State) // each change of phase, in order; must not block

	// Dial opens a connection; nil is a net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	// Usage is what waits for this uplink, in flight included.
	Usage func() (messages int, bytes int64, oldest time.Duration)

	Boot       string          // "<epoch>-<counter>" of this process
	Stream     buffer.StreamID // the stream that numbers the records of this uplink; 0: the first number of a record
	Grace      time.Duration   // for draining when Run is to end
	FirstDelay time.Duration   // the first connect waits a random time up to this: a whole site comes back at once

	// Clock gives the time for the verification of certificates and whether it
	// can be trusted; nil: the system clock, trusted.
	Clock func() (now time.Time, known bool)

	// Fact reads and Keep writes what is remembered over restarts: small values
	// under short keys. then is called when it is on disk or cannot be.
	Fact func(key string) []byte
	Keep func(key string, value []byte, then func(error))

	Losses  func() []buffer.Loss           // what the store dropped and nobody was told
	Told    func(ids ...int64)             // the cloud has acknowledged these
	Closing func() (boot string, n uint64) // the last number of the former boot; boot "" = none
}

// timing are the deadlines of a link. They are constants but for tests with a
// real network, which have no time to wait.
type timing struct {
	connect time.Duration // TCP, TLS, CONNECT, CONNACK together
	ack     time.Duration // without any acknowledgement while something is owed; twice for the oldest
	write   time.Duration // one write
	ping    time.Duration // PINGREQ to PINGRESP
	release time.Duration // one release in the store
	settle  time.Duration // an empty backlog for so long is online
	retry   time.Duration // shortest time between two CONNECTs, and first back-off
	tick    time.Duration
}

var defaultTiming = timing{
	connect: 20 * time.Second, ack: 30 * time.Second, write: 10 * time.Second, ping: 10 * time.Second,
	release: 5 * time.Second, settle: 2 * time.Second, retry: time.Second, tick: time.Second,
}

// Link relays one consumer of the store to one cloud broker, and back what is
// accepted. Run does everything; Update and Status may be called meanwhile from
// any goroutine.
type Link struct {
	name   string
	who    string
	gw     config.Gateway
	o      Options
	log    *slog.Logger
	ladder *report.Ladder
	src    source
	old    backlogSource // nil: the source cannot give the newest first
	timing timing
	board  board
	bytes  traffic
	crew   crew

	mu   sync.Mutex
	next *settings     // given to Update, not yet taken by Run
	kick chan struct{} // next was set

	// All below belongs to the goroutine of Run.
	base      *settings // of the configuration
	set       *settings // with what was learned of the cloud laid over it
	s         *session
	coder     coder
	gate      gate
	month     month
	suspect   suspicion
	poison    map[uint64]bool // ords of records that are set aside
	repack    bool            // what is in flight must be packed anew in a new session
	struck    bool            // the last connection may have ended for something of ours
	fetch     *fetcher
	ready     []lot             // leased, not yet in flight
	late      []lot             // the same, of the backlog of live_first
	aside     []lot             // leased, too large while that is on trial
	run       int               // live packets since the last of the backlog
	poor      bool              // the budget holds the backlog back
	emptied   map[string]uint64 // sequence numbers of the records that emptied retained topics
	emptying  chan error        // the answer of the store to the last note of them; nil: none is under way
	noting    time.Time         // since then
	unclosed  []lastNumber      // closing numbers that the cloud has not acknowledged, oldest first
	packed    *flight           // the last batch, while it has not left
	deflater  deflater
	bounds    map[uint64]*bound
	cutting   chan error // the answer of the store to the last cut; nil: none runs
	fresh     []*bound   // of that cut
	released  chan error // the answer of the store to the last Release or Unrelease
	since     time.Time  // of that request
	down      *downlink
	back      backoff
	pair      pair
	cache     tls.ClientSessionCache
	files     files
	at        int // index of the address to try next, modulo their number
	lastDial  time.Time
	connected time.Time // last CONNACK
	tokenEnds time.Time // by the wall clock; zero: the password has no end that we know
	looked    time.Time // for losses to tell
	epochs    uint64
	clean     string   // identity whose session the broker must forget first; "" = none
	kept      string   // identity that was written down
	filters   []string // subscribed in this session, as far as we know
	telling   uint64   // connection on which a loss report is under way; 0 = none
	trouble   trouble
	state     State
	nextTry   time.Time
	stats     counters
	hook      func(hook) // of tests: told of each moment; nil otherwise
}

// hook names a moment in which a test may act.
type hook uint8

const (
	hookResume hook = iota // a session is about to be resumed
)

// New checks the configuration and makes a link that does nothing until Run.
func New(cfg *config.Uplink, gw *config.Gateway, src Source, o Options) (*Link, error) {
	set, err := newSettings(cfg, gw)
	if err != nil {
		return nil, err
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Ladder == nil {
		o.Ladder = report.NewLadder(o.Log)
	}
	if o.Dial == nil {
		o.Dial = (&net.Dialer{}).DialContext
	}
	if o.Clock == nil {
		o.Clock = func() (time.Time, bool) { return time.Now(), true }
	}
	l := &Link{
		name: cfg.Name, gw: *gw, who: "uplink " + cfg.Name, o: o, log: o.Log.With("uplink", cfg.Name), ladder: o.Ladder, src: ticketed{src},
		timing: defaultTiming, kick: make(chan struct{}, 1), s: newSession(), suspect: newSuspicion(), poison: map[uint64]bool{}, emptied: map[string]uint64{},
		state: State{Phase: Stopped, Since: time.Now()},
	}
	l.old, _ = src.(backlogSource)
	l.stats.closed = map[string]uint64{}
	l.take(set)
	l.publishStatus()
	return l, nil
}

// Update gives the link another configuration of the same name. It is checked
// before anything changes; the link takes it over within a second, reconnecting
// only when the connection depends on what changed.
func (l *Link) Update(cfg *config.Uplink) error {
	if cfg.Name != l.name {
		return fmt.Errorf("uplink %s: update with the configuration of %s", l.name, cfg.Name)
	}
	set, err := newSettings(cfg, &l.gw)
	if err != nil {
		return err
	}
	l.mu.Lock()
	l.next = set
	l.mu.Unlock()
	select {
	case l.kick <- struct{}{}:
	default:
	}
	return nil
}

// Run drains the source until ctx ends or the store does. When ctx ends, what
// waits is sent for at most Options.Grace, then the cloud is told offline and
// the connection is closed. It returns nil after ctx, else why the store gave
// nothing more.
func (l *Link) Run(ctx context.Context) error {
	l.fetch = newFetcher(l.src, l.old)
	defer l.fetch.stop()
	l.down = newDownlink(l.o.Down)
	defer l.down.stop()
	defer l.enter(Stopped, "")
	l.begin()
	for wait := l.firstDelay(); ; {
		if !l.rest(ctx, wait) {
			return nil
		}
		err := l.connection(ctx)
		if final(err) {
			return fmt.Errorf("uplink %s: read the store: %w", l.name, err)
		}
		if ctx.Err() != nil {
			return nil
		}
		wait = l.failed(err)
	}
}

// begin takes over what an earlier process, or link, left: ords that the cloud
// has taken over owe a PUBREL; the others come again from the source.
func (l *Link) begin() {
	l.fetch.rewind()
	l.loadBounds()
	l.loadDegraded()
	l.loadClosing()
	l.loadEmptied()
	l.month.seen = l.bytes.total()
	if l.o.Fact != nil {
		l.month.load(string(l.o.Fact(factMonth)))
		if was := string(l.o.Fact(factIdentity)); was != "" && was != l.set.identity() {
			l.clean = l.set.identity()
		}
	}
	done := uint64(0)
	var owed []uint64
	for _, o := range l.src.Owed() {
		if !o.Released {
			continue
		}
		if owed = append(owed, o.Ord); o.Ord <= done {
			continue
		}
		done = o.Ord
		if b := l.bounds[o.Ord]; b != nil {
			done = b.last
		}
		l.s.add(&flight{first: o.Ord, last: done, qos: 2, step: releasing, again: true})
	}
	if len(owed) > 0 { // an earlier link of this process may have ended before the store had kept it
		l.s.busy, l.since = true, time.Now()
		l.src.Release(l.answer(), owed...)
	}
}
