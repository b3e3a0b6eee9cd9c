package uplink

import (
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"busgate/bridge/uplink/cloudtest"
	"busgate/buffer"
	"busgate/embeddedbroker"
)

// TestDegradeOneFeature: brokers that close the connection on one feature get
// everything without it, and nothing else is switched off.
func TestDegradeOneFeature(t *testing.T) {
	for _, c := range []struct {
		name  string
		cloud cloudtest.Options
		set   func(*rig)
		off   string
		more  int // bytes of what comes each minute
		want  string
	}{
		{"retained messages", cloudtest.Options{Publish: func(p *packets.PublishPacket) bool { return !p.Retain }}, func(*rig) {}, "retain", 10,
			"ERROR uplink cloud: iot.example.com closes the connection after retained messages; sent without retain from now on"},
		{"QoS 2", cloudtest.Options{Publish: func(p *packets.PublishPacket) bool { return p.Qos < 2 }}, func(r *rig) { r.cfg.QoS = 2 }, "qos2", 10,
			"ERROR uplink cloud: iot.example.com closes the connection after messages of QoS 2; sent with QoS 1 from now on"},
		{"large packets", cloudtest.Options{Publish: func(p *packets.PublishPacket) bool { return len(p.Payload) < 17000 }}, func(r *rig) {
			r.st.put("t", []byte(strings.Repeat("x", 20000)), embeddedbroker.KindLAN)
		}, "large", 20000, "ERROR uplink cloud: iot.example.com closes the connection after packets above 16384 bytes; sent in smaller ones from now on"},
	} {
		t.Run(c.name, func(t *testing.T) {
			virtual(t, c.cloud, func(r *rig) {
				c.set(r)
				r.st.fill(20)
				r.start()
				for range 30 {
					time.Sleep(time.Minute)
					r.st.put("other", []byte(strings.Repeat("x", c.more)), embeddedbroker.KindLAN)
				}
				time.Sleep(10 * time.Minute)
				s := r.link.Status()
				if !slices.Equal(s.Degraded, []string{c.off}) || s.Phase != Online {
					t.Errorf("%v, switched off %v, want online without %s", s.Phase, s.Degraded, c.off)
				}
				r.wantLine(c.want)
				if lost, _, _ := tally(20, r.payloads("t")); lost > 0 {
					t.Errorf("%d of the others did not arrive", lost)
				}
				r.stop()
			})
		})
	}
}

func TestWillThatIsNotBorne(t *testing.T) {
	var r *rig
	virtual(t, cloudtest.Options{}, func(x *rig) {
		r = x
		r.cloud = cloudtest.New(cloudtest.Options{Connected: func(p *packets.ConnectPacket) bool { return !p.WillFlag }})
		r.st.fill(5)
		r.start()
		time.Sleep(time.Hour)
		if s := r.link.Status(); !slices.Contains(s.Degraded, "will") || s.Phase != Online {
			t.Errorf("%v, switched off %v", s.Phase, s.Degraded)
		}
		r.stop()
	})
}

func TestPrivateIsTriedOnce(t *testing.T) {
	var levels []byte
	virtual(t, cloudtest.Options{Login: func(p *packets.ConnectPacket) byte {
		levels = append(levels, p.ProtocolVersion)
		return 0
	}}, func(r *rig) {
		r.cfg.Profile = "mosquitto"
		r.st.fill(3)
		r.start()
		time.Sleep(time.Minute)
		if s := r.link.Status(); s.Phase != Online || !slices.Equal(levels, []byte{4}) {
			t.Errorf("%v, accepted levels %v; want online with 4 after 0x84 was refused", s.Phase, levels)
		}
		r.stop()
	})
}

func TestPoisonIsSetAsideAndReported(t *testing.T) {
	virtual(t, cloudtest.Options{Publish: func(p *packets.PublishPacket) bool { return string(p.Payload) != "7" }}, func(r *rig) {
		r.st.fill(20)
		r.start()
		time.Sleep(3 * time.Hour)
		s := r.link.Status()
		if s.Poison != 1 || s.Phase != Online || s.Pending != 0 {
			t.Errorf("poison %d, %v, %d wait; want 1, online, 0", s.Poison, s.Phase, s.Pending)
		}
		lost, _, _ := tally(20, r.payloads("t"))
		if loss := r.payloads("busgate/plant-a/gateway/loss"); lost != 1 || !slices.Contains(loss, `{"loss":[{"boot":"k3qz7aa-12","lo":8,"hi":8,"n":1,"why":"poison"}]}`) {
			t.Errorf("%d lost, reported %q", lost, loss)
		}
		r.wantLine(`ERROR uplink cloud: iot.example.com closes the connection at each message to "t"; one is set aside and reported as lost`)
		r.stop()
	})
}

