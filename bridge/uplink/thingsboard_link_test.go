package uplink

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"busgate/bridge/uplink/cloudtest"
	"busgate/config"
	"busgate/embeddedbroker"
)

// platform is ThingsBoard as far as a gateway can see it. It acknowledges telemetry
// when the first device of it is stored, as its older releases do.
type platform struct {
	mu        sync.Mutex
	connected map[string]bool
	kept      map[string]map[int64]string // values by device and time
	twice     int
	mixed     int // messages with several devices
	other     []string
}

func (b *platform) take(p *packets.PublishPacket) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch p.TopicName {
	case boardTelemetry:
		var doc map[string][]struct {
			Ts     int64
			Values json.RawMessage
		}
		if json.Unmarshal(p.Payload, &doc) != nil || len(doc) == 0 {
			return false
		}
		if len(doc) > 1 {
			b.mixed++
		}
		for device, entries := range doc {
			b.connected[device] = true
			if b.kept[device] == nil {
				b.kept[device] = map[int64]string{}
			}
			for _, e := range entries {
				if _, there := b.kept[device][e.Ts]; there {
					b.twice++
				}
				b.kept[device][e.Ts] = string(e.Values)
			}
		}
	case boardConnect, boardDisconnect:
		var doc struct{ Device string }
		if json.Unmarshal(p.Payload, &doc) != nil || doc.Device == "" {
			return false
		}
		b.connected[doc.Device] = p.TopicName == boardConnect
	case boardAttributes:
		var doc map[string]map[string]any
		if json.Unmarshal(p.Payload, &doc) != nil {
			return false
		}
		for device := range doc {
			b.connected[device] = true
		}
	default:
		b.other = append(b.other, p.TopicName+" "+string(p.Payload))
	}
	return p.Qos < 2 && !p.Retain
}

// onBoard gives a rig that speaks with ThingsBoard.
func onBoard(t *testing.T, fn func(r *rig, b *platform)) {
	b := &platform{connected: map[string]bool{}, kept: map[string]map[int64]string{}}
	virtual(t, cloudtest.Options{AckDelay: 50 * time.Millisecond, Publish: b.take}, func(r *rig) {
		cfg, problems := config.Parse("busgate.toml", "[gateway]\nname = \"gw1\"\n[uplink.cloud]\naddresses = [\"mqtt://iot.example.com\"]\nprofile = \"thingsboard\"\n", nil)
		if cfg == nil {
			t.Fatal(problems)
		}
		r.cfg, r.gw = *cfg.Uplinks["cloud"], cfg.Gateway
		fn(r, b)
	})
}

// TestThingsBoardOverTheLink: an uplink with nothing but the profile.
func TestThingsBoardOverTheLink(t *testing.T) {
	onBoard(t, func(r *rig, b *platform) {
		r.o.Birth = func() []*embeddedbroker.Message {
			return []*embeddedbroker.Message{
				status("busgate/gw1/gateway/status", "online"), status("busgate/gw1/grid/status", "online"), status("busgate/gw1/dead/status", "offline"),
				status("busgate/gw1/dead/info", `{"label":"Dead"}`), status("busgate/gw1/grid/info", `{"label":"Grid"}`),
				status("busgate/gw1/dead/error", `{"text":"no answer"}`),
				{Topic: "busgate/gw1/dead/state", Payload: []byte(`{"ts":1,"a":1}`), Kind: embeddedbroker.KindReading},
			}
		}
		for i := range 300 {
			dev := "grid"
			if i >= 200 {
				dev = []string{"grid", "pumps"}[i%2]
			}
			time.Sleep(time.Millisecond) // each has a time of its own
			r.st.put("busgate/gw1/"+dev+"/state", fmt.Appendf(nil, `{"ts":"x","i":%d}`, i), embeddedbroker.KindReading)
		}
		r.st.put("lan/topic", []byte("left of the time before this encoding"), embeddedbroker.KindLAN)
		r.start()
		time.Sleep(time.Minute)
		s := r.link.Status()
		b.mu.Lock()
		defer b.mu.Unlock()
		if g, p := len(b.kept["gw1.grid"]), len(b.kept["gw1.pumps"]); g != 250 || p != 50 || b.twice+b.mixed != 0 || s.Pending != 0 {
			t.Errorf("%d of 250 and %d of 50 readings are kept, %d twice, %d messages with several devices, %d wait", g, p, b.twice, b.mixed, s.Pending)
		}
		if s.Packets > 110 || s.Unfit != 1 {
			t.Errorf("%d packets for readings of one device in a row and of two in turn, %d unfit", s.Packets, s.Unfit)
		}
		if !b.connected["gw1.grid"] || b.connected["gw1.dead"] || len(b.kept["gw1.dead"]) > 0 {
			t.Errorf("connected %v, and %v of a dead device: what is said of it connects it again", b.connected, b.kept["gw1.dead"])
		}
		want := []string{`v1/devices/me/attributes {"error_dead":"no answer"}`, `v1/devices/me/telemetry {"loss":[{"boot":"k3qz7aa-12","lo":301,"hi":301,"n":1,"why":"unfit"}]}`}
		if !slices.Equal(b.other, want) {
			t.Errorf("besides it was told\n%s\nwant\n%s", strings.Join(b.other, "\n"), strings.Join(want, "\n"))
		}
		r.stop()
	})
}

