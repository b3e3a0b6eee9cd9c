package uplink

import (
	"errors"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"busgate/bridge/uplink/cloudtest"
	"busgate/embeddedbroker"
)

// TestEveryMetricHasItsNumber compares the docs of Stats with the list of metrics.
func TestEveryMetricHasItsNumber(t *testing.T) {
	src, err := os.ReadFile("stats.go")
	if err != nil {
		t.Fatal(err)
	}
	_, doc, _ := strings.Cut(string(src), "type Stats struct")
	doc, _, _ = strings.Cut(doc, "// RTTBuckets")
	for _, name := range []string{
		"connects", "closed{reason}", "session_present", "session_reset", "backlog_records", "backlog_bytes", "oldest_s", "in_flight",
		"acked", "resent", "acks_unknown", "rtt_seconds", `bytes{dir="in"}`, `bytes{dir="out"}`, "records_per_packet", "window_full_s", "rate_wait_s",
		"budget_used", "budget_wait_s", "oversize", "poison", "degraded{feature}", "echo", "down_accepted", "down_refused", "down_overflow",
		"commands{result}", "cert_expires_s", "goroutines_left",
	} {
		if !strings.Contains(doc, name) {
			t.Errorf("no number of Stats says that it is the metric %s", name)
		}
	}
}

func TestWhatWaitsIsCountedWhileTheCloudIsAway(t *testing.T) {
	virtual(t, cloudtest.Options{}, func(r *rig) {
		r.setRefuse(errors.New("down"))
		r.start()
		time.Sleep(10 * time.Minute) // the next try is up to a minute away
		r.st.fill(5)
		time.Sleep(1100 * time.Millisecond)
		if s := r.link.Status(); s.Pending != 5 || s.Bytes == 0 {
			t.Errorf("%d records of %d bytes wait, want 5", s.Pending, s.Bytes)
		}
		r.stop()
	})
}

// TestWaitsEndWithTheConnection: while there is no connection nothing waits for
// the window or the rate.
func TestWaitsEndWithTheConnection(t *testing.T) {
	virtual(t, cloudtest.Options{Mute: func(*packets.PublishPacket) bool { return true }}, func(r *rig) {
		r.cfg.Window = 1
		r.st.fill(3)
		r.start()
		time.Sleep(5*time.Second + time.Millisecond)
		if s := r.link.Status(); s.WindowFull < 3*time.Second || s.WindowFull > 6*time.Second {
			t.Errorf("the window is full for 5 s and counted for %v: what still runs counts, too", s.WindowFull)
		}
		r.setRefuse(errors.New("down"))
		r.cloud.Cut()
		time.Sleep(time.Hour)
		r.setRefuse(nil)
		time.Sleep(time.Minute + 10*time.Second) // the longest back-off, and the connection again
		if s := r.link.Status(); s.Connects < 2 || s.WindowFull > 2*time.Minute {
			t.Errorf("%d connects, the window was full for %v, most of that without a connection", s.Connects, s.WindowFull)
		}
		r.o.Grace = 0
		r.stop()
	})
}

func TestCountersOutliveAnUpdate(t *testing.T) {
	virtual(t, cloudtest.Options{}, func(r *rig) {
		r.cfg.RateMsgs = 1
		r.st.fill(100)
		r.start()
		time.Sleep(20 * time.Second)
		before := r.link.Status()
		if before.RateWait < 10*time.Second {
			t.Fatalf("waited %v for the rate", before.RateWait)
		}
		next := r.cfg
		next.RateMsgs = 1000
		if err := r.link.Update(&next); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		after := r.link.Status()
		if after.RateWait < before.RateWait || after.RateWait > before.RateWait+2*time.Second || after.Connects != 1 {
			t.Errorf("waited %v before the update and %v after it, %d connects", before.RateWait, after.RateWait, after.Connects)
		}
		r.stop()
	})
}

func TestAnswersToCommandsAreCounted(t *testing.T) {
	virtual(t, cloudtest.Options{}, func(r *rig) {
		for _, m := range []struct{ topic, payload string }{
			{"busgate/plant-a/pumps/ack", `{"id":"1","point":"p","ok":true,"value":1}`},
			{"busgate/plant-a/pumps/ack", `{"point":"p","ok":false,"error":"expired"}`},
			{"busgate/plant-a/grid/ack", `{"point":"p","ok":false,"error":"expired"}`},
			{"busgate/plant-a/grid/error", `{"error":"no-answer"}`},
			{"elsewhere/ack", `{"ok":true}`},
			{"busgate/plant-a/grid/ack", `ok`},
		} {
			r.st.put(m.topic, []byte(m.payload), embeddedbroker.KindStatus)
		}
		r.st.put("busgate/plant-a/lan/ack", []byte(`{"ok":true}`), embeddedbroker.KindLAN)
		r.start()
		time.Sleep(3 * time.Second)
		got := r.link.Status().Commands
		if len(got) != 2 || got["ok"] != 1 || got["expired"] != 2 {
			t.Errorf("counted %v, want 1 ok and 2 expired", got)
		}
		r.stop()
	})
}

func TestGoroutinesThatAreLeftShow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c crew
		stuck := make(chan struct{})
		c.send(func() {})
		c.send(func() { <-stuck })
		synctest.Wait()
		if n := c.left(); n != 0 {
			t.Errorf("%d left of a connection that stands", n)
		}
		done := make(chan struct{})
		go func() { c.dismiss(); close(done) }()
		synctest.Wait()
		if n := c.left(); n != 1 {
			t.Errorf("%d left behind one that is stuck, want 1", n)
		}
		close(stuck)
		<-done
		if n := c.left(); n != 0 {
			t.Errorf("%d left after all have ended", n)
		}
	})
}

func TestRecordsPerPacket(t *testing.T) {
	if v := (&Stats{}).RecordsPerPacket(); v != 0 {
		t.Errorf("%v before the first", v)
	}
	if v := (&Stats{Packets: 4, Records: 10}).RecordsPerPacket(); v != 2.5 {
		t.Errorf("%v, want 2.5", v)
	}
}

// TestHistogramOfAcknowledgements: each sample is in the first bucket that holds it.
func TestHistogramOfAcknowledgements(t *testing.T) {
	var c counters
	c.measure([]time.Duration{0, 5 * time.Millisecond, 5*time.Millisecond + 1, 30 * time.Second, time.Minute})
	want := make([]uint64, len(RTTBuckets)+1)
	want[0], want[1], want[len(want)-2], want[len(want)-1] = 2, 1, 1, 1
	for i, n := range c.rttCounts {
		if n != want[i] {
			t.Errorf("bucket %d holds %d, want %d", i, n, want[i])
		}
	}
	if c.rttSum != 90*time.Second+10*time.Millisecond+1 {
		t.Errorf("sum %v", c.rttSum)
	}
}
