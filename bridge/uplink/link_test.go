package uplink

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"busgate/bridge/uplink/cloudtest"
	"busgate/buffer"
	"busgate/embeddedbroker"
)

func TestEverythingArrivesInOrder(t *testing.T) {
	for _, qos := range []byte{0, 1, 2} {
		t.Run(fmt.Sprint("qos ", qos), func(t *testing.T) {
			virtual(t, cloudtest.Options{AckDelay: 20 * time.Millisecond}, func(r *rig) {
				r.cfg.QoS = qos
				r.st.fill(1000)
				r.start()
				time.Sleep(10 * time.Second)
				if got := r.payloads("t"); !slices.Equal(got, numbers(1000)) {
					t.Errorf("%d messages arrived, lost, twice, reordered: %v", len(got), fmt.Sprint(tally(1000, got)))
				}
				if n, _, _ := r.st.usage(); n != 0 {
					t.Errorf("%d are not acked in the store", n)
				}
				if s := r.link.Status(); s.Phase != Online || s.Sent != 1000 || s.Repeated != 0 {
					t.Errorf("status %v, sent %d, repeated %d; want online, 1000, 0", s.Phase, s.Sent, s.Repeated)
				}
				r.stop()
			})
		})
	}
}

// TestAcksAreNotedBeforeTheNextPublish holds the store for a second at each ack:
// what leaves meanwhile would be sent again beside a whole window if the process
// were killed there.
func TestAcksAreNotedBeforeTheNextPublish(t *testing.T) {
	for qos, limit := range map[byte]int{1: 10, 2: 9 + 9/completing} {
		t.Run(fmt.Sprint("qos ", qos), func(t *testing.T) {
			virtual(t, cloudtest.Options{AckDelay: 20 * time.Millisecond, AtPublish: true}, func(r *rig) {
				r.cfg.QoS, r.cfg.Window = qos, 10
				most, noted := 0, 0
				r.store().acking = func(n int) {
					time.Sleep(time.Second)
					most = max(most, len(r.payloads("t"))-noted)
					noted += n
				}
				r.st.fill(100)
				r.start()
				time.Sleep(10 * time.Minute)
				if noted != 100 {
					t.Errorf("%d of 100 are acked in the store", noted)
				}
				if most < 9 || most > limit {
					t.Errorf("the cloud had up to %d that the store did not know of, want 9 to %d", most, limit)
				}
				r.stop()
			})
		})
	}
}

