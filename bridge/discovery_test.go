package bridge

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"busgate/config"
	"busgate/embeddedbroker"
)

// announced takes what was published on discovery topics: the object id, and an
// empty word after it when it was taken back.
func (f *fakeBroker) announced() (lines []string) {
	for _, l := range f.take() {
		topic, payload, _ := strings.Cut(l, " ")
		if id, ok := strings.CutPrefix(topic, "homeassistant/device/busgate_plant-a_"); ok {
			if payload == "" {
				id += " gone"
			}
			lines = append(lines, strings.ReplaceAll(id, "/config", ""))
		}
	}
	return lines
}

func TestDiscovery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := running()
		o.Memory = newFakeMemory()
		cfg := testConfig()
		x := start(t, cfg, o)
		wantLines(t, x.f.announced()) // it is off

		on := same(cfg)
		on.HomeAssistant = config.HomeAssistant{Discovery: true, Prefix: "homeassistant"}
		if err := x.Update(on); err != nil {
			t.Fatal(err)
		}
		wantLines(t, x.f.announced(), "gateway", "fans", "grid", "pumps")
		m := x.f.retained["homeassistant/device/busgate_plant-a_grid/config"]
		if m == nil || m.QoS != 1 || m.Kind != embeddedbroker.KindStatus {
			t.Fatalf("announcement %+v", m)
		}

		// Home Assistant has started: all again. Any other word, or a retained one: nothing.
		x.f.client("homeassistant/status", "online")
		wantLines(t, x.f.announced(), "gateway", "fans", "grid", "pumps")
		x.f.client("homeassistant/status", "offline")
		x.f.deliver(&embeddedbroker.Message{Topic: "homeassistant/status", Payload: []byte("online"), Retain: true})
		wantLines(t, x.f.announced())

		// Only what is another is said.
		next := same(on)
		next.Devices["grid"].Label = "Main meter"
		delete(next.Devices, "fans")
		if err := x.Update(next); err != nil {
			t.Fatal(err)
		}
		wantLines(t, x.f.announced(), "grid", "fans gone")
		x.stop()
		wantLines(t, x.f.announced()) // the entities stay, unavailable
		x.f.client("homeassistant/status", "online")
		wantLines(t, x.f.announced())
		if n := x.f.subscriptions(); n != 0 {
			t.Errorf("%d subscriptions left", n)
		}

		// A device removed while busgate was stopped leaves no ghost.
		last := same(next)
		delete(last.Devices, "pumps")
		y := start(t, last, o)
		wantLines(t, y.f.announced(), "gateway", "grid", "pumps gone")
		// Home Assistant was not connected when busgate started, and missed it.
		y.f.client("homeassistant/status", "online")
		wantLines(t, y.f.announced(), "gateway", "grid", "fans gone", "pumps gone")
		y.f.client("homeassistant/status", "online")
		wantLines(t, y.f.announced(), "gateway", "grid")
		off := same(last)
		off.HomeAssistant.Discovery = false
		if err := y.Update(off); err != nil {
			t.Fatal(err)
		}
		wantLines(t, y.f.announced(), "gateway gone", "grid gone")
		y.stop()

		// Switched off, and still not everywhere known.
		z := start(t, off, o)
		wantLines(t, z.f.announced())
		z.f.client("homeassistant/status", "online")
		wantLines(t, z.f.announced(), "gateway gone", "grid gone")
		z.f.client("homeassistant/status", "online")
		wantLines(t, z.f.announced())
		for _, sub := range z.f.subs {
			if sub.filter == "homeassistant/status" && !sub.off {
				t.Error("still subscribed to what nobody needs")
			}
		}
		z.stop()
	})
}

// TestPointsThatAreGoneAreTakenBack: a point that was removed, or has become
// another kind of entity, goes in an announcement of its own; the next one, which
// stays, does not name it.
func TestPointsThatAreGoneAreTakenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := running()
		o.Memory = newFakeMemory()
		cfg := testConfig()
		cfg.HomeAssistant = config.HomeAssistant{Discovery: true, Prefix: "homeassistant"}
		x := start(t, cfg, o)
		x.f.announced()

		live := same(cfg)
		live.Devices["grid"].Points[3].Write = false                      // relay1: a switch becomes a binary_sensor
		live.Devices["grid"].Points = live.Devices["grid"].Points[1:]     // without voltage_l1
		live.Devices["pumps"].Points = live.Devices["pumps"].Points[:1:1] // without the others
		if err := x.Update(live); err != nil {
			t.Fatal(err)
		}
		wantComponents(t, x.f,
			"grid voltage_l1 sensor gone, relay1 switch gone, power sensor, state sensor, energy sensor",
			"grid power sensor, state sensor, relay1 binary_sensor, energy sensor",
			"pumps relay2 binary_sensor gone, limit number gone, relay1 switch",
			"pumps relay1 switch")
		if err := x.Update(same(live)); err != nil {
			t.Fatal(err)
		}
		wantComponents(t, x.f) // it is said
		x.f.client("homeassistant/status", "online")
		if lines := x.f.announced(); len(lines) != 6 {
			t.Errorf("after a start of Home Assistant %v are announced, want 4 and what two devices lost", lines)
		}
		x.f.client("homeassistant/status", "online")
		if lines := x.f.announced(); len(lines) != 4 {
			t.Errorf("after another start %v are announced, want 4", lines)
		}
		x.stop()

		// While busgate was stopped.
		next := same(live)
		next.Devices["grid"].Points = next.Devices["grid"].Points[1:]
		y := start(t, next, o)
		lines := y.f.components()
		for _, want := range []string{"grid power sensor gone, state sensor, relay1 binary_sensor, energy sensor",
			"grid state sensor, relay1 binary_sensor, energy sensor"} {
			if !slices.Contains(lines, want) {
				t.Errorf("announced\n%s\nwant\n%s", strings.Join(lines, "\n"), want)
			}
		}
		if n := len(lines); n != 5 {
			t.Errorf("%d announcements, want 5", n)
		}
		y.f.client("homeassistant/status", "online")
		if again := y.f.components(); !slices.Equal(again, lines) {
			t.Errorf("after the return of Home Assistant\n%s\nwant the same as at the start\n%s", strings.Join(again, "\n"), strings.Join(lines, "\n"))
		}
		y.stop()
	})
}

