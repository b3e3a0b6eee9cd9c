package embeddedbroker

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"busgate/config"
)

// peers skips a test that needs programs that are not ours.
func peers(t *testing.T, programs ...string) {
	t.Helper()
	if os.Getenv("BUSGATE_PEERS") == "" {
		t.Skip("needs other programs: BUSGATE_PEERS=1 go test -run Peer ./embeddedbroker (.ci/run installs them)")
	}
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("needs %s: apt-get install mosquitto mosquitto-clients python3-paho-mqtt", p)
		}
	}
}

// house is a broker with all its doors.
type house struct {
	b              *Broker
	tcp, tls, wss  string // host:port
	ws             string
	unix           string
	ca, cert, key  string // files: whom clients trust, and who they are
	user           string // in the certificate
	trusted, owned *keyPair
}

func openHouse(t *testing.T) *house {
	h := &house{unix: filepath.Join(t.TempDir(), "mqtt.sock"), user: "joe"}
	ca := newKeyPair(t, "ca", nil)
	server, client := newKeyPair(t, "server", ca), newKeyPair(t, h.user, ca)
	h.ca, h.cert, h.key, h.trusted, h.owned = ca.file("cert.pem"), client.file("cert.pem"), client.file("key.pem"), ca, client
	b, ls := listenAll(t, func(c *config.Broker) {
		c.Listen, c.TLS.Listen, c.WebSocket.Listen, c.Socket = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0", h.unix
		c.TLS.Cert, c.TLS.Key, c.TLS.ClientCA = server.file("cert.pem"), server.file("key.pem"), h.ca
	})
	h.b, h.tcp, h.tls, h.wss = b, ls[0].Addr().String(), ls[1].Addr().String(), ls[2].Addr().String()
	_, ls = listenAll(t, func(c *config.Broker) { c.WebSocket.Listen = "127.0.0.1:0" })
	h.ws = ls[0].Addr().String()
	return h
}

// TestPahoGo sends messages of paho.mqtt.golang through every door.
func TestPahoGo(t *testing.T) {
	h := openHouse(t)
	pool := x509.NewCertPool()
	pool.AddCert(h.trusted.cert)
	conf := &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{h.owned.pair}}
	for _, address := range []string{"tcp://" + h.tcp, "ssl://" + h.tls, "ws://" + h.ws + "/mqtt", "wss://" + h.wss + "/mqtt", "unix://" + h.unix} {
		for _, version := range []uint{3, 4} {
			client := func(id string, clean bool) mqtt.Client {
				o := mqtt.NewClientOptions().AddBroker(address).SetClientID(id).SetCleanSession(clean).SetOrderMatters(true).
					SetTLSConfig(conf).SetProtocolVersion(version)
				if path, ok := strings.CutPrefix(address, "unix://"); ok {
					o.SetCustomOpenConnectionFn(func(*url.URL, mqtt.ClientOptions) (net.Conn, error) { return net.Dial("unix", path) })
				}
				c := mqtt.NewClient(o)
				if tk := c.Connect(); tk.Wait() && tk.Error() != nil {
					t.Fatal(address, tk.Error())
				}
				return c
			}
			const total = 100
			name := fmt.Sprint(strings.Split(address, ":")[0], version)
			got := make(chan string, 2*total)
			s := client("sub-"+name, false)
			if tk := s.Subscribe("p/+", 2, func(_ mqtt.Client, m mqtt.Message) { got <- string(m.Payload()) }); tk.Wait() && tk.Error() != nil {
				t.Fatal(tk.Error())
			}
			p := client("pub-"+name, true)
			var all []mqtt.Token
			for i := range total {
				all = append(all, p.Publish("p/x", byte(1+i%2), false, fmt.Sprint(i)))
			}
			for _, tk := range all {
				if tk.Wait(); tk.Error() != nil {
					t.Fatal(address, tk.Error())
				}
			}
			for i := range total {
				if x := <-got; x != fmt.Sprint(i) {
					t.Fatalf("%s: message %d is %s", address, i, x)
				}
			}
			s.Disconnect(50)
			p.Disconnect(50)
		}
	}
}

