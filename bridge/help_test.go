package bridge

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"busgate/config"
	"busgate/devices"
	"busgate/embeddedbroker"
)

// fakeBroker records what is published, keeps what is retained and hands
// messages to subscriptions at once.
type fakeBroker struct {
	mu       sync.Mutex
	log      []*embeddedbroker.Message
	retained map[string]*embeddedbroker.Message
	subs     []*fakeSub
	refuse   func(m *embeddedbroker.Message, durable bool) error // nil: nothing is refused
	before   func(m *embeddedbroker.Message)                     // told before anybody gets m; nil: nobody asks
	fate     error                                               // what Committed is told
}

type fakeSub struct {
	filter string
	f      func(*embeddedbroker.Message)
	off    bool
}

func newFakeBroker() *fakeBroker {
	return &fakeBroker{retained: map[string]*embeddedbroker.Message{}}
}

func (f *fakeBroker) Publish(m *embeddedbroker.Message, done embeddedbroker.Completion) error {
	if f.before != nil {
		f.before(m)
	}
	f.mu.Lock()
	if f.refuse != nil {
		if err := f.refuse(m, done != nil); err != nil {
			f.mu.Unlock()
			return err
		}
	}
	f.log = append(f.log, m)
	if m.Retain {
		f.retained[m.Topic] = m
		if len(m.Payload) == 0 {
			delete(f.retained, m.Topic)
		}
	}
	fate := f.fate
	f.mu.Unlock()
	if done != nil {
		done.Committed(1, fate)
	}
	return nil
}

func (f *fakeBroker) Subscribe(filter string, _ byte, fn func(*embeddedbroker.Message)) (cancel func()) {
	s := &fakeSub{filter: filter, f: fn}
	f.mu.Lock()
	f.subs = append(f.subs, s)
	var old []*embeddedbroker.Message
	for _, topic := range slices.Sorted(maps.Keys(f.retained)) {
		if covers(filter, topic) {
			old = append(old, f.retained[topic])
		}
	}
	f.mu.Unlock()
	for _, m := range old {
		fn(m)
	}
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		s.off = true
	}
}

// full makes the store refuse what is to be kept, or no more when err is nil.
func (f *fakeBroker) full(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refuse = func(_ *embeddedbroker.Message, durable bool) error {
		if durable {
			return err
		}
		return nil
	}
}

// fails makes the store lose what it took, or no more when err is nil.
func (f *fakeBroker) fails(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fate = err
}

func (f *fakeBroker) subscriptions() (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.subs {
		if !s.off {
			n++
		}
	}
	return n
}

// Retained lists the retained messages below a filter, in topic order.
func (f *fakeBroker) Retained(filter string) (ms []*embeddedbroker.Message) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, topic := range slices.Sorted(maps.Keys(f.retained)) {
		if covers(filter, topic) {
			ms = append(ms, f.retained[topic])
		}
	}
	return ms
}

// client publishes like a client of the LAN.
func (f *fakeBroker) client(topic, payload string) {
	f.deliver(&embeddedbroker.Message{Topic: topic, Payload: []byte(payload), QoS: 1})
}

func (f *fakeBroker) deliver(m *embeddedbroker.Message) {
	f.mu.Lock()
	var to []*fakeSub
	for _, s := range f.subs {
		if !s.off && covers(s.filter, m.Topic) {
			to = append(to, s)
		}
	}
	f.mu.Unlock()
	for _, s := range to {
		s.f(m)
	}
}

// covers matches a filter with + and # against a topic.
func covers(filter, topic string) bool {
	fs, ts := strings.Split(filter, "/"), strings.Split(topic, "/")
	for i, l := range fs {
		if l == "#" {
			return true
		}
		if i >= len(ts) || l != "+" && l != ts[i] {
			return false
		}
	}
	return len(fs) == len(ts)
}

// take gives what was published since the last call, a line each: topic and
// payload, without the base and without gateway/state.
func (f *fakeBroker) take() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var lines []string
	for _, m := range f.log {
		topic := strings.TrimPrefix(m.Topic, "busgate/plant-a/")
		if topic == "gateway/state" {
			continue
		}
		lines = append(lines, topic+" "+string(m.Payload))
	}
	f.log = nil
	return lines
}

// topics are the retained topics, without the base.
func (f *fakeBroker) topics() (ts []string) {
	for _, m := range f.Retained("#") {
		ts = append(ts, strings.TrimPrefix(m.Topic, "busgate/plant-a/"))
	}
	return ts
}

// fakeFleet answers writes as the test says.
type fakeFleet struct {
	mu    sync.Mutex
	log   []string // "device point text", "refresh device"
	write func(ctx context.Context, c devices.Command) (devices.Result, error)
}

func (f *fakeFleet) note(line string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.log = append(f.log, line)
}

func (f *fakeFleet) take() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.log
	f.log = nil
	return l
}

func (f *fakeFleet) Write(ctx context.Context, c devices.Command) (devices.Result, error) {
	f.note(c.Device + " " + c.Point + " " + c.Text)
	if f.write != nil {
		return f.write(ctx, c)
	}
	return devices.Result{Value: devices.IntValue(80, 0), Took: 41 * time.Millisecond}, nil
}

