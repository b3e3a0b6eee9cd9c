package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Tests in this file run the built program against programs that are not ours.
// They take minutes of real time, so they are asked for: BUSGATE_PEERS=1.

func needPeers(t *testing.T, programs ...string) {
	t.Helper()
	if os.Getenv("BUSGATE_PEERS") == "" {
		t.Skip("needs minutes and other programs: BUSGATE_PEERS=1 go test -run Peer ./cmd/busgate (.ci/run installs them)")
	}
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("needs %s: apt-get install mosquitto mosquitto-clients python3-pymodbus python3-serial-asyncio socat", p)
		}
	}
}

// built is the program under test, built once.
var built = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "busgate-test-")
	if err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "busgate")
	if out, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return bin, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if os.Getenv("BUSGATE_PEERS") != "" {
		if bin, err := built(); err == nil {
			os.RemoveAll(filepath.Dir(bin))
		}
	}
	os.Exit(code)
}

func program(t *testing.T) string {
	t.Helper()
	bin, err := built()
	if err != nil {
		t.Fatal(err)
	}
	return bin
}

// process is a child that the test ends by its pid.
type process struct {
	cmd  *exec.Cmd
	name string
	done chan struct{}

	mu    sync.Mutex
	out   []string
	wakes chan struct{}
}

// start runs a program and keeps what it prints, line by line.
func start(t *testing.T, stdin io.Reader, name string, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(name, args...), name: filepath.Base(name), done: make(chan struct{}), wakes: make(chan struct{}, 1)}
	p.cmd.Stdin = stdin
	r, w := io.Pipe()
	p.cmd.Stdout, p.cmd.Stderr = w, w
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		s := bufio.NewScanner(r)
		s.Buffer(nil, 1<<20)
		for s.Scan() {
			p.mu.Lock()
			p.out = append(p.out, s.Text())
			p.mu.Unlock()
			select {
			case p.wakes <- struct{}{}:
			default:
			}
		}
	}()
	go func() {
		p.cmd.Wait()
		w.Close()
		close(p.done)
	}()
	t.Cleanup(func() { p.end(syscall.SIGKILL) })
	return p
}

func (p *process) lines() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.out)
}

func (p *process) end(sig os.Signal) {
	p.cmd.Process.Signal(sig)
	<-p.done
}

// until waits until some line that the process printed satisfies ok.
func (p *process) until(t *testing.T, what string, ok func(line string) bool) {
	t.Helper()
	limit := time.NewTimer(60 * time.Second)
	defer limit.Stop()
	for next := 0; ; {
		lines := p.lines()
		for ; next < len(lines); next++ {
			if ok(lines[next]) {
				return
			}
		}
		select {
		case <-p.wakes:
		case <-p.done:
			t.Fatalf("%s ended before it printed %s:\n%s", p.name, what, strings.Join(p.lines(), "\n"))
		case <-limit.C:
			t.Fatalf("%s did not print %s:\n%s", p.name, what, strings.Join(p.lines(), "\n"))
		}
	}
}

func has(part string) func(string) bool {
	return func(line string) bool { return strings.Contains(line, part) }
}

// freePort is a port of the loopback that nobody listens on now.
func freePort(t *testing.T) int {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port
}

