package uplink

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"busgate/bridge/uplink/cloudtest"
	"busgate/buffer"
	"busgate/config"
	"busgate/embeddedbroker"
)

// TestANewLinkReleasesWhatIsOnDisk: a reload ends a link while the store works at a
// release, and makes another. Its PUBREL must not be ahead of the disk, or a kill
// doubles the message.
func TestANewLinkReleasesWhatIsOnDisk(t *testing.T) {
	var r *rig
	early, seen := 0, 0
	virtual(t, cloudtest.Options{AtPublish: true, Released: func(p *packets.PubrelPacket) bool {
		st := r.store()
		st.mu.Lock()
		defer st.mu.Unlock()
		if seen++; !st.released[uint64(p.MessageID)-1] {
			early++
		}
		return true
	}}, func(x *rig) {
		r = x
		r.cfg.QoS, r.o.Grace = 2, 0
		r.st.delay = 5 * time.Second / 2
		r.st.fill(5)
		r.start()
		time.Sleep(time.Second)
		r.halt()
		synctest.Wait()
		if n := len(r.store().asked); n == 0 || seen > 0 { // those whose PUBREC came first
			t.Errorf("%d releases are asked for, %d PUBREL left: the test proves nothing", n, seen)
		}
		r.start()
		time.Sleep(time.Minute)
		synctest.Wait()
		if early > 0 {
			t.Errorf("%d of %d PUBREL left before the store had kept what they release", early, seen)
		}
		if got := r.payloads("t"); !slices.Equal(got, numbers(5)) || !r.store().empty() {
			t.Errorf("arrived %v", got)
		}
		r.stop()
	})
}

// TestWhatWaitsAtTheEndIsNotPassedOn: nobody is left to acknowledge it, so the cloud
// sends it again.
func TestWhatWaitsAtTheEndIsNotPassedOn(t *testing.T) {
	var passed atomic.Int32
	first := make(chan struct{})
	d := newDownlink(func(ctx context.Context, _ *embeddedbroker.Message) error {
		if passed.Add(1) == 1 {
			close(first)
		}
		<-ctx.Done()
		return nil
	})
	for range 3 {
		d.put(descent{})
	}
	<-first
	d.stop()
	if n := passed.Load(); n != 1 {
		t.Errorf("%d were passed on, want the one that was under way", n)
	}
}

// TestATopicIsEmptiedAfterTheNoteOfIt: a kill between would leave a ghost.
func TestATopicIsEmptiedAfterTheNoteOfIt(t *testing.T) {
	var r *rig
	var early, came []string
	publish := func(p *packets.PublishPacket) bool {
		if len(p.Payload) == 0 {
			if came = append(came, p.TopicName); !strings.Contains(string(r.fact(factEmptied)), p.TopicName) {
				early = append(early, p.TopicName)
			}
		}
		return true
	}
	virtual(t, cloudtest.Options{Publish: publish}, func(x *rig) {
		r = x
		r.remember(map[string][]byte{})
		keep := r.o.Keep
		r.o.Keep = func(k string, v []byte, then func(error)) { // a slow disk
			time.AfterFunc(3*time.Second, func() { keep(k, v, then) })
		}
		r.o.Usage = func() (int, int64, time.Duration) { n, b, d := r.store().usage(); return n + 1, b, d } // older ones wait
		for i, topic := range []string{"busgate/plant-a/grid/state", "busgate/plant-a/grid/info"} {
			r.st.put(topic, nil, embeddedbroker.KindStatus)
			r.st.records[i].Retain, r.st.records[i].Seq = true, uint64(i+1)
		}
		r.st.fill(3)
		r.start()
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(came) != 2 || len(early) > 0 || len(r.payloads("t")) != 3 {
			t.Errorf("%v were emptied, %v of them before that was on disk; then came %v", came, early, r.payloads("t"))
		}
		r.stop()
	})
}