// The subscriber's session is made first, so that no moment matters: part of the
// messages waits for it, part comes while it is there.
func TestPeerMosquittoClients(t *testing.T) {
	peers(t, "mosquitto_pub", "mosquitto_sub")
	h := openHouse(t)
	host, port, _ := strings.Cut(h.tcp, ":")
	_, secure, _ := strings.Cut(h.tls, ":")
	for door, where := range map[string][]string{
		"tcp":  {"-h", host, "-p", port},
		"tls":  {"-h", host, "-p", secure, "--cafile", h.ca, "--cert", h.cert, "--key", h.key},
		"unix": {"--unix", h.unix},
	} {
		for _, version := range []string{"mqttv31", "mqttv311", "mqttv5"} {
			for qos := range 3 {
				h.relay(t, door+" "+version, qos, append(slices.Clone(where), "-V", version))
			}
		}
	}
	// No certificate, no service.
	if out, err := exec.Command("mosquitto_pub", "-h", host, "-p", secure, "--cafile", h.ca, "-t", "x", "-m", "x").CombinedOutput(); err == nil {
		t.Errorf("without a certificate: %s", out)
	}
	if i := slices.IndexFunc(h.b.Clients(), func(c ClientInfo) bool { return c.User == h.user }); i < 0 {
		t.Errorf("nobody has the name of the certificate: %+v", h.b.Clients())
	}
}

// relay sends 20 lines from mosquitto_pub to a session of mosquitto_sub.
func (h *house) relay(t *testing.T, what string, qos int, where []string) {
	t.Helper()
	id := strings.ReplaceAll(what, " ", "-") + fmt.Sprint(qos)
	common := append(slices.Clone(where), "-q", fmt.Sprint(qos), "-t", "a/b/c")
	session := append(slices.Clone(common), "-i", id, "-c")
	if strings.HasSuffix(what, "mqttv5") {
		session = append(session, "-x", "100")
	}
	if o, err := exec.Command("mosquitto_sub", append(slices.Clone(session), "-E")...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v %s", what, err, o)
	}
	var lines, want strings.Builder
	for i := range 20 {
		fmt.Fprintln(&lines, "line", i)
		fmt.Fprintf(&want, "a/b/c %d line %d\n", qos, i)
	}
	s := exec.Command("mosquitto_sub", append(slices.Clone(session), "-C", "20", "-W", "20", "-F", "%t %q %p")...)
	var got bytes.Buffer
	s.Stdout, s.Stderr = &got, &got
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	h.present(id) // QoS 0 is for those who are there
	p := exec.Command("mosquitto_pub", append(slices.Clone(common), "-l")...)
	p.Stdin = strings.NewReader(lines.String())
	if o, err := p.CombinedOutput(); err != nil {
		t.Errorf("%s QoS %d: publish: %v %s", what, qos, err, o)
	}
	if err := s.Wait(); err != nil || got.String() != want.String() {
		t.Errorf("%s QoS %d: %v, got\n%swant\n%s", what, qos, err, &got, &want)
	}
}

// present waits until a client is connected.
func (h *house) present(id string) {
	for !slices.ContainsFunc(h.b.Clients(), func(c ClientInfo) bool { return c.ID == id && c.Connected }) {
		time.Sleep(time.Millisecond)
	}
}

func TestPeerMosquittoRetainedAndOffline(t *testing.T) {
	peers(t, "mosquitto_pub", "mosquitto_sub")
	h := openHouse(t)
	host, port, _ := strings.Cut(h.tcp, ":")
	run := func(name string, args ...string) string {
		t.Helper()
		o, err := exec.Command(name, append([]string{"-h", host, "-p", port}, args...)...).CombinedOutput()
		if err != nil {
			t.Errorf("%v: %v %s", args, err, o)
		}
		return string(o)
	}
	run("mosquitto_pub", "-t", "r/1", "-m", "kept", "-r", "-q", "1")
	if got := run("mosquitto_sub", "-t", "r/#", "-C", "1", "-W", "5", "-F", "%t %r %p"); got != "r/1 1 kept\n" {
		t.Errorf("retained: %q", got)
	}
	run("mosquitto_sub", "-i", "sleeper", "-c", "-q", "2", "-t", "o/#", "-E")
	for i := range 5 {
		run("mosquitto_pub", "-t", "o/x", "-m", fmt.Sprint(i), "-q", "2", "-V", "mqttv5", "-D", "publish", "user-property", "k", "v")
	}
	if got := run("mosquitto_sub", "-i", "sleeper", "-c", "-q", "2", "-t", "o/#", "-C", "5", "-W", "5"); got != "0\n1\n2\n3\n4\n" {
		t.Errorf("offline: %q", got)
	}
}

