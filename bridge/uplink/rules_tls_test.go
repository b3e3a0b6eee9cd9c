package uplink

import (
	"crypto/tls"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"busgate/bridge/uplink/cloudtest"
)

// secured makes the cloud of a rig speak TLS with a certificate of ca that is good
// at now, which is the rig's clock, and keeps its connections. protocols are what it
// agrees on with ALPN.
func (r *rig) secured(ca *authority, now time.Time, protocols ...string) *secureEnds {
	r.t.Helper()
	cert, key := ca.issue("server", now.Add(-time.Hour), now.Add(1000*24*time.Hour), "iot.example.com")
	cfg := serverTLS(r.t, cert, key)
	cfg.Time, cfg.NextProtos = func() time.Time { return now }, protocols
	r.serveTLS(cfg)
	r.cfg.CA = ca.file
	r.o.Clock = func() (time.Time, bool) { return now, true }
	ends := &secureEnds{}
	r.accept = func(c net.Conn) net.Conn {
		ends.mu.Lock()
		defer ends.mu.Unlock()
		s := tls.Server(c, cfg)
		ends.conns = append(ends.conns, s)
		return s
	}
	return ends
}

type secureEnds struct {
	mu    sync.Mutex
	conns []*tls.Conn
}

// TestTLSSessionIsResumed: a reconnect costs fewer bytes.
func TestTLSSessionIsResumed(t *testing.T) {
	ca, now := newAuthority(t), time.Now()
	virtual(t, cloudtest.Options{}, func(r *rig) {
		ends := r.secured(ca, now)
		r.start()
		time.Sleep(10 * time.Second)
		r.cloud.Cut()
		time.Sleep(time.Minute)
		ends.mu.Lock()
		if n := len(ends.conns); n != 2 || ends.conns[0].ConnectionState().DidResume || !ends.conns[1].ConnectionState().DidResume {
			t.Errorf("%d connections, the second did not resume the session of the first", n)
		}
		ends.mu.Unlock()
		r.stop()
	})
}

// TestCertificateThatEndsSoonIsSaid, once, and so is the new one.
func TestCertificateThatEndsSoonIsSaid(t *testing.T) {
	ca, now := newAuthority(t), time.Now()
	const day = 24 * time.Hour
	virtual(t, cloudtest.Options{}, func(r *rig) {
		r.secured(ca, now)
		r.cfg.Cert, r.cfg.Key = ca.issue("client", now.Add(-time.Hour), now.Add(13*day+time.Hour))
		r.start()
		time.Sleep(10 * time.Second)
		ends := now.Add(13*day + time.Hour).UTC().Format(time.DateOnly)
		r.wantLine("WARN uplink cloud: our certificate " + r.cfg.Cert + " ends in 13 days (" + ends + ")")
		if s := r.link.Status(); s.CertExpires.IsZero() {
			t.Error("the end of the certificate is not in the numbers")
		}
		ca.issue("client", now.Add(-time.Hour), now.Add(15*day))
		later := time.Now().Add(time.Hour) // files have times of the real clock
		if err := os.Chtimes(r.cfg.Cert, later, later); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Minute)
		r.wantLine("INFO uplink cloud: our certificate is renewed")
		if n := r.cloud.Connects(); n != 2 {
			t.Errorf("%d connects, want another one for the new certificate", n)
		}
		r.stop()
	})
}

func TestUnverifiedCertificateIsSaidAtEachConnect(t *testing.T) {
	ca, now := newAuthority(t), time.Now()
	virtual(t, cloudtest.Options{}, func(r *rig) {
		r.secured(ca, now)
		r.cfg.CA, r.cfg.InsecureSkipVerify = "", true
		r.start()
		time.Sleep(10 * time.Second)
		r.cloud.Cut()
		time.Sleep(time.Minute)
		n := 0
		for _, l := range r.lines() {
			if l == "WARN the certificate of the broker is not verified (insecure_skip_verify)" {
				n++
			}
		}
		if s := r.link.Status(); s.Phase != Online || n != 2 {
			t.Errorf("%v (%s), said %d times in two connects", s.Phase, s.LastError, n)
		}
		r.stop()
	})
}

// TestNewCredentialsWaitForADrainedLink: what is in flight is not sent again for them.
func TestNewCredentialsWaitForADrainedLink(t *testing.T) {
	r := newRig(t, cloudtest.Options{})
	l := r.idle()
	e := &epoch{renew: true}
	l.s.add(&flight{first: 1, last: 1, qos: 1})
	l.renew(e, time.Now())
	if !e.leave.IsZero() {
		t.Error("the link leaves while a message is in flight")
	}
	l.s.drop()
	l.ready = make([]lot, 1)
	l.renew(e, time.Now())
	if !e.leave.IsZero() {
		t.Error("the link leaves while a record is ready")
	}
	l.ready = nil
	l.renew(e, time.Now())
	if e.leave.IsZero() {
		t.Error("a drained link does not leave")
	}
}

// TestWaitingForTheClockDoesNotGrow: each minute, however long it takes.
func TestWaitingForTheClockDoesNotGrow(t *testing.T) {
	ca, now := newAuthority(t), time.Now()
	virtual(t, cloudtest.Options{}, func(r *rig) {
		r.secured(ca, now)
		r.o.Clock = func() (time.Time, bool) { return now.Add(-10 * 24 * time.Hour), false }
		r.start()
		time.Sleep(10*time.Minute + 30*time.Second)
		dials, _ := r.tries()
		if len(dials) != 11 {
			t.Errorf("%d tries in ten and a half minutes, want 11", len(dials))
		}
		for i := 1; i < len(dials); i++ {
			if d := dials[i].Sub(dials[i-1]); d < time.Minute || d > time.Minute+time.Second {
				t.Errorf("try %d came %v after the one before", i, d)
			}
		}
		for _, l := range r.lines() {
			if strings.Contains(l, "ERROR") {
				t.Errorf("said %s", l)
			}
		}
		r.stop()
	})
}

// TestALPNIsOffered: clouds tell MQTT on port 443 by it.
func TestALPNIsOffered(t *testing.T) {
	ca, now := newAuthority(t), time.Now()
	virtual(t, cloudtest.Options{}, func(r *rig) {
		ends := r.secured(ca, now, "x-amzn-mqtt-ca")
		r.cfg.ALPN = []string{"x-amzn-mqtt-ca"}
		r.start()
		time.Sleep(10 * time.Second)
		ends.mu.Lock()
		if got := ends.conns[0].ConnectionState().NegotiatedProtocol; got != "x-amzn-mqtt-ca" {
			t.Errorf("agreed on %q", got)
		}
		ends.mu.Unlock()
		r.stop()
	})
}
