package uplink

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"busgate/bridge/uplink/cloudtest"
	"busgate/embeddedbroker"
)

// lan collects what came down.
type lan struct {
	mu    sync.Mutex
	got   []string
	block chan struct{} // closed to let messages through; nil: they pass
	fails int           // so many are refused first
}

func (l *lan) down(ctx context.Context, m *embeddedbroker.Message) error {
	if l.block != nil {
		select {
		case <-l.block:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fails > 0 {
		l.fails--
		return errors.New("store full")
	}
	l.got = append(l.got, fmt.Sprintf("%s %s %d %v %d", m.Topic, m.Payload, m.QoS, m.Retain, m.Kind))
	return nil
}

func (l *lan) seen() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.got)
}

func TestNothingIsSubscribedWithoutAccept(t *testing.T) {
	virtual(t, cloudtest.Options{}, func(r *rig) {
		r.o.Down = (&lan{}).down
		r.start()
		time.Sleep(5 * time.Second)
		if got := r.cloud.Subscriptions("plant-a"); len(got) != 0 {
			t.Errorf("subscribed %v", got)
		}
		r.stop()
	})
}

func TestAcceptLetsDownWhatItNames(t *testing.T) {
	virtual(t, cloudtest.Options{}, func(r *rig) {
		var l lan
		r.o.Down = l.down
		r.cfg.Accept = []string{"busgate/plant-a/+/set/#"}
		r.cfg.LocalPrefix, r.cfg.RemotePrefix = "busgate/", "acme/"
		r.start()
		time.Sleep(2 * time.Second)
		if got := r.cloud.Subscriptions("plant-a"); !slices.Equal(got, []string{"acme/plant-a/+/set/#"}) {
			t.Errorf("subscribed %v", got)
		}
		r.cloud.Publish("acme/plant-a/pumps/set/relay1", []byte("on"), 1, false)
		r.cloud.Publish("acme/plant-a/pumps/set/relay2", []byte("off"), 0, true)
		time.Sleep(time.Second)
		want := []string{"busgate/plant-a/pumps/set/relay1 on 1 false 3", "busgate/plant-a/pumps/set/relay2 off 0 true 3"}
		if got := l.seen(); !slices.Equal(got, want) {
			t.Errorf("came down\n%q\nwant\n%q", got, want)
		}
		time.Sleep(2 * time.Second)
		if s := r.link.Status(); s.DownAccepted != 2 || s.DownRefused != 0 {
			t.Errorf("accepted %d, refused %d; want 2, 0", s.DownAccepted, s.DownRefused)
		}
		r.stop()
	})
}

func TestWhatIsLeftOfAnOldSubscriptionIsRefused(t *testing.T) {
	virtual(t, cloudtest.Options{}, func(r *rig) {
		var l lan
		r.o.Down = l.down
		r.cfg.Accept = []string{"a/#"}
		r.start()
		time.Sleep(2 * time.Second)
		cfg := r.cfg
		cfg.Accept = []string{"b/#"}
		r.halt()
		r.cfg = cfg
		r.start()
		time.Sleep(2 * time.Second)
		r.cloud.Publish("a/x", []byte("1"), 1, false)
		time.Sleep(2 * time.Second)
		if s := r.link.Status(); s.DownRefused != 1 || len(l.seen()) != 0 {
			t.Errorf("refused %d, came down %v; want 1, none", s.DownRefused, l.seen())
		}
		r.stop()
	})
}

func TestDownIsAcknowledgedOnlyWhenDurable(t *testing.T) {
	virtual(t, cloudtest.Options{}, func(r *rig) {
		l := lan{block: make(chan struct{})}
		r.o.Down = l.down
		r.cfg.Accept = []string{"a/#"}
		r.start()
		time.Sleep(2 * time.Second)
		r.cloud.Publish("a/x", []byte("1"), 1, false)
		time.Sleep(2 * time.Second)
		r.cloud.Cut() // before it is durable: the cloud must send it again
		time.Sleep(5 * time.Second)
		close(l.block)
		time.Sleep(5 * time.Second)
		if got := l.seen(); len(got) != 2 {
			t.Errorf("came down %v, want the same message twice: it was not acknowledged before the cut", got)
		}
		r.stop()
	})
}

func TestDownOverflowMakesTheCloudSendAgain(t *testing.T) {
	virtual(t, cloudtest.Options{}, func(r *rig) {
		l := lan{block: make(chan struct{})}
		r.o.Down = l.down
		r.cfg.Accept = []string{"a/#"}
		r.start()
		time.Sleep(2 * time.Second)
		for i := range downQueue + 10 {
			r.cloud.Publish("a/x", fmt.Append(nil, i), 1, false)
		}
		time.Sleep(time.Second)
		close(l.block)
		time.Sleep(30 * time.Second)
		s := r.link.Status()
		if s.DownOverflow != 10 || s.Closed["down-overflow"] != 1 {
			t.Errorf("overflow %d, closed %v; want 10, one down-overflow", s.DownOverflow, s.Closed)
		}
		if got := l.seen(); len(got) != downQueue+10 {
			t.Errorf("%d came down, want %d", len(got), downQueue+10)
		}
		r.stop()
	})
}

func TestDownThatFailsComesAgain(t *testing.T) {
	virtual(t, cloudtest.Options{}, func(r *rig) {
		l := lan{fails: 1}
		r.o.Down = l.down
		r.cfg.Accept = []string{"a/#"}
		r.start()
		time.Sleep(2 * time.Second)
		r.cloud.Publish("a/x", []byte("1"), 1, false)
		time.Sleep(30 * time.Second)
		if got := l.seen(); len(got) != 1 {
			t.Errorf("came down %v, want once", got)
		}
		r.stop()
	})
}

