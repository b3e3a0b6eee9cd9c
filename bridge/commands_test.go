package bridge

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"busgate/devices"
	"busgate/embeddedbroker"
)

// slow makes each write take d.
func (f *fakeFleet) slow(d time.Duration) {
	f.write = func(ctx context.Context, c devices.Command) (devices.Result, error) {
		select {
		case <-time.After(d):
			return devices.Result{Value: devices.IntValue(80, 0), Took: 41 * time.Millisecond}, nil
		case <-ctx.Done():
			return devices.Result{}, ctx.Err()
		}
	}
}

func TestACommandIsNeverExecutedLate(t *testing.T) {
	for name, c := range map[string]struct {
		payload string
		expires time.Duration // of the message
		wait    time.Duration // of the command before it
		step    time.Duration // of the wall clock meanwhile
		late    bool
	}{
		"the default is 60 s":                 {payload: "1", wait: 60 * time.Second},
		"after 60 s it is too late":           {payload: "1", wait: 75 * time.Second, late: true},
		"ttl_s is longer":                     {payload: `{"value":1,"ttl_s":90}`, wait: 75 * time.Second},
		"ttl_s is shorter":                    {payload: `{"value":1,"ttl_s":30}`, wait: 31 * time.Second, late: true},
		"expires is longer":                   {payload: `{"value":1,"expires":"2000-01-01T00:01:30Z"}`, wait: 75 * time.Second},
		"expires is shorter":                  {payload: `{"value":1,"expires":"2000-01-01T00:00:30Z"}`, wait: 31 * time.Second, late: true},
		"both: the earlier counts":            {payload: `{"value":1,"ttl_s":90,"expires":"2000-01-01T00:00:30Z"}`, wait: 31 * time.Second, late: true},
		"both: the earlier is ttl_s":          {payload: `{"value":1,"ttl_s":30,"expires":"2000-01-01T00:01:30Z"}`, wait: 31 * time.Second, late: true},
		"a step of the clock does not extend": {payload: `{"value":1,"expires":"2000-01-01T00:00:30Z"}`, wait: 31 * time.Second, step: -time.Hour, late: true},
		"a step of the clock does not cut":    {payload: `{"value":1,"expires":"2000-01-01T00:00:30Z"}`, wait: 29 * time.Second, step: time.Hour},
		"the message expires":                 {payload: "1", expires: 10 * time.Second, wait: 11 * time.Second, late: true},
	} {
		synctestRun(t, name, func(t *testing.T) {
			var step atomic.Int64
			o := running()
			o.Clock = func() (time.Time, bool) { return time.Now().Add(time.Duration(step.Load())), true }
			x := start(t, testConfig(), o)
			defer x.stop()
			x.fleet.slow(c.wait)
			x.f.client("busgate/plant-a/pumps/set/relay1", "1")
			m := &embeddedbroker.Message{Topic: "busgate/plant-a/pumps/set/limit", Payload: []byte(c.payload), QoS: 1}
			if c.expires > 0 {
				m.Expires = time.Now().Add(c.expires)
			}
			synctest.Wait()
			x.f.deliver(m)
			step.Store(int64(c.step))
			time.Sleep(c.wait)
			synctest.Wait()
			log := x.fleet.take()
			if !c.late {
				if len(log) != 3 || log[2] != "pumps limit 1" {
					t.Errorf("not executed: %v", log)
				}
				time.Sleep(c.wait)
				return
			}
			if len(log) != 2 {
				t.Errorf("executed late: %v", log)
			}
			var ack string
			for _, l := range x.f.take() {
				if strings.HasPrefix(l, "pumps/ack") {
					ack = l
				}
			}
			want := fmt.Sprintf(`"point":"limit","ok":false,"error":"expired","text":"expired: waited %d s for bus relays"}`, c.wait/time.Second)
			if !strings.HasSuffix(ack, want) {
				t.Errorf("ack %s\nwant …%s", ack, want)
			}
		})
	}
}

func TestADeadDeviceBlocksNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := start(t, testConfig(), running())
		defer x.stop()
		x.f.take()
		x.fleet.write = func(ctx context.Context, c devices.Command) (devices.Result, error) {
			if c.Device == "pumps" {
				<-ctx.Done()
				return devices.Result{}, ctx.Err()
			}
			return devices.Result{Value: devices.BoolValue(true)}, nil
		}
		for range maxWaiting + 1 { // one is on the bus, 64 wait
			x.f.client("busgate/plant-a/pumps/set/limit", "1")
			synctest.Wait()
		}
		x.f.client("busgate/plant-a/grid/set/relay1", "on")
		x.want(`grid/ack ` + ts0 + `"point":"relay1","ok":true,"value":true,"ms":0}`)
		// The bus is full, for its other device too.
		x.f.client("busgate/plant-a/fans/set", `{"limit":1,"relay1":0}`)
		x.want(
			`fans/ack `+ts0+`"point":"relay1","ok":false,"error":"refused","text":"too many commands wait for bus relays (64)"}`,
			`fans/ack `+ts0+`"point":"limit","ok":false,"error":"refused","text":"too many commands wait for bus relays (64)"}`)
		if n := x.Stats().Waiting; n != maxWaiting {
			t.Errorf("%d wait, want %d", n, maxWaiting)
		}
	})
}

func TestWhatWaitsAtTheEndIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := start(t, testConfig(), running())
		x.fleet.slow(time.Hour)
		x.f.client("busgate/plant-a/pumps/set/limit", "1")
		synctest.Wait()
		x.f.client("busgate/plant-a/pumps/set/relay1", "1")
		x.f.take()
		x.stop()
		got := x.f.take()
		wantLines(t, got[:2], nok("limit", "unknown", "the gateway stopped while writing: whether it was done is unknown"), nok("relay1", "refused", "the gateway stops"))
		if err := x.Down(t.Context(), "cloud", down("pumps/set/limit", "1")); err != nil {
			t.Error(err)
		}
		wantLines(t, x.f.take(), "pumps/set/limit 1", nok("limit", "refused", "the gateway stops"))
	})
}

func TestCommandsWaitForRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeBroker()
		b := mustNew(t, testConfig(), f, running())
		b.Announce()
		f.take()
		f.client("busgate/plant-a/pumps/set/limit", "80")
		f.client("busgate/plant-a/grid/get", "")
		wantLines(t, f.take())
		ctx, cancel := context.WithCancel(t.Context())
		done, fleet := make(chan error), &fakeFleet{}
		go func() { done <- b.Run(ctx, fleet) }()
		synctest.Wait()
		if log := fleet.take(); len(log) != 3 {
			t.Errorf("fleet saw %v", log)
		}
		cancel()
		<-done
	})
}

func TestARepeatedIDIsAnsweredWithTheFirstResult(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := start(t, testConfig(), running())
		defer x.stop()
		x.f.take()
		send := func(topic, payload string) []string {
			x.f.client("busgate/plant-a/"+topic, payload)
			synctest.Wait()
			return x.f.take()
		}
		first := send("pumps/set/limit", `{"value":80,"id":"a1","expires":"2000-01-01T00:00:10Z"}`)
		wantLines(t, first, ok80(`"id":"a1",`))
		x.fleet.take()
		time.Sleep(30 * time.Second)
		x.f.take()
		// The same bytes, though another value, and though it has expired.
		wantLines(t, send("pumps/set/limit", `{"value":5,"id":"a1","expires":"2000-01-01T00:00:10Z"}`), first...)
		wantLines(t, x.fleet.take())
		if n := x.Stats().Repeated; n != 1 {
			t.Errorf("%d repeated, want 1", n)
		}
		// Another point or device with the id is another command; no id is always new.
		send("fans/set/limit", `{"value":80,"id":"a1"}`)
		send("pumps/set/relay1", `{"value":1,"id":"a1"}`)
		send("pumps/set/limit", "80")
		send("pumps/set/limit", "80")
		if log := x.fleet.take(); len(log) != 8 {
			t.Errorf("fleet saw %v", log)
		}
		// A set answers with all its acks, the refused ones too.
		set := send("pumps/set", `{"limit":80,"relay9":1,"id":"a2"}`)
		if len(set) != 2 {
			t.Fatalf("acks %v", set)
		}
		wantLines(t, send("pumps/set", `{"limit":80,"relay9":1,"id":"a2"}`), set...)
		// What was refused without the bus may be sent again.
		send("pumps/set/relay2", `{"value":1,"id":"a3"}`)
		cfg := testConfig()
		cfg.Devices["pumps"].Points[1].Write = true
		if err := x.Update(cfg); err != nil {
			t.Fatal(err)
		}
		x.fleet.take()
		send("pumps/set/relay2", `{"value":1,"id":"a3"}`)
		wantLines(t, x.fleet.take(), "pumps relay2 1", "refresh pumps")
		// After 24 h it is new.
		time.Sleep(24 * time.Hour)
		x.fleet.take()
		send("pumps/set/limit", `{"value":80,"id":"a1"}`)
		wantLines(t, x.fleet.take(), "pumps limit 80", "refresh pumps")
	})
}

