package uplink

import (
	"errors"
	"fmt"
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
	"busgate/embeddedbroker"
)

func TestWatchdogFindsASilentBroker(t *testing.T) {
	virtual(t, cloudtest.Options{}, func(r *rig) {
		r.start()
		time.Sleep(10 * time.Second)
		r.cloud.Hole(time.Hour)
		began := time.Now()
		r.st.fill(5)
		time.Sleep(40 * time.Second)
		if s := r.link.Status(); s.Closed["ack-timeout"] != 1 {
			t.Errorf("closed %v, want one ack-timeout", s.Closed)
		}
		r.wantLine("WARN uplink cloud: nothing acknowledged for 30s; connecting again")
		if dials, _ := r.tries(); len(dials) < 2 || dials[1].Sub(began) > 36*time.Second {
			t.Errorf("dials at %v", dials)
		}
		r.cloud.Hole(0)
		time.Sleep(3 * time.Minute)
		if got := r.payloads("t"); !slices.Equal(got, numbers(5)) {
			t.Errorf("arrived %v", got)
		}
		r.stop()
	})
}

func TestWatchdogFindsOneMessageThatIsNeverAcknowledged(t *testing.T) {
	mute := func(p *packets.PublishPacket) bool { return string(p.Payload) == "3" && !p.Dup }
	virtual(t, cloudtest.Options{Mute: mute}, func(r *rig) {
		r.start()
		time.Sleep(5 * time.Second)
		for i := range 200 {
			r.st.put("t", fmt.Append(nil, i), embeddedbroker.KindLAN)
			time.Sleep(500 * time.Millisecond)
		}
		if s := r.link.Status(); s.Closed["ack-oldest"] != 1 || s.Closed["ack-timeout"] != 0 {
			t.Errorf("closed %v, want one ack-oldest", s.Closed)
		}
		time.Sleep(time.Minute)
		if lost, _, _ := tally(200, r.payloads("t")); lost != 0 {
			t.Errorf("%d lost", lost)
		}
		r.stop()
	})
}

// blocked is a connection whose writes hang once told so.
type blocked struct {
	net.Conn
	stuck *atomic.Bool
}

func (b blocked) Write(p []byte) (int, error) {
	if b.stuck.Load() {
		a, c := net.Pipe() // nobody reads: the write ends at the deadline
		defer func() { _ = c.Close() }()
		_ = a.SetWriteDeadline(time.Now().Add(10 * time.Second))
		return a.Write(p)
	}
	return b.Conn.Write(p)
}

func TestWatchdogReasons(t *testing.T) {
	t.Run("a write that hangs", func(t *testing.T) {
		virtual(t, cloudtest.Options{}, func(r *rig) {
			var stuck atomic.Bool
			r.wrap = func(c net.Conn) net.Conn { return blocked{c, &stuck} }
			r.start()
			time.Sleep(5 * time.Second)
			stuck.Store(true)
			r.st.fill(1)
			time.Sleep(11 * time.Second)
			stuck.Store(false)
			if s := r.link.Status(); s.Closed["write-timeout"] != 1 {
				t.Errorf("closed %v, want one write-timeout", s.Closed)
			}
			r.stop()
		})
	})
	t.Run("no PINGRESP on an idle link", func(t *testing.T) {
		virtual(t, cloudtest.Options{}, func(r *rig) {
			r.start()
			time.Sleep(5 * time.Second)
			r.cloud.Hole(time.Hour)
			time.Sleep(75 * time.Second)
			if s := r.link.Status(); s.Closed["ping-timeout"] != 1 {
				t.Errorf("closed %v, want one ping-timeout within keepalive + 15 s", s.Closed)
			}
			r.stop()
		})
	})
	t.Run("a healthy idle link stays", func(t *testing.T) {
		virtual(t, cloudtest.Options{}, func(r *rig) {
			r.start()
			time.Sleep(3 * time.Hour)
			if s := r.link.Status(); s.Connects != 1 || len(s.Closed) != 0 {
				t.Errorf("connects %d, closed %v; want 1 and none", s.Connects, s.Closed)
			}
			r.stop()
		})
	})
}

// halfWritten delivers a write and then fails.
type halfWritten struct {
	net.Conn
	fail *atomic.Bool
}

func (h halfWritten) Write(p []byte) (int, error) {
	n, err := h.Conn.Write(p)
	if err == nil && h.fail.Load() {
		return 0, syscall.ECONNRESET
	}
	return n, err
}

func TestQoS0InDoubtIsNotSentAgain(t *testing.T) {
	virtual(t, cloudtest.Options{}, func(r *rig) {
		var fail atomic.Bool
		r.wrap = func(c net.Conn) net.Conn { return halfWritten{c, &fail} }
		r.cfg.QoS = 0
		r.start()
		time.Sleep(5 * time.Second)
		fail.Store(true)
		r.st.fill(5)
		synctest.Wait()
		fail.Store(false)
		time.Sleep(10 * time.Second)
		if _, twice, _ := tally(5, r.payloads("t")); twice > 0 {
			t.Errorf("arrived %v: at most once is promised", r.payloads("t"))
		}
		if n, _, _ := r.st.usage(); n != 0 {
			t.Errorf("%d wait", n)
		}
		r.stop()
	})
}

// TestAWriteEndsAtItsDeadline: nobody reads at the other end.
func TestAWriteEndsAtItsDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		defer func() { _ = far.Close() }()
		w := newWire(near, 1<<20, 10*time.Second)
		var wg sync.WaitGroup
		wg.Go(w.flush)
		w.append(packets.NewControlPacket(packets.Pingreq))
		time.Sleep(10*time.Second - time.Millisecond)
		if why := w.why(); why != nil {
			t.Errorf("closed before the deadline: %v", why)
		}
		time.Sleep(2 * time.Millisecond)
		if c, ok := errors.AsType[*closing](w.why()); !ok || c.reason != "write-timeout" {
			t.Errorf("after the deadline closed for %v, want write-timeout", w.why())
			w.close(errStopped)
		}
		wg.Wait()
	})
}
