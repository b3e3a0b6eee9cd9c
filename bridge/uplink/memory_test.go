package uplink

import (
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"busgate/bridge/uplink/cloudtest"
	"busgate/embeddedbroker"
)

// TestWhatABrokerHasBorneIsNotBlamedByChance: closes in the same moment of a
// connection, one after the other, are three times a verdict on what the broker
// has never borne, and on what it has borne only after twelve.
func TestWhatABrokerHasBorneIsNotBlamedByChance(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		borne bool
		want  int
	}{{false, 3}, {true, 12}} {
		for _, blamed := range []bool{true, false} {
			s := newSuspicion()
			s.borne[qos2], s.served = c.borne, c.borne
			n := 1
			for ; n < 100; n++ {
				var fs []feature
				if blamed {
					fs = []feature{qos2}
				}
				if change, _ := s.learn(fs, true, now); change {
					break
				}
			}
			if n != c.want || !s.off[qos2] || s.bare == blamed {
				t.Errorf("borne %v, blamed %v: QoS 2 off %v, everything off %v after %d closes, want after %d", c.borne, blamed, s.off[qos2], s.bare, n, c.want)
			}
		}
	}
}

// TestABorneFeatureIsRememberedOverARestart: a bad network after a restart is not
// taken for a broker that does not bear QoS 2.
func TestABorneFeatureIsRememberedOverARestart(t *testing.T) {
	virtual(t, cloudtest.Options{}, func(r *rig) {
		r.remember(map[string][]byte{})
		r.cfg.QoS = 2
		r.st.fill(1)
		r.start()
		time.Sleep(time.Minute)
		r.halt()
		r.start()
		time.Sleep(time.Second)
		r.halt()
		if b := r.link.suspect.borne; !b[qos2] || !b[retain] || !b[will] || b[large] {
			t.Errorf("borne are %v, want qos2, retain and will", named(b))
		}
		r.cloud.Close()
	})
}

// TestClosingNumbersOfAllBootsOfAnOutage: three starts without the cloud; it then
// learns where each boot ended, and once it has acknowledged that, only the last.
func TestClosingNumbersOfAllBootsOfAnOutage(t *testing.T) {
	virtual(t, cloudtest.Options{}, func(r *rig) {
		r.remember(map[string][]byte{})
		r.o.Birth = func() []*embeddedbroker.Message {
			return []*embeddedbroker.Message{status("busgate/plant-a/gateway/info", `{"version":"1"}`)}
		}
		r.setRefuse(syscall.ENETUNREACH)
		former := func(boot string, n uint64) { r.o.Closing = func() (string, uint64) { return boot, n } }
		for i, boot := range []string{"e-1", "e-2", "e-3", "e-4"} {
			former(boot, uint64(10*i)) // nothing was numbered in the first
			r.start()
			time.Sleep(time.Minute)
			r.halt()
		}
		r.setRefuse(nil)
		for range 2 {
			r.start()
			time.Sleep(time.Minute)
			r.halt()
		}
		former("e-5", 40)
		r.start()
		time.Sleep(time.Minute)
		want := []string{
			`{"version":"1","last":{"boot":"e-4","n":30},"before":[{"boot":"e-2","n":10},{"boot":"e-3","n":20}]}`,
			`{"version":"1","last":{"boot":"e-4","n":30}}`,
			`{"version":"1","last":{"boot":"e-5","n":40}}`,
		}
		if got := r.payloads("busgate/plant-a/gateway/info"); !slices.Equal(got, want) {
			t.Errorf("the cloud was told\n  %s", strings.Join(got, "\n  "))
		}
		r.stop()
	})
}

// TestNoGhostAfterARestart: the topic was emptied before the restart, the older
// reading leaves after it.
func TestNoGhostAfterARestart(t *testing.T) {
	virtual(t, cloudtest.Options{}, func(r *rig) {
		r.remember(map[string][]byte{})
		topic := "busgate/plant-a/grid/state"
		put := func(seq uint64, payload string) {
			r.st.put(topic, []byte(payload), embeddedbroker.KindReading)
			r.st.mu.Lock()
			x := &r.st.records[len(r.st.records)-1]
			x.Seq, x.Retain = seq, true
			r.st.mu.Unlock()
		}
		waiting := 1 // an older reading waits in a lower lane
		r.o.Usage = func() (int, int64, time.Duration) { n, b, d := r.store().usage(); return n + waiting, b, d }
		put(10, "")
		r.start()
		time.Sleep(time.Minute)
		r.halt()
		put(5, `{"ts":"x"}`)
		waiting = 0
		r.start()
		time.Sleep(time.Minute)
		if d, ok := r.cloud.Retained(topic); ok || len(r.payloads(topic)) != 2 {
			t.Errorf("a ghost: %s; %d messages came", d.Payload, len(r.payloads(topic)))
		}
		if kept := r.fact(factEmptied); len(kept) > 0 {
			t.Errorf("still remembered when nothing waits: %s", kept)
		}
		put(11, `{"ts":"y"}`) // it is there again
		time.Sleep(time.Minute)
		if _, ok := r.cloud.Retained(topic); !ok {
			t.Error("a device that came back has no state")
		}
		r.stop()
	})
}
