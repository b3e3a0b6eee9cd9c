package uplink

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"busgate/bridge/uplink/cloudtest"
)

func login(code byte) func(*packets.ConnectPacket) byte {
	return func(*packets.ConnectPacket) byte { return code }
}

// TestTextsOfTheUplink provokes each row of the table of messages.
func TestTextsOfTheUplink(t *testing.T) {
	type world struct {
		name  string
		cloud cloudtest.Options
		set   func(*rig)
		after time.Duration
		want  string
		phase Phase
	}
	for _, c := range []world{
		{"login refused", cloudtest.Options{Login: login(4)}, func(r *rig) { r.cfg.User = "plant-a"; r.st.fill(214) }, time.Second,
			`ERROR uplink cloud: iot.example.com refused user "plant-a" (bad user name or password). Next try in 1m; 214 messages wait, nothing is lost`, Refused},
		{"not authorised", cloudtest.Options{Login: login(5)}, func(r *rig) { r.st.fill(1214) }, time.Second,
			`ERROR uplink cloud: not authorised: ask for the rights of client_id "plant-a". Next try in 1m; 1 214 messages wait, nothing is lost`, Refused},
		{"a login that the cloud calls not authorised", cloudtest.Options{Login: login(5)}, func(r *rig) { r.cfg.User = "plant-a" }, time.Second,
			`ERROR uplink cloud: iot.example.com refused user "plant-a" (not authorised): a wrong password, or no rights for client_id "plant-a". Next try in 1m`, Refused},
		{"id rejected", cloudtest.Options{Login: login(2)}, func(*rig) {}, time.Second,
			`ERROR uplink cloud: iot.example.com does not accept client_id "plant-a"`, Refused},
		{"no service", cloudtest.Options{Login: login(3)}, func(*rig) {}, 500 * time.Millisecond,
			`WARN uplink cloud: iot.example.com says that its service is not available. Next try in 1s`, Idle},
		{"network down", cloudtest.Options{}, func(r *rig) {
			r.setRefuse(&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ENETUNREACH)})
		}, time.Second, `INFO uplink cloud: no route (network is down); waiting for the link`, Idle},
		{"unknown name", cloudtest.Options{}, func(r *rig) {
			r.setRefuse(&net.OpError{Op: "dial", Err: &net.DNSError{Err: "no such host", Name: "iot.example.com", IsNotFound: true}})
		}, time.Second, `INFO uplink cloud: no route: the name iot.example.com is not known; waiting for the link`, Idle},
		{"connection refused", cloudtest.Options{}, func(r *rig) {
			r.setRefuse(&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)})
		}, 500 * time.Millisecond, `WARN uplink cloud: iot.example.com:1883 does not answer (connection refused). Next try in 1s`, Idle},
		{"no password file", cloudtest.Options{}, func(r *rig) { r.cfg.User, r.cfg.PasswordFile = "u", "/nonexistent/secret" }, 500 * time.Millisecond,
			`ERROR uplink cloud: read the password: open /nonexistent/secret: no such file or directory. Next try in 1s`, Idle},
	} {
		t.Run(c.name, func(t *testing.T) {
			virtual(t, c.cloud, func(r *rig) {
				c.set(r)
				r.start()
				time.Sleep(c.after)
				if got := r.link.Status(); got.Phase != c.phase {
					t.Errorf("phase %v, want %v", got.Phase, c.phase)
				}
				lines := r.lines()
				r.stop()
				if len(lines) != 1 || trim(lines[0]) != trim(c.want) {
					t.Errorf("said\n  %s\nwant\n  %s", strings.Join(lines, "\n  "), c.want)
				}
			})
		})
	}
}

// trim leaves the seconds of a jittered wait out.
func trim(s string) string {
	for _, n := range []string{"1s", "2s", "3s"} {
		s = strings.ReplaceAll(s, "Next try in "+n, "Next try in Ns")
	}
	return s
}

