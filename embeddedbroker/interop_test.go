package embeddedbroker_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"busgate/config"
	"busgate/embeddedbroker"
)

// serve runs a broker on a TCP port until the test ends.
func serve(t *testing.T, change ...func(*config.Broker)) (b *embeddedbroker.Broker, addr string) {
	t.Helper()
	cfg := config.Broker{Enabled: true, Anonymous: true, MaxClients: 200, MaxPacket: 1 << 20, MaxQueued: 100_000,
		MaxQueuedSize: 64 << 20, SessionExpiry: time.Hour, Retain: true, MaxInflight: 100}
	for _, f := range change {
		f(&cfg)
	}
	b, err := embeddedbroker.New(cfg, embeddedbroker.NewMemory(), embeddedbroker.Options{})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { b.Run(ctx) })
	wg.Go(func() { b.Serve(ctx, l) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return b, l.Addr().String()
}

// tool finds a program that is not ours, or skips.
func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s is not installed", name)
	}
	return path
}

// The subscriber's session is made first, so that no moment matters: part of the
// messages waits for it, part comes while it is there.
func TestMosquittoClients(t *testing.T) {
	pub, sub := tool(t, "mosquitto_pub"), tool(t, "mosquitto_sub")
	_, addr := serve(t)
	host, port, _ := strings.Cut(addr, ":")
	for _, version := range []string{"mqttv31", "mqttv311", "mqttv5"} {
		for qos := 1; qos < 3; qos++ {
			common := []string{"-h", host, "-p", port, "-V", version, "-q", fmt.Sprint(qos), "-t", "a/b/c"}
			session := append(common, "-i", fmt.Sprintf("s-%s-%d", version, qos), "-c")
			if version == "mqttv5" {
				session = append(session, "-x", "100")
			}
			if o, err := exec.Command(sub, append(session, "-E")...).CombinedOutput(); err != nil {
				t.Fatalf("%s: %v %s", version, err, o)
			}
			s := exec.Command(sub, append(session, "-C", "20", "-W", "10", "-F", "%t %q %p")...)
			var out bytes.Buffer
			s.Stdout = &out
			if err := s.Start(); err != nil {
				t.Fatal(err)
			}
			var lines, want strings.Builder
			for i := range 20 {
				fmt.Fprintln(&lines, "line", i)
				fmt.Fprintf(&want, "a/b/c %d line %d\n", qos, i)
			}
			p := exec.Command(pub, append(common, "-l")...)
			p.Stdin = strings.NewReader(lines.String())
			if o, err := p.CombinedOutput(); err != nil {
				t.Errorf("%s QoS %d: publish: %v %s", version, qos, err, o)
			}
			if err := s.Wait(); err != nil || out.String() != want.String() {
				t.Errorf("%s QoS %d: %v, got\n%swant\n%s", version, qos, err, out.String(), want.String())
			}
		}
	}
}

func TestMosquittoRetainedAndOffline(t *testing.T) {
	pub, sub := tool(t, "mosquitto_pub"), tool(t, "mosquitto_sub")
	_, addr := serve(t)
	host, port, _ := strings.Cut(addr, ":")
	run := func(name string, args ...string) string {
		t.Helper()
		o, err := exec.Command(name, append([]string{"-h", host, "-p", port}, args...)...).CombinedOutput()
		if err != nil {
			t.Errorf("%v: %v %s", args, err, o)
		}
		return string(o)
	}
	run(pub, "-t", "r/1", "-m", "kept", "-r", "-q", "1")
	if got := run(sub, "-t", "r/#", "-C", "1", "-W", "5", "-F", "%t %r %p"); got != "r/1 1 kept\n" {
		t.Errorf("retained: %q", got)
	}
	run(sub, "-i", "sleeper", "-c", "-q", "2", "-t", "o/#", "-E")
	for i := range 5 {
		run(pub, "-t", "o/x", "-m", fmt.Sprint(i), "-q", "2", "-V", "mqttv5", "-D", "publish", "user-property", "k", "v")
	}
	if got := run(sub, "-i", "sleeper", "-c", "-q", "2", "-t", "o/#", "-C", "5", "-W", "5"); got != "0\n1\n2\n3\n4\n" {
		t.Errorf("offline: %q", got)
	}
}

func TestPahoGo(t *testing.T) {
	_, addr := serve(t)
	client := func(id string, clean bool) mqtt.Client {
		o := mqtt.NewClientOptions().AddBroker("tcp://" + addr).SetClientID(id).SetCleanSession(clean).SetOrderMatters(true)
		c := mqtt.NewClient(o)
		if tk := c.Connect(); tk.Wait() && tk.Error() != nil {
			t.Fatal(tk.Error())
		}
		return c
	}
	const total = 300
	got := make(chan string, total)
	s := client("sub", false)
	if tk := s.Subscribe("p/+", 2, func(_ mqtt.Client, m mqtt.Message) { got <- string(m.Payload()) }); tk.Wait() && tk.Error() != nil {
		t.Fatal(tk.Error())
	}
	p := client("pub", true)
	for i := range total {
		if tk := p.Publish("p/x", byte(1+i%2), false, fmt.Sprint(i)); i == total-1 && tk.Wait() && tk.Error() != nil {
			t.Fatal(tk.Error())
		}
	}
	seen := map[string]bool{}
	for range total {
		seen[<-got] = true
	}
	if len(seen) != total {
		t.Errorf("%d of %d", len(seen), total)
	}
	s.Disconnect(100)
	p.Disconnect(100)
}

const pahoPython = `
import sys, threading
import paho.mqtt.client as mqtt
host, port = sys.argv[1], int(sys.argv[2])
def make(cid, proto):
    kw = dict(client_id=cid, protocol=proto)
    if hasattr(mqtt, "CallbackAPIVersion"):
        return mqtt.Client(mqtt.CallbackAPIVersion.VERSION1, **kw)
    return mqtt.Client(**kw)
for proto in (mqtt.MQTTv31, mqtt.MQTTv311, mqtt.MQTTv5):
    got, done, ready = [], threading.Event(), threading.Event()
    s, p = make("s%d" % proto, proto), make("p%d" % proto, proto)
    def on_message(c, u, m):
        got.append(m.payload.decode())
        if len(got) == 60: done.set()
    s.on_message = on_message
    s.on_subscribe = lambda *a: ready.set()
    s.connect(host, port); s.loop_start()
    s.subscribe("y/#", 2)
    assert ready.wait(5), "no SUBACK"
    p.connect(host, port); p.loop_start()
    for i in range(60): p.publish("y/z", str(i), qos=i % 3).wait_for_publish()
    assert done.wait(5), got
    for q in range(3):
        mine = [int(x) for x in got if int(x) % 3 == q]
        assert mine == sorted(mine) and len(mine) == 20, mine
    p.disconnect(); s.disconnect(); p.loop_stop(); s.loop_stop()
print("ok")
`

func TestPahoPython(t *testing.T) {
	py := tool(t, "python3")
	if exec.Command(py, "-c", "import paho.mqtt.client").Run() != nil {
		t.Skip("python3-paho-mqtt is not installed")
	}
	_, addr := serve(t)
	host, port, _ := strings.Cut(addr, ":")
	out, err := exec.Command(py, "-c", pahoPython, host, port).CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "ok" {
		t.Errorf("%v %s", err, out)
	}
}
