package bridge

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"busgate/config"
	"busgate/config/report"
	"busgate/devices"
	"busgate/embeddedbroker"
)

// Broker is what the bridge needs of the broker; *embeddedbroker.Local is the
// real one.
type Broker interface {
	// Publish routes m once. Without done it does not ask whether the store has
	// room; with done an error means that nobody gets m, and done is told when
	// it is on disk. It may wait.
	Publish(m *embeddedbroker.Message, done embeddedbroker.Completion) error

	// Subscribe calls f, one message at a time and in order, with what is
	// retained and what is published later, until cancel.
	Subscribe(filter string, qos byte, f func(*embeddedbroker.Message)) (cancel func())
}

// Fleet is what the bridge needs of the devices; *devices.Fleet is the real one.
type Fleet interface {
	// Write checks, writes and reads back one value; it waits for the bus. An
	// error means that it is not known what happened (ctx ended) or that the
	// fleet takes no commands.
	Write(ctx context.Context, c devices.Command) (devices.Result, error)

	// Refresh asks for one round of the device in the next free slot and does
	// not wait for it. At most one waits per device.
	Refresh(device string) error
}

// Memory keeps small facts over a crash: commands that carry an id, and which
// topics have retained messages. Save
// returns when v is on disk. Load of an unknown key is nil, nil.
type Memory interface {
	Load(key string) ([]byte, error)
	Save(key string, v []byte) error
}

// Options are what a Bridge is given besides the configuration. The functions
// must be safe for concurrent use.
type Options struct {
	Log    *slog.Logger   // nil: nothing is logged
	Ladder *report.Ladder // refused commands; nil: one of its own on Log

	Version  string // of busgate, for gateway/info
	Homepage string // of busgate, for Home Assistant; "" = not told
	Model    string // of the computer, for gateway/info; "" = not told
	Boot     string // <epoch>-<counter> of this start
	Closing  []Closing

	Clock  func() (time.Time, bool) // wall time and whether it is known; nil: time.Now, known
	Mono   func() time.Duration     // the clock of devices.Instant.Mono; nil: CLOCK_BOOTTIME
	Memory Memory                   // nil: ids and removed devices are forgotten at the end of the process

	// Retained lists the retained messages that match a filter. Announce deletes
	// those of ours that nothing stands for any more; nil: none is deleted.
	Retained func(filter string) []*embeddedbroker.Message

	// Tap sees every published round with its message, in order per device; it
	// must return at once.
	Tap func(devices.Round, *embeddedbroker.Message)

	// Numbers are the numbers of gateway/state that other rooms know.
	Numbers func() GatewayNumbers

	// Buses are what gateway/bus/<name>/stats and gateway/state tell of the buses:
	// devices.Fleet.Status. nil: there are none.
	Buses func() ([]devices.BusStatus, []devices.DeviceStatus)
}

// Closing is the last number that the stream of an uplink drew in an earlier boot.
type Closing struct {
	Uplink, Boot string
	N            uint64
}

// Bridge turns rounds into messages and commands into writes. It implements
// devices.Sink. All methods are safe for concurrent use, but for Announce and
// Run, which are called once, in this order.
type Bridge struct {
	log      *slog.Logger
	ladder   *report.Ladder
	broker   Broker
	base     string // fixed: name and topic of the gateway need a restart
	boot     string
	version  string
	model    string
	homepage string
	closing  []Closing
	clock    func() (time.Time, bool)
	mono     func() time.Duration
	tap      func(devices.Round, *embeddedbroker.Message)
	numbers  func() GatewayNumbers
	buses    func() ([]devices.BusStatus, []devices.DeviceStatus)
	kept     func(filter string) []*embeddedbroker.Message
	memory   Memory

	unixMS   atomic.Bool // time = "unix_ms"
	stats    counters
	board    *board
	commands *commands
	changed  chan struct{} // a number of gateway/state is another one

	updating sync.Mutex // held by Update from beginning to end
	speaking sync.Mutex // held over what is said of uplinks: the last word is that of the table

	discovering sync.Mutex          // guards what belongs to Home Assistant
	discovered  map[string][]string // what Home Assistant may show: topics, with their components; nil = taken back
	watched     string              // topic of its birth that we are subscribed to, "" = none
	unwatch     func()              // ends that

	knowing sync.Mutex // guards known, and its copy in the Memory
	known   known
	noted   []byte // known as it stands there; nil: not known

	mu      sync.RWMutex // guards what follows
	cfg     *config.Config
	devices map[string]*device
	uplinks map[string]string // name to online, offline or draining
	ended   bool              // Run is over: nothing goes online any more
	cancels []func()          // of subscriptions
}

