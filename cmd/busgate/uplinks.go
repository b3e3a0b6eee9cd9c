package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"busgate/bridge"
	"busgate/bridge/uplink"
	"busgate/buffer"
	"busgate/config"
	"busgate/embeddedbroker"
)

// uplinks runs one link per [uplink.NAME] and starts and ends them at a reload.
// Update may be called before and during Run, from one goroutine.
type uplinks struct {
	g       *gateway
	changes chan func(context.Context, *runningLinks) // to Run
	over    chan struct{}                             // closed when Run takes no more of them
	names   templates

	mu    sync.Mutex
	links map[string]*openLink
}

// openLink is a link with its consumer in the store.
type openLink struct {
	link     *uplink.Link
	consumer *buffer.Consumer
	options  buffer.ConsumerOptions

	// of the last stats, owned by Run
	at            time.Time
	waiting, sent uint64
	last          bridge.UplinkNumbers // guarded by uplinks.mu
}

// templates are the topics that topic_template gives to the devices of each
// uplink; links read them while a reload writes them anew.
type templates struct {
	mu sync.Mutex
	of map[string]map[string]string // by uplink, then device
}

func (t *templates) load(cfg *config.Config) {
	of := map[string]map[string]string{}
	for name, u := range cfg.Uplinks {
		of[name] = uplink.Templates(cfg, u)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.of = of
}

func (t *templates) topic(uplink, device string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.of[uplink][device]
}

// runningLinks belongs to Run.
type runningLinks struct {
	wg     sync.WaitGroup
	links  map[string]runningLink
	failed chan error
}

type runningLink struct {
	cancel context.CancelFunc
	done   chan struct{}
}

func newUplinks(g *gateway) *uplinks {
	return &uplinks{g: g, changes: make(chan func(context.Context, *runningLinks)), over: make(chan struct{}), links: map[string]*openLink{}}
}

// open makes the links of a configuration; Run starts them.
func (u *uplinks) open(cfg *config.Config) error {
	u.names.load(cfg)
	for _, name := range slices.Sorted(maps.Keys(cfg.Uplinks)) {
		if err := u.openOne(cfg, name); err != nil {
			return err
		}
	}
	return nil
}

// openOne resumes or creates the consumer of an uplink, puts it into the
// routing table, and makes its link. From here on nothing for it is missed.
func (u *uplinks) openOne(cfg *config.Config, name string) error {
	c := cfg.Uplinks[name]
	options := uplink.ConsumerOptions(c, name)
	consumer, err := u.g.store.Consumer(name, options)
	if err != nil {
		return fmt.Errorf("uplink %s: %w", name, err)
	}
	u.g.durable.Uplink(consumer)
	stream := u.g.store.Stream(name)
	l, err := uplink.New(c, &cfg.Gateway, consumer, u.options(name, consumer, stream))
	if err != nil {
		return err
	}
	if err := u.route(cfg, name); err != nil {
		return err
	}
	u.mu.Lock()
	u.links[name] = &openLink{link: l, consumer: consumer, options: options, at: time.Now()}
	u.mu.Unlock()
	return nil
}

// route puts an uplink into the routing table of the broker.
func (u *uplinks) route(cfg *config.Config, name string) error {
	filters, want := uplink.Wants(cfg.Uplinks[name], &cfg.Gateway)
	if _, err := u.g.local.Consumer(name, filters, want); err != nil {
		return fmt.Errorf("uplink %s: %w", name, err)
	}
	return nil
}

func (u *uplinks) options(name string, consumer *buffer.Consumer, stream *buffer.Stream) uplink.Options {
	g := u.g
	memory := g.facts.room("uplink/" + name)
	return uplink.Options{
		Log: g.log, Ladder: g.ladder, Boot: g.store.Boot(), Stream: stream.ID(), Grace: drainUplink, FirstDelay: firstDelay(g.clock.k.boot()),
		Birth:    func() []*embeddedbroker.Message { return g.bridge.Birth() },
		Down:     func(ctx context.Context, m *embeddedbroker.Message) error { return g.bridge.Down(ctx, name, m) },
		Template: func(device string) string { return u.names.topic(name, device) },
		Notify: func(s uplink.State) {
			g.bridge.UplinkState(name, s.Word())
			g.broker.UplinkState(name, s.Connected())
		},
		Clock: g.clock.verify,
		Usage: func() (int, int64, time.Duration) {
			n, b := consumer.Pending()
			age := time.Duration(0)
			if t := consumer.Oldest(); !t.IsZero() {
				age = max(0, time.Since(t))
			}
			return n, b, age
		},
		Fact: memory.Get, Keep: memory.Keep,
		Losses:  func() []buffer.Loss { return g.store.Losses(consumer) },
		Told:    g.store.Told,
		Closing: func() (string, uint64) { boot, last := g.store.Closing(); return boot, last[name] },
	}
}

// A computer that has just started may be one of many that come back together
// after a power cut; their first connects are spread.
const (
	justStarted = 3 * time.Minute
	spread      = 10 * time.Second
)

// firstDelay is up to how long a link waits before its first connect.
func firstDelay(up time.Duration) time.Duration {
	if up < justStarted {
		return spread
	}
	return 0
}

// Run runs all links until ctx ends; each then drains for its grace. Before
// that the last polled readings, for which nobody waited, are brought to disk:
// only then the links see them.
func (u *uplinks) Run(ctx context.Context) error {
	all, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	r := &runningLinks{links: map[string]runningLink{}, failed: make(chan error, 1)}
	u.mu.Lock()
	for name, l := range u.links {
		r.start(all, name, l)
	}
	u.mu.Unlock()
	stats := time.NewTicker(statusEvery)
	defer stats.Stop()
	var err error
	for err == nil && ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case err = <-r.failed:
		case change := <-u.changes:
			change(all, r)
		case <-stats.C:
			u.publishStats()
		}
	}
	close(u.over)
	if err == nil {
		u.sync()
	}
	cancel()
	r.wg.Wait()
	return err
}