func TestEchoIsDropped(t *testing.T) {
	virtual(t, cloudtest.Options{}, func(r *rig) {
		var l lan
		r.o.Down = l.down
		r.cfg.Accept = []string{"#"}
		r.start()
		time.Sleep(2 * time.Second)
		r.cloud.Publish("x", []byte(`{"ts":"t","gw":"plant-a","boot":"k3qz7aa-3","n":1}`), 1, false)
		r.cloud.Publish("x", []byte(`{"ts":"t","gw":"plant-a","boot":"other-3","n":1}`), 1, false)
		r.cloud.Publish("x", []byte(`{"ts":"t","gw":"plant-b","boot":"k3qz7aa-3","n":1}`), 1, false)
		time.Sleep(2 * time.Second)
		if s := r.link.Status(); s.Echo != 2 || len(l.seen()) != 2 { // with our own birth
			t.Errorf("echo %d, came down %v; want 2, and one of another store and one of another gateway", s.Echo, l.seen())
		}
		r.stop()
	})
}

func TestRefusedSubscriptionDoesNotStopPublishing(t *testing.T) {
	virtual(t, cloudtest.Options{}, func(r *rig) {
		r.o.Down = (&lan{}).down
		r.cfg.Accept = []string{"forbidden/#"}
		r.st.fill(3)
		r.start()
		time.Sleep(5 * time.Second)
		if got := r.payloads("t"); len(got) != 3 {
			t.Errorf("arrived %v", got)
		}
		r.wantLine("WARN the cloud refuses a subscription; commands by it will not come")
		r.cloud.Cut() // it is tried again at the next connect
		time.Sleep(time.Minute)
		n := 0
		for _, line := range r.lines() {
			if strings.Contains(line, "refuses a subscription") {
				n++
			}
		}
		if n != 2 {
			t.Errorf("refused %d times in two connections, want in each", n)
		}
		r.stop()
	})
}

// TestLostSessionIsSubscribedAgain: the cloud has forgotten what we subscribed.
func TestLostSessionIsSubscribedAgain(t *testing.T) {
	virtual(t, cloudtest.Options{}, func(r *rig) {
		r.o.Down = (&lan{}).down
		r.cfg.Accept = []string{"a/#"}
		r.start()
		time.Sleep(2 * time.Second)
		r.cloud.Wipe()
		time.Sleep(time.Minute)
		if got := r.cloud.Subscriptions("plant-a"); !slices.Equal(got, r.cfg.Accept) {
			t.Errorf("subscribed %v after the session was lost", got)
		}
		r.stop()
	})
}

// TestSubscribeTakesEightFilters at a time: AWS takes no more.
func TestSubscribeTakesEightFilters(t *testing.T) {
	s := newSession()
	var filters []string
	for i := range 20 {
		filters = append(filters, fmt.Sprintf("f%d/#", i))
	}
	s.subscribe(filters, func(string, byte) {})
	s.unsubscribe(filters)
	var sizes []int
	for _, c := range s.queue {
		switch p := c.p.(type) {
		case *packets.SubscribePacket:
			sizes = append(sizes, len(p.Topics))
		case *packets.UnsubscribePacket:
			sizes = append(sizes, len(p.Topics))
		}
	}
	if !slices.Equal(sizes, []int{8, 8, 4, 8, 8, 4}) {
		t.Errorf("packets of %v filters, want 8, 8, 4 twice", sizes)
	}
}

// TestQoS2ComesDownOnce: sent again before its PUBREL, it is answered and not taken
// again; and what became durable only after the connection ended is not
// acknowledged on the next, where its id may be another's.
func TestQoS2ComesDownOnce(t *testing.T) {
	var seen lan
	r := newRig(t, cloudtest.Options{})
	r.o.Down = seen.down
	r.cfg.Accept = []string{"a/#"}
	l := r.idle()
	l.down = newDownlink(l.o.Down)
	e := &epoch{number: 1}
	p := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	p.TopicName, p.Qos, p.MessageID = "a/x", 2, 5
	out := func() (kinds []string) {
		for _, fr := range l.s.out {
			kinds = append(kinds, fmt.Sprintf("%T", fr.p))
		}
		l.s.out = nil
		return kinds
	}
	rec, comp := []string{"*packets.PubrecPacket"}, []string{"*packets.PubcompPacket"}
	for _, c := range []struct {
		name   string
		do     func()
		out    []string
		passed int
	}{
		{"it comes", func() { _ = l.arrive(e, p, time.Now()); l.arrived(e, <-l.down.done) }, rec, 1},
		{"it comes again", func() { _ = l.arrive(e, p, time.Now()) }, rec, 1},
		{"it is released", func() { l.s.pubrelIn(5) }, comp, 1},
		{"the id is another's now", func() { _ = l.arrive(e, p, time.Now()); l.arrived(e, <-l.down.done) }, rec, 2},
		{"it is durable on the next connection", func() {
			p.MessageID = 6
			_ = l.arrive(e, p, time.Now())
			l.arrived(&epoch{number: 2}, <-l.down.done)
		}, nil, 3},
	} {
		c.do()
		if got := out(); !slices.Equal(got, c.out) || len(seen.seen()) != c.passed {
			t.Errorf("%s: answered %v, %d came down; want %v, %d", c.name, got, len(seen.seen()), c.out, c.passed)
		}
	}
	l.down.stop()
}
