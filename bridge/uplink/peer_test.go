package uplink

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"busgate/bridge/uplink/cloudtest"
)

// mosquitto is a real broker that persists what it acknowledges when it is
// stopped.
type mosquitto struct {
	t    *testing.T
	dir  string
	port int
	cmd  *exec.Cmd
}

func startMosquitto(t *testing.T) *mosquitto {
	needPeers(t, "mosquitto", "mosquitto_sub")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m := &mosquitto{t: t, dir: t.TempDir(), port: l.Addr().(*net.TCPAddr).Port}
	_ = l.Close()
	conf := fmt.Sprintf("listener %d 127.0.0.1\nallow_anonymous true\npersistence true\npersistence_location %s/\nmax_queued_messages 0\nuser root\nlog_type all\nlog_dest file %s/log\n", m.port, m.dir, m.dir)
	if err := os.WriteFile(filepath.Join(m.dir, "conf"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	m.start()
	t.Cleanup(m.stop)
	return m
}

func (m *mosquitto) addr() string { return "127.0.0.1:" + strconv.Itoa(m.port) }

func (m *mosquitto) start() {
	m.cmd = exec.Command("mosquitto", "-c", filepath.Join(m.dir, "conf"))
	if err := m.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	listening(m.t, m.addr(), 5*time.Second)
}

// listening waits until somebody does.
func listening(t *testing.T, addr string, limit time.Duration) {
	t.Helper()
	for began := time.Now(); time.Since(began) < limit; time.Sleep(10 * time.Millisecond) { // another process: there is nothing to wait on
		if c, err := net.Dial("tcp", addr); err == nil {
			_ = c.Close()
			return
		}
	}
	t.Fatalf("nobody listens on %s after %v", addr, limit)
}

func (m *mosquitto) stop() {
	_ = m.cmd.Process.Signal(syscall.SIGTERM)
	_ = m.cmd.Wait()
}

// receiver is a subscriber of another make.
type receiver struct {
	cmd    *exec.Cmd
	over   chan struct{}
	mu     sync.Mutex
	ledger []string
	ended  bool // the last message came
}

// subscribe does not wait until the subscription stands.
func subscribe(t *testing.T, port int) *receiver {
	r := &receiver{over: make(chan struct{})}
	r.cmd = exec.Command("mosquitto_sub", "-p", strconv.Itoa(port), "-t", "t", "-q", "2", "-c", "-i", "receiver")
	out, err := r.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(r.over)
		for s := bufio.NewScanner(out); s.Scan(); {
			r.mu.Lock()
			if s.Text() == "end" {
				r.ended = true
			} else {
				r.ledger = append(r.ledger, s.Text())
			}
			r.mu.Unlock()
		}
	}()
	return r
}

func (m *mosquitto) subscribe() *receiver {
	r := subscribe(m.t, m.port)
	for range 500 { // it does not say when it has subscribed; the broker's log does
		if strings.Contains(m.log(), "Sending SUBACK to receiver") {
			return r
		}
		time.Sleep(10 * time.Millisecond)
	}
	m.t.Fatal("mosquitto_sub does not subscribe")
	return nil
}

func (r *receiver) seen() (int, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.ledger), r.ended
}

func (r *receiver) stop() []string {
	_ = r.cmd.Process.Kill()
	<-r.over
	_ = r.cmd.Wait()
	return r.ledger
}

// log is what the broker has logged.
func (m *mosquitto) log() string {
	b, err := os.ReadFile(filepath.Join(m.dir, "log"))
	if err != nil {
		return ""
	}
	return string(b)
}

// TestPeerMosquittoIsExact cuts and kills between us and a real broker. At QoS 2 the
// receiver gets each message once and in order.
func TestPeerMosquittoIsExact(t *testing.T) {
	const n, cuts, kills = 20000, 30, 25
	for _, qos := range []byte{1, 2} {
		t.Run(fmt.Sprint("qos ", qos), func(t *testing.T) {
			m := startMosquitto(t)
			r := m.subscribe()
			relay(t, m, qos, n, slices.Concat(slices.Repeat([]string{"cut"}, cuts), slices.Repeat([]string{"kill"}, kills)), r)
			lost, twice, reordered := tally(n, r.stop())
			t.Logf("lost %d, twice %d, reordered %d", lost, twice, reordered)
			if lost != 0 || reordered != 0 || qos == 2 && twice != 0 || twice > (cuts+kills)*relayWindow {
				t.Errorf("lost %d, twice %d, reordered %d", lost, twice, reordered)
			}
		})
	}
}