func (u *uplinks) sync() {
	ctx, cancel := context.WithTimeout(context.Background(), syncAtStop)
	defer cancel()
	if err := u.g.store.Sync(ctx); err != nil {
		u.g.log.Warn("uplinks: what was read last may leave only after the next start", "err", err)
	}
}

func (r *runningLinks) start(ctx context.Context, name string, l *openLink) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	r.links[name] = runningLink{cancel, done}
	r.wg.Go(func() {
		defer close(done)
		defer cancel()
		if err := l.link.Run(ctx); err != nil && !errors.Is(err, buffer.ErrForgotten) {
			select {
			case r.failed <- err:
			default: // the first error ends them all
			}
		}
	})
}

// Update opens, changes and ends links. What waits for a removed uplink stays
// in the store, in case that the removal was a mistake.
func (u *uplinks) Update(ctx context.Context, cfg *config.Config, changes []config.Change) error {
	u.names.load(cfg)
	for _, c := range changes {
		var err error
		switch c.Effect {
		case config.Added:
			err = u.add(ctx, cfg, c.Name)
		case config.Removed:
			err = u.remove(ctx, c.Name)
		default:
			err = u.change(ctx, cfg, c.Name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// change gives a link its new configuration. Where that needs its consumer
// opened in another way (window, exactness), the link is ended and made anew.
func (u *uplinks) change(ctx context.Context, cfg *config.Config, name string) error {
	u.mu.Lock()
	l := u.links[name]
	u.mu.Unlock()
	if l == nil { // a change of it has failed half-way
		return u.add(ctx, cfg, name)
	}
	if uplink.ConsumerOptions(cfg.Uplinks[name], name) == l.options {
		if err := l.link.Update(cfg.Uplinks[name]); err != nil {
			return err
		}
		return u.route(cfg, name)
	}
	if err := u.end(ctx, name); err != nil {
		return err
	}
	return u.add(ctx, cfg, name)
}

func (u *uplinks) add(ctx context.Context, cfg *config.Config, name string) error {
	if err := u.openOne(cfg, name); err != nil {
		return err
	}
	return u.do(ctx, func(all context.Context, r *runningLinks) {
		u.mu.Lock()
		defer u.mu.Unlock()
		r.start(all, name, u.links[name])
	})
}

func (u *uplinks) remove(ctx context.Context, name string) error {
	if _, err := u.g.local.Consumer(name, nil, nil); err != nil {
		return fmt.Errorf("uplink %s: %w", name, err)
	}
	u.g.log.Warn("uplink "+name+": removed from the configuration; what waits for it stays in the buffer", "err", "orphan-uplink")
	return u.end(ctx, name)
}

// end stops a link and waits until it has.
func (u *uplinks) end(ctx context.Context, name string) error {
	var ended chan struct{}
	err := u.do(ctx, func(_ context.Context, r *runningLinks) {
		if l, ok := r.links[name]; ok {
			l.cancel()
			ended = l.done
			delete(r.links, name)
		}
	})
	if err != nil {
		return err
	}
	if ended != nil {
		<-ended
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.links, name)
	return nil
}

// errStopping is the end of a reload beside a stop.
var errStopping = errors.New("the gateway stops")

// do runs f on the goroutine of Run, with the context of the links.
func (u *uplinks) do(ctx context.Context, f func(context.Context, *runningLinks)) error {
	done := make(chan struct{})
	select {
	case u.changes <- func(all context.Context, r *runningLinks) { defer close(done); f(all, r) }:
		<-done
		return nil
	case <-u.over:
		return errStopping
	case <-ctx.Done():
		return ctx.Err()
	}
}

// status is a snapshot of every link by name.
func (u *uplinks) status() map[string]uplink.Status {
	u.mu.Lock()
	defer u.mu.Unlock()
	out := make(map[string]uplink.Status, len(u.links))
	for name, l := range u.links {
		out[name] = l.link.Status()
	}
	return out
}

// publishStats says on the LAN how each uplink does; rates are those since the
// last time.
func (u *uplinks) publishStats() {
	lost := dropped(u.g.store)
	u.mu.Lock()
	defer u.mu.Unlock()
	for name, l := range u.links {
		st, now := l.link.Status(), time.Now()
		waiting := uint64(st.Pending)
		took := now.Sub(l.at).Seconds()
		n := bridge.UplinkNumbers{
			Queue: st.Pending, Bytes: st.Bytes, Oldest: st.Oldest, Sent: st.Sent, Repeated: st.Repeated,
			Dropped: lost[name], LastError: st.LastError, Since: st.Since, ETA: -1,
			Out: float64(st.Sent-l.sent) / took,
			In:  max(0, float64(st.Sent-l.sent)+float64(waiting)-float64(l.waiting)) / took,
		}
		if net := n.Out - n.In; net > 0 || st.Pending == 0 {
			n.ETA = time.Duration(float64(st.Pending) / max(net, 1e-9) * float64(time.Second))
		}
		l.at, l.waiting, l.sent, l.last = now, waiting, st.Sent, n
		u.g.bridge.UplinkStats(name, n)
	}
}

// rates are the numbers of the last publishStats, by uplink; none before that.
func (u *uplinks) rates() map[string]bridge.UplinkNumbers {
	u.mu.Lock()
	defer u.mu.Unlock()
	out := make(map[string]bridge.UplinkNumbers, len(u.links))
	for name, l := range u.links {
		if !l.last.Since.IsZero() {
			out[name] = l.last
		}
	}
	return out
}

// dropped counts what the store lost for each consumer since the start.
func dropped(s *buffer.Store) map[string]uint64 {
	out := map[string]uint64{}
	for _, c := range s.Stats().Consumers {
		for _, n := range c.Lost {
			out[c.Name] += n
		}
	}
	return out
}