// New makes a bridge and starts nothing. It refuses a device whose state cannot
// fit into a message.
func New(cfg *config.Config, broker Broker, o Options) (*Bridge, error) {
	b := &Bridge{
		log: o.Log, ladder: o.Ladder, broker: broker, base: cfg.Gateway.Base(), boot: o.Boot, version: o.Version,
		model: o.Model, homepage: o.Homepage, closing: o.Closing, clock: o.Clock, mono: o.Mono, tap: o.Tap, numbers: o.Numbers, buses: o.Buses, kept: o.Retained, memory: o.Memory,
		changed: make(chan struct{}, 1), cfg: cfg, uplinks: map[string]string{},
	}
	if b.log == nil {
		b.log = slog.New(slog.DiscardHandler)
	}
	if b.ladder == nil {
		b.ladder = report.NewLadder(b.log)
	}
	if b.clock == nil {
		b.clock = func() (time.Time, bool) { return time.Now(), true }
	}
	if b.mono == nil {
		b.mono = bootTime()
	}
	if b.numbers == nil {
		b.numbers = func() GatewayNumbers { return GatewayNumbers{} }
	}
	if b.buses == nil {
		b.buses = func() ([]devices.BusStatus, []devices.DeviceStatus) { return nil, nil }
	}
	b.unixMS.Store(cfg.Gateway.Time == "unix_ms")
	b.board = newBoard(b)
	b.commands = newCommands(b, o.Memory)
	var err error
	if b.devices, err = b.plan(cfg); err != nil {
		return nil, err
	}
	for name := range cfg.Uplinks {
		b.uplinks[name] = wordOffline
	}
	return b, nil
}

// plan makes the devices of a configuration.
func (b *Bridge) plan(cfg *config.Config) (map[string]*device, error) {
	ds := make(map[string]*device, len(cfg.Devices))
	for name, dc := range cfg.Devices {
		d, err := newDevice(b, cfg, dc)
		if err != nil {
			return nil, err
		}
		ds[name] = d
	}
	return ds, nil
}

// bootTime is a clock that goes on from CLOCK_BOOTTIME.
func bootTime() func() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(fmt.Sprintf("bridge: CLOCK_BOOTTIME: %v", err)) // in every kernel since 2.6.39
	}
	start, began := time.Duration(ts.Nano()), time.Now()
	return func() time.Duration { return start + time.Since(began) }
}

// now is this moment.
func (b *Bridge) now() devices.Instant {
	at := devices.Instant{Mono: b.mono()}
	if w, known := b.clock(); known {
		at.Wall = w.UTC()
	}
	return at
}

// dated gives an instant its wall time if the clock became known since.
func (b *Bridge) dated(at devices.Instant) devices.Instant {
	if at.Wall.IsZero() {
		if w, known := b.clock(); known {
			at.Wall = w.Add(at.Mono - b.mono()).UTC()
		}
	}
	return at
}

// device is the device of that name; nil when there is none.
func (b *Bridge) device(name string) *device {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.devices[name]
}

// sorted are all devices in the order of their names.
func (b *Bridge) sorted() []*device {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return sortDevices(b.devices)
}

func sortDevices(ds map[string]*device) []*device {
	return slices.SortedFunc(maps.Values(ds), func(x, y *device) int { return cmp.Compare(x.cfg.Name, y.cfg.Name) })
}

// message makes a message of our own, of this moment.
func (b *Bridge) message(topic string, payload []byte, retain bool) *embeddedbroker.Message {
	at := b.now()
	return &embeddedbroker.Message{Topic: topic, Payload: payload, QoS: 1, Retain: retain,
		Kind: embeddedbroker.KindStatus, Mono: at.Mono, Wall: at.Wall}
}

// word makes a retained message of one word.
func (b *Bridge) word(topic, w string) *embeddedbroker.Message {
	return b.message(topic, []byte(w), true)
}

func (b *Bridge) gatewayTopic(kind string) string { return b.base + "/" + gatewayDevice + "/" + kind }

