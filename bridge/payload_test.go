package bridge

import (
	"testing"
	"testing/synctest"
	"time"

	"busgate/config"
	"busgate/config/report"
	"busgate/devices"
)

// setup is what a golden changes before it makes its bridge.
type setup struct {
	o Options
	c *config.Config
}

// takeFull takes the round of the examples.
func takeFull(t *testing.T, b *Bridge) {
	mustTake(t, b, b.round("grid", "voltage_l1", float32(230.1), "power", float32(871.1), "state", "run", "relay1", true))
}

// unsetClock is a gateway 12.345 s after its boot.
func unsetClock(s *setup) {
	s.o.Clock = func() (time.Time, bool) { return testTime, false }
	s.o.Mono = func() time.Duration { return 12345 * time.Millisecond }
}

func ago(d time.Duration) time.Time { return time.Now().Add(-d) }

var goldens = map[string]struct {
	setup func(*setup)
	do    func(t *testing.T, b *Bridge)
	topic string
	want  string
}{
	"state": {
		do:    takeFull,
		topic: "grid/state",
		want:  `{"ts":"2026-11-21T06:01:02.123Z","voltage_l1":230.1,"power":871.1,"state":"run","relay1":true}`,
	},
	"state, unix_ms": {
		setup: func(s *setup) { s.c.Gateway.Time = "unix_ms" },
		do:    takeFull,
		topic: "grid/state",
		want:  `{"ts":1795240862123,"voltage_l1":230.1,"power":871.1,"state":"run","relay1":true}`,
	},
	"state while the clock is unknown": {
		setup: unsetClock,
		do:    takeFull,
		topic: "grid/state",
		want:  `{"uptime":12.345,"boot":"k3qz7aa-12","voltage_l1":230.1,"power":871.1,"state":"run","relay1":true}`,
	},
	"state of a round from before the clock was known": {
		do: func(t *testing.T, b *Bridge) {
			r := b.round("grid", "power", 871.1)
			r.At = devices.Instant{Mono: testMono - 2*time.Second}
			mustTake(t, b, r)
		},
		topic: "grid/state",
		want:  `{"ts":"2026-11-21T06:01:00.123Z","power":871.1}`,
	},
	"info": {
		setup: func(s *setup) {
			s.c.Devices["grid"].Points = []config.Point{
				{Name: "voltage_l1", Type: "float32", Unit: "V", Digits: 1, Kind: "measurement", Interval: 2 * time.Second, Label: "Voltage L1", Class: "voltage", Bit: -1},
				{Name: "relay1", Type: "uint16", Digits: -1, Write: true, Bit: 3},
				{Name: "limit", Type: "uint16", Unit: "%", Digits: -1, Bit: -1, Kind: "measurement", Write: true, Min: ptr(0), Max: ptr(100)},
			}
		},
		do:    func(t *testing.T, b *Bridge) { b.Announce() },
		topic: "grid/info",
		want: `{"label":"Grid meter","profile":"eastron-sdm630","maker":"Eastron","model":"SDM630","bus":"meters","unit_id":1,` +
			`"interval":2,"points":{"voltage_l1":{"unit":"V","type":"float32","digits":1,"kind":"measurement"},` +
			`"relay1":{"type":"bool","write":true},"limit":{"unit":"%","write":true,"min":0,"max":100}}}`,
	},
	"info of a device with words and a slow point": {
		do:    func(t *testing.T, b *Bridge) { b.Announce() },
		topic: "grid/info",
		want: `{"label":"Grid meter","profile":"eastron-sdm630","maker":"Eastron","model":"SDM630","bus":"meters","unit_id":1,` +
			`"interval":2,"points":{"voltage_l1":{"unit":"V","type":"float32","digits":1,"kind":"measurement"},` +
			`"power":{"type":"float32","digits":1},"state":{"enum":{"0":"off","1":"run"}},"relay1":{"type":"bool","write":true},` +
			`"energy":{"type":"uint32","interval":60}}}`,
	},
	"error": {
		do: func(t *testing.T, b *Bridge) {
			b.Health(t.Context(), devices.Health{Device: "pumps", Report: report.Report{Err: "no-answer",
				Text: "unit 1 on relays: no answer (2 tries of 500 ms)", Since: ago(4*time.Minute + 122*time.Millisecond), Count: 42}})
		},
		topic: "pumps/error",
		want:  `{"ts":"2026-11-21T06:01:02.123Z","error":"no-answer","text":"unit 1 on relays: no answer (2 tries of 500 ms)","since":"2026-11-21T05:57:02.001Z","count":42}`,
	},
	"gateway/info": {
		setup: func(s *setup) {
			s.o.Model, s.o.Closing = "Raspberry Pi 4", []Closing{{Uplink: "cloud", Boot: "k3qz7aa-11", N: 84210}}
		},
		do:    func(t *testing.T, b *Bridge) { b.Announce() },
		topic: "gateway/info",
		want:  `{"version":"1.0.0","model":"Raspberry Pi 4","boot":"k3qz7aa-12","closed":{"cloud":{"boot":"k3qz7aa-11","n":84210}}}`,
	},
	"gateway/alert": {
		do: func(t *testing.T, b *Bridge) {
			b.Alert(report.Report{Err: "disk-full", Text: "disk \"almost\"\nfull", Since: ago(time.Second), Count: 1312})
		},
		topic: "gateway/alert/disk-full",
		want:  `{"ts":"2026-11-21T06:01:02.123Z","since":"2026-11-21T06:01:01.123Z","text":"disk \"almost\" full","count":1312}`,
	},
	"gateway/uplink": {
		do:    func(t *testing.T, b *Bridge) { b.UplinkState("cloud", "draining") },
		topic: "gateway/uplink/cloud",
		want:  `draining`,
	},
	"gateway/uplink stats": {
		do: func(t *testing.T, b *Bridge) {
			b.UplinkStats("cloud", UplinkNumbers{Queue: 4310, Bytes: 12400312, Oldest: 720 * time.Second, In: 1.2, Out: 480.04,
				ETA: 9 * time.Second, Sent: 104211, Repeated: 3, LastError: "timed out", Since: ago(time.Second)})
		},
		topic: "gateway/uplink/cloud/stats",
		want: `{"queue":4310,"bytes":12400312,"oldest":720,"in_per_s":1.2,"out_per_s":480,"eta":9,"sent":104211,"repeated":3,"dropped":0,` +
			`"last_error":"timed out","since":"2026-11-21T06:01:01.123Z"}`,
	},
	"gateway/uplink stats that never end": {
		do:    func(t *testing.T, b *Bridge) { b.UplinkStats("cloud", UplinkNumbers{ETA: -1}) },
		topic: "gateway/uplink/cloud/stats",
		want:  `{"queue":0,"bytes":0,"oldest":0,"in_per_s":0,"out_per_s":0,"eta":null,"sent":0,"repeated":0,"dropped":0,"last_error":""}`,
	},
	"gateway/bus stats": {
		do: func(t *testing.T, b *Bridge) {
			b.buses = func() ([]devices.BusStatus, []devices.DeviceStatus) {
				return []devices.BusStatus{{Name: "meters", Open: true, Devices: 2, Online: 1, Err: "second-master", Text: "somebody else talks\non this bus", U: 1.2345, Stretch: 1.27268,
						Errors1h: 31, Reopened: 2, FDHigh: 3, Queue: 4, Refused: 5, Guest: "busgate scan", Dropped: 6, SinkSlow: 7, RTT50: 27449 * time.Microsecond, RTT95: 31 * time.Millisecond,
						Counts: devices.Counts{BytesIn: 11, BytesOut: 12, Requests: 13, Good: 14, Bad: 15, Timeouts: 16, Exceptions: 17, Late: 18, Foreign: 19, Intruders: 20, Stray: 21, Stale: 22,
							Echo: 23, Overrun: 24, Skipped: 25, Unchecked: 26, UART: devices.UARTErrors{Parity: 27, Framing: 28, Overrun: 29}}}},
					[]devices.DeviceStatus{{Name: "grid", Bus: "meters", Online: true, LastGood: time.Now().Add(-2140 * time.Millisecond), Rounds: 31, Failed: 32, Missed: 33, RangeErrors: 34,
						EnumUnknown: 35, Rounded: 36, Counts: devices.UnitCounts{Requests: 37, Good: 38, Bad: 39, Timeouts: 40, Exceptions: 41, Late: 42, RTT50: 27449 * time.Microsecond,
							RTT95: 31 * time.Millisecond, Turnaround: 5 * time.Millisecond, Timeout: 500 * time.Millisecond}},
						{Name: "other", Bus: "relays"}, {Name: "tank", Bus: "meters", Err: "no-answer"}}
			}
			b.publishBuses(map[string]bool{})
		},
		topic: "gateway/bus/meters/stats",
		want: `{"ts":"2026-11-21T06:01:02.123Z","open":true,"busy":1.235,"stretch":1.273,"devices":2,"online":1,"errors_1h":31,"rtt_p50":27.4,"rtt_p95":31,` +
			`"bytes_in":11,"bytes_out":12,"requests":13,"good":14,"damaged":15,"timeouts":16,"exceptions":17,"late":18,"foreign":19,"second_master":20,"stray":21,"stale_bytes":22,` +
			`"echo":23,"overrun_bytes":24,"frames_skipped":25,"unchecked":26,"parity_errors":27,"framing_errors":28,"kernel_overruns":29,"reopened":2,"fd_high":3,` +
			`"commands_waiting":4,"commands_refused":5,"monitor_dropped":6,"sink_slow":7,"guest":"busgate scan","error":"second-master","text":"somebody else talks on this bus",` +
			`"units":{"grid":{"online":true,"age":2.1,"rounds":31,"failed":32,"missed":33,"requests":37,"good":38,"damaged":39,"timeouts":40,"exceptions":41,"late":42,` +
			`"out_of_range":34,"enum_unknown":35,"value_rounded":36,"rtt_p50":27.4,"rtt_p95":31,"turnaround":5,"timeout":500},` +
			`"tank":{"online":false,"rounds":0,"failed":0,"missed":0,"requests":0,"good":0,"damaged":0,"timeouts":0,"exceptions":0,"late":0,` +
			`"out_of_range":0,"enum_unknown":0,"value_rounded":0,"error":"no-answer"}}}`,
	},
	"ack of a bad payload": {
		do: func(t *testing.T, b *Bridge) {
			b.Announce()
			b.broker.(*fakeBroker).client("busgate/plant-a/pumps/set", `{"limit":`)
		},
		topic: "pumps/ack",
		want:  `{"ts":"2026-11-21T06:01:02.123Z","ok":false,"error":"bad-payload","text":"the payload is not JSON: it ends too early"}`,
	},
}

