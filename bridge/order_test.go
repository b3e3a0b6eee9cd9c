package bridge

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"busgate/config"
	"busgate/devices"
	"busgate/embeddedbroker"
)

// Tests of what may come between two steps of the bridge. Each holds a goroutine
// in the gap; none depends on how fast anybody is.

// awaitLocked waits until n goroutines wait for a lock somewhere in fn, or over is
// closed.
func awaitLocked(n int, fn string, over <-chan struct{}) {
	stacks := make([]byte, 1<<20)
	for waiting := 0; waiting < n; runtime.Gosched() {
		select {
		case <-over:
			return
		default:
		}
		waiting = 0
		for g := range bytes.SplitSeq(stacks[:runtime.Stack(stacks, true)], []byte("\n\n")) {
			state, _, _ := bytes.Cut(g, []byte("\n"))
			if bytes.Contains(state, []byte("[sync.")) && bytes.Contains(g, []byte("bridge."+fn+"(")) {
				waiting++
			}
		}
	}
}

// TestAnIDFromTwoSidesIsExecutedOnce: the LAN and a cloud bring the same command,
// and both have been looked at when the first is remembered.
func TestAnIDFromTwoSidesIsExecutedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := start(t, testConfig(), running())
		defer x.stop()
		m := &embeddedbroker.Message{Topic: "busgate/plant-a/pumps/set/limit", Payload: []byte(`{"value":80,"id":"a1"}`), QoS: 1}
		var wg sync.WaitGroup
		x.Bridge.mu.Lock() // judge wants to know the device
		for _, src := range []source{{}, {cloud: true, ttl: time.Minute}} {
			wg.Go(func() {
				if err := x.commands.take(m, src); err != nil {
					t.Error(err)
				}
			})
		}
		awaitLocked(2, "(*commands).judge", nil)
		x.Bridge.mu.Unlock()
		wg.Wait()
		synctest.Wait()
		wantLines(t, x.fleet.take(), "pumps limit 80", "refresh pumps")
		if n := x.Stats().Repeated; n != 1 {
			t.Errorf("%d repeated, want 1", n)
		}
	})
}

// TestARepeatedIDIsNotAnsweredBeforeTheResultIsOnDisk: a kill there would have the
// gateway say unknown afterwards.
func TestARepeatedIDIsNotAnsweredBeforeTheResultIsOnDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, mem, flush := running(), newFakeMemory(), make(chan struct{})
		mem.hold = func(_ string, v []byte) {
			if bytes.Contains(v, fmt.Appendf(nil, `"state":%d`, stepDone)) {
				<-flush
			}
		}
		o.Memory = mem
		x := start(t, testConfig(), o)
		defer x.stop()
		x.f.take()
		for range 2 {
			x.f.client("busgate/plant-a/pumps/set/limit", `{"value":80,"id":"a1"}`)
			x.want()
		}
		close(flush)
		x.want(ok80(`"id":"a1",`))
	})
}

// TestALateResultLeavesThePlaceToItsNextOwner: while one command is on the bus,
// 1024 others come; its place on disk belongs to another then, which a crash must
// not lose.
func TestALateResultLeavesThePlaceToItsNextOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, mem, answer := running(), newFakeMemory(), make(chan struct{})
		o.Memory = mem
		x := start(t, testConfig(), o)
		defer x.stop()
		x.fleet.write = func(_ context.Context, c devices.Command) (devices.Result, error) {
			if c.Device == "fans" {
				<-answer
			}
			return devices.Result{Value: devices.IntValue(80, 0), Took: 41 * time.Millisecond}, nil
		}
		x.f.client("busgate/plant-a/fans/set/limit", `{"value":80,"id":"old"}`)
		synctest.Wait()
		for i := range maxIDs {
			x.f.client("busgate/plant-a/grid/set/relay1", fmt.Sprintf(`{"value":1,"id":"new%d"}`, i))
			synctest.Wait()
		}
		x.f.take()
		close(answer)
		x.want(strings.Replace(ok80(`"id":"old",`), "pumps", "fans", 1))
		var r record
		if raw, _ := mem.Load(slotKey(0)); json.Unmarshal(raw, &r) != nil || r.ID != fmt.Sprint("new", maxIDs-1) {
			t.Errorf("the place holds %s", raw)
		}
	})
}

// TestHealthDuringAnUpdate: a device is said to be dead after the update has made
// it anew and before it is introduced.
func TestHealthDuringAnUpdate(t *testing.T) {
	f := newFakeBroker()
	b := mustNew(t, testConfig(), f, fixed())
	b.Announce()
	b.Health(t.Context(), health("grid", true, ""))
	mustTake(t, b, b.round("grid", "power", 1.0))
	next := same(testConfig())
	next.Devices["fans"].Label, next.Devices["grid"].Label = "Fans", "Main meter"
	var wg sync.WaitGroup
	happens := func() {
		b.Health(t.Context(), health("grid", false, ""))
		mustTake(t, b, b.round("grid", "power", 2.0))
	}
	f.before = func(m *embeddedbroker.Message) {
		if m.Topic != "busgate/plant-a/fans/info" { // of the one before
			return
		}
		f.before = nil
		if !slices.ContainsFunc(b.Birth(), func(m *embeddedbroker.Message) bool { return strings.HasSuffix(m.Topic, "/grid/state") }) {
			t.Error("a birth during the update has no state of grid")
		}
		if d := b.device("grid"); d.mu.TryLock() { // it does not wait
			d.mu.Unlock()
			happens()
			return
		}
		wg.Go(happens)
	}
	if err := b.Update(next); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if s := string(f.retained["busgate/plant-a/grid/status"].Payload); s != "offline" {
		t.Errorf("grid is dead, and said to be %s", s)
	}
	if i := slices.IndexFunc(b.Birth(), func(m *embeddedbroker.Message) bool { return strings.Contains(string(m.Payload), `"power":2`) }); i < 0 {
		t.Error("the newest state of grid is not the one that was taken last")
	}
}

