package main

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"busgate/bridge"
	"busgate/buffer"
	"busgate/cmd/busgate/console"
	"busgate/config"
	"busgate/config/report"
	"busgate/devices"
	"busgate/devices/modbus"
	"busgate/devices/uart"
	"busgate/embeddedbroker"
	"busgate/embeddedbroker/durable"
)

// How long each part may take to stop.
const (
	graceDevices  = 70 * time.Second // the exchange in flight, also of a guest: a timeout may be 60 s
	graceBroker   = 5 * time.Second
	graceBridge   = 5 * time.Second
	graceUplinks  = 15 * time.Second
	graceStore    = 30 * time.Second
	syncAtStop    = 4 * time.Second  // of graceUplinks, for the last readings
	drainUplink   = 10 * time.Second // of graceUplinks, for what still waits
	maxAlerts     = 64               // of the store, that wait for the bridge
	statusEvery   = 30 * time.Second // uplink stats on the LAN
	dataDirectory = 0o750
)

// gateway is the whole daemon below the command line: the rooms, wired. run
// and demo share it.
type gateway struct {
	log    *slog.Logger
	ladder *report.Ladder
	opened time.Time

	store     *buffer.Store
	facts     *facts
	clock     *clock
	durable   *durable.Store
	broker    *embeddedbroker.Broker
	local     *embeddedbroker.Local
	bridge    *bridge.Bridge
	fleet     *devices.Fleet
	uplinks   *uplinks
	listeners *listeners
	console   *console.Console
	alerts    chan report.Report // of the store, which must not wait for the bridge
	more      []stage            // on top of the others
	pulse     *pulse             // nil: nobody listens
	operators atomic.Int32       // commands at work on the store, which keep the committer busy

	reloads reloads
	said    *said

	mu  sync.Mutex // held during Update
	cfg *config.Config
}

// gatewayOptions are what only the demo and tests set.
type gatewayOptions struct {
	tap    func(devices.Round, *embeddedbroker.Message)
	listen net.Listener // instead of binding broker.listen; may be nil
	web    net.Listener // instead of binding web.listen; may be nil
	kernel *kernel      // of tests: another clock; nil: the real one
}

// openGateway opens everything that can fail: the store, the rooms on top of
// it, the listeners. Nothing runs yet. Close undoes it.
func openGateway(cfg *config.Config, log *slog.Logger, o gatewayOptions) (_ *gateway, err error) {
	log, said := countReports(log)
	g := &gateway{said: said, log: log, ladder: report.NewLadder(log), opened: time.Now(), cfg: cfg, alerts: make(chan report.Report, maxAlerts)}
	defer func() {
		if err != nil {
			g.Close()
		}
	}()
	if err := os.MkdirAll(cfg.Gateway.DataDir, dataDirectory); err != nil {
		return nil, fmt.Errorf("data_dir: %w", err)
	}
	g.store, err = buffer.Open(filepath.Join(cfg.Gateway.DataDir, "busgate.db"), buffer.Options{
		Limits: limits(&cfg.Buffer), Log: log, Alert: g.alert, Full: cfg.Buffer.Durability == "full",
	})
	if err != nil {
		return nil, err
	}
	if g.facts, err = loadFacts(g.store); err != nil {
		return nil, fmt.Errorf("load facts: %w", err)
	}
	if o.kernel == nil {
		o.kernel = &realKernel
	}
	g.clock = openClock(*o.kernel, g.facts.room("clock"), log, g.ladder, g.store.SetClock)
	g.clock.alert, g.clock.changed = g.alert, func() { g.bridge.Changed() }
	g.durable = durable.New(g.store)
	g.broker, err = embeddedbroker.New(cfg.Broker, g.durable, embeddedbroker.Options{Log: log, Ladder: g.ladder, Version: version, Reserved: g.reserved, ClockKnown: g.clock.known})
	if err != nil {
		return nil, fmt.Errorf("broker: %w", err)
	}
	g.local = g.broker.Local("bridge")
	boot, last := g.store.Closing()
	var closing []bridge.Closing
	for _, name := range slices.Sorted(maps.Keys(last)) {
		closing = append(closing, bridge.Closing{Uplink: name, Boot: boot, N: last[name]})
	}
	g.bridge, err = bridge.New(cfg, g.local, bridge.Options{
		Log: log, Ladder: g.ladder, Version: version, Boot: g.store.Boot(), Closing: closing,
		Clock: g.clock.now, Mono: g.clock.k.boot, Memory: g.facts.room("bridge"), Retained: g.broker.Retained, Tap: o.tap, Numbers: g.numbers,
		Buses: func() ([]devices.BusStatus, []devices.DeviceStatus) { return g.fleet.Status() },
	})
	if err != nil {
		return nil, err
	}
	g.uplinks = newUplinks(g)
	if err := g.uplinks.open(cfg); err != nil {
		return nil, err
	}
	g.fleet, err = devices.New(cfg, g.bridge, devices.Options{Drivers: drivers(), Memory: learned{g.facts.room("devices")}, Log: log, Ladder: g.ladder, Alert: g.alert, Clock: g.clock.now})
	if err != nil {
		return nil, err
	}
	g.foretell(cfg)
	g.bridge.Announce() // before anybody can listen: what a killed process left is not fresh
	g.console = g.newConsole(cfg, o)
	g.listeners, err = openListeners(g, &cfg.Broker, o.listen)
	return g, err
}