// TestGolden compares each payload of the contract byte for byte.
func TestGolden(t *testing.T) {
	for name, c := range goldens {
		synctestRun(t, name, func(t *testing.T) {
			s := setup{fixed(), testConfig()}
			if c.setup != nil {
				c.setup(&s)
			}
			f := newFakeBroker()
			b := mustNew(t, s.c, f, s.o)
			c.do(t, b)
			for _, m := range f.log {
				if m.Topic == "busgate/plant-a/"+c.topic {
					if got := string(m.Payload); got != c.want {
						t.Fatalf("payload of %s\n  %s\nwant\n  %s", c.topic, got, c.want)
					}
					return
				}
			}
			t.Fatalf("nothing on %s", c.topic)
		})
	}
}

func TestGoldenAck(t *testing.T) {
	o := fixed()
	o.Clock = func() (time.Time, bool) { return time.Date(2026, 11, 21, 6, 1, 2, 3e8, time.UTC), true }
	b := mustNew(t, testConfig(), newFakeBroker(), o)
	for _, c := range []struct {
		res  devices.Result
		want string
	}{
		{devices.Result{Value: devices.IntValue(80, 0), Took: 41 * time.Millisecond},
			`{"ts":"2026-11-21T06:01:02.300Z","id":"a1","point":"limit","ok":true,"value":80,"ms":41}`},
		{devices.Result{Code: "out-of-range", Text: "limit must be 0 to 100 %"},
			`{"ts":"2026-11-21T06:01:02.300Z","id":"a1","point":"limit","ok":false,"error":"out-of-range","text":"limit must be 0 to 100 %"}`},
	} {
		if got := string(b.ackPayload("a1", "limit", -1, c.res)); got != c.want {
			t.Errorf("ack\n  %s\nwant\n  %s", got, c.want)
		}
	}
}

