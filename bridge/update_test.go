package bridge

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"busgate/config"
	"busgate/config/report"
	"busgate/embeddedbroker"
)

func TestUpdate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig()
		cfg.Gateway.Payload = "value"
		x := start(t, cfg, running())
		defer x.stop()
		for _, d := range []string{"pumps", "fans", "grid"} {
			mustTake(t, x.Bridge, x.round(d, "relay1", true))
			x.Health(t.Context(), health(d, true, ""))
		}
		x.Health(t.Context(), health("pumps", true, "busy"))
		x.UplinkState("cloud", "online")
		x.UplinkStats("cloud", UplinkNumbers{})
		x.f.take()

		// A new label: info only. A removed device: offline, then all of it goes.
		// A new one is offline. Another unit: offline until it answers.
		next := same(cfg)
		next.Devices["grid"].Label = "Main meter"
		delete(next.Devices, "pumps")
		tank := *next.Devices["fans"]
		tank.Name, tank.Label, tank.Points = "tank", "Tank", nil
		next.Devices["tank"] = &tank
		next.Devices["fans"].UnitID = 9
		next.Devices["fans"].Points = next.Devices["fans"].Points[1:]
		next.Uplinks = map[string]*config.Uplink{"other": {Name: "other"}}
		pumps, fans := x.device("pumps"), x.device("fans")
		if err := x.Update(next); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, l := range x.f.take() {
			if i := strings.Index(l, "/info {"); i >= 0 {
				l = l[:i+6] + "…"
			}
			got = append(got, l)
		}
		wantLines(t, got,
			"pumps/status offline", "pumps/state ", "pumps/state/relay1 ", "pumps/state/relay2 ", "pumps/state/limit ",
			"pumps/status ", "pumps/info ", "pumps/error ",
			"fans/status offline", "fans/info …", "fans/state/relay1 ", "grid/info …", "tank/status offline", "tank/info …",
			"gateway/uplink/other offline", "gateway/uplink/cloud ", "gateway/uplink/cloud/stats ")
		mustTake(t, x.Bridge, x.round("pumps", "relay1", true)) // of the exchange in flight
		x.Health(t.Context(), health("pumps", true, ""))
		for _, d := range []*device{pumps, fans} { // a round that was under way when the device went
			r := x.round(d.cfg.Name, "relay1", true)
			if err := d.take(&r); err != nil {
				t.Error(err)
			}
		}
		x.want()
		if slices.ContainsFunc(x.f.topics(), func(s string) bool { return strings.HasPrefix(s, "pumps") }) {
			t.Errorf("left of pumps: %v", x.f.topics())
		}
		if m := x.Birth(); !slices.ContainsFunc(m, func(m *embeddedbroker.Message) bool { return strings.HasSuffix(m.Topic, "grid/state") }) {
			t.Error("the newest state of grid was lost with its label")
		}
		x.Health(t.Context(), health("grid", true, ""))
		x.want() // it was online all the time
		x.Health(t.Context(), health("fans", true, ""))
		x.want("fans/status online")
	})
}

func TestAnUpdateThatChangesNothingSaysNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := start(t, testConfig(), running())
		defer x.stop()
		x.f.take()
		if err := x.Update(same(testConfig())); err != nil {
			t.Fatal(err)
		}
		x.want()
	})
}

func TestScalarsGoWithTheirOption(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig()
		cfg.Gateway.Payload = "value"
		x := start(t, cfg, running())
		defer x.stop()
		mustTake(t, x.Bridge, x.round("pumps", "relay1", true))
		if !slices.Contains(x.f.topics(), "pumps/state/relay1") {
			t.Fatal("no scalar")
		}
		next := same(cfg)
		next.Gateway.Payload = "json"
		if err := x.Update(next); err != nil {
			t.Fatal(err)
		}
		for _, topic := range x.f.topics() {
			if strings.Contains(topic, "/state/") {
				t.Errorf("left: %s", topic)
			}
		}
	})
}

// same is a deep enough copy of a configuration.
func same(cfg *config.Config) *config.Config {
	n := *cfg
	n.Devices = map[string]*config.Device{}
	for name, d := range cfg.Devices {
		c := *d
		c.Points = slices.Clone(d.Points)
		n.Devices[name] = &c
	}
	return &n
}

func TestUpdateIsAllOrNothing(t *testing.T) {
	f := newFakeBroker()
	b := mustNew(t, testConfig(), f, fixed())
	cfg := testConfig()
	cfg.Gateway.Name = "plant-b"
	if err := b.Update(cfg); err == nil || !strings.Contains(err.Error(), "`name` needs a restart: systemctl restart busgate") {
		t.Errorf("a new name: %v", err)
	}
	cfg = testConfig()
	delete(cfg.Devices, "pumps")
	cfg.Devices["grid"].Points = slices.Repeat([]config.Point{{Name: "x", Type: "string", Length: 125}}, 300)
	if err := b.Update(cfg); err == nil {
		t.Error("too large a device was taken")
	}
	if len(f.log) != 0 || b.device("pumps") == nil {
		t.Error("a refused update changed something")
	}
}

