package uplink

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"testing"
	"time"

	"busgate/bridge/uplink/cloudtest"
	"busgate/config"
	"busgate/embeddedbroker"
)

// noticed is how long a link that publishes 50 messages a second takes to give a
// connection up that has gone silent.
func (r *rig) noticed(limit time.Duration) time.Duration {
	for began := time.Now(); ; {
		r.st.put("t", []byte("x"), embeddedbroker.KindLAN)
		time.Sleep(20 * time.Millisecond)
		took := time.Since(began)
		for _, n := range r.link.Status().Closed {
			if n > 0 {
				return took
			}
		}
		if took > limit {
			return took
		}
	}
}

// TestHalfOpenLink: everything disappears while the connection stays up; it is
// given up within keep-alive + 15 s, whatever the window holds.
func TestHalfOpenLink(t *testing.T) {
	for _, c := range []struct {
		keepAlive time.Duration
		window    int
		qos       byte
	}{
		{5 * time.Second, 20, 1}, {5 * time.Second, 1024, 1}, {5 * time.Second, 1024, 0}, {5 * time.Second, 1024, 2},
		{10 * time.Second, 100, 1}, {10 * time.Second, 1024, 1}, {time.Minute, 20, 1},
	} {
		t.Run(fmt.Sprint(c.keepAlive, " window ", c.window, " qos ", c.qos), func(t *testing.T) {
			virtual(t, cloudtest.Options{AckDelay: 50 * time.Millisecond}, func(r *rig) {
				r.cfg.KeepAlive, r.cfg.Window, r.cfg.QoS = c.keepAlive, c.window, c.qos
				r.start()
				time.Sleep(5 * time.Second)
				r.cloud.Hole(time.Hour)
				if took := r.noticed(2 * time.Minute); took > c.keepAlive+15*time.Second {
					t.Errorf("noticed after %v, %v", took, r.link.Status().Closed)
				}
				r.halt()
				r.cloud.Close()
			})
		})
	}
}

// halfOpenEnv makes the test binary the gateway of TestPeerHalfOpenOnARealNetwork.
const halfOpenEnv = "BUSGATE_UPLINK_HALFOPEN"

// TestPeerHalfOpenOnARealNetwork loses every packet of a veth pair between two
// network namespaces under a link that publishes 50 messages a second: the
// kernel's own retransmissions are part of it. It needs root, ip and unshare.
func TestPeerHalfOpenOnARealNetwork(t *testing.T) {
	needPeers(t, "ip", "unshare")
	if os.Getuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	for _, keepAlive := range []time.Duration{5 * time.Second, 10 * time.Second} {
		t.Run(keepAlive.String(), func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command("unshare", "--net", "--", os.Args[0], "-test.run", "^TestHalfOpenInside$", "-test.v")
			cmd.Env = append(os.Environ(), halfOpenEnv+"="+keepAlive.String())
			out, err := cmd.CombinedOutput()
			t.Logf("%s", out)
			if err != nil {
				t.Error(err)
			}
		})
	}
}

// TestHalfOpenInside is the part of the test above that runs in a namespace of
// its own.
func TestHalfOpenInside(t *testing.T) {
	keepAlive, err := time.ParseDuration(os.Getenv(halfOpenEnv))
	if err != nil {
		t.Skip("run by TestPeerHalfOpenOnARealNetwork")
	}
	inFar := farBroker(t)
	st := newFakeStore(0, 1024)
	cfg := &config.Uplink{Name: "cloud", Addresses: []string{"mqtt://10.87.0.2:1883"}, ClientID: "gw", QoS: 1, Window: 1024, KeepAlive: keepAlive, Send: []string{"#"}, Will: true}
	l, err := New(cfg, &config.Gateway{Name: "gw", Topic: "busgate"}, nil, Options{Usage: st.usage, Stream: 1})
	if err != nil {
		t.Fatal(err)
	}
	l.src = st
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var down time.Time
	for began := time.Now(); ; {
		now := <-tick.C
		st.put("t", []byte("x"), embeddedbroker.KindLAN)
		s := l.Status()
		switch {
		case now.Sub(began) > 2*time.Minute:
			t.Fatalf("not noticed in 2 minutes: %+v", s)
		case down.IsZero() && s.Sent > 100:
			// The far end stays up and the near end has a route: what is sent
			// disappears without an answer.
			if out, err := inFar("ip", "addr", "flush", "dev", "far").CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			down = now
			for k := range s.Closed {
				t.Fatalf("closed before: %s", k)
			}
		case !down.IsZero() && len(s.Closed) > 0:
			took := now.Sub(down)
			t.Logf("keep-alive %v, 50 messages a second: noticed after %.1f s (%v), bound %v", keepAlive, took.Seconds(), s.Closed, keepAlive+15*time.Second)
			if took > keepAlive+15*time.Second {
				t.Error("too late")
			}
			return
		}
	}
}

// farBroker makes a network namespace behind a veth pair with a mosquitto on
// 10.87.0.2 in it, and returns how to run a command there.
func farBroker(t *testing.T) (inFar func(args ...string) *exec.Cmd) {
	t.Helper()
	ip := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v: %s", args, err, out)
		}
	}
	// The far end is a namespace that a child holds open.
	holder := exec.Command("unshare", "--net", "--", "sh", "-c", "echo ready; exec sleep 300")
	ready, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = holder.Process.Kill(); _ = holder.Wait() })
	if _, err := ready.Read(make([]byte, 16)); err != nil {
		t.Fatal(err)
	}
	far := fmt.Sprint(holder.Process.Pid)
	ip("link", "set", "lo", "up")
	ip("link", "add", "near", "type", "veth", "peer", "name", "far", "netns", far)
	ip("addr", "add", "10.87.0.1/24", "dev", "near")
	ip("link", "set", "near", "up")
	inFar = func(args ...string) *exec.Cmd {
		return exec.Command("nsenter", append([]string{"-t", far, "-n"}, args...)...)
	}
	for _, a := range [][]string{{"ip", "addr", "add", "10.87.0.2/24", "dev", "far"}, {"ip", "link", "set", "far", "up"}, {"ip", "link", "set", "lo", "up"}} {
		if out, err := inFar(a...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", a, err, out)
		}
	}
	broker := inFar("mosquitto", "-c", writeConf(t, "listener 1883 10.87.0.2\nallow_anonymous true\n"))
	if err := broker.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = broker.Process.Kill(); _ = broker.Wait() })
	return inFar
}

func writeConf(t *testing.T, text string) string {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "conf")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
	_ = f.Chmod(0o644)
	return f.Name()
}

// needPeers skips a test with programs that are not ours unless it is asked for.
func needPeers(t *testing.T, programs ...string) {
	t.Helper()
	if os.Getenv("BUSGATE_PEERS") == "" {
		t.Skip("needs other programs: BUSGATE_PEERS=1 go test -v -run Peer ./bridge/uplink (.ci/run installs them)")
	}
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("needs %s: apt-get install mosquitto mosquitto-clients iproute2 util-linux rabbitmq-server", p)
		}
	}
}

// freePort is a port of the loopback that nobody listens on now.
func freePort(t *testing.T) int {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	return ln.Addr().(*net.TCPAddr).Port
}