func TestClientIDClash(t *testing.T) {
	virtual(t, cloudtest.Options{}, func(r *rig) {
		r.start()
		for range 10 {
			r.st.fill(1) // what is acknowledged keeps the back-off short
			time.Sleep(4 * time.Second)
			a, b := bufferedPipe()
			go r.cloud.ServeConn(b)
			p, err := r.link.connect(false)
			if err != nil {
				t.Error(err)
			}
			if err := p.Write(a); err != nil {
				t.Error(err)
			}
			_ = a.Close()
		}
		time.Sleep(5 * time.Second)
		found := false
		for _, l := range r.lines() {
			found = found || l == `ERROR uplink cloud: connected and thrown out 3 times in a minute: another client uses client_id "plant-a"`
		}
		if !found {
			t.Errorf("said\n  %s", strings.Join(r.lines(), "\n  "))
		}
		r.stop()
	})
}

func TestBackIsSaidOnce(t *testing.T) {
	virtual(t, cloudtest.Options{AckDelay: 100 * time.Millisecond}, func(r *rig) {
		r.cfg.Window = 100
		r.start()
		time.Sleep(10 * time.Second)
		r.setRefuse(&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ENETUNREACH)})
		r.cloud.Cut()
		time.Sleep(time.Second)
		r.st.fill(4310)
		time.Sleep(12 * time.Minute)
		r.setRefuse(nil)
		time.Sleep(2 * time.Minute)
		var back []string
		for _, l := range r.lines() {
			if strings.Contains(l, "back after") {
				back = append(back, l)
			}
		}
		// The network is back after 12 minutes; the next try comes within one more.
		said := regexp.MustCompile(`^INFO uplink cloud: back after 1[23]m(\d\ds)?; 4 310 waiting messages sent in \d+s$`)
		if len(back) != 1 || !said.MatchString(back[0]) {
			t.Errorf("said %q, want one line: back after 12m or 13m; 4 310 waiting messages sent in ..", back)
		}
		r.stop()
	})
}

// authority is a CA of the test that signs certificates.
type authority struct {
	t    *testing.T
	dir  string
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	file string
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t, dir: t.TempDir()}
	a.key = newKey(t)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-30 * 24 * time.Hour), NotAfter: time.Now().Add(3000 * 24 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.file = filepath.Join(a.dir, "ca.pem")
	a.write(a.file, "CERTIFICATE", der)
	return a
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func (a *authority) write(file, kind string, der []byte) {
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		a.t.Fatal(err)
	}
}

// issue signs a certificate and returns the files of it and its key.
func (a *authority) issue(name string, from, to time.Time, names ...string) (cert, key string) {
	k := newKey(a.t)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: names, NotBefore: from, NotAfter: to,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, k.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	kd, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, key = filepath.Join(a.dir, name+".crt"), filepath.Join(a.dir, name+".key")
	a.write(cert, "CERTIFICATE", der)
	a.write(key, "EC PRIVATE KEY", kd)
	return cert, key
}

func serverTLS(t *testing.T, cert, key string) *tls.Config {
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}}
}

// serveTLS makes the cloud of a rig speak TLS.
func (r *rig) serveTLS(cfg *tls.Config) {
	r.cfg.Addresses = []string{"mqtts://iot.example.com:8883"}
	r.accept = func(c net.Conn) net.Conn { return tls.Server(c, cfg) }
}

