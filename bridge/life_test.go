package bridge

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"busgate/config"
	"busgate/config/report"
	"busgate/devices"
	"busgate/embeddedbroker"
)

// live is a bridge that runs in a synctest bubble.
type live struct {
	*Bridge
	t     *testing.T
	f     *fakeBroker
	fleet *fakeFleet
	stop  func()
}

// start announces and runs a bridge; the test calls stop.
func start(t *testing.T, cfg *config.Config, o Options) *live {
	return startOn(t, newFakeBroker(), cfg, o)
}

func startOn(t *testing.T, f *fakeBroker, cfg *config.Config, o Options) *live {
	x := &live{t: t, f: f, fleet: &fakeFleet{}}
	o.Retained = f.Retained
	x.Bridge = mustNew(t, cfg, f, o)
	x.Announce()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- x.Run(ctx, x.fleet) }()
	x.stop = func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
	synctest.Wait()
	return x
}

// want compares what was published since the last call.
func (x *live) want(lines ...string) {
	x.t.Helper()
	synctest.Wait()
	wantLines(x.t, x.f.take(), lines...)
}

func health(device string, online bool, err string) devices.Health {
	h := devices.Health{Device: device, Online: online}
	if err != "" {
		h.Report = report.Report{Err: err, Text: "text", Count: 3, Since: time.Now()}
	}
	return h
}

func TestEverythingIsOfflineUntilItAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeBroker()
		b := mustNew(t, testConfig(), f, running())
		if len(f.log) != 0 || len(f.subs) != 0 {
			t.Fatal("New published or subscribed")
		}
		b.Announce()
		var got []string
		for _, l := range f.take() {
			topic, payload, _ := strings.Cut(l, " ")
			if strings.HasSuffix(topic, "/info") {
				payload = "…"
			}
			got = append(got, topic+" "+payload)
		}
		wantLines(t, got, "gateway/status offline", "fans/status offline", "grid/status offline", "pumps/status offline",
			"gateway/info …", "fans/info …", "grid/info …", "pumps/info …", "gateway/uplink/cloud offline")
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- b.Run(ctx, &fakeFleet{}) }()
		synctest.Wait()
		wantLines(t, f.take(), "gateway/status online")
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		for _, m := range f.retained {
			if strings.HasSuffix(m.Topic, "/status") && (!m.Retain || m.QoS != 1 || m.Kind != embeddedbroker.KindStatus) {
				t.Errorf("%s: %+v", m.Topic, m)
			}
		}
	})
}

func TestOrderAtRecoveryAndLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := start(t, testConfig(), running())
		defer x.stop()
		x.f.take()
		ctx := t.Context()

		mustTake(t, x.Bridge, x.round("pumps", "relay1", true))
		x.Health(ctx, health("pumps", true, ""))
		x.want(`pumps/state {"ts":"2000-01-01T00:00:00.000Z","relay1":true}`, "pumps/status online")

		x.Health(ctx, health("pumps", false, "no-answer"))
		x.want("pumps/status offline",
			`pumps/error {"ts":"2000-01-01T00:00:00.000Z","error":"no-answer","text":"text","since":"2000-01-01T00:00:00.000Z","count":3}`)

		time.Sleep(time.Minute) // said again on the ladder
		x.f.take()
		x.Health(ctx, health("pumps", false, "bus-silent"))
		x.want(`pumps/error {"ts":"2000-01-01T00:01:00.000Z","error":"bus-silent","text":"text","since":"2000-01-01T00:01:00.000Z","count":3}`)

		mustTake(t, x.Bridge, x.round("pumps", "relay1", false))
		x.Health(ctx, health("pumps", true, ""))
		x.want(`pumps/state {"ts":"2000-01-01T00:01:00.000Z","relay1":false}`, "pumps/error ", "pumps/status online")

		// A failure of a device that answers leaves the status alone, and goes.
		x.Health(ctx, health("pumps", true, "illegal-address"))
		x.Health(ctx, health("pumps", true, ""))
		x.Health(ctx, health("pumps", true, ""))
		x.want(`pumps/error {"ts":"2000-01-01T00:01:00.000Z","error":"illegal-address","text":"text","since":"2000-01-01T00:01:00.000Z","count":3}`,
			"pumps/error ")

		// A device that comes back with a fault: the fault before the status.
		x.Health(ctx, health("pumps", false, ""))
		x.Health(ctx, health("pumps", true, "illegal-address"))
		x.want("pumps/status offline",
			`pumps/error {"ts":"2000-01-01T00:01:00.000Z","error":"illegal-address","text":"text","since":"2000-01-01T00:01:00.000Z","count":3}`,
			"pumps/status online")
		x.Health(ctx, health("nobody", true, ""))
		x.want()
	})
}

func TestACleanStopSaysOfflineTheGatewayLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := start(t, testConfig(), running())
		x.UplinkState("cloud", "online")
		x.Health(t.Context(), health("pumps", true, ""))
		x.f.take()
		x.stop()
		x.want("fans/status offline", "grid/status offline", "pumps/status offline", "gateway/uplink/cloud offline", "gateway/status offline")
		x.Health(t.Context(), health("pumps", true, ""))
		x.UplinkState("cloud", "online")
		x.want()
		if n := x.f.subscriptions(); n != 0 {
			t.Errorf("%d subscriptions left", n)
		}
	})
}

func TestBirthIsInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig()
		cfg.Gateway.Payload = "value"
		x := start(t, cfg, running())
		defer x.stop()
		mustTake(t, x.Bridge, x.round("pumps", "relay1", true))
		x.Health(t.Context(), health("pumps", true, ""))
		x.Health(t.Context(), health("grid", false, "no-answer"))
		x.Alert(report.Report{Err: "disk-full", Text: "x"})
		x.Alert(report.Report{Err: "clock", Text: "x"})
		x.Alert(report.Report{Err: "clock", Solved: true})
		var got []string
		for _, m := range x.Birth() {
			if !m.Retain || len(m.Payload) == 0 {
				t.Errorf("%s: not retained, or empty", m.Topic)
			}
			got = append(got, strings.TrimPrefix(m.Topic, "busgate/plant-a/"))
		}
		wantLines(t, got, "fans/status", "grid/status", "pumps/status", "gateway/info", "fans/info", "grid/info", "pumps/info",
			"pumps/state/relay1", "pumps/state", "gateway/state", "grid/error", "gateway/alert/disk-full")
	})
}

func TestGatewayStateEachMinuteAndOnChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := start(t, testConfig(), running())
		defer x.stop()
		said := func() (n int) {
			synctest.Wait()
			x.f.mu.Lock()
			defer x.f.mu.Unlock()
			for _, m := range x.f.log {
				if strings.HasSuffix(m.Topic, "/gateway/state") {
					n++
				}
			}
			x.f.log = nil
			return n
		}
		if n := said(); n != 1 {
			t.Errorf("%d at the start, want 1", n)
		}
		time.Sleep(59 * time.Second)
		if n := said(); n != 0 {
			t.Errorf("%d before the first minute, want 0", n)
		}
		time.Sleep(time.Second)
		if n := said(); n != 1 {
			t.Errorf("%d at the minute, want 1", n)
		}
		time.Sleep(10 * time.Second)
		x.Health(t.Context(), health("pumps", true, ""))
		if n := said(); n != 1 {
			t.Errorf("%d after a change, want 1", n)
		}
		for range 9 { // many changes within a second are one message
			x.Changed()
			time.Sleep(100 * time.Millisecond)
		}
		if n := said(); n != 0 {
			t.Errorf("%d within a second, want 0", n)
		}
		time.Sleep(100 * time.Millisecond)
		if n := said(); n != 1 {
			t.Errorf("%d after a second, want 1", n)
		}
		x.UplinkState("cloud", "online")
		x.UplinkState("cloud", "online")
		x.UplinkState("unknown", "online")
		time.Sleep(time.Second)
		if n := said(); n != 1 {
			t.Errorf("%d after the uplink came, want 1", n)
		}
		x.f.client("busgate/plant-a/gateway/get", "")
		time.Sleep(time.Second)
		if n := said(); n != 1 {
			t.Errorf("%d after get, want 1", n)
		}
	})
}

// The numbers of the buses come at the start and each minute; those of a bus that
// a reload took away do not stay.
func TestBusNumbersEachMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		names := []string{"meters", "relays"}
		o := running()
		o.Buses = func() (list []devices.BusStatus, _ []devices.DeviceStatus) {
			mu.Lock()
			defer mu.Unlock()
			for _, n := range names {
				list = append(list, devices.BusStatus{Name: n, U: .25})
			}
			return list, nil
		}
		x := start(t, testConfig(), o)
		defer x.stop()
		said := func() (topics []string) {
			synctest.Wait()
			for _, line := range x.f.take() {
				topic, payload, _ := strings.Cut(line, " ")
				if strings.HasPrefix(topic, "gateway/bus/") {
					if payload == "" {
						topic += " empty"
					}
					topics = append(topics, topic)
				}
			}
			return topics
		}
		want := func(when string, topics ...string) {
			t.Helper()
			if got := said(); !slices.Equal(got, topics) {
				t.Errorf("%s: %v, want %v", when, got, topics)
			}
		}
		want("at the start", "gateway/bus/meters/stats", "gateway/bus/relays/stats")
		time.Sleep(59 * time.Second)
		want("before the minute")
		time.Sleep(time.Second)
		want("at the minute", "gateway/bus/meters/stats", "gateway/bus/relays/stats")
		mu.Lock()
		names = names[1:]
		mu.Unlock()
		time.Sleep(time.Minute)
		want("without meters", "gateway/bus/relays/stats", "gateway/bus/meters/stats empty")
		time.Sleep(time.Minute)
		want("after that", "gateway/bus/relays/stats")
		if m := x.f.retained["busgate/plant-a/gateway/bus/relays/stats"]; m == nil || m.QoS != 0 {
			t.Errorf("retained, QoS 0: %+v", m)
		}
		var state map[string]any
		if err := json.Unmarshal(x.f.retained["busgate/plant-a/gateway/state"].Payload, &state); err != nil || state["busy_relays"] != .25 {
			t.Errorf("gateway/state %v, %v", state, err)
		}
	})
}

