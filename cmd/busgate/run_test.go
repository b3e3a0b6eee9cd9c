package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"busgate/devices/sim"
)

// screen is a writer that a test can wait on.
type screen struct {
	mu    sync.Mutex
	text  bytes.Buffer
	wakes chan struct{}
}

func newScreen() *screen { return &screen{wakes: make(chan struct{}, 1)} }

func (s *screen) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case s.wakes <- struct{}{}:
	default:
	}
	return s.text.Write(b)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// until waits until part was printed n times.
func (s *screen) until(t *testing.T, part string, n int) {
	t.Helper()
	limit := time.After(30 * time.Second)
	for strings.Count(s.String(), part) < n {
		select {
		case <-s.wakes:
		case <-limit:
			t.Fatalf("%q was not printed %d times:\n%s", part, n, s)
		}
	}
}

// daemon is `busgate run` in this process.
type daemon struct {
	log     *screen
	signals chan os.Signal
	stop    context.CancelFunc
	code    chan int
}

func startDaemon(t *testing.T, file string, flags ...string) *daemon {
	t.Helper()
	if len(flags) == 0 { // not the socket of a daemon that this machine may run
		flags = []string{"--socket", socketPath(t)}
	}
	ctx, cancel := context.WithCancel(t.Context())
	d := &daemon{log: newScreen(), signals: make(chan os.Signal, 1), stop: cancel, code: make(chan int, 1)}
	e := &env{stdin: strings.NewReader(""), stdout: d.log, stderr: d.log, signals: d.signals}
	go func() { d.code <- dispatch(ctx, e, commands(), append([]string{"run", "--config", file}, flags...)) }()
	t.Cleanup(cancel)
	return d
}

// lanClient collects "topic payload" of everything below busgate/.
func lanClient(t *testing.T, address string) (mqtt.Client, *screen) {
	t.Helper()
	seen := newScreen()
	c := mqtt.NewClient(mqtt.NewClientOptions().AddBroker("tcp://" + address).SetAutoReconnect(false).SetWriteTimeout(5 * time.Second))
	if err := done(c.Connect()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Disconnect(0) })
	err := done(c.Subscribe("busgate/#", 1, func(_ mqtt.Client, m mqtt.Message) { fmt.Fprintf(seen, "%s %s\n", m.Topic(), m.Payload()) }))
	if err != nil {
		t.Fatal(err)
	}
	return c, seen
}