// TestAHangingDiskHoldsUpOnlyTheEmptying: and that for some seconds.
func TestAHangingDiskHoldsUpOnlyTheEmptying(t *testing.T) {
	virtual(t, cloudtest.Options{}, func(r *rig) {
		r.remember(map[string][]byte{})
		r.o.Keep = func(string, []byte, func(error)) {}
		r.st.put("busgate/plant-a/grid/state", nil, embeddedbroker.KindStatus)
		r.st.records[0].Retain, r.st.records[0].Seq = true, 1
		r.st.fill(3)
		r.start()
		time.Sleep(time.Minute)
		if n := len(r.payloads("t")); n != 3 {
			t.Errorf("%d of 3 came", n)
		}
		r.o.Grace = 0
		r.stop()
	})
}

// TestATopicThatIsNotRememberedIsNotWaitedFor: there was no room for its note.
func TestATopicThatIsNotRememberedIsNotWaitedFor(t *testing.T) {
	r := newRig(t, cloudtest.Options{})
	r.remember(map[string][]byte{})
	l := r.idle()
	for seq := range uint64(maxEmptied) {
		l.emptied[fmt.Sprint("t", seq)] = seq + 10
	}
	if l.noted(&buffer.Record{Topic: "new", Seq: 1000, Retain: true}) {
		t.Error("a topic that is remembered is not waited for")
	}
	if !l.noted(&buffer.Record{Topic: "old", Seq: 1, Retain: true}) {
		t.Error("a topic that was emptied before all that are remembered is waited for without end")
	}
}

// TestPardonDrainsTheSession: QoS 2 is tried again after a day; from then on a cut
// doubles nothing.
func TestPardonDrainsTheSession(t *testing.T) {
	var bears atomic.Bool
	publish := func(p *packets.PublishPacket) bool { return bears.Load() || p.Qos < 2 }
	virtual(t, cloudtest.Options{AtPublish: true, AckDelay: time.Second, Publish: publish}, func(r *rig) {
		r.cfg.QoS = 2
		r.st.fill(20)
		r.start()
		for range 30 {
			time.Sleep(time.Minute)
			r.st.put("other", []byte("x"), embeddedbroker.KindLAN)
		}
		if s := r.link.Status(); !slices.Equal(s.Degraded, []string{"qos2"}) {
			t.Fatalf("switched off %v, want qos2", s.Degraded)
		}
		bears.Store(true)
		synctest.Wait()
		time.Sleep(time.Until(r.link.suspect.since.Add(degradedFor - 5*time.Second)))
		for len(r.link.Status().Degraded) > 0 {
			r.st.put("other", []byte("x"), embeddedbroker.KindLAN) // something is always in flight
			time.Sleep(700 * time.Millisecond)
		}
		time.Sleep(time.Minute)
		for i := range 10 {
			r.st.put("again", fmt.Append(nil, i), embeddedbroker.KindLAN)
		}
		time.Sleep(500 * time.Millisecond)
		r.cloud.Cut()
		time.Sleep(time.Minute)
		if got := r.payloads("again"); !slices.Equal(got, numbers(10)) {
			t.Errorf("after a cut came %v", got)
		}
		if n := len(r.payloads("other")); n != int(r.store().puts)-30 {
			t.Errorf("%d others came, want %d", n, r.store().puts-30)
		}
		r.stop()
	})
}

// TestProbeWaitsForEachStep: over a slow link the steps before must not take from
// the time in which the message is to come back.
func TestProbeWaitsForEachStep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cloud := cloudtest.New(cloudtest.Options{AckDelay: 6 * time.Second})
		var wg sync.WaitGroup
		l, err := New(probeConfig("mqtt://127.0.0.1:1883"), &config.Gateway{Name: "plant-a", Topic: "busgate"}, nil, Options{
			Dial: func(context.Context, string, string) (net.Conn, error) {
				a, b := net.Pipe()
				wg.Go(func() { cloud.ServeConn(b) })
				return a, nil
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		var steps []Step
		p := &probe{l: l, ad: l.set.addresses[0], tell: func(s Step) { steps = append(steps, s) }}
		w, err := p.reach(t.Context(), true)
		if err != nil {
			t.Fatal(err)
		}
		l.set.cfg.ClientID = "reader"
		reader, err := p.reach(t.Context(), false)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.canary(w, reader, "c"); err != nil {
			t.Errorf("%s: %v", stepNames(steps), err)
		}
		_, _ = w.raw.Close(), reader.raw.Close()
		wg.Wait()
	})
}