func TestABrokerThatBearsNothingLosesNothing(t *testing.T) {
	var bears atomic.Bool
	virtual(t, cloudtest.Options{Publish: func(*packets.PublishPacket) bool { return bears.Load() }}, func(r *rig) {
		r.o.Birth = func() []*embeddedbroker.Message {
			return []*embeddedbroker.Message{status("busgate/plant-a/grid/status", "online")}
		}
		r.st.fill(20)
		r.start()
		time.Sleep(24 * time.Hour)
		bears.Store(true)
		time.Sleep(time.Hour)
		if lost, _, _ := tally(20, r.payloads("t")); lost != 0 {
			t.Errorf("%d given up at a broker that closes on everything", lost)
		}
		r.stop()
	})
}

func TestWhatWasLearnedIsForgottenAfterADay(t *testing.T) {
	var bears atomic.Bool
	virtual(t, cloudtest.Options{Publish: func(p *packets.PublishPacket) bool { return bears.Load() || !p.Retain }}, func(r *rig) {
		r.remember(map[string][]byte{})
		r.st.fill(5)
		r.start()
		time.Sleep(30 * time.Minute)
		r.halt()
		connects := r.cloud.Connects()
		r.start() // remembers
		time.Sleep(time.Minute)
		if s := r.link.Status(); r.cloud.Connects() != connects+1 || !slices.Equal(s.Degraded, []string{"retain"}) {
			t.Errorf("after a restart %d connects, switched off %v", r.cloud.Connects()-connects, s.Degraded)
		}
		bears.Store(true)
		time.Sleep(25 * time.Hour)
		if s := r.link.Status(); len(s.Degraded) != 0 {
			t.Errorf("after a day still off: %v", s.Degraded)
		}
		r.stop()
	})
}

func TestBadNetworkIsNotTakenForABadFeature(t *testing.T) {
	virtual(t, cloudtest.Options{AckDelay: 200 * time.Millisecond}, func(r *rig) {
		r.cfg.QoS = 2
		r.st.fill(500)
		r.start()
		for range 200 {
			time.Sleep(1300 * time.Millisecond)
			r.cloud.Cut()
		}
		time.Sleep(time.Minute)
		if s := r.link.Status(); len(s.Degraded) != 0 || s.Poison != 0 {
			t.Errorf("switched off %v, poison %d", s.Degraded, s.Poison)
		}
		if lost, twice, _ := tally(500, r.payloads("t")); lost+twice != 0 {
			t.Errorf("lost %d, twice %d", lost, twice)
		}
		r.stop()
	})
}

// mutedAfterConnack loses everything that the broker says after CONNACK.
type mutedAfterConnack struct {
	net.Conn
	said *atomic.Int32
}

func (m mutedAfterConnack) Read(p []byte) (int, error) {
	n, err := m.Conn.Read(p[:min(len(p), 4)])
	for err == nil && m.said.Add(1) > 1 {
		n, err = m.Conn.Read(p)
	}
	return n, err
}

// TestConnectionsThatDieUnanswered: nothing is blamed when no connection lives
// long enough for an answer, whatever was sent on it.
func TestConnectionsThatDieUnanswered(t *testing.T) {
	virtual(t, cloudtest.Options{}, func(r *rig) {
		r.cfg.QoS = 2
		r.wrap = func(c net.Conn) net.Conn { return mutedAfterConnack{c, new(atomic.Int32)} }
		r.st.fill(50)
		r.start()
		for range 60 {
			time.Sleep(1300 * time.Millisecond)
			r.cloud.Cut()
		}
		r.mu.Lock()
		r.wrap = nil
		r.mu.Unlock()
		r.cloud.Cut()
		time.Sleep(10 * time.Minute)
		if s := r.link.Status(); len(s.Degraded) != 0 || s.Poison != 0 || s.Phase != Online {
			t.Errorf("%v, switched off %v, poison %d", s.Phase, s.Degraded, s.Poison)
		}
		for _, l := range r.lines() {
			if strings.Contains(l, "closes the connection after") {
				t.Errorf("said %s", l)
			}
		}
		r.stop()
	})
}

// ledger of losses, as the store keeps it.
type lossLedger struct {
	mu     sync.Mutex
	losses []buffer.Loss
	told   []int64
}

func (l *lossLedger) open() []buffer.Loss {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.losses
}

func (l *lossLedger) tell(ids ...int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.told = append(l.told, ids...)
	l.losses = nil
}

func (l *lossLedger) lose(x buffer.Loss) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.losses = append(l.losses, x)
}

func (l *lossLedger) got() []int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.told)
}