func TestTLS(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	day := 24 * time.Hour
	begin := time.Now()
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	server := func(from, to time.Time, names ...string) *tls.Config {
		c, k := ca.issue("server", from, to, names...)
		pair, err := tls.LoadX509KeyPair(c, k)
		if err != nil {
			t.Fatal(err)
		}
		return &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"x-amzn-mqtt-ca"}, ClientCAs: pool, Time: func() time.Time { return begin }}
	}
	good := server(begin.Add(-day), begin.Add(day), "iot.example.com")
	mutual := good.Clone()
	mutual.ClientAuth = tls.RequireAndVerifyClientCert
	cert, key := ca.issue("client", begin.Add(-day), begin.Add(day))
	foreign, foreignKey := other.issue("foreign", begin.Add(-day), begin.Add(day))
	expired := server(begin.Add(-30*day), begin.Add(-3*day), "iot.example.com")
	future := server(begin.Add(day), begin.Add(9*day), "iot.example.com")

	for _, c := range []struct {
		name  string
		tls   *tls.Config
		set   func(*rig)
		want  string // line; "" = online
		phase Phase
	}{
		{"a good certificate", good, func(*rig) {}, "", Online},
		{"with ALPN", good, func(r *rig) { r.cfg.ALPN = []string{"x-amzn-mqtt-ca"} }, "", Online},
		{"mutual TLS", mutual, func(r *rig) { r.cfg.Cert, r.cfg.Key = cert, key }, "", Online},
		{"another name in SNI", server(begin.Add(-day), begin.Add(day), "other.example.com"), func(r *rig) { r.cfg.SNI = "other.example.com" }, "", Online},
		{"wrong name", server(begin.Add(-day), begin.Add(day), "*.example.org"), func(*rig) {},
			"ERROR uplink cloud: the certificate is for *.example.org, not iot.example.com", Refused},
		{"unknown CA", good, func(r *rig) { r.cfg.CA = other.file },
			"ERROR uplink cloud: the certificate is signed by an unknown CA: set ca in [uplink.cloud]", Refused},
		{"expired", expired, func(*rig) {},
			"ERROR uplink cloud: the certificate expired 3 days ago (" + begin.Add(-3*day).UTC().Format(time.DateOnly) + ")", Refused},
		{"not yet valid", future, func(*rig) {},
			"ERROR uplink cloud: the certificate is valid only from " + begin.Add(day).UTC().Format(time.DateOnly), Refused},
		{"not yet valid, clock unknown", future, func(r *rig) {
			r.o.Clock = func() (time.Time, bool) { return begin, false }
		}, "WARN uplink cloud: the certificate is valid from " + begin.Add(day).UTC().Format(time.DateOnly) + ", and the clock is not set; waiting for the clock", WaitingClock},
		{"our certificate is refused", mutual, func(r *rig) { r.cfg.Cert, r.cfg.Key = foreign, foreignKey },
			"ERROR uplink cloud: iot.example.com refused our certificate " + foreign, Refused},
		{"a certificate of ours is wanted", mutual, func(*rig) {},
			"ERROR uplink cloud: iot.example.com wants a certificate of ours: set cert and key in [uplink.cloud]", Refused},
	} {
		t.Run(c.name, func(t *testing.T) {
			virtual(t, cloudtest.Options{}, func(r *rig) {
				r.serveTLS(c.tls)
				r.cfg.CA = ca.file
				r.o.Clock = func() (time.Time, bool) { return begin, true }
				c.set(r)
				r.start()
				time.Sleep(5 * time.Second)
				st := r.link.Status()
				if st.Phase != c.phase {
					t.Errorf("phase %v (%s), want %v", st.Phase, st.LastError, c.phase)
				}
				if c.want != "" {
					r.wantLine(c.want)
				}
				r.stop()
			})
		})
	}
}

func TestTLS11IsNotSpoken(t *testing.T) {
	ca := newAuthority(t)
	begin := time.Now()
	c, k := ca.issue("server", begin.Add(-time.Hour), begin.Add(time.Hour), "iot.example.com")
	old := serverTLS(t, c, k)
	old.MinVersion, old.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	virtual(t, cloudtest.Options{}, func(r *rig) {
		r.serveTLS(old)
		r.cfg.CA = ca.file
		r.o.Clock = func() (time.Time, bool) { return begin, true }
		r.start()
		time.Sleep(5 * time.Second)
		if st := r.link.Status(); st.Connects != 0 {
			t.Error("connected with TLS 1.1")
		}
		r.stop()
	})
}

func TestABadNewCertificateLeavesTheOldInUse(t *testing.T) {
	ca := newAuthority(t)
	cert, key := ca.issue("client", time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	var p pair
	first, err := p.load(cert, key)
	if err != nil || first == nil {
		t.Fatal(err)
	}
	if p.expires().IsZero() {
		t.Error("the end of validity is not known")
	}
	if err := os.WriteFile(cert, []byte("half a cert"), 0o600); err != nil {
		t.Fatal(err)
	}
	again, err := p.load(cert, key)
	if again != first || err == nil || !strings.Contains(err.Error(), "client.crt") {
		t.Errorf("load gives %v and %v, want the old pair and an error that names the file", again, err)
	}
	if other, err := p.load(cert+"x", key); other != nil || err == nil {
		t.Errorf("another file gives %v and %v, want nothing and an error", other, err)
	}
}