// TestPeerMosquittoRestarts restarts the broker under us. What its subscriber gets is
// not counted: 2.0.11 sends its own queue again after a restart (2,005 PUBLISH of
// ours became 3,563). Its log tells what it got from us as new.
func TestPeerMosquittoRestarts(t *testing.T) {
	const n, restarts = 5000, 5
	m := startMosquitto(t)
	r := m.subscribe()
	relay(t, m, 2, n, slices.Repeat([]string{"restart"}, restarts), r)
	lost, _, _ := tally(n, r.stop())
	fresh := strings.Count(m.log(), "Received PUBLISH from gw (d0, q2")
	if lost != 0 || fresh > n+1 { // fewer, when the first try did not get there
		t.Errorf("lost %d; %d messages came as new, want at most %d", lost, fresh, n+1)
	}
}

// peer is a broker that is not ours.
type peer interface {
	addr() string
	start()
	stop()
}

const relayWindow = 20

// relay sends n messages with faults in between, and waits until all have come.
func relay(t *testing.T, m peer, qos byte, n int, todo []string, r *receiver) {
	st := newFakeStore(65000, 2*relayWindow)
	st.every, st.noted = saveEvery, qos < 2
	st.fill(n)
	st.put("t", []byte("end"), 0)
	tr := trial{qos: qos, window: relayWindow}
	v := launch(t, tr, st, m.addr(), nil)
	rnd := rand.New(rand.NewPCG(7, uint64(qos)))
	rnd.Shuffle(len(todo), func(i, j int) { todo[i], todo[j] = todo[j], todo[i] })
	for i, kind := range todo {
		for k, end := r.seen(); k < n*i/len(todo)*9/10 && !end; k, end = r.seen() {
			time.Sleep(time.Millisecond) // another process: there is nothing to wait on
		}
		switch kind {
		case "cut":
			v.cut()
		case "kill":
			st = v.kill()
			v = launch(t, tr, st, m.addr(), v.facts)
		case "restart":
			m.stop()
			m.start()
		}
	}
	for end := false; !end && t.Context().Err() == nil; _, end = r.seen() {
		time.Sleep(10 * time.Millisecond)
	}
	v.cancel()
	<-v.ended
}

// cut resets the connection of a process that lives on.
func (v *victim) cut() {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, c := range v.conns {
		_ = c.(*net.TCPConn).SetLinger(0)
		_ = c.Close()
	}
	v.conns = nil
}

// TestTheSuiteFailsALibraryClient puts the library's client with its file store
// in our place: a suite that passes it would prove nothing.
func TestTheSuiteFailsALibraryClient(t *testing.T) {
	if !*full {
		t.Skip("only with -exact: takes half a minute")
	}
	cloud, err := cloudtest.Listen(cloudtest.Options{AckDelay: 20 * time.Millisecond, AtPublish: true})
	if err != nil {
		t.Fatal(err)
	}
	defer cloud.Close()
	const n, faults, window = 20000, 50, 100
	o := mqtt.NewClientOptions().AddBroker("tcp://" + cloud.Addr()).SetClientID("gw").SetCleanSession(false).
		SetStore(mqtt.NewFileStore(t.TempDir())).SetMaxReconnectInterval(20 * time.Millisecond).SetConnectRetryInterval(10 * time.Millisecond)
	c := mqtt.NewClient(o)
	if tok := c.Connect(); tok.Wait() && tok.Error() != nil {
		t.Fatal(tok.Error())
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		rnd := rand.New(rand.NewPCG(1, 1))
		for range faults {
			for at := cloud.Len() + n/faults*9/10; cloud.Len() < at && ctx.Err() == nil; {
				time.Sleep(time.Millisecond)
			}
			time.Sleep(time.Duration(rnd.IntN(40)) * time.Millisecond)
			cloud.Cut()
		}
	}()
	flying := make(chan mqtt.Token, window)
	go func() {
		defer close(flying)
		for i := range n {
			flying <- c.Publish("t", 2, false, strconv.Itoa(i))
		}
	}()
	for tok := range flying {
		tok.WaitTimeout(5 * time.Second)
	}
	c.Disconnect(1000)
	var ledger []string
	for _, d := range cloud.Ledger() {
		if d.Topic == "t" {
			ledger = append(ledger, string(d.Payload))
		}
	}
	lost, twice, reordered := tally(n, ledger)
	t.Logf("library client: lost %d, twice %d, reordered %d, violations %d", lost, twice, reordered, len(cloud.Violations()))
	if lost+twice+reordered == 0 {
		t.Error("the library's client passes: the suite proves nothing")
	}
}
