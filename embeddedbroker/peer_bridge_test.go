package embeddedbroker

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"busgate/embeddedbroker/packet"
)

// bridge is a mosquitto that is configured as a bridge to our broker.
type bridge struct {
	dir, addr string
	cmd       *exec.Cmd
}

func newBridge(t *testing.T, to, version string) *bridge {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &bridge{dir: t.TempDir(), addr: l.Addr().String()}
	l.Close()
	conf := fmt.Sprintf(`listener %d 127.0.0.1
allow_anonymous true
persistence true
persistence_location %s/
autosave_interval 1
autosave_on_changes true
user root
log_type all
log_dest file %s/log
connection plant
address %s
bridge_protocol_version %s
remote_clientid plant-bridge
cleansession false
try_private true
notifications true
start_type automatic
restart_timeout 1
topic up/# out 2
topic down/# in 2
topic both/# both 2
topic there/# out 1 "" plant/
`, l.Addr().(*net.TCPAddr).Port, b.dir, b.dir, to, version)
	if err := os.WriteFile(filepath.Join(b.dir, "conf"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *bridge) start(t *testing.T) {
	t.Helper()
	b.cmd = exec.Command("mosquitto", "-c", filepath.Join(b.dir, "conf"))
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if nc, err := net.Dial("tcp", b.addr); err == nil {
			nc.Close()
			return
		}
		if time.Now().After(end) {
			t.Fatal("mosquitto does not listen")
		}
	}
}

func (b *bridge) kill() {
	b.cmd.Process.Kill()
	b.cmd.Wait()
}

// meet connects one of our test clients to a broker on TCP.
func meet(t *testing.T, addr, id string, opts ...option) *client {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	nc.SetDeadline(time.Now().Add(time.Minute)) // rather than for ever
	c := newClient(t, nc, packet.V311)
	p := &packet.Connect{Version: packet.V311, ClientID: id, CleanStart: true}
	for _, o := range opts {
		o(p)
	}
	c.send(p)
	if c.ack = expect[*packet.Connack](c); c.ack.Code != 0 {
		t.Fatalf("%s: code %d", id, c.ack.Code)
	}
	return c
}

// A mosquitto as a bridge, both directions at QoS 2, with its notifications and
// its will, over a kill -9 of the bridge: nothing is lost, nothing comes twice,
// nothing comes back to where it came from.
func TestPeerMosquittoBridge(t *testing.T) {
	peers(t, "mosquitto")
	for _, version := range []string{"mqttv31", "mqttv311", "mqttv50"} {
		t.Run(version, func(t *testing.T) { testBridge(t, version) })
	}
}

func testBridge(t *testing.T, version string) {
	h := openHouse(t)
	m := newBridge(t, h.tcp, version)
	watch := meet(t, h.tcp, "watch")
	watch.subscribe("$SYS/broker/connection/plant-bridge/state", 1)
	m.start(t)
	defer m.kill()
	watch.take("$SYS/broker/connection/plant-bridge/state", "1")
	here, there := meet(t, h.tcp, "here", persistent), meet(t, m.addr, "there")
	here.subscribeWith(nil, packet.Filter{Filter: "up/#", QoS: 2}, packet.Filter{Filter: "both/#", QoS: 2}, packet.Filter{Filter: "plant/#", QoS: 2})
	there.subscribeWith(nil, packet.Filter{Filter: "down/#", QoS: 2}, packet.Filter{Filter: "both/#", QoS: 2})
	const total = 50
	for i := range total {
		there.publish("up/x", n("up", i), 2, 1)
		here.take("up/x", n("up", i))
		here.publish("down/x", n("down", i), 2, 1)
		there.take("down/x", n("down", i))
	}
	there.publish("there/x", "renamed", 2, 1)
	if got := here.take("plant/there/x", "renamed"); got.QoS != 1 {
		t.Errorf("QoS %d", got.QoS)
	}
	// Both ways on one topic: each side sees each message once.
	there.send(&packet.Publish{Topic: []byte("both/t"), QoS: 2, PID: 9, Payload: []byte("from there")})
	there.find(packet.PUBREC, 9)
	there.send(&packet.Ack{Type: packet.PUBREL, PID: 9})
	there.find(packet.PUBCOMP, 9)
	here.take("both/t", "from there")
	there.take("both/t", "from there")
	here.send(&packet.Publish{Topic: []byte("both/h"), QoS: 1, PID: 9, Payload: []byte("from here")})
	here.find(packet.PUBACK, 9)
	here.take("both/h", "from here")
	there.take("both/h", "from here")
	// A will of a client of the bridge, retained, comes up as a message.
	dying := meet(t, m.addr, "dying", will("up/will", "gone", 2, true))
	dying.close()
	if got := here.take("up/will", "gone"); got.QoS != 2 {
		t.Errorf("will at QoS %d", got.QoS)
	}
	late := meet(t, h.tcp, "late")
	late.subscribe("up/will", 2)
	if got := late.take("up/will", "gone"); !got.Retain {
		t.Error("the retained will is not retained here")
	}
	here.ping()
	here.silent()
	there.ping()
	there.silent()

	// The bridge is killed: its will says so. What is published now waits for it,
	// if it asked for a session: mosquitto 2.0.11 does not in 5.0.
	lasting := slices.ContainsFunc(h.b.Clients(), func(c ClientInfo) bool { return c.ID == "plant-bridge" && c.Persistent })
	if !lasting && version != "mqttv50" {
		t.Errorf("the session of the bridge does not last: %+v", h.b.Clients())
	}
	m.kill()
	watch.take("$SYS/broker/connection/plant-bridge/state", "0")
	for i := range total {
		here.publish("down/x", n("late", i), 2, 1)
	}
	m.start(t)
	watch.take("$SYS/broker/connection/plant-bridge/state", "1")
	if lasting { // its own subscribers went with it: its log says what came
		came := func() int { return m.received("down/x") - total }
		for end := time.Now().Add(10 * time.Second); came() < total && time.Now().Before(end); {
			time.Sleep(10 * time.Millisecond)
		}
		if n := came(); n != total {
			t.Errorf("%d of %d came after the kill", n, total)
		}
	}
}

// received counts the messages of a topic that the bridge took from us.
func (b *bridge) received(topic string) int {
	text, _ := os.ReadFile(filepath.Join(b.dir, "log"))
	n := 0
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, "Received PUBLISH from local.plant") && strings.Contains(line, "'"+topic+"'") {
			n++
		}
	}
	return n
}