func TestARepeatedIDWhileItRunsIsNotExecutedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := start(t, testConfig(), running())
		defer x.stop()
		x.f.take()
		x.fleet.slow(5 * time.Second)
		for range 3 {
			x.f.client("busgate/plant-a/pumps/set/limit", `{"value":80,"id":"a1"}`)
			time.Sleep(time.Second)
		}
		time.Sleep(30 * time.Second)
		x.want(strings.Replace(ok80(`"id":"a1",`), "00:00.000", "00:05.000", 1))
		wantLines(t, x.fleet.take(), "pumps limit 80", "refresh pumps")
	})
}

func TestIDsAreBounded(t *testing.T) {
	tab := newIDs()
	job := func(n, size int) *job {
		return &job{key: fmt.Sprint(n), steps: []step{{ack: make([]byte, size)}}, done: true}
	}
	for n := range maxIDs + 10 {
		j := job(n, 10)
		tab.add(j)
		tab.grow(j)
	}
	if tab.find("9", 0) != nil || tab.find("10", 0) == nil || len(tab.byKey) != maxIDs || tab.bytes != 10*maxIDs || tab.forgotten != 10 {
		t.Errorf("%d ids, %d bytes, %d forgotten", len(tab.byKey), tab.bytes, tab.forgotten)
	}
	big := job(5000, maxIDBytes-100)
	tab.add(big)
	tab.grow(big)
	if tab.bytes > maxIDBytes || tab.find("5000", 0) != big || len(tab.byKey) > 11 {
		t.Errorf("%d ids, %d bytes", len(tab.byKey), tab.bytes)
	}
	lost := job(5001, 0)
	tab.add(lost)
	tab.forget(lost)
	if tab.find("5001", 0) != nil {
		t.Error("a forgotten id is found")
	}
	last := job(5002, 1)
	last.arrived = time.Hour
	tab.add(last)
	if tab.find("5002", maxIDAge) == nil || tab.find("5000", maxIDAge+time.Second) != nil || tab.find("5002", maxIDAge+2*time.Hour) != nil {
		t.Error("ids live for 24 h")
	}
}

func TestResponseTopic(t *testing.T) {
	props := func(topic, data string) []byte {
		p := []byte{propPayloadFormat, 1, propExpiry, 0, 0, 0, 9, propUser, 0, 1, 'a', 0, 1, 'b', propResponseTopic, 0, byte(len(topic))}
		p = append(p, topic...)
		if data != "" {
			p = append(append(p, propCorrelation, 0, byte(len(data))), data...)
		}
		return p
	}
	synctest.Test(t, func(t *testing.T) {
		x := start(t, testConfig(), running())
		defer x.stop()
		x.f.take()
		send := func(p []byte) []*embeddedbroker.Message {
			x.f.deliver(&embeddedbroker.Message{Topic: "busgate/plant-a/pumps/set/limit", Payload: []byte("80"), QoS: 1, Props: p})
			synctest.Wait()
			x.f.mu.Lock()
			defer x.f.mu.Unlock()
			l := x.f.log
			x.f.log = nil
			return l
		}
		ms := send(props("answers/1", "xyz"))
		if len(ms) != 2 || ms[1].Topic != "answers/1" || string(ms[1].Props) != "\x09\x00\x03xyz" || string(ms[1].Payload) != string(ms[0].Payload) || ms[1].Retain {
			t.Errorf("answered %+v", ms)
		}
		if ms = send(props("answers/1", "")); len(ms) != 2 || ms[1].Props != nil {
			t.Errorf("answered %+v", ms)
		}
		// Nobody makes the gateway say what he must not say himself.
		for _, topic := range []string{"busgate/plant-a/grid/state", "busgate/plant-a/pumps/set/limit", "busgate/plant-a/pumps/get", "$SYS/x", "a/+", "a/#", ""} {
			if ms = send(props(topic, "x")); len(ms) != 1 {
				t.Errorf("answered on %q", topic)
			}
		}
		for _, p := range [][]byte{props("answers/1", "xyz")[:20], {0x77}, {propResponseTopic, 0xff, 0xff, 'a'}, {propExpiry}} {
			if ms = send(p); len(ms) != 1 {
				t.Errorf("answered with properties %x", p)
			}
		}
	})
}
