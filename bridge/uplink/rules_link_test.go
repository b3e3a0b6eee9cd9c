package uplink

import (
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"busgate/bridge/uplink/cloudtest"
)

// TestSessionIsForgottenWithCleanSession: another identity is one connection with
// CleanSession, and then one without.
func TestSessionIsForgottenWithCleanSession(t *testing.T) {
	var mu sync.Mutex
	var clean []bool
	login := func(p *packets.ConnectPacket) byte {
		mu.Lock()
		defer mu.Unlock()
		clean = append(clean, p.CleanSession)
		return packets.Accepted
	}
	virtual(t, cloudtest.Options{Login: login}, func(r *rig) {
		r.remember(map[string][]byte{factIdentity: []byte("plant-a qos=2 as-is iot.example.com:1883")})
		r.start()
		time.Sleep(10 * time.Second)
		mu.Lock()
		if !slices.Equal(clean, []bool{true, false}) {
			t.Errorf("connected with CleanSession %v, want true, then false", clean)
		}
		mu.Unlock()
		r.stop()
	})
}

// TestOfflineIsAcknowledgedBeforeDisconnect, which cancels the will; a cloud that
// does not answer holds the stop up for two seconds.
func TestOfflineIsAcknowledgedBeforeDisconnect(t *testing.T) {
	offline := func(p *packets.PublishPacket) bool { return string(p.Payload) == "offline" }
	for _, c := range []struct {
		name   string
		cloud  cloudtest.Options
		lo, hi time.Duration
	}{
		{"an answer after 1.5 s", cloudtest.Options{AckDelay: 1500 * time.Millisecond}, 1500 * time.Millisecond, 1600 * time.Millisecond},
		{"no answer", cloudtest.Options{Mute: offline}, 2 * time.Second, 3*time.Second + 100*time.Millisecond},
	} {
		virtual(t, c.cloud, func(r *rig) {
			r.start()
			time.Sleep(10 * time.Second)
			began := time.Now()
			r.stop()
			if took := time.Since(began); took < c.lo || took > c.hi {
				t.Errorf("%s: the stop took %v, want %v to %v", c.name, took, c.lo, c.hi)
			}
			if d, _ := r.cloud.Retained("busgate/plant-a/gateway/status"); string(d.Payload) != "offline" || d.Will {
				t.Errorf("%s: the cloud says %q (will %v)", c.name, d.Payload, d.Will)
			}
		})
	}
}