func (f *fakeFleet) Refresh(device string) error {
	f.note("refresh " + device)
	if device == "sick" {
		return errors.New("sick")
	}
	return nil
}

// fakeMemory keeps what is saved; it can fail.
type fakeMemory struct {
	mu   sync.Mutex
	m    map[string][]byte
	fail error
	hold func(key string, v []byte) // told before v is on disk; nil: nobody asks
}

func newFakeMemory() *fakeMemory { return &fakeMemory{m: map[string][]byte{}} }

func (f *fakeMemory) Load(key string) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.m[key], nil
}

func (f *fakeMemory) Save(key string, v []byte) error {
	if f.hold != nil {
		f.hold(key, v)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		return f.fail
	}
	f.m[key] = slices.Clone(v)
	return nil
}

// copy is the disk as a crash of this moment leaves it.
func (f *fakeMemory) copy() *fakeMemory {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &fakeMemory{m: maps.Clone(f.m)}
}

func ptr(f float64) *float64 { return &f }

// testConfig has two buses: meters with grid, relays with pumps and fans.
func testConfig() *config.Config {
	pump := func(name string) *config.Device {
		return &config.Device{Name: name, Bus: "relays", UnitID: 1, Label: name, Interval: 10 * time.Second, Enabled: true,
			Publish: "always", Heartbeat: 5 * time.Minute, Points: []config.Point{
				{Name: "relay1", Type: "bool", Digits: -1, Write: true},
				{Name: "relay2", Type: "bool", Digits: -1},
				{Name: "limit", Type: "uint16", Digits: -1, Unit: "%", Write: true, Min: ptr(0), Max: ptr(100)},
			}}
	}
	cfg := &config.Config{
		Gateway: config.Gateway{Name: "plant-a", Topic: "busgate", Interval: 10 * time.Second, Time: "rfc3339", Payload: "json"},
		Buses: map[string]*config.Bus{
			"meters": {Name: "meters", Serial: "/dev/ttyUSB0", Protocol: "modbus-rtu"},
			"relays": {Name: "relays", Serial: "/dev/ttyUSB1", Protocol: "modbus-rtu"},
		},
		Devices: map[string]*config.Device{
			"grid": {Name: "grid", Bus: "meters", UnitID: 1, Profile: "eastron-sdm630", Maker: "Eastron", Model: "SDM630", Label: "Grid meter",
				Interval: 2 * time.Second, Enabled: true, Publish: "always", Heartbeat: 5 * time.Minute, Points: []config.Point{
					{Name: "voltage_l1", Type: "float32", Unit: "V", Digits: 1, Kind: "measurement"},
					{Name: "power", Type: "float32", Digits: 1},
					{Name: "state", Type: "uint16", Digits: -1, Enum: []config.Word{{N: 0, Text: "off"}, {N: 1, Text: "run"}}},
					{Name: "relay1", Type: "bool", Digits: -1, Write: true},
					{Name: "energy", Type: "uint32", Digits: -1, Interval: time.Minute},
				}},
			"pumps": pump("pumps"), "fans": pump("fans"),
		},
		Uplinks: map[string]*config.Uplink{"cloud": {Name: "cloud", CommandTTL: 20 * time.Second}},
	}
	for _, d := range cfg.Devices {
		for i := range d.Points {
			d.Points[i].Bit = -1
		}
	}
	return cfg
}

var (
	testTime = time.Date(2026, 11, 21, 6, 1, 2, 123456789, time.UTC)
	testMono = 24 * time.Hour
)

// fixed are options with a clock that stands.
func fixed() Options {
	return Options{Version: "1.0.0", Boot: "k3qz7aa-12",
		Clock: func() (time.Time, bool) { return testTime, true }, Mono: func() time.Duration { return testMono }}
}

// running are options with the clock of a synctest bubble.
func running() Options {
	start := time.Now()
	return Options{Version: "1.0.0", Boot: "k3qz7aa-12", Mono: func() time.Duration { return testMono + time.Since(start) }}
}

func mustNew(t testing.TB, cfg *config.Config, b Broker, o Options) *Bridge {
	t.Helper()
	br, err := New(cfg, b, o)
	if err != nil {
		t.Fatal(err)
	}
	return br
}

// round is a round of now with values in pairs of name and value.
func (b *Bridge) round(device string, pairs ...any) devices.Round {
	r := devices.Round{Device: device, At: b.now()}
	for i := 0; i < len(pairs); i += 2 {
		r.Values = append(r.Values, devices.Reading{Point: pairs[i].(string), Value: value(pairs[i+1])})
	}
	return r
}

func value(v any) devices.Value {
	switch v := v.(type) {
	case int:
		return devices.IntValue(int64(v), 0)
	case float64:
		return devices.Float64Value(v)
	case float32:
		return devices.Float32Value(v)
	case bool:
		return devices.BoolValue(v)
	case string:
		return devices.TextValue(v)
	case devices.Value:
		return v
	}
	panic(fmt.Sprintf("no value: %T", v))
}

func mustTake(t testing.TB, b *Bridge, r devices.Round) {
	t.Helper()
	if err := b.Take(context.Background(), r); err != nil {
		t.Fatal(err)
	}
}

// wantLines compares what was published.
func wantLines(t testing.TB, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Fatalf("published\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}