// TestThingsBoardIsExactOverCuts: nothing is missing after cuts in the middle, and
// what came twice took its own place.
func TestThingsBoardIsExactOverCuts(t *testing.T) {
	onBoard(t, func(r *rig, b *platform) {
		for i := range 2000 {
			time.Sleep(time.Millisecond)
			r.st.put("busgate/gw1/"+[]string{"grid", "pumps", "relays"}[i/7%3]+"/state", fmt.Appendf(nil, `{"ts":"x","i":%d}`, i), embeddedbroker.KindReading)
		}
		r.cfg.RateMsgs = 10
		r.start()
		for i := range 12 {
			time.Sleep(time.Duration(3000+i*130) * time.Millisecond)
			r.cloud.Wipe() // it keeps no sessions
		}
		time.Sleep(5 * time.Minute)
		b.mu.Lock()
		defer b.mu.Unlock()
		n, wrong := 0, 0
		for device, kept := range b.kept {
			n += len(kept)
			for _, values := range kept {
				var v struct{ I int }
				if json.Unmarshal([]byte(values), &v) != nil || device != "gw1."+[]string{"grid", "pumps", "relays"}[v.I/7%3] {
					wrong++
				}
			}
		}
		if s := r.link.Status(); n != 2000 || b.mixed+wrong > 0 || s.Pending != 0 || s.Connects < 3 {
			t.Errorf("%d of 2000 kept, %d at another device, %d came twice, %d wait, %d connects", n, wrong, b.twice, s.Pending, s.Connects)
		}
		r.stop()
	})
}

func TestThingsBoardRespectsMaxPacket(t *testing.T) {
	onBoard(t, func(r *rig, b *platform) {
		r.cfg.MaxPacket, r.cfg.MaxRecords = 4000, 1000
		for i := range 300 {
			time.Sleep(time.Millisecond)
			r.st.put("busgate/gw1/grid/state", fmt.Appendf(nil, `{"ts":"x","i":%d,"s":%q}`, i, strings.Repeat("x", i)), embeddedbroker.KindReading)
		}
		r.st.put("busgate/gw1/grid/state", fmt.Appendf(nil, `{"ts":"x","s":%q}`, strings.Repeat("x", 5000)), embeddedbroker.KindReading)
		r.start()
		time.Sleep(time.Minute)
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, d := range r.cloud.Ledger() {
			if len(d.Topic)+len(d.Payload)+maxHeader > 4000 {
				t.Errorf("a packet of %d bytes", len(d.Topic)+len(d.Payload)+maxHeader)
			}
		}
		if s := r.link.Status(); len(b.kept["gw1.grid"]) != 300 || s.Oversize != 1 || s.Packets > 60 {
			t.Errorf("%d kept, %d oversize, %d packets", len(b.kept["gw1.grid"]), s.Oversize, s.Packets)
		}
		r.stop()
	})
}

// TestThingsBoardCommands: a call that accept lets down reaches the point, and its
// answer the caller; anything else is refused.
func TestThingsBoardCommands(t *testing.T) {
	onBoard(t, func(r *rig, b *platform) {
		var l lan
		r.o.Down = l.down
		r.cfg.Accept = []string{"busgate/gw1/pumps/set/#"}
		r.start()
		time.Sleep(2 * time.Second)
		if got := r.cloud.Subscriptions(r.cfg.ClientID); !slices.Equal(got, []string{"v1/gateway/rpc"}) {
			t.Errorf("subscribed %v", got)
		}
		call := func(device string, id int) {
			r.cloud.Publish("v1/gateway/rpc", fmt.Appendf(nil, `{"device":%q,"data":{"id":%d,"method":"relay1","params":true}}`, device, id), 1, false)
			time.Sleep(time.Second)
		}
		call("gw1.pumps", 7)
		call("gw1.boiler", 8)                                                                          // outside accept
		r.cloud.Publish("v1/gateway/rpc", []byte(`{"device":"gw1.pumps","id":7,"data":{}}`), 1, false) // an answer that comes back
		call("gw1.pumps", 7)                                                                           // the platform has started anew: another call
		got := l.seen()
		if len(got) != 2 || got[0] == got[1] {
			t.Fatalf("came down %q, want two commands with ids of their own", got)
		}
		for _, g := range got {
			if !strings.HasPrefix(g, `busgate/gw1/pumps/set/relay1 {"value":true,"id":"rpc-7-`) {
				t.Errorf("came down %s", g)
			}
		}
		id := got[0][strings.Index(got[0], "rpc-7-"):]
		id = id[:strings.IndexByte(id, '"')]
		r.st.put("busgate/gw1/pumps/ack", fmt.Appendf(nil, `{"id":%q,"point":"relay1","ok":true,"value":true,"ms":4}`, id), embeddedbroker.KindStatus)
		time.Sleep(time.Second)
		b.mu.Lock()
		want := fmt.Sprintf(`v1/gateway/rpc {"device":"gw1.pumps","id":7,"data":{"id":%q,"point":"relay1","ok":true,"value":true,"ms":4}}`, id)
		if !slices.Equal(b.other, []string{want}) {
			t.Errorf("answered %q, want %s", b.other, want)
		}
		b.mu.Unlock()
		time.Sleep(2 * time.Second)
		if s := r.link.Status(); s.DownAccepted != 2 || s.DownRefused != 3 || s.Commands["ok"] != 1 {
			t.Errorf("accepted %d, refused %d, answers %v; want 2, 3 with the answer that this cloud sends back, one ok", s.DownAccepted, s.DownRefused, s.Commands)
		}
		r.stop()
	})
}