// TestRun: a daemon reads, serves, reloads in every way that section 11 of the
// configuration's rules names, and stops; the service manager hears of it.
func TestRun(t *testing.T) {
	manager := notifySocket(t)
	inverter, err := sim.ListenTCP("127.0.0.1:0", 1, sim.NewInverter(3, 1))
	if err != nil {
		t.Fatal(err)
	}
	go inverter.Run(t.Context())
	dir := t.TempDir()
	file := filepath.Join(dir, "busgate.toml")
	write := func(listen, more string) {
		t.Helper()
		text := fmt.Sprintf("[gateway]\nname = \"t\"\ninterval = \"100ms\"\ndata_dir = %q\n[web]\nlisten = \"\"\n[broker]\nlisten = %q\n"+
			"[bus.roof]\ntcp = %q\n[device.inverter]\nbus = \"roof\"\nunit_id = 3\norder = \"CDAB\"\n[device.inverter.points]\n"+
			"power = { input = 5030, type = \"int32\", unit = \"W\" }\nlimit = { holding = 5007, scale = 0.1, write = true, min = 0, max = 100 }\n%s",
			filepath.Join(dir, "data"), listen, inverter.Addr(), more)
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	first := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	write(first, "")
	d := startDaemon(t, file)
	d.log.until(t, "INFO running", 1)
	manager.until(t, "READY=1", 1)

	c, lan := lanClient(t, first)
	lan.until(t, "busgate/t/inverter/state {\"ts\":", 2)
	lan.until(t, "busgate/t/inverter/status online", 1)

	if err := done(c.Publish("busgate/t/inverter/set/limit", 1, false, `{"value":80,"id":"a1"}`)); err != nil {
		t.Fatal(err)
	}
	lan.until(t, `"id":"a1","point":"limit","ok":true,"value":80.0`, 1)

	write(first, "[device.second]\nbus = \"roof\"\nunit_id = 3\n[device.second.points]\nx = { input = 5037 }\n")
	d.signals <- syscall.SIGHUP
	d.log.until(t, "unit 3 of bus `roof` is already device `inverter`", 1)
	d.log.until(t, "reload refused, the old configuration keeps running:", 1)

	write(first, "[bus.other]\ntcp = \"127.0.0.2:502\"\n[device.second]\nbus = \"other\"\nenabled = false\n[device.second.points]\nx = { input = 5037 }\n")
	d.signals <- syscall.SIGHUP
	d.log.until(t, "device second added", 1)
	manager.until(t, "RELOADING=1\nMONOTONIC_USEC=", 2)
	lan.until(t, "busgate/t/second/status offline", 1)

	second := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	write(second, "")
	d.signals <- syscall.SIGHUP
	d.log.until(t, "device second removed", 1)
	_, lan2 := lanClient(t, second)
	lan2.until(t, "busgate/t/inverter/status online", 1)
	lan.until(t, "busgate/t/second/info \n", 1) // emptied: it is gone
	states := strings.Count(lan.String(), "inverter/state")
	lan.until(t, "inverter/state", states+2) // the first client stays connected
	if conn, err := net.Dial("tcp", first); err == nil {
		conn.Close()
		t.Error("the old address is still open")
	}

	d.stop()
	if code := <-d.code; code != exitOK {
		t.Fatalf("exit %d:\n%s", code, d.log)
	}
	manager.until(t, "STOPPING=1", 1)
	lan2.until(t, "busgate/t/inverter/status offline", 1)
	lan2.until(t, "busgate/t/gateway/status offline", 1)
}

// notifySocket plays the service manager.
func notifySocket(t *testing.T) *screen {
	t.Helper()
	dir, err := os.MkdirTemp("", "n") // t.TempDir can be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "s"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	t.Setenv("NOTIFY_SOCKET", filepath.Join(dir, "s"))
	heard := newScreen()
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := c.Read(b)
			if err != nil {
				return
			}
			fmt.Fprintf(heard, "%s\n", b[:n])
		}
	}()
	return heard
}

func TestRunRefuses(t *testing.T) {
	dir := t.TempDir()
	listen := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	text := func(listen, data string) string {
		return fmt.Sprintf("[gateway]\nname = \"t\"\ndata_dir = %q\n[broker]\nlisten = %q\n", filepath.Join(dir, data), listen)
	}
	put := func(name, s string) string {
		t.Helper()
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(s), 0o644); err != nil {
			t.Fatal(err)
		}
		return file
	}
	running := startDaemon(t, put("good.toml", text(listen, "data")))
	running.log.until(t, "INFO running", 1)
	running.log.until(t, "no devices yet: busgate scan", 1)
	me, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, file string
		code       int
		want       string
	}{
		{"a file that is not there", filepath.Join(dir, "none.toml"), exitConfig, "no configuration at " + filepath.Join(dir, "none.toml")},
		{"a mistake", put("bad.toml", "[gateway]\nname = \"t\"\nintervall = \"1s\"\n"), exitConfig, "unknown key `intervall` in [gateway] (did you mean `interval`?)"},
		{"a store that another process has", put("store.toml", text("127.0.0.1:1", "data")), exitFailed, "is in use by process " + fmt.Sprint(os.Getpid())},
		{"an address that is taken", put("taken.toml", text(listen, "data2")), exitFailed,
			fmt.Sprintf("broker: %s is in use by %s (pid %d). Stop it: ", listen, strings.TrimSpace(string(me)), os.Getpid())},
	} {
		code, out, errs := call(t, "run", "--config", c.file)
		if code != c.code || !strings.Contains(out+errs, c.want) {
			t.Errorf("%s: exit %d, want %d with %q:\n%s", c.name, code, c.code, c.want, out+errs)
		}
	}
	running.stop()
	if code := <-running.code; code != exitOK {
		t.Errorf("exit %d:\n%s", code, running.log)
	}
}