// Run runs the rooms until ctx ends, then stops them in reverse. Closing hurry
// skips the draining. ready is called when everything is started.
func (g *gateway) Run(ctx context.Context, hurry <-chan struct{}, ready func()) error {
	stages := []stage{
		{name: "clock", grace: graceBridge, run: g.clock.Run},
		{name: "clients", grace: graceBroker, run: g.listeners.Run}, // the broker, when it ends, says good-bye to them
		{name: "broker", grace: graceBroker, run: g.broker.Run},
		{name: "uplinks", grace: graceUplinks, run: g.uplinks.Run},
		{name: "bridge", grace: graceBridge, run: func(ctx context.Context) error { return g.bridge.Run(ctx, g.fleet) }},
		{name: "console", grace: graceBridge, run: g.console.Run},
		{name: "door", grace: graceBroker, run: g.listeners.Door},
		{name: "devices", grace: graceDevices, run: g.fleet.Run},
		{name: "alerts", grace: graceBridge, run: g.publishAlerts},
	}
	if g.pulse != nil { // stops last
		stages = slices.Insert(stages, 0, stage{name: "pulse", grace: moment, run: g.pulse.Run})
	}
	stages = append(stages, g.more...)
	stages = append(stages, stage{name: "ready", grace: graceBridge, run: func(ctx context.Context) error { ready(); <-ctx.Done(); return nil }})
	return runStages(ctx, g.log, stages, hurry)
}

// alert takes a report of the store; it may come from the committer.
func (g *gateway) alert(r report.Report) {
	select {
	case g.alerts <- r:
	default: // the log has it, and the next edge comes
		g.log.Warn("too many alerts wait to be published", "err", r.Err)
	}
}

func (g *gateway) publishAlerts(ctx context.Context) error {
	for {
		select {
		case r := <-g.alerts:
			g.bridge.Alert(r)
		case <-ctx.Done():
			return nil
		}
	}
}

// serveControl makes the gateway answer commands on ln. It is called before Run.
func (g *gateway) serveControl(ln net.Listener, reload func(context.Context) (string, error)) {
	c := &control{store: g.store, rates: g.uplinks.rates, reload: reload, fleet: g.fleet, learned: g.facts.room("devices").All, broker: g.broker, status: g.status}
	routes := c.handler()
	counted := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/v1/buffer/") {
			g.operators.Add(1)
			defer g.operators.Add(-1)
		}
		routes.ServeHTTP(w, r)
	})
	g.more = append(g.more, stage{name: "control", grace: graceDevices, run: func(ctx context.Context) error {
		return serveControl(ctx, g.log, ln, counted)
	}})
}

