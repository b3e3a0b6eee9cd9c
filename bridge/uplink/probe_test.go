package uplink

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"busgate/bridge/uplink/cloudtest"
	"busgate/config"
)

// probed runs Probe against a cloud on the loopback and prints the steps.
func probed(t *testing.T, cfg *config.Uplink) (steps []Step, err error) {
	t.Helper()
	err = Probe(t.Context(), cfg, &config.Gateway{Name: "plant-a", Topic: "busgate"}, 0, nil, func(s Step) { steps = append(steps, s) })
	return steps, err
}

func stepNames(steps []Step) string {
	var out []string
	for _, s := range steps {
		n := s.Name
		if s.Err != nil {
			n += "!"
		}
		out = append(out, n)
	}
	return strings.Join(out, " ")
}

func probeConfig(address string) *config.Uplink {
	return &config.Uplink{Name: "cloud", Addresses: []string{address}, ClientID: "gw", QoS: 1, KeepAlive: time.Minute, Send: []string{"#"}, Will: true, Retain: true}
}

func TestProbeOfABrokerThatIsWell(t *testing.T) {
	for qos := range byte(3) {
		cloud, err := cloudtest.Listen(cloudtest.Options{})
		if err != nil {
			t.Fatal(err)
		}
		cfg := probeConfig("mqtt://localhost:" + port(cloud.Addr()))
		cfg.QoS, cfg.RemotePrefix, cfg.LocalPrefix = qos, "site/7/", ""
		steps, err := probed(t, cfg)
		if err != nil || stepNames(steps) != "dns tcp connect subscribe publish delivered" {
			t.Errorf("QoS %d: %s, %v", qos, stepNames(steps), err)
		}
		for _, d := range cloud.Ledger() {
			if !strings.HasPrefix(d.Topic, "site/7/busgate/plant-a/gateway/canary/") || d.Retain || d.Client == "gw" || d.QoS != qos {
				t.Errorf("published %+v", d)
			}
		}
		cloud.Close()
		if v := cloud.Violations(); len(v) > 0 {
			t.Errorf("violations %q", v)
		}
	}
}

func port(addr string) string {
	_, p, _ := net.SplitHostPort(addr)
	return p
}

// deafPort is a port of the loopback that is taken, so that nobody else gets it,
// and on which nobody listens.
func deafPort(t *testing.T) int {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	sa, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return sa.(*syscall.SockaddrInet4).Port
}

// TestProbeSaysWhatToDo: each step can fail; it is the last, and says what to do.
func TestProbeSaysWhatToDo(t *testing.T) {
	ca := newAuthority(t)
	begin := time.Now()
	cert, key := ca.issue("localhost", begin.Add(-time.Hour), begin.Add(time.Hour), "localhost")
	other, otherKey := ca.issue("other", begin.Add(-time.Hour), begin.Add(time.Hour), "other.example.org")
	plain := func(o cloudtest.Options) func(t *testing.T) string {
		return func(t *testing.T) string {
			b, err := cloudtest.Listen(o)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(b.Close)
			return "mqtt://localhost:" + port(b.Addr())
		}
	}
	secure := func(cert, key string) func(t *testing.T) string {
		return func(t *testing.T) string {
			b := cloudtest.New(cloudtest.Options{})
			ln, err := tls.Listen("tcp", "127.0.0.1:0", serverTLS(t, cert, key))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = ln.Close(); b.Close() })
			go func() {
				for {
					c, err := ln.Accept()
					if err != nil {
						return
					}
					go b.ServeConn(c)
				}
			}()
			return "mqtts://localhost:" + port(ln.Addr().String())
		}
	}
	for name, c := range map[string]struct {
		address func(t *testing.T) string
		set     func(*config.Uplink)
		steps   string
		advice  string
	}{
		"a name that is not known": {func(*testing.T) string { return "mqtt://no-such-host.invalid:1883" }, nil, "dns!", `is "no-such-host.invalid" spelt right in`},
		"nobody listens":           {func(t *testing.T) string { return fmt.Sprintf("mqtt://127.0.0.1:%d", deafPort(t)) }, nil, "tcp!", "127.0.0.1 answers, but nothing listens on port"},
		"TLS to a port without":    {func(t *testing.T) string { return strings.Replace(plain(cloudtest.Options{})(t), "mqtt", "mqtts", 1) }, nil, "dns tcp tls!", "is this the port for TLS"},
		"no TLS to a port with":    {func(t *testing.T) string { return strings.Replace(secure(cert, key)(t), "mqtts", "mqtt", 1) }, nil, "dns tcp connect!", "Then write mqtts://"},
		"an unknown CA":            {secure(cert, key), func(c *config.Uplink) { c.CA = "" }, "dns tcp tls!", "unknown CA: set ca in [uplink.cloud]"},
		"another name":             {secure(other, otherKey), nil, "dns tcp tls!", "the certificate is for other.example.org, not localhost"},
		"TLS that is well":         {secure(cert, key), nil, "dns tcp tls connect subscribe publish delivered", ""},
		"a wrong password": {plain(cloudtest.Options{Login: func(*packets.ConnectPacket) byte { return 4 }}), func(c *config.Uplink) { c.User = "u" }, "dns tcp connect!",
			`localhost refused user "u" (bad user name or password)`},
		"a publish that closes the connection": {plain(cloudtest.Options{Publish: func(*packets.PublishPacket) bool { return false }}), nil,
			"dns tcp connect subscribe publish!", "closes the connection in place of an acknowledgement"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := probeConfig(c.address(t))
			cfg.CA = ca.file
			if c.set != nil {
				c.set(cfg)
			}
			steps, err := probed(t, cfg)
			if stepNames(steps) != c.steps || (err != nil) != strings.HasSuffix(c.steps, "!") {
				t.Fatalf("steps %s (%v), want %s", stepNames(steps), err, c.steps)
			}
			if last := steps[len(steps)-1]; !strings.Contains(last.Advice, c.advice) {
				t.Errorf("advice %q, want %q", last.Advice, c.advice)
			}
		})
	}
}

// TestProbeOfABrokerThatDrops: MQTT 3.1.1 acknowledges also what it drops.
func TestProbeOfABrokerThatDrops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cloud := cloudtest.New(cloudtest.Options{Drop: func(*packets.PublishPacket) bool { return true }})
		cfg := probeConfig("mqtt://127.0.0.1:1883")
		l, err := New(cfg, &config.Gateway{Name: "plant-a", Topic: "busgate"}, nil, Options{
			Dial: func(context.Context, string, string) (net.Conn, error) {
				a, b := bufferedPipe()
				go cloud.ServeConn(b)
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
		r, err := p.reach(t.Context(), false)
		if err != nil {
			t.Fatal(err)
		}
		err = p.canary(w, r, "c")
		if !errors.Is(err, ErrNotDelivered) || stepNames(steps) != "tcp connect subscribe publish delivered!" ||
			!strings.Contains(steps[len(steps)-1].Advice, "the broker acknowledges and drops: the rights (ACL)") {
			t.Errorf("%s: %v, %+v", stepNames(steps), err, steps)
		}
		_ = w.raw.Close()
		_ = r.raw.Close()
		cloud.Close()
		time.Sleep(time.Second)
	})
}
