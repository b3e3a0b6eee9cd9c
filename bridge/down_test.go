package bridge

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"busgate/embeddedbroker"
)

func down(topic, payload string) *embeddedbroker.Message {
	return &embeddedbroker.Message{Topic: "busgate/plant-a/" + topic, Payload: []byte(payload), QoS: 1, Kind: embeddedbroker.KindDown}
}

func TestDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, mem := running(), newFakeMemory()
		o.Memory = mem
		x := start(t, testConfig(), o)
		defer x.stop()
		x.f.take()
		do := func(m *embeddedbroker.Message) error {
			err := x.Down(t.Context(), "cloud", m)
			x.f.deliver(m) // the broker hands it to the subscriptions of the bridge too
			synctest.Wait()
			return err
		}
		// Any other message is only passed on.
		if err := do(down("note", "hello")); err != nil {
			t.Error(err)
		}
		x.want("note hello")
		wantLines(t, x.fleet.take())
		// A command is executed once, and is on disk.
		if err := do(down("pumps/set/limit", "80")); err != nil {
			t.Error(err)
		}
		x.want("pumps/set/limit 80", ok80(""))
		wantLines(t, x.fleet.take(), "pumps limit 80", "refresh pumps")
		if len(mem.m) != 2 {
			t.Errorf("%d facts, want the base and one command", len(mem.m))
		}
		// A bare value is new each time it arrives.
		time.Sleep(time.Millisecond)
		if err := do(down("pumps/set/limit", "80")); err != nil {
			t.Error(err)
		}
		if log := x.fleet.take(); len(log) != 2 {
			t.Errorf("fleet saw %v", log)
		}
	})
}

func TestDownRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, mem := running(), newFakeMemory()
		o.Memory = mem
		x := start(t, testConfig(), o)
		defer x.stop()
		x.f.take()
		do := func(m *embeddedbroker.Message) error {
			err := x.Down(t.Context(), "cloud", m)
			x.f.deliver(m) // the broker hands it to the subscriptions of the bridge too
			synctest.Wait()
			return err
		}
		// A retained one is answered and not passed on.
		m := down("pumps/set/limit", "80")
		m.Retain = true
		if err := do(m); err != nil {
			t.Error(err)
		}
		if got := x.f.take(); len(got) != 1 || !strings.Contains(got[0], `"error":"retained"`) {
			t.Errorf("published %v", got)
		}
		// What cannot be kept is not taken: the cloud sends it again.
		mem.fail = errors.New("disk full")
		if err := do(down("pumps/set/limit", `{"value":1,"id":"z"}`)); err == nil {
			t.Error("a command that is not on disk was taken")
		}
		wantLines(t, x.fleet.take())
		mem.fail = nil
		if err := do(down("pumps/set/limit", `{"value":1,"id":"z"}`)); err != nil {
			t.Error(err)
		}
		wantLines(t, x.fleet.take(), "pumps limit 1", "refresh pumps")
		// command_ttl of the uplink is 20 s.
		x.fleet.slow(21 * time.Second)
		_ = do(down("pumps/set/limit", "1"))
		_ = do(down("pumps/set/limit", "2"))
		time.Sleep(22 * time.Second)
		synctest.Wait()
		wantLines(t, x.fleet.take(), "pumps limit 1", "refresh pumps")
		// A broker that refuses makes the cloud send it again.
		x.f.mu.Lock()
		x.f.refuse = func(*embeddedbroker.Message, bool) error { return embeddedbroker.ErrFull }
		x.f.mu.Unlock()
		if err := do(down("pumps/set/limit", "2")); !errors.Is(err, embeddedbroker.ErrFull) {
			t.Errorf("error %v", err)
		}
	})
}

// TestCrash stops a gateway in the middle of three commands and starts another
// one on what was on disk.
func TestCrash(t *testing.T) {
	for name, c := range map[string]struct {
		retry bool
		off   time.Duration
		fleet []string
		acks  []string // of ids
	}{
		"what was on the bus is unknown": {off: time.Second, fleet: []string{"pumps relay1 1", "refresh pumps"},
			acks: []string{`"id":"b","point":"limit","ok":false,"error":"unknown","text":"the gateway stopped while writing: whether it was done is unknown"}`,
				`"id":"c","point":"relay1","ok":true,"value":80,"ms":41}`}},
		"retry_unknown writes again": {retry: true, off: time.Second, fleet: []string{"pumps limit 2", "pumps relay1 1", "refresh pumps"},
			acks: []string{`"id":"b","point":"limit","ok":true,"value":80,"ms":41}`, `"id":"c","point":"relay1","ok":true,"value":80,"ms":41}`}},
		"but never late": {retry: true, off: time.Minute,
			acks: []string{`"id":"b","point":"limit","ok":false,"error":"expired","text":"expired: the gateway was stopped"}`,
				`"id":"c","point":"relay1","ok":false,"error":"expired","text":"expired: the gateway was stopped"}`}},
	} {
		synctestRun(t, name, func(t *testing.T) {
			o, mem := running(), newFakeMemory()
			o.Memory = mem
			cfg := testConfig()
			cfg.Uplinks["cloud"].RetryUnknown = c.retry
			x := start(t, cfg, o)
			if err := x.Down(t.Context(), "cloud", down("pumps/set/limit", `{"value":80,"id":"a"}`)); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			x.fleet.slow(time.Hour)
			_ = x.Down(t.Context(), "cloud", down("pumps/set/limit", `{"value":2,"id":"b"}`))
			synctest.Wait()
			_ = x.Down(t.Context(), "cloud", down("pumps/set/relay1", `{"value":1,"id":"c"}`))
			disk := mem.copy() // kill -9
			x.stop()

			time.Sleep(c.off)
			o.Memory = disk
			y := start(t, cfg, o)
			defer y.stop()
			var acks []string
			for _, l := range y.f.take() {
				if _, after, ok := strings.Cut(l, `/ack {"ts":"`); ok {
					_, after, _ = strings.Cut(after, `",`)
					acks = append(acks, after)
				}
			}
			wantLines(t, acks, c.acks...)
			log := y.fleet.take()
			if n := len(log); n > 0 && c.retry { // a refresh after each job
				log = append(log[:1:1], log[2:]...)
			}
			wantLines(t, log, c.fleet...)
			// An id of before the crash has its first result.
			_ = y.Down(t.Context(), "cloud", down("pumps/set/limit", `{"value":80,"id":"a"}`))
			synctest.Wait()
			if got := y.f.take(); len(got) != 2 || !strings.Contains(got[1], `"id":"a","point":"limit","ok":true`) {
				t.Errorf("repeated: %v", got)
			}
			wantLines(t, y.fleet.take())
		})
	}
}

func TestDamagedCommandsOfTheLastRunAreLeftOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, mem := running(), newFakeMemory()
		o.Memory = mem
		for i, raw := range []string{"", "{", `{"key":"k"}`, `{"key":"k","seq":9,"steps":[{}]}`, `{"key":"k","seq":4,"device":"nobody","steps":[{"point":"p","state":9}]}`} {
			mem.m[slotKey(uint64(i))] = []byte(raw)
		}
		x := start(t, testConfig(), o)
		defer x.stop()
		wantLines(t, x.fleet.take())
	})
}