// TestWhatIsGoneIsBounded: without Home Assistant nobody asks for what is gone.
func TestWhatIsGoneIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, memory := running(), newFakeMemory()
		o.Memory = memory
		cfg := testConfig()
		cfg.HomeAssistant = config.HomeAssistant{Discovery: true, Prefix: "homeassistant"}
		x := start(t, cfg, o)
		for i := range mostGone + 10 {
			next := same(cfg)
			next.Devices["grid"].Points[0].Name = fmt.Sprint("p", i)
			pumps := next.Devices["pumps"]
			delete(next.Devices, "pumps")
			pumps.Name = fmt.Sprintf("pumps%03d", i)
			next.Devices[pumps.Name] = pumps
			if err := x.Update(next); err != nil {
				t.Fatal(err)
			}
		}
		x.stop()
		raw, _ := memory.Load(knownKey)
		var k known
		if err := json.Unmarshal(raw, &k); err != nil {
			t.Fatal(err)
		}
		grid := k.Discovery["homeassistant/device/busgate_plant-a_grid/config"]
		if len(k.Discovery) != 4+mostGone || len(grid) != 5+mostGone || grid[5] != "sensor p264" || grid[len(grid)-1] != "sensor p9" {
			t.Errorf("%d topics and %d components of one are kept, gone %q to %q; want %d, %d, p264 to p9", len(k.Discovery), len(grid), grid[5], grid[len(grid)-1], 4+mostGone, 5+mostGone)
		}
	})
}

func wantComponents(t *testing.T, f *fakeBroker, want ...string) {
	t.Helper()
	if got := f.components(); !slices.Equal(got, want) {
		t.Errorf("announced\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// components takes what was announced: the device, then name and platform of
// each component, and gone when that is all of it.
func (f *fakeBroker) components() (lines []string) {
	for _, l := range f.take() {
		topic, payload, _ := strings.Cut(l, " ")
		id, ok := strings.CutPrefix(strings.TrimSuffix(topic, "/config"), "homeassistant/device/busgate_plant-a_")
		if !ok {
			continue
		}
		dec := json.NewDecoder(strings.NewReader(payload[strings.Index(payload, `"cmps":`)+len(`"cmps":`):]))
		dec.Token()
		var all []string
		for dec.More() {
			name, _ := dec.Token()
			var c map[string]any
			if err := dec.Decode(&c); err != nil {
				return append(lines, err.Error())
			}
			word := fmt.Sprint(name, " ", c["p"])
			if len(c) == 1 {
				word += " gone"
			}
			all = append(all, word)
		}
		lines = append(lines, id+" "+strings.Join(all, ", "))
	}
	return lines
}

// TestEveryTopicOfDiscoveryIsServed: what the announcements name is really
// published, retained, or listened to; on an availability topic that nobody
// publishes the device would be unavailable for ever.
func TestEveryTopicOfDiscoveryIsServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig()
		cfg.HomeAssistant = config.HomeAssistant{Discovery: true, Prefix: "homeassistant"}
		x := start(t, cfg, running())
		defer x.stop()
		for _, d := range []string{"fans", "grid", "pumps"} {
			mustTake(t, x.Bridge, x.round(d, "relay1", true))
			x.Health(t.Context(), health(d, true, ""))
		}
		x.UplinkState("cloud", "online")
		synctest.Wait()
		availability, commands := 0, 0
		for topic, m := range x.f.retained {
			if !strings.HasPrefix(topic, "homeassistant/device/") {
				continue
			}
			var a struct {
				Avty []struct{ T string }
				Stat string `json:"stat_t"`
				Cmps map[string]struct {
					Stat string `json:"stat_t"`
					Cmd  string `json:"cmd_t"`
				}
			}
			if err := json.Unmarshal(m.Payload, &a); err != nil {
				t.Fatal(err)
			}
			states := []string{a.Stat}
			for _, c := range a.Cmps {
				if c.Stat != "" {
					states = append(states, c.Stat)
				}
				if c.Cmd == "" {
					continue
				}
				commands++
				heard := false
				for _, s := range x.f.subs {
					heard = heard || !s.off && covers(s.filter, c.Cmd)
				}
				if !heard {
					t.Errorf("%s: nobody listens to %s", topic, c.Cmd)
				}
			}
			for _, v := range a.Avty {
				availability++
				if r := x.f.retained[v.T]; r == nil || string(r.Payload) != "online" {
					t.Errorf("%s: availability %s is %+v, want online, retained", topic, v.T, r)
				}
			}
			for _, s := range states {
				if x.f.retained[s] == nil {
					t.Errorf("%s: nothing is published on %s", topic, s)
				}
			}
		}
		if availability != 7 || commands != 5 { // one of the gateway, two of each device
			t.Errorf("looked at %d availability topics and %d commands", availability, commands)
		}
	})
}