// TestHealthWaitsForTheDeviceThatAnUpdateReplaces: the change is said once, and
// must not be lost with the old one.
func TestHealthWaitsForTheDeviceThatAnUpdateReplaces(t *testing.T) {
	f := newFakeBroker()
	b := mustNew(t, testConfig(), f, fixed())
	b.Announce()
	next := same(testConfig())
	next.Devices["grid"].Label = "Main meter"
	old := b.device("grid")
	old.mu.Lock() // a round is being published
	var wg sync.WaitGroup
	wg.Go(func() { b.Health(t.Context(), health("grid", true, "")) })
	awaitLocked(1, "(*Bridge).Health", nil)
	wg.Go(func() {
		if err := b.Update(next); err != nil {
			t.Error(err)
		}
	})
	for b.device("grid") == old {
		runtime.Gosched()
	}
	old.gone = true // as if the update had been the first to get the lock
	old.mu.Unlock()
	wg.Wait()
	if s := string(f.retained["busgate/plant-a/grid/status"].Payload); s != "online" {
		t.Errorf("grid answers, and is said to be %s", s)
	}
}

// TestARemovedUplinkHasNoLastWord: its link goes on until the update comes to it.
func TestARemovedUplinkHasNoLastWord(t *testing.T) {
	for name, speak := range map[string]func(*Bridge){
		"UplinkState": func(b *Bridge) { b.UplinkState("cloud", "online") },
		"UplinkStats": func(b *Bridge) { b.UplinkStats("cloud", UplinkNumbers{}) },
	} {
		t.Run(name, func(t *testing.T) {
			o, f := fixed(), newFakeBroker()
			speaking, goOn := make(chan struct{}), make(chan struct{})
			var hold bool
			o.Clock = func() (time.Time, bool) { // asked while the message is made
				if hold {
					hold = false
					close(speaking)
					<-goOn
				}
				return testTime, true
			}
			b := mustNew(t, testConfig(), f, o)
			b.Announce()
			hold = true
			var wg sync.WaitGroup
			wg.Go(func() { speak(b) })
			<-speaking
			next := same(testConfig())
			next.Uplinks = nil
			ended := make(chan struct{})
			wg.Go(func() {
				if err := b.Update(next); err != nil {
					t.Error(err)
				}
				close(ended)
			})
			awaitLocked(1, "(*Bridge).Update", ended)
			close(goOn)
			wg.Wait()
			for topic := range f.retained {
				if strings.Contains(topic, "/gateway/uplink/") {
					t.Errorf("left: %s", topic)
				}
			}
		})
	}
}

// TestWhatIsSaidIsNotedBefore: whatever a kill leaves retained, here or at a
// cloud, the next process knows of.
func TestWhatIsSaidIsNotedBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, mem, f := running(), newFakeMemory(), newFakeBroker()
		o.Memory = mem
		said := 0
		f.before = func(m *embeddedbroker.Message) {
			if len(m.Payload) == 0 || strings.Contains(m.Topic, "/gateway/uplink/") {
				return
			}
			var k known
			raw, _ := mem.Load(knownKey)
			_ = json.Unmarshal(raw, &k) // nothing is noted yet, or all of it reads
			announced, ok := k.Discovery[m.Topic]
			if strings.HasPrefix(m.Topic, "homeassistant/") {
				var a struct{ Cmps map[string]any }
				if json.Unmarshal(m.Payload, &a) != nil || len(a.Cmps) == 0 || len(announced) < len(a.Cmps) {
					ok = false
				}
			} else {
				ok = slices.Contains(k.topics(), m.Topic)
			}
			if said++; !ok {
				t.Errorf("%s is said, and %s noted", m.Topic, raw)
			}
		}
		cfg := testConfig()
		cfg.Gateway.Payload = "value"
		x := startOn(t, f, cfg, o)
		defer x.stop()
		tank := *cfg.Devices["pumps"]
		tank.Name = "tank"
		next := same(cfg)
		next.Devices["tank"] = &tank
		next.Devices["grid"].Points = append(next.Devices["grid"].Points, config.Point{Name: "more", Type: "uint16", Bit: -1, Digits: -1})
		next.HomeAssistant = config.HomeAssistant{Discovery: true, Prefix: "homeassistant"}
		if err := x.Update(next); err != nil {
			t.Fatal(err)
		}
		last := same(next)
		last.Devices["grid"].Points = append(last.Devices["grid"].Points, config.Point{Name: "most", Type: "uint16", Bit: -1, Digits: -1})
		if err := x.Update(last); err != nil {
			t.Fatal(err)
		}
		mustTake(t, x.Bridge, x.round("grid", "most", 1))
		if said < 20 {
			t.Errorf("only %d were looked at", said)
		}
	})
}