func TestNothingStaleIsLeft(t *testing.T) {
	// What a process of before left: it was killed, pumps was renamed to fans2,
	// grid lost a point, an uplink was removed, an error and an alert stood.
	left := map[string]string{
		"grid/status": "online", "grid/state": `{"power":1}`, "grid/state/power": "1", "grid/state/old": "1", "grid/info": "{}",
		"grid/error":    `{"error":"no-answer"}`,
		"pumps2/status": "online", "pumps2/state": `{"power":1}`, "pumps2/state/power": "1", "pumps2/info": "{}", "pumps2/error": "{}",
		"gateway/status": "online", "gateway/state": "{}", "gateway/info": "{}", "gateway/uplink/cloud": "online",
		"gateway/uplink/old": "online", "gateway/uplink/old/stats": "{}", "gateway/alert/disk-full": "{}",
		"lamp/of/another/client": "on", "grid/config": "mine", "pumps2/set/x": "1",
	}
	synctest.Test(t, func(t *testing.T) {
		f := newFakeBroker()
		for topic, payload := range left {
			topic = "busgate/plant-a/" + topic
			f.retained[topic] = &embeddedbroker.Message{Topic: topic, Payload: []byte(payload), Retain: true}
		}
		f.retained["house/lamp"] = &embeddedbroker.Message{Topic: "house/lamp", Payload: []byte("on"), Retain: true}
		cfg := testConfig()
		cfg.Gateway.Payload = "value"
		x := startOn(t, f, cfg, running())
		defer x.stop()
		lines := f.take()
		at := func(l string) int { return slices.Index(lines, l) }
		if at("pumps2/status offline") < 0 || at("pumps2/status offline") > at("pumps2/state ") || at("pumps2/state ") > at("pumps2/status ") ||
			at("pumps2/status ") > at("pumps2/info ") || at("pumps2/info ") > at("pumps2/error ") {
			t.Errorf("a removed device goes in the order status offline, state, status, info, error:\n%s", strings.Join(lines, "\n"))
		}
		wantLines(t, f.topics(),
			"fans/info", "fans/status", "gateway/info", "gateway/state", "gateway/status", "gateway/uplink/cloud",
			"grid/config", "grid/info", "grid/state", "grid/state/power", "grid/status", "lamp/of/another/client",
			"pumps/info", "pumps/status", "pumps2/set/x", "house/lamp")
		if s := string(f.retained["busgate/plant-a/grid/status"].Payload); s != "offline" {
			t.Errorf("grid is %s before it answered", s)
		}
	})
}

func TestARenamedGatewayLeavesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, m := newFakeBroker(), newFakeMemory()
		o := running()
		o.Memory = m
		cfg := testConfig()
		x := startOn(t, f, cfg, o)
		mustTake(t, x.Bridge, x.round("grid", "power", 1.0))
		x.stop()
		cfg = testConfig()
		cfg.Gateway.Name = "plant-b"
		f.retained["busgate/plant-a/pumps/set/x"] = &embeddedbroker.Message{Topic: "busgate/plant-a/pumps/set/x", Retain: true} // not ours
		y := startOn(t, f, cfg, o)
		defer y.stop()
		delete(f.retained, "busgate/plant-a/pumps/set/x")
		for _, m := range f.Retained("#") {
			if !strings.HasPrefix(m.Topic, "busgate/plant-b/") {
				t.Errorf("left: %s", m.Topic)
			}
		}
	})
}

// TestTheCloudKeepsNothingStale: the broker forgets statuses at a restart, a
// cloud does not. So what an earlier process said is taken back from memory.
func TestTheCloudKeepsNothingStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := running()
		o.Memory = newFakeMemory()
		cfg := testConfig()
		cfg.Gateway.Payload = "value"
		x := start(t, cfg, o)
		tank := *cfg.Devices["pumps"]
		tank.Name = "tank"
		cfg = same(cfg)
		cfg.Devices["tank"] = &tank
		if err := x.Update(cfg); err != nil {
			t.Fatal(err)
		}
		x.Alert(report.Report{Err: "disk-full", Text: "x"})
		x.Health(t.Context(), health("grid", false, "no-answer"))
		x.stop()

		cfg = testConfig()
		cfg.Devices["pumps"].Points = cfg.Devices["pumps"].Points[:2]
		cfg.Gateway.Payload = "value"
		y := start(t, cfg, o)
		var got []string
		for _, l := range y.f.take() {
			if strings.HasSuffix(l, " ") || strings.HasPrefix(l, "tank") {
				got = append(got, l)
			}
		}
		wantLines(t, got, "tank/status offline", "pumps/state/limit ", "tank/state ", "tank/state/limit ", "tank/state/relay1 ", "tank/state/relay2 ",
			"tank/status ", "tank/info ", "fans/error ", "grid/error ", "pumps/error ", "tank/error ",
			"gateway/alert/buffer-damaged ", "gateway/alert/buffer-dropping ", "gateway/alert/clock ", "gateway/alert/disk-full ",
			"gateway/alert/orphan-uplink ", "gateway/alert/read-only ", "gateway/alert/second-master ")
		y.stop()

		z := start(t, cfg, o)
		for _, l := range z.f.take() {
			if strings.HasPrefix(l, "tank") {
				t.Errorf("taken back a second time: %s", l)
			}
		}
		z.stop()
	})
}