func TestCheck(t *testing.T) {
	dir := t.TempDir()
	put := func(name, s string) string {
		t.Helper()
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(s), 0o644); err != nil {
			t.Fatal(err)
		}
		return file
	}
	good := put("good.toml", "[gateway]\nname = \"plant-a\"\n[bus.meters]\nserial = \"/dev/ttyUSB7\"\n[device.grid]\nbus = \"meters\"\nprofile = \"eastron-sdm630\"\n[device.cellar]\nbus = \"meters\"\nunit_id = 2\nprofile = \"xy-md02\"\n")
	slow := put("slow.toml", "[gateway]\nname = \"a\"\n[bus.b]\nserial = \"/dev/ttyUSB7\"\nbaud = 300\n[device.grid]\nbus = \"b\"\ninterval = \"2s\"\nprofile = \"eastron-sdm630\"\n")
	bad := put("bad.toml", "[device.meter]\nserial = \"/dev/ttyUSB0\"\nprofile = \"eastron-sdm631\"\nslave_id = 1\n")
	for _, c := range []struct {
		name string
		args []string
		code int
		want []string
	}{
		{"a good file says what it will do", []string{good}, exitOK, []string{
			"good.toml: ok: 1 bus, 2 devices, 0 uplinks, 0 warnings\n", "meters  9600 8N1  2 devices  ", " % busy\n", "topics  busgate/plant-a/{cellar,grid}/state\n"}},
		{"a bus that is too slow is a warning with numbers", []string{slow}, exitOK, []string{
			"slow.toml:8:1: warning: 1 device needs ", " s a round on bus `b` at 300 baud; `grid` asks for 2 s", "2 warnings\n"}},
		{"all mistakes at once", []string{bad}, exitConfig, []string{
			"bad.toml:3:11: there is no profile \"eastron-sdm631\" (did you mean `eastron-sdm630`?)", "bad.toml:4:1: unknown key `slave_id` in [device.meter]: it is called `unit_id` here"}},
		{"several files", []string{good, bad}, exitConfig, []string{"good.toml: ok", "bad.toml:4:1"}},
		{"json", []string{"--json", bad}, exitConfig, []string{`"line": 4`, `"severity": "error"`}},
		{"dump", []string{"--dump", good}, exitOK, []string{"[device.grid", "voltage_l1"}},
	} {
		code, out, errs := call(t, append([]string{"check"}, c.args...)...)
		if code != c.code {
			t.Errorf("%s: exit %d\n%s%s", c.name, code, out, errs)
		}
		for _, w := range c.want {
			if !strings.Contains(out, w) {
				t.Errorf("%s: %q is not in\n%s", c.name, w, out)
			}
		}
	}
}

// TestRunOpensEveryDoor: plain, TLS and WebSocket as configured.
func TestRunOpensEveryDoor(t *testing.T) {
	dir := t.TempDir()
	cert, key := certificate(t, dir)
	plain, secure, web := freePort(t), freePort(t), freePort(t)
	file := filepath.Join(dir, "busgate.toml")
	write(t, file, fmt.Sprintf("[gateway]\nname = \"t\"\ndata_dir = %q\n[web]\nlisten = \"\"\n[broker]\nlisten = \"127.0.0.1:%d\"\n"+
		"[broker.tls]\nlisten = \"127.0.0.1:%d\"\ncert = %q\nkey = %q\n[broker.websocket]\nlisten = \"127.0.0.1:%d\"\n", dir, plain, secure, cert, key, web))
	d := startDaemon(t, file)
	d.log.until(t, "INFO running", 1)
	pem, err := os.ReadFile(cert)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	for _, url := range []string{
		fmt.Sprintf("tcp://127.0.0.1:%d", plain),
		fmt.Sprintf("ssl://127.0.0.1:%d", secure),
		fmt.Sprintf("wss://127.0.0.1:%d/mqtt", web), // TLS, because [broker.tls] has a certificate
	} {
		seen := newScreen()
		c := mqtt.NewClient(mqtt.NewClientOptions().AddBroker(url).SetAutoReconnect(false).
			SetTLSConfig(&tls.Config{RootCAs: roots, ServerName: "localhost"}))
		if err := done(c.Connect()); err != nil {
			t.Errorf("%s: %v", url, err)
			continue
		}
		if err := done(c.Subscribe("busgate/t/gateway/status", 1, func(_ mqtt.Client, m mqtt.Message) { seen.Write(m.Payload()) })); err != nil {
			t.Errorf("%s: %v", url, err)
		}
		seen.until(t, "online", 1)
		c.Disconnect(0)
	}
	d.stop()
	if code := <-d.code; code != exitOK {
		t.Errorf("exit %d:\n%s", code, d.log)
	}
}