// TestTwoConnectsAreASecondApart, whatever makes the link connect again: clouds
// ban clients that come sooner.
func TestTwoConnectsAreASecondApart(t *testing.T) {
	virtual(t, cloudtest.Options{}, func(r *rig) {
		r.start()
		for i := range 10 {
			time.Sleep(300 * time.Millisecond)
			cfg := r.cfg
			cfg.KeepAlive = time.Duration(60+i) * time.Second // another connection
			if err := r.link.Update(&cfg); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(10 * time.Second)
		r.setRefuse(syscall.ECONNREFUSED)
		r.cloud.Cut()
		for i := range 10 {
			time.Sleep(300 * time.Millisecond)
			cfg := r.cfg
			cfg.KeepAlive = time.Duration(80+i) * time.Second
			if err := r.link.Update(&cfg); err != nil {
				t.Fatal(err)
			}
		}
		r.setRefuse(nil)
		time.Sleep(2 * time.Minute)
		dials, _ := r.tries()
		if len(dials) < 5 {
			t.Errorf("only %d connects: the test proves nothing", len(dials))
		}
		paced(t, dials)
		r.stop()
	})
}

// TestFirstConnectsAreSpread: the gateways of a site come back together after a
// power cut.
func TestFirstConnectsAreSpread(t *testing.T) {
	virtual(t, cloudtest.Options{}, func(r *rig) {
		r.o.FirstDelay = 10 * time.Second
		var least, most time.Duration
		for i := range 30 {
			d := r.idle().firstDelay()
			if least, most = min(least, d), max(most, d); i == 0 {
				least = d
			}
		}
		if least < 0 || most > 10*time.Second || most-least < 3*time.Second {
			t.Errorf("30 links wait %v to %v before their first connect, want anything up to 10 s", least, most)
		}
		began := time.Now()
		r.start()
		time.Sleep(11 * time.Second)
		if dials, _ := r.tries(); len(dials) != 1 || dials[0].Sub(began) > 10*time.Second {
			t.Errorf("connects at %v", dials)
		}
		r.stop()
	})
}

// TestAnIdleConnectionThatLastsIsProgress: nothing is acknowledged on it, and still
// the back-off begins anew.
func TestAnIdleConnectionThatLastsIsProgress(t *testing.T) {
	virtual(t, cloudtest.Options{}, func(r *rig) {
		r.setRefuse(syscall.ECONNREFUSED)
		r.start()
		time.Sleep(30 * time.Minute) // it has grown
		r.setRefuse(nil)
		time.Sleep(5 * time.Minute)
		began := time.Now()
		r.cloud.Cut()
		time.Sleep(5 * time.Second)
		dials, _ := r.tries()
		if d := dials[len(dials)-1].Sub(began); d <= 0 || d > 3*time.Second {
			t.Errorf("connects %v after an idle connection of minutes broke, want within 3 s", d)
		}
		r.stop()
	})
}

// TestBacklogIsLeasedByHalfAWindow: the other half is for what is new.
func TestBacklogIsLeasedByHalfAWindow(t *testing.T) {
	for _, c := range []struct{ late, ready, want int }{{0, 0, 20}, {15, 0, 5}, {20, 0, 0}, {0, 10, 20}, {2, 10, 18}} {
		r := newRig(t, cloudtest.Options{})
		r.cfg.Order, r.cfg.Window = "live_first", 20 // 40 leases
		l := r.idle()
		l.src, l.old = r.st, r.st
		l.fetch = newFetcher(l.src, l.old)
		l.fetch.live()
		l.s.resumed = true
		l.late, l.ready = make([]lot, c.late), make([]lot, c.ready)
		l.demand(&epoch{}, time.Now())
		if got := max(l.fetch.asked, 0); got != c.want {
			t.Errorf("%d of the backlog and %d live ready: asked for %d of the backlog, want %d", c.late, c.ready, got, c.want)
		}
		l.fetch.stop()
	}
}

// TestSilentClientPings: PINGREQ goes out when we were silent, however much the
// broker says. [MQTT-3.1.2-23]
func TestSilentClientPings(t *testing.T) {
	virtual(t, cloudtest.Options{}, func(r *rig) {
		var pings atomic.Int32
		r.wrap = func(c net.Conn) net.Conn { return countedPings{c, &pings} }
		r.o.Down = (&lan{}).down
		r.cfg.Accept = []string{"a/#"}
		r.start()
		time.Sleep(time.Second)
		for range 60 {
			time.Sleep(5 * time.Second)
			r.cloud.Publish("a/x", []byte("1"), 0, false)
		}
		if n := pings.Load(); n < 4 || n > 6 {
			t.Errorf("%d PINGREQ in five minutes in which only the broker spoke, want one a minute", n)
		}
		r.stop()
	})
}

// countedPings counts the PINGREQs that are written by themselves.
type countedPings struct {
	net.Conn
	n *atomic.Int32
}

func (c countedPings) Write(p []byte) (int, error) {
	if len(p) == 2 && p[0] == packets.Pingreq<<4 {
		c.n.Add(1)
	}
	return c.Conn.Write(p)
}

// TestAnAddressThatBringsUsNowhereIsLeft: it takes the connection and then throws out.
func TestAnAddressThatBringsUsNowhereIsLeft(t *testing.T) {
	virtual(t, cloudtest.Options{Publish: func(*packets.PublishPacket) bool { return false }}, func(r *rig) {
		r.cfg.Addresses = []string{"mqtt://a:1883", "mqtt://b:1884"}
		r.st.fill(1)
		r.start()
		time.Sleep(10 * time.Minute)
		_, dialled := r.tries()
		a, b := 0, 0
		for _, d := range dialled {
			switch d {
			case "a:1883":
				a++
			case "b:1884":
				b++
			}
		}
		if a < 3 || b < 3 {
			t.Errorf("%d tries of one address and %d of the other", a, b)
		}
		r.stop()
	})
}

// TestTrafficAsAProviderCountsIt: 52 bytes with each packet, and a segment takes 1460.
func TestTrafficAsAProviderCountsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sum traffic
		near, far := net.Pipe()
		c := &counted{Conn: near, c: &sum}
		go func() { // takes 3000 bytes and answers with one
			for n := 0; n < 3000; {
				m, err := far.Read(make([]byte, 4096))
				if err != nil {
					return
				}
				n += m
			}
			_, _ = far.Write([]byte{1})
		}()
		if _, err := c.Write(make([]byte, 3000)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 10)); err != nil {
			t.Fatal(err)
		}
		if got := sum.total(); got != 3000+1+4*52 {
			t.Errorf("3000 bytes in three packets and one back count as %d, want %d", got, 3000+1+4*52)
		}
		_ = near.Close()
		_ = far.Close()
	})
}
