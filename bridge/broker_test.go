package bridge

import (
	"context"
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

// The real ones fit.
var (
	_ Broker       = (*embeddedbroker.Local)(nil)
	_ Fleet        = (*devices.Fleet)(nil)
	_ devices.Sink = (*Bridge)(nil)
)

// site is a bridge on the real broker, which forgets nothing but with its process.
type site struct {
	*Bridge
	t      *testing.T
	broker *embeddedbroker.Broker
	fleet  *fakeFleet
	stop   func()
}

func openSite(t *testing.T, store embeddedbroker.Store, cfg *config.Config, m Memory) *site {
	br, err := embeddedbroker.New(config.Broker{Retain: true, MaxPacket: 1 << 20, MaxQueued: 1000, MaxQueuedSize: 1 << 20, MaxClients: 10, QueueFull: "drop_oldest"},
		store, embeddedbroker.Options{})
	if err != nil {
		t.Fatal(err)
	}
	x := &site{t: t, broker: br, fleet: &fakeFleet{}}
	o := running()
	o.Memory, o.Retained = m, br.Retained
	x.Bridge = mustNew(t, cfg, br.Local("bridge"), o)
	x.Announce()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = x.Run(ctx, x.fleet) })
	bctx, bcancel := context.WithCancel(t.Context())
	var bwg sync.WaitGroup
	bwg.Go(func() { _ = br.Run(bctx) })
	x.stop = func() { // the bridge first: what it says at the end must still be routed
		cancel()
		wg.Wait()
		bcancel()
		bwg.Wait()
	}
	synctest.Wait()
	return x
}

func (x *site) retained() (ts []string) {
	for _, m := range x.broker.Retained("#") {
		if !strings.HasPrefix(m.Topic, "$") {
			ts = append(ts, strings.TrimPrefix(m.Topic, "busgate/plant-a/")+" "+string(m.Payload[:min(len(m.Payload), 8)]))
		}
	}
	return ts
}

func TestOnTheRealBroker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, memory := embeddedbroker.NewMemory(), newFakeMemory()
		x := openSite(t, store, testConfig(), memory)
		var mu sync.Mutex
		var seen []string
		cancel := x.broker.Local("hmi").Subscribe("busgate/plant-a/pumps/+", 1, func(m *embeddedbroker.Message) {
			mu.Lock()
			defer mu.Unlock()
			_, kind, _ := strings.Cut(strings.TrimPrefix(m.Topic, "busgate/plant-a/"), "/")
			seen = append(seen, kind+" "+string(m.Payload[:min(len(m.Payload), 8)]))
		})
		synctest.Wait()
		mustTake(t, x.Bridge, x.round("pumps", "relay1", true))
		x.Health(t.Context(), health("pumps", true, ""))
		if err := x.broker.Local("hmi").Publish(&embeddedbroker.Message{Topic: "busgate/plant-a/pumps/set/limit", Payload: []byte("80"), QoS: 1}, nil); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		x.Health(t.Context(), health("pumps", false, "no-answer"))
		synctest.Wait()
		cancel()
		mu.Lock()
		wantLines(t, seen, `info {"label"`, "status offline", `state {"ts":"2`, "status online", `ack {"ts":"2`, "status offline", `error {"ts":"2`)
		mu.Unlock()
		wantLines(t, x.fleet.take(), "pumps limit 80", "refresh pumps")
		time.Sleep(time.Second)
		x.stop()
		want := []string{
			`fans/info {"label"`, "fans/status offline", `gateway/info {"versio`, `gateway/state {"ts":"2`, "gateway/status offline", "gateway/uplink/cloud offline",
			`grid/info {"label"`, "grid/status offline", `pumps/error {"ts":"2`, `pumps/info {"label"`, `pumps/state {"ts":"2`, "pumps/status offline"}
		wantLines(t, x.retained(), want...)

		// pumps is renamed: nothing of it is left after the restart.
		cfg := testConfig()
		d := cfg.Devices["pumps"]
		delete(cfg.Devices, "pumps")
		d.Name, d.Label = "wells", "wells"
		cfg.Devices["wells"] = d
		y := openSite(t, store, cfg, memory)
		defer y.stop()
		if i := slices.IndexFunc(y.retained(), func(s string) bool { return strings.HasPrefix(s, "pumps") }); i >= 0 {
			t.Errorf("left: %v", y.retained())
		}
		if len(y.retained()) != 10 {
			t.Errorf("retained: %v", y.retained())
		}
	})
}