func TestGoldenGatewayState(t *testing.T) {
	o := fixed()
	o.Clock = func() (time.Time, bool) { return time.Date(2026, 11, 21, 6, 1, 0, 0, time.UTC), true }
	o.Mono = func() time.Duration { return 86400 * time.Second }
	o.Numbers = func() GatewayNumbers {
		return GatewayNumbers{Queue: 4310, QueueBytes: 12400312, QueueOldest: 720 * time.Second, Clients: 3, Clock: "ntp"}
	}
	o.Buses = func() ([]devices.BusStatus, []devices.DeviceStatus) {
		return []devices.BusStatus{{Name: "meters", U: .41234, Errors1h: 30}, {Name: "relays", U: 1.5, Errors1h: 1}}, nil
	}
	cfg := testConfig()
	for _, name := range []string{"a", "b", "c"} {
		d := *cfg.Devices["pumps"]
		d.Name = name
		cfg.Devices[name] = &d
	}
	b := mustNew(t, cfg, newFakeBroker(), o)
	for name := range cfg.Devices {
		b.Health(t.Context(), devices.Health{Device: name, Online: name != "fans"})
	}
	want := `{"ts":"2026-11-21T06:01:00.000Z","uptime":86400,"devices":6,"online":5,"queue":4310,"queue_bytes":12400312,"queue_oldest":720,` +
		`"dropped":0,"uplink_cloud":false,"busy_meters":0.412,"busy_relays":1.5,"clients":3,"clock":"ntp","bus_errors_1h":31}`
	if got := string(b.gatewayState()); got != want {
		t.Errorf("gateway/state\n  %s\nwant\n  %s", got, want)
	}
	b.clock = func() (time.Time, bool) { return time.Time{}, false }
	b.numbers = func() GatewayNumbers { return GatewayNumbers{} }
	b.buses = func() ([]devices.BusStatus, []devices.DeviceStatus) { return nil, nil }
	want = `{"uptime":86400,"boot":"k3qz7aa-12","devices":6,"online":5,"queue":0,"queue_bytes":0,"queue_oldest":0,` +
		`"dropped":0,"uplink_cloud":false,"clients":0,"clock":"unset","bus_errors_1h":0}`
	if got := string(b.gatewayState()); got != want {
		t.Errorf("gateway/state without a clock\n  %s\nwant\n  %s", got, want)
	}
}

// synctestRun is a subtest in which time stands.
func synctestRun(t *testing.T, name string, f func(*testing.T)) {
	t.Run(name, func(t *testing.T) { synctest.Test(t, f) })
}