func TestWhatIsNotKeptIsPublishedAgain(t *testing.T) {
	for name, set := range map[string]func(*fakeBroker, error){"refused": (*fakeBroker).full, "lost": (*fakeBroker).fails} {
		synctestRun(t, name, func(t *testing.T) {
			x := start(t, testConfig(), running())
			defer x.stop()
			x.f.take()
			set(x.f, embeddedbroker.ErrFull)
			x.Health(t.Context(), health("pumps", true, ""))
			x.Health(t.Context(), health("grid", true, ""))
			x.Health(t.Context(), health("grid", false, ""))
			x.want("pumps/status online", "grid/status online", "grid/status offline") // the LAN knows at once
			time.Sleep(time.Minute)
			x.want("grid/status offline", "pumps/status online")
			set(x.f, nil)
			time.Sleep(time.Minute)
			x.want("grid/status offline", "pumps/status online")
			time.Sleep(time.Minute)
			x.want()

			set(x.f, embeddedbroker.ErrReadOnly)
			x.f.client("busgate/plant-a/pumps/set/limit", "80")
			synctest.Wait()
			if got := x.f.take(); len(got) != 1 || x.Stats().AcksLost != 1 {
				t.Errorf("published %v, %d acks lost", got, x.Stats().AcksLost)
			}
		})
	}
}

func TestAlertsAreBounded(t *testing.T) {
	b := mustNew(t, testConfig(), newFakeBroker(), fixed())
	for i := range maxAlerts + 3 {
		b.Alert(report.Report{Err: "a" + strings.Repeat("x", i%60) + string(rune('a'+i/60)), Text: "x"})
	}
	b.Alert(report.Report{Err: "No Name", Text: "x"})
	if n := len(b.board.below(nil, "busgate/plant-a/gateway/alert/")); n != maxAlerts {
		t.Errorf("%d alerts stand, want %d", n, maxAlerts)
	}
	if n := b.Stats().AlertsDropped; n != 3 {
		t.Errorf("%d dropped, want 3", n)
	}
}

func TestReserved(t *testing.T) {
	b := mustNew(t, testConfig(), newFakeBroker(), fixed())
	for topic, want := range map[string]bool{
		"busgate/plant-a/grid/state":             true,
		"busgate/plant-a/grid/state/power":       true,
		"busgate/plant-a/grid/status":            true,
		"busgate/plant-a/grid/info":              true,
		"busgate/plant-a/grid/error":             true,
		"busgate/plant-a/grid/ack":               true,
		"busgate/plant-a/grid/history":           true,
		"busgate/plant-a/ghost/state":            true,
		"busgate/plant-a/gateway/status":         true,
		"busgate/plant-a/gateway/state":          true,
		"busgate/plant-a/gateway/loss":           true,
		"busgate/plant-a/gateway/history":        true,
		"busgate/plant-a/gateway/alert/x":        true,
		"busgate/plant-a/gateway/uplink/x":       true,
		"busgate/plant-a/gateway/bus/x/stats":    true,
		"busgate/plant-a/grid/bus/x":             false,
		"busgate/plant-a/gateway/uplink/x/stats": true,
		"busgate/plant-a/grid/set":               false,
		"busgate/plant-a/grid/set/relay1":        false,
		"busgate/plant-a/grid/get":               false,
		"busgate/plant-a/grid/loss":              false,
		"busgate/plant-a/grid/alert/x":           false,
		"busgate/plant-a/grid/state/a/b":         false,
		"busgate/plant-a/grid/status/x":          false,
		"busgate/plant-a/grid":                   false,
		"busgate/plant-a":                        false,
		"busgate/plant-ab/grid/state":            false,
		"busgate/plant-b/grid/state":             false,
		"busgate/plant-a.grid/state":             false,
		"home/lamp":                              false,
		"":                                       false,
	} {
		if got := b.Reserved(topic); got != want {
			t.Errorf("Reserved(%q) = %v", topic, got)
		}
	}
}

func TestTapSeesEveryPublishedRoundInOrder(t *testing.T) {
	o := fixed()
	var got []uint64
	o.Tap = func(r devices.Round, m *embeddedbroker.Message) {
		if m.Kind != embeddedbroker.KindReading {
			t.Errorf("kind %d", m.Kind)
		}
		got = append(got, r.Seq)
	}
	f := newFakeBroker()
	b := mustNew(t, testConfig(), f, o)
	for seq := range uint64(5) {
		r := b.round("grid", "power", 1.0)
		r.Seq = seq
		f.refuse = nil
		if seq == 2 {
			f.refuse = func(*embeddedbroker.Message, bool) error { return errors.New("full") }
		}
		_ = b.Take(t.Context(), r)
	}
	if !slices.Equal(got, []uint64{0, 1, 3, 4}) {
		t.Errorf("rounds %v", got)
	}
}