// Announce says, before the listeners open, that the gateway and all devices
// are offline: nobody may read what a killed process left as fresh. It publishes
// the info of all, deletes the retained messages of devices that are gone, answers
// the commands that a crash interrupted, and begins to listen for commands, which
// wait until Run.
func (b *Bridge) Announce() {
	ds := b.sorted()
	before := b.recall()
	b.board.post(b.word(b.gatewayTopic(kindStatus), wordOffline))
	for _, d := range ds {
		b.board.post(b.word(d.topics.status, wordOffline))
	}
	b.board.post(b.message(b.gatewayTopic(kindInfo), b.gatewayInfo(), true))
	for _, d := range ds {
		b.board.post(b.message(d.topics.info, d.info(), true))
	}
	b.sayUplinksOffline()
	b.sweep(before)
	b.discover(false)
	b.commands.restore()
	b.listen()
}

// Run works on commands, publishes gateway/state each minute and on change, the
// numbers of the buses each minute, and tries again what the broker refused. When ctx ends it says that all is
// offline, the gateway last.
func (b *Bridge) Run(ctx context.Context, fleet Fleet) error {
	var wg sync.WaitGroup
	wg.Go(func() { b.commands.run(ctx, fleet) })
	b.board.post(b.word(b.gatewayTopic(kindStatus), wordOnline))
	b.keepState(ctx)
	b.mu.Lock()
	b.ended = true
	cancels := b.cancels
	b.cancels = nil
	b.mu.Unlock()
	for _, cancel := range cancels {
		cancel()
	}
	b.endDiscovery()
	wg.Wait()
	for _, d := range b.sorted() {
		d.mu.Lock()
		d.online = false
		b.board.post(b.word(d.topics.status, wordOffline))
		d.mu.Unlock()
	}
	b.sayUplinksOffline()
	b.board.post(b.word(b.gatewayTopic(kindStatus), wordOffline))
	return nil
}

// sayUplinksOffline says so of all.
func (b *Bridge) sayUplinksOffline() {
	b.speaking.Lock()
	defer b.speaking.Unlock()
	b.mu.RLock()
	names := slices.Sorted(maps.Keys(b.uplinks))
	b.mu.RUnlock()
	for _, name := range names {
		b.board.post(b.word(b.uplinkTopic(name), wordOffline))
	}
}

// keepState publishes gateway/state until ctx ends: at once, each minute, and
// on change, but not more than once a second; the numbers of the buses at once
// and each minute.
func (b *Bridge) keepState(ctx context.Context) {
	minute := time.NewTicker(time.Minute)
	defer minute.Stop()
	soon := time.NewTimer(0)
	defer soon.Stop()
	waiting, last := true, time.Time{}
	say := func() {
		last = time.Now()
		b.board.note(b.message(b.gatewayTopic(kindState), b.gatewayState(), true))
	}
	published := map[string]bool{}
	b.publishBuses(published)
	for {
		select {
		case <-ctx.Done():
			return
		case <-minute.C:
			b.board.retry()
			say()
			b.publishBuses(published)
		case <-b.changed:
			if !waiting {
				waiting = true
				soon.Reset(time.Second - min(time.Since(last), time.Second))
			}
		case <-soon.C:
			waiting = false
			say()
		}
	}
}

// Changed asks for a fresh gateway/state: a number of Numbers is another one,
// or the clock was set. It never waits.
func (b *Bridge) Changed() {
	select {
	case b.changed <- struct{}{}:
	default:
	}
}

// Birth is what an uplink that has just connected tells its cloud after the
// status of the gateway, which is the uplink's own: the status of all devices,
// info, the newest states, errors and alerts, in this order. The states are
// those already published: an uplink does not number them again. The messages
// are shared and immutable.
func (b *Bridge) Birth() []*embeddedbroker.Message {
	ds := b.sorted()
	var ms []*embeddedbroker.Message
	add := func(topic string) {
		if m := b.board.get(topic); m != nil {
			ms = append(ms, m)
		}
	}
	for _, d := range ds {
		add(d.topics.status)
	}
	add(b.gatewayTopic(kindInfo))
	for _, d := range ds {
		add(d.topics.info)
	}
	for _, d := range ds {
		ms = d.newest(ms)
	}
	add(b.gatewayTopic(kindState))
	for _, d := range ds {
		add(d.topics.failure)
	}
	return b.board.below(ms, b.gatewayTopic(kindAlert)+"/")
}