// Update applies a checked configuration to what runs, all or nothing: when a
// room refuses, the rooms before it are given the old configuration again.
func (g *gateway) Update(ctx context.Context, cfg *config.Config) (config.Changes, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	d := config.Diff(g.cfg, cfg)
	if len(d.Refused) > 0 {
		key := d.Refused[0]
		return d, fmt.Errorf("`%s` needs a restart: systemctl restart busgate", key[strings.LastIndex(key, ".")+1:])
	}
	rooms := []func(*config.Config, config.Changes) error{
		func(c *config.Config, _ config.Changes) error { return g.listeners.Update(&c.Broker) },
		func(c *config.Config, _ config.Changes) error { return g.broker.Update(c.Broker) },
		func(c *config.Config, _ config.Changes) error { return g.bridge.Update(c) },
		func(c *config.Config, d config.Changes) error { return g.uplinks.Update(ctx, c, d.Uplinks) },
		func(c *config.Config, _ config.Changes) error { return g.fleet.Update(c) },
		func(c *config.Config, _ config.Changes) error { return g.console.Update(c.Web) },
		func(c *config.Config, _ config.Changes) error { g.store.SetLimits(limits(&c.Buffer)); return nil },
	}
	for i, update := range rooms {
		err := update(cfg, d)
		if err == nil {
			continue
		}
		back := config.Diff(cfg, g.cfg)
		for j := i; j >= 0; j-- {
			if undo := rooms[j](g.cfg, back); undo != nil {
				g.log.Error("the old configuration could not be restored; restart the service", "err", undo)
			}
		}
		return d, err
	}
	g.cfg = cfg
	g.foretell(cfg)
	return d, nil
}

// foretell warns of buses that cannot keep the intervals they are given.
func (g *gateway) foretell(cfg *config.Config) {
	for _, l := range devices.Loads(cfg, drivers(), learned{g.facts.room("devices")}) {
		if l.Warning != "" {
			g.log.Warn("bus "+l.Bus.Name+": "+l.Warning, "bus", l.Bus.Name, "err", "overload")
		}
	}
}

// reserved says which topics only the gateway itself may publish. The broker
// asks before the bridge exists only while no listener is open.
func (g *gateway) reserved(topic string) bool { return g.bridge.Reserved(topic) }

// numbers are what gateway/state tells of the other rooms.
func (g *gateway) numbers() bridge.GatewayNumbers {
	n := bridge.GatewayNumbers{Clients: g.broker.Stats().Clients, Clock: g.clock.source()}
	for _, st := range g.uplinks.status() {
		n.Queue += st.Pending
		n.QueueBytes += st.Bytes
		n.QueueOldest = max(n.QueueOldest, st.Oldest)
	}
	for _, lost := range dropped(g.store) {
		n.Dropped += lost
	}
	return n
}

// Close releases what openGateway opened. The store comes last: it flushes.
func (g *gateway) Close() error {
	if g.listeners != nil {
		g.listeners.Close()
	}
	if g.store == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), graceStore)
	defer cancel()
	return g.store.Close(ctx)
}

// drivers are the field protocols.
func drivers() map[string]devices.Driver {
	m := &modbus.Driver{}
	return map[string]devices.Driver{"modbus-rtu": m, "modbus-ascii": m, "modbus-tcp": m, "modbus-udp": m, "uart": &uart.Driver{}}
}

// limits are the bounds of the store as configured.
func limits(b *config.Buffer) buffer.Limits {
	l := buffer.Limits{MaxBytes: b.MaxBytes, MaxMessages: b.MaxMessages, MaxAge: b.MaxAge, MinFreeDisk: b.MinFreeDisk, Sync: b.Sync}
	if b.MinFreeDisk == 0 {
		l.MinFreeDisk = -1
	}
	switch b.WhenFull {
	case "thin":
		l.WhenFull = buffer.Thin
	case "reject":
		l.WhenFull = buffer.Reject
	}
	switch b.Keep {
	case "last":
		l.Keep = buffer.KeepLast
	case "minmax":
		l.Keep = buffer.KeepMinMax
	}
	return l
}