func reachable(t *testing.T, address string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for ctx.Err() == nil {
		if c, err := net.Dial("tcp", address); err == nil {
			c.Close()
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
	t.Fatalf("nothing listens on %s", address)
}

// cloud is a mosquitto that keeps its sessions on disk, and a subscriber with a
// session of its own that notes everything.
type cloud struct {
	t    *testing.T
	dir  string
	port int
	proc *process
	sub  *process
}

func openCloud(t *testing.T, qos int) *cloud {
	c := &cloud{t: t, dir: t.TempDir(), port: freePort(t)}
	conf := fmt.Sprintf("listener %d 127.0.0.1\nallow_anonymous true\npersistence true\npersistence_location %s/\nmax_queued_messages 0\nmax_inflight_messages 0\nuser root\nlog_type all\nlog_dest file %s/log\n", c.port, c.dir, c.dir)
	if err := os.WriteFile(filepath.Join(c.dir, "mosquitto.conf"), []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	c.start()
	c.sub = start(t, nil, "mosquitto_sub", "-h", "127.0.0.1", "-p", fmt.Sprint(c.port), "-i", "notes", "-c", "-q", fmt.Sprint(qos), "-R", "-F", "%t %p", "-t", "busgate/#", "-t", "lan/#")
	return c
}

func (c *cloud) start() {
	c.proc = start(c.t, nil, "mosquitto", "-c", filepath.Join(c.dir, "mosquitto.conf"))
	reachable(c.t, fmt.Sprintf("127.0.0.1:%d", c.port))
}

func (c *cloud) stop() { c.proc.end(syscall.SIGTERM) }

// redelivered counts what mosquitto says that it sent its subscriber again: when
// it is stopped between a PUBREL and the PUBCOMP, mosquitto 2.0.11 begins with
// the PUBLISH again. Such repeats are not the gateway's.
func (c *cloud) redelivered() int {
	text, err := os.ReadFile(filepath.Join(c.dir, "log"))
	if err != nil {
		c.t.Fatal(err)
	}
	return strings.Count(string(text), "Sending PUBLISH to notes (d1, q2")
}

// state is one numbered or plain state message of a device.
type state struct {
	device, boot, body string
	n                  int64
	ts                 time.Time
}

// states reads the "topic payload" lines of a subscriber.
func states(t *testing.T, lines []string) []state {
	t.Helper()
	var out []state
	for _, l := range lines {
		topic, payload, ok := strings.Cut(l, " ")
		p := strings.Split(topic, "/")
		if !ok || len(p) != 4 || p[3] != "state" || p[2] == "gateway" {
			continue
		}
		body, a, err := canonical([]byte(payload))
		if err != nil {
			t.Fatalf("%s: %q: %v", topic, payload, err)
		}
		var m struct {
			TS time.Time `json:"ts"`
		}
		if err := json.Unmarshal([]byte(payload), &m); err != nil {
			t.Fatal(err)
		}
		out = append(out, state{device: p[2], boot: a.boot, body: body, n: int64(a.n), ts: m.TS})
	}
	return out
}

// deviceMap is the configuration of the peer tests: a TCP and an RTU bus of
// pymodbus and one uplink per cloud.
func deviceMap(dir, broker, tcp, tty string, uplinks ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "[gateway]\nname = \"t\"\ninterval = \"200ms\"\ndata_dir = %q\n[web]\nlisten = \"\"\n[broker]\nlisten = %q\n", dir, broker)
	points := "v = { input = 0, type = \"float32\", unit = \"V\" }\nreads = { input = 100, type = \"uint32\" }\n"
	if tcp != "" {
		fmt.Fprintf(&b, "[bus.net]\ntcp = %q\n[device.roof]\nbus = \"net\"\n[device.roof.points]\n%s", tcp, points)
	}
	if tty != "" {
		fmt.Fprintf(&b, "[bus.line]\nserial = %q\nbaud = 19200\n[device.grid]\nbus = \"line\"\n[device.grid.points]\n%s", tty, points)
	}
	b.WriteString(strings.Join(uplinks, ""))
	return b.String()
}

// modbusServers starts pymodbus on a free port and behind a pair of ptys.
func modbusServers(t *testing.T) (tcp, tty string) {
	t.Helper()
	const python = "/usr/bin/python3" // the distribution's, which has the distribution's pymodbus
	port := freePort(t)
	start(t, nil, python, "testdata/modbus_server.py", "tcp", fmt.Sprint(port))
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	pair := start(t, nil, "socat", "-d", "-d", "pty,raw,echo=0,link="+a, "pty,raw,echo=0,link="+b)
	pair.until(t, "that both ends are there", has("starting data transfer loop"))
	start(t, nil, python, "testdata/modbus_server.py", "rtu", b, "19200")
	tcp = fmt.Sprintf("127.0.0.1:%d", port)
	reachable(t, tcp)
	return tcp, a
}

// waitLong is the patience of tests that wait for something to happen at all.
const waitLong = 30 * time.Second

// waitFor polls until ok says yes. Tests of foreign programs have no other sign to wait for.
func waitFor(t *testing.T, what string, limit time.Duration, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("waited %v for %s", limit, what)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