func TestBirthGoesAheadOfTheBacklog(t *testing.T) {
	virtual(t, cloudtest.Options{}, func(r *rig) {
		r.o.Birth = func() []*embeddedbroker.Message {
			return []*embeddedbroker.Message{status("busgate/plant-a/grid/status", "online"), status("busgate/plant-a/gateway/uplink/cloud", "online")}
		}
		r.cfg.Send = []string{"busgate/plant-a/#"}
		r.st.fill(3)
		r.start()
		time.Sleep(5 * time.Second)
		var got []string
		for _, d := range r.cloud.Ledger() {
			got = append(got, fmt.Sprintf("%s %s %v", d.Topic, d.Payload, d.Retain))
		}
		want := []string{"busgate/plant-a/gateway/status online true", "busgate/plant-a/grid/status online true", "t 0 false", "t 1 false", "t 2 false"}
		if !slices.Equal(got, want) {
			t.Errorf("the cloud got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		r.stop()
		if d, _ := r.cloud.Retained("busgate/plant-a/gateway/status"); string(d.Payload) != "offline" || d.Will {
			t.Errorf("after a clean stop the status is %q (will %v), want offline, published", d.Payload, d.Will)
		}
	})
}

func TestBirthGoesAheadOfWhatIsSentAgain(t *testing.T) {
	virtual(t, cloudtest.Options{AckDelay: time.Second}, func(r *rig) {
		r.st.fill(3)
		r.start()
		time.Sleep(500 * time.Millisecond)
		n := r.cloud.Len()
		r.cloud.Cut()
		time.Sleep(10 * time.Second)
		var got []string
		for _, d := range r.cloud.Ledger()[n:] {
			if !d.Will {
				got = append(got, string(d.Payload))
			}
		}
		if want := []string{"online", "0", "1", "2"}; !slices.Equal(got, want) {
			t.Errorf("after the cut the cloud got %v, want %v", got, want)
		}
		r.stop()
	})
}

// TestBirthHasRoomBesideAFullWindow: mosquitto closes when a QoS 1 PUBLISH comes
// while 20 QoS 2 messages are not released; that must not repeat for ever.
func TestBirthHasRoomBesideAFullWindow(t *testing.T) {
	virtual(t, cloudtest.Options{AckDelay: time.Second, Max2: 20}, func(r *rig) {
		r.cfg.QoS, r.cfg.Window = 2, 20
		r.st.fill(100)
		r.start()
		time.Sleep(500 * time.Millisecond)
		r.cloud.Cut()
		time.Sleep(time.Minute)
		if got := r.payloads("t"); !slices.Equal(got, numbers(100)) {
			t.Errorf("%d arrived", len(got))
		}
		if s := r.link.Status(); len(s.Degraded) != 0 || s.Connects != 2 {
			t.Errorf("switched off %v, %d connects; want nothing and 2", s.Degraded, s.Connects)
		}
		r.stop()
	})
}

func TestCleanStopDrainsForTheGraceTime(t *testing.T) {
	virtual(t, cloudtest.Options{AckDelay: 100 * time.Millisecond}, func(r *rig) {
		r.cfg.Window = 10
		r.o.Grace = 2 * time.Second
		r.start()
		time.Sleep(5 * time.Second)
		r.st.fill(1000)
		began := time.Now()
		r.stop()
		if d := time.Since(began); d < 2*time.Second || d > 5*time.Second {
			t.Errorf("stopped after %v, want a little more than 2 s", d)
		}
		got := r.payloads("t")
		if len(got) < 150 || !slices.Equal(got, numbers(len(got))) {
			t.Errorf("%d messages in 2 s with 10 in flight at 100 ms, want about 200 in order", len(got))
		}
		if n, _, _ := r.st.usage(); n > 1000-len(got)+10 {
			t.Errorf("%d arrived, but the store still holds %d", len(got), n)
		}
	})
}

func TestStopWithoutConnectionIsImmediate(t *testing.T) {
	virtual(t, cloudtest.Options{}, func(r *rig) {
		r.setRefuse(syscall.ECONNREFUSED)
		r.o.Grace = time.Minute
		r.st.fill(1)
		r.start()
		time.Sleep(10 * time.Second)
		began := time.Now()
		r.stop()
		if d := time.Since(began); d > 0 {
			t.Errorf("stopping took %v", d)
		}
	})
}

func TestWillSpeaksWhenTheConnectionBreaks(t *testing.T) {
	virtual(t, cloudtest.Options{}, func(r *rig) {
		r.start()
		time.Sleep(5 * time.Second)
		r.setRefuse(syscall.ECONNREFUSED)
		r.cloud.Cut()
		synctest.Wait()
		if d, _ := r.cloud.Retained("busgate/plant-a/gateway/status"); string(d.Payload) != "offline" || !d.Will || !d.Retain {
			t.Errorf("the cloud says %q (will %v)", d.Payload, d.Will)
		}
		r.setRefuse(nil)
		time.Sleep(2 * time.Minute)
		if d, _ := r.cloud.Retained("busgate/plant-a/gateway/status"); string(d.Payload) != "online" {
			t.Errorf("after the link is back the cloud says %q", d.Payload)
		}
		r.stop()
	})
}

func TestBackoffStaysInItsBounds(t *testing.T) {
	var b backoff
	var sum time.Duration
	prev := time.Second
	for i := range 2000 {
		d := b.lost(time.Second)
		if d < time.Second || d > time.Minute || d > 3*prev {
			t.Fatalf("wait %d is %v after %v, want within 1 s, 3 x previous and 60 s", i, d, prev)
		}
		prev = d
		sum += d
	}
	if mean := sum / 2000; mean < 20*time.Second || mean > 50*time.Second {
		t.Errorf("the mean wait of a lasting outage is %v", mean)
	}
	b.progress()
	if d := b.lost(time.Second); d > 3*time.Second {
		t.Errorf("the first wait after progress is %v", d)
	}
	for i, want := range []time.Duration{1, 2, 4, 8, 10, 10} {
		if d := b.refused(); d != want*time.Minute {
			t.Errorf("wait %d after a refusal is %v, want %v", i, d, want*time.Minute)
		}
	}
}

func TestBackoffIsNotResetByConnackAlone(t *testing.T) {
	virtual(t, cloudtest.Options{Publish: func(*packets.PublishPacket) bool { return false }}, func(r *rig) {
		r.st.fill(1)
		r.start()
		time.Sleep(30 * time.Minute)
		if n := r.cloud.Connects(); n < 30 || n > 150 {
			t.Errorf("%d connects in 30 min at a broker that accepts and then throws out, want about 60", n)
		}
		dials, _ := r.tries()
		paced(t, dials)
		r.stop()
	})
}

func TestAddressesAreTriedInTurn(t *testing.T) {
	virtual(t, cloudtest.Options{}, func(r *rig) {
		r.cfg.Addresses = []string{"mqtt://a:1883", "mqtt://b:1884"}
		r.setRefuse(syscall.ECONNREFUSED)
		r.start()
		time.Sleep(time.Minute)
		_, dialled := r.tries()
		for i, a := range dialled {
			if want := []string{"a:1883", "b:1884"}[i%2]; a != want {
				t.Errorf("try %d went to %s, want %s", i, a, want)
			}
		}
		if len(dialled) < 3 {
			t.Errorf("only %d tries in a minute", len(dialled))
		}
		r.stop()
	})
}

func TestReleaseThatFailsOrHangsEndsTheConnection(t *testing.T) {
	virtual(t, cloudtest.Options{}, func(r *rig) {
		r.cfg.QoS = 2
		r.st.fail = errors.New("store read-only")
		r.st.fill(5)
		r.start()
		time.Sleep(20 * time.Second)
		if s := r.link.Status(); s.Closed["release"] == 0 || s.Sent != 0 {
			t.Errorf("closed %v, sent %d; want release, 0", s.Closed, s.Sent)
		}
		r.st.mu.Lock()
		r.st.fail, r.st.delay = nil, 7*time.Second
		r.st.mu.Unlock()
		time.Sleep(time.Minute)
		if s := r.link.Status(); s.Closed["release-timeout"] == 0 {
			t.Errorf("closed %v, want release-timeout", s.Closed)
		}
		time.Sleep(10 * time.Minute)
		if got := r.payloads("t"); !slices.Equal(got, numbers(5)) {
			t.Errorf("arrived %v", got)
		}
		r.stop()
	})
}

func TestSessionLostAtTheCloudSendsAgain(t *testing.T) {
	virtual(t, cloudtest.Options{AckDelay: time.Second}, func(r *rig) {
		r.cfg.QoS = 2
		r.st.delay = time.Second
		r.st.fill(20)
		r.start()
		time.Sleep(1500 * time.Millisecond) // PUBREC came, PUBREL waits for the store
		r.cloud.Wipe()
		time.Sleep(time.Minute)
		if lost, _, _ := tally(20, r.payloads("t")); lost != 0 {
			t.Errorf("%d lost after the cloud forgot the session", lost)
		}
		if n, _, _ := r.st.usage(); n != 0 {
			t.Errorf("%d wait", n)
		}
		r.stop()
	})
}

func TestStateIsTruthful(t *testing.T) {
	virtual(t, cloudtest.Options{AckDelay: 50 * time.Millisecond, Mute: func(p *packets.PublishPacket) bool { return p.TopicName == "t" }}, func(r *rig) {
		r.st.fill(3)
		r.start()
		time.Sleep(20 * time.Second)
		if s := r.link.Status(); s.Phase == Online {
			t.Error("online without any acknowledgement while messages wait")
		}
		r.stop()
	})
	virtual(t, cloudtest.Options{AckDelay: 100 * time.Millisecond}, func(r *rig) {
		r.cfg.Window = 10
		r.st.fill(1000)
		r.start()
		time.Sleep(3 * time.Second)
		if s := r.link.Status(); s.Phase != Draining || s.Word() != "draining" {
			t.Errorf("%v with %d waiting, want draining", s.Phase, s.Pending)
		}
		time.Sleep(20 * time.Second)
		if s := r.link.Status(); s.Phase != Online {
			t.Errorf("%v with %d waiting, want online", s.Phase, s.Pending)
		}
		r.stop()
		want := []string{"dialing", "resuming", "draining", "online", "draining", "stopped"}
		if !slices.Equal(r.states, want) {
			t.Errorf("states %v, want %v", r.states, want)
		}
	})
}

func TestUpdate(t *testing.T) {
	t.Run("another client id drains, then forgets the session and goes on", func(t *testing.T) {
		virtual(t, cloudtest.Options{AckDelay: 100 * time.Millisecond}, func(r *rig) {
			r.cfg.QoS = 2
			r.st.fill(200)
			r.start()
			time.Sleep(700 * time.Millisecond)
			cfg := r.cfg
			cfg.ClientID = "plant-b"
			if err := r.link.Update(&cfg); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
			if got := r.payloads("t"); !slices.Equal(got, numbers(200)) {
				t.Errorf("lost, twice, reordered: %v", fmt.Sprint(tally(200, got)))
			}
			if s := r.link.Status(); s.SessionReset != 1 || s.Closed["update"] != 1 {
				t.Errorf("session reset %d, closed %v; want 1, one update", s.SessionReset, s.Closed)
			}
			r.stop()
		})
	})
	t.Run("a new accept subscribes without a new connection", func(t *testing.T) {
		virtual(t, cloudtest.Options{}, func(r *rig) {
			r.cfg.Accept = []string{"busgate/plant-a/+/set/#"}
			r.start()
			time.Sleep(2 * time.Second)
			cfg := r.cfg
			cfg.Accept = []string{"busgate/plant-a/pumps/set/#"}
			if err := r.link.Update(&cfg); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * time.Second)
			if got := r.cloud.Subscriptions("plant-a"); !slices.Equal(got, cfg.Accept) || r.cloud.Connects() != 1 {
				t.Errorf("subscribed %v with %d connects, want %v with 1", got, r.cloud.Connects(), cfg.Accept)
			}
			r.stop()
		})
	})
	t.Run("a mistake changes nothing", func(t *testing.T) {
		virtual(t, cloudtest.Options{}, func(r *rig) {
			r.start()
			cfg := r.cfg
			cfg.Addresses = []string{"ftp://x"}
			err := r.link.Update(&cfg)
			if err == nil || !strings.Contains(err.Error(), `address "ftp://x"`) {
				t.Errorf("Update gives %v", err)
			}
			r.stop()
		})
	})
}

func TestIdentityChangedWhileStopped(t *testing.T) {
	virtual(t, cloudtest.Options{}, func(r *rig) {
		r.remember(map[string][]byte{"identity": []byte("plant-z qos=2 as-is a:1")})
		r.st.fill(1)
		r.start()
		time.Sleep(5 * time.Second)
		if s := r.link.Status(); s.SessionReset != 1 || r.cloud.Connects() != 2 {
			t.Errorf("session reset %d, connects %d; want 1, 2", s.SessionReset, r.cloud.Connects())
		}
		if got := string(r.fact("identity")); got != "plant-a qos=1 as-is iot.example.com:1883" {
			t.Errorf("kept %q", got)
		}
		r.stop()
	})
}

func TestSourceThatEndsEndsRun(t *testing.T) {
	virtual(t, cloudtest.Options{}, func(r *rig) {
		r.st.nextErr = buffer.ErrClosed
		r.start()
		if err := <-r.ended; err == nil || err.Error() != "uplink cloud: read the store: store closed" {
			t.Errorf("Run gives %v", err)
		}
		r.cloud.Close()
	})
}

func TestRunEndsDuringABlockedDial(t *testing.T) {
	virtual(t, cloudtest.Options{}, func(r *rig) {
		r.o.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) { <-ctx.Done(); return nil, ctx.Err() }
		r.start()
		time.Sleep(5 * time.Second)
		r.stop()
	})
}

// paced demands a second between two connects.
func paced(t *testing.T, dials []time.Time) {
	t.Helper()
	for i := 1; i < len(dials); i++ {
		if d := dials[i].Sub(dials[i-1]); d < time.Second {
			t.Errorf("connect %d came %v after the one before", i, d)
		}
	}
}