const pahoPython = `
import socket, sys, threading
import paho.mqtt.client as mqtt
door, where, ca, cert, key = sys.argv[1:]
class Unix(mqtt.Client):
    def _create_socket_connection(self):
        s = socket.socket(socket.AF_UNIX)
        s.connect(where)
        return s
def make(cid, proto):
    kw = dict(client_id=cid, protocol=proto)
    if door in ("ws", "wss"): kw["transport"] = "websockets"
    if hasattr(mqtt, "CallbackAPIVersion"): kw["callback_api_version"] = mqtt.CallbackAPIVersion.VERSION1
    c = (Unix if door == "unix" else mqtt.Client)(**kw)
    if door in ("ws", "wss"): c.ws_set_options(path="/mqtt")
    if door in ("tls", "wss"): c.tls_set(ca, cert, key)
    return c
host, port = ("localhost", 1) if door == "unix" else (where.rsplit(":", 1)[0], int(where.rsplit(":", 1)[1]))
for proto in (mqtt.MQTTv31, mqtt.MQTTv311, mqtt.MQTTv5):
    got, done, ready = [], threading.Event(), threading.Event()
    s, p = make("s%d" % proto, proto), make("p%d" % proto, proto)
    def on_message(c, u, m):
        got.append(m.payload.decode())
        if len(got) == 60: done.set()
    s.on_message = on_message
    s.on_connect = lambda c, *a: c.subscribe("y/#", 2)
    s.on_subscribe = lambda *a: ready.set()
    s.connect(host, port); s.loop_start()
    assert ready.wait(10), "no SUBACK"
    p.connect(host, port); p.loop_start()
    for i in range(60): p.publish("y/z", str(i), qos=i % 3).wait_for_publish()
    assert done.wait(10), got
    for q in range(3):
        mine = [int(x) for x in got if int(x) % 3 == q]
        assert mine == sorted(mine) and len(mine) == 20, mine
    p.disconnect(); s.disconnect(); p.loop_stop(); s.loop_stop()
print("ok")
`

// pythonWithPaho finds an interpreter that has the library: the first of the
// path need not be that of the distribution.
func pythonWithPaho(t *testing.T) string {
	t.Helper()
	var tried []string
	for _, dir := range append([]string{"/usr/bin"}, filepath.SplitList(os.Getenv("PATH"))...) {
		py := filepath.Join(dir, "python3")
		if _, err := os.Stat(py); errors.Is(err, fs.ErrNotExist) || slices.Contains(tried, py) {
			continue
		}
		if exec.Command(py, "-c", "import paho.mqtt.client").Run() == nil {
			return py
		}
		tried = append(tried, py)
	}
	t.Skipf("none of %s can import paho: apt-get install python3-paho-mqtt", strings.Join(tried, ", "))
	return ""
}

func TestPeerPahoPython(t *testing.T) {
	peers(t)
	py := pythonWithPaho(t)
	h := openHouse(t)
	for door, where := range map[string]string{"tcp": h.tcp, "tls": h.tls, "ws": h.ws, "wss": h.wss, "unix": h.unix} {
		out, err := exec.Command(py, "-c", pahoPython, door, where, h.ca, h.cert, h.key).CombinedOutput()
		if err != nil || strings.TrimSpace(string(out)) != "ok" {
			t.Errorf("%s: %v %s", door, err, out)
		}
	}
}