func TestLossesAreToldAndForgottenAfterTheAck(t *testing.T) {
	virtual(t, cloudtest.Options{AckDelay: time.Second}, func(r *rig) {
		var l lossLedger
		r.o.Losses, r.o.Told = l.open, l.tell
		l.lose(buffer.Loss{ID: 3, Boot: "k3qz7aa-12", Lo: 1, Hi: 9, Dropped: 9, Reason: "bound-bytes"})
		r.start()
		time.Sleep(500 * time.Millisecond)
		r.cloud.Cut() // before the ack: it must be told again
		if len(l.got()) != 0 {
			t.Error("told before the cloud acknowledged")
		}
		time.Sleep(time.Minute)
		got := r.payloads("busgate/plant-a/gateway/loss")
		if len(got) != 2 || got[0] != `{"loss":[{"boot":"k3qz7aa-12","lo":1,"hi":9,"n":9,"why":"bound-bytes"}]}` || !slices.Equal(l.got(), []int64{3}) {
			t.Errorf("reported %q, told %v", got, l.got())
		}
		l.lose(buffer.Loss{ID: 4, Boot: "b", Lo: 20, Hi: 30, Dropped: 5, Kept: 6, Reason: "thinned"})
		time.Sleep(2 * time.Minute)
		if !slices.Equal(l.got(), []int64{3, 4}) {
			t.Errorf("told %v: losses of a running connection are not looked for", l.got())
		}
		r.stop()
	})
}

func TestClosingNumberIsInGatewayInfo(t *testing.T) {
	for _, c := range []struct{ info, want string }{
		{`{"version":"1.0"}`, `{"version":"1.0","last":{"boot":"k3qz7aa-11","n":84210}}`},
		{`{}`, `{"last":{"boot":"k3qz7aa-11","n":84210}}`},
		{`text`, `text`},
	} {
		virtual(t, cloudtest.Options{}, func(r *rig) {
			r.o.Closing = func() (string, uint64) { return "k3qz7aa-11", 84210 }
			r.o.Birth = func() []*embeddedbroker.Message {
				return []*embeddedbroker.Message{status("busgate/plant-a/gateway/info", c.info)}
			}
			r.start()
			time.Sleep(time.Second)
			if got := r.payloads("busgate/plant-a/gateway/info"); !slices.Equal(got, []string{c.want}) {
				t.Errorf("info %s went up as %q, want %s", c.info, got, c.want)
			}
			r.stop()
		})
	}
}

func TestChangedCertificateReconnectsADrainedLink(t *testing.T) {
	ca := newAuthority(t)
	cert, key := ca.issue("client", time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	virtual(t, cloudtest.Options{}, func(r *rig) {
		r.cfg.Cert, r.cfg.Key = cert, key // read only when TLS is spoken
		r.start()
		time.Sleep(5 * time.Minute)
		if n := r.cloud.Connects(); n != 1 {
			t.Fatalf("%d connects before anything changed", n)
		}
		good, err := os.ReadFile(cert)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(cert, []byte("half a certificate"), 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Minute)
		if n := r.cloud.Connects(); n != 1 {
			t.Errorf("%d connects: a bad new certificate must leave the connection alone", n)
		}
		r.wantLine("WARN keep the old certificate")
		if err := os.WriteFile(cert, append(good, '\n'), 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Minute)
		if n := r.cloud.Connects(); n != 2 {
			t.Errorf("%d connects after a good new certificate, want 2", n)
		}
		if d, _ := r.cloud.Retained("busgate/plant-a/gateway/status"); string(d.Payload) != "online" || d.Will {
			t.Errorf("the cloud says %q", d.Payload)
		}
		r.stop()
	})
}

func TestClockThatComesEndsTheWait(t *testing.T) {
	ca := newAuthority(t)
	begin := time.Now()
	c, k := ca.issue("server", begin.Add(-time.Hour), begin.Add(time.Hour), "iot.example.com")
	virtual(t, cloudtest.Options{}, func(r *rig) {
		r.serveTLS(serverTLS(t, c, k))
		r.cfg.CA = ca.file
		var known atomic.Bool
		r.o.Clock = func() (time.Time, bool) {
			if known.Load() {
				return begin, true
			}
			return begin.Add(-1000 * 24 * time.Hour), false
		}
		r.start()
		time.Sleep(10 * time.Second)
		if s := r.link.Status(); s.Phase != WaitingClock || s.Word() != "offline" {
			t.Errorf("%v, want waiting-clock", s.Phase)
		}
		known.Store(true)
		time.Sleep(5 * time.Second)
		if s := r.link.Status(); s.Phase != Online {
			t.Errorf("%v five seconds after the clock was set, want online", s.Phase)
		}
		r.stop()
	})
}
