package embeddedbroker

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"busgate/embeddedbroker/packet"
)

// TestMeasureHostile prints what hostile clients cost the others: the time from
// PUBLISH to the copy of a subscriber, at QoS 1, without and with each attack in
// turn, and beside it the processor time, the memory and the lines of the broker.
//
// In the field an attacker has a processor of its own. Here broker and witness
// have one core, in the real-time class where that is allowed, and the attackers
// have the other: what is left of their share in the figures is shown by the
// rows "elsewhere", where the same flood goes to a server that accepts and closes
// and has nothing to do with the broker. mosquitto, where it is installed, stands
// in the place of the broker for the last rows. It asserts nothing: machines are
// shared.
func TestMeasureHostile(t *testing.T) {
	only := os.Getenv("BUSGATE_MEASURE")
	if only == "" {
		t.Skip("takes ten minutes and asserts nothing: BUSGATE_MEASURE=1 go test -v -run MeasureHostile ./embeddedbroker (or the name of one attack in place of 1)")
	}
	attacks := slices.DeleteFunc(slices.Clone(attacks), func(a attack) bool { return only != "1" && only != a.name })
	dir := t.TempDir()
	users := usersFile(t, "joe:"+HashPassword([]byte("secret"), HashIterations))
	log := filepath.Join(dir, "log")
	os.Setenv("GOMAXPROCS", "1")
	b := startChild(t, filepath.Join(dir, "store.db"), "BUSGATE_TEST_LISTEN=0.0.0.0:0", "BUSGATE_TEST_USERS="+users, "BUSGATE_TEST_LOG="+log)
	defer b.kill()
	os.Unsetenv("GOMAXPROCS")
	settle(t, b.cmd.Process.Pid)
	settle(t, os.Getpid())
	_, port, _ := net.SplitHostPort(b.addr)
	t.Logf("load %s; %-16s %-15s %8s %8s %8s %8s %6s %6s %13s %8s %6s %6s %6s", loadNow(), "attack", "on", "calm p50", "p99 ms", "under it", "p99 ms", "x p50", "x p99", "least - most", "hits/s", "cpu %", "MB", "lines")
	m := meter{pid: b.cmd.Process.Pid, log: log, addr: "127.0.0.1:" + port}
	m.witness(t)
	places := [][2]string{{"busgate, near", m.addr}}
	if ip := ownAddress(); ip != "" {
		places = append(places, [2]string{"busgate, far", net.JoinHostPort(ip, port)})
	}
	places = append(places, [2]string{"elsewhere", trivial(t)})
	for _, a := range attacks {
		for _, p := range places {
			if p[0] != "elsewhere" || !a.inside {
				m.measure(t, a, p[0], p[1])
			}
		}
	}
	if m := mosquittoMeter(t); m != nil {
		for _, a := range attacks {
			m.measure(t, a, "mosquitto, near", m.addr)
		}
	}
}

// meter watches one server through a client of its own.
type meter struct {
	pid       int
	log, addr string
	w         *client
}

func (m *meter) witness(t *testing.T) {
	m.w = knock(t, m.addr, "witness", true)
	m.w.subscribe("w", 1)
	m.w.trip(500 * time.Millisecond)
}

// Calm and attack take turns: what else the machine does in a second falls into
// one ratio of five, and the row has the one in the middle.
const (
	hostileRounds = 5
	calmTime      = 2 * time.Second
	floodTime     = 3 * time.Second
)

// measure prints the row of one attack.
func (m *meter) measure(t *testing.T, a attack, name, addr string) {
	lines, rest, most := countLines(m.log), rss(m.pid), 0.0
	var calm, flood, times [2][]float64 // p50 and p99
	var hits int
	var busy, took time.Duration
	for range hostileRounds {
		m.rest()
		before := m.w.trip(calmTime)
		p := a.launch(t, addr)
		began, spent := time.Now(), cpuTime(m.pid)
		under := m.w.trip(floodTime)
		busy, took, most = busy+cpuTime(m.pid)-spent, took+time.Since(began), max(most, rss(m.pid))
		hits += p.end()
		for i, percent := range []int{50, 99} {
			c, f := part(before, percent), part(under, percent)
			calm[i], flood[i], times[i] = append(calm[i], ms(c)), append(flood[i], ms(f)), append(times[i], float64(f)/float64(c))
		}
	}
	for _, all := range [][2][]float64{calm, flood, times} {
		slices.Sort(all[0])
		slices.Sort(all[1])
	}
	const mid = hostileRounds / 2
	t.Logf("load %s; %-16s %-15s %8.3f %8.3f %8.3f %8.3f %6.2f %6.2f %13s %8.0f %6.1f %+6.1f %6d", loadNow(), a.name, name,
		calm[0][mid], calm[1][mid], flood[0][mid], flood[1][mid], times[0][mid], times[1][mid], fmt.Sprintf("%.2f - %.2f", times[1][0], times[1][hostileRounds-1]),
		float64(hits)/took.Seconds(), 100*float64(busy)/float64(took), most-rest, countLines(m.log)-lines)
}

// rest waits until what the attack before left behind is gone.
func (m *meter) rest() {
	for range 50 {
		spent := cpuTime(m.pid)
		if time.Sleep(200 * time.Millisecond); cpuTime(m.pid)-spent < 2*time.Millisecond {
			return
		}
	}
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// settle gives a process the first core, where there are two, and the real-time
// class, where that is allowed: neither the attackers nor what else the machine
// does then takes processor time from it.
func settle(t *testing.T, pid int) {
	if runtime.NumCPU() < 2 {
		t.Log("one core: the attackers take processor time from broker and witness")
		return
	}
	var set unix.CPUSet
	set.Set(0)
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	for _, task := range tasks {
		id, _ := strconv.Atoi(filepath.Base(task))
		unix.SchedSetaffinity(id, &set)
		attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_RR, Priority: 10}
		if err := unix.SchedSetAttr(id, &attr, 0); err != nil {
			t.Logf("no real-time class, the figures hold what else the machine does: %v", err)
			return
		}
	}
}

// apart is a command on the other core, before everything else that is not of the
// real-time class; the tools in front of it become it.
func apart(args ...string) *exec.Cmd {
	front := []string{"-o", "0", "taskset", "-c", strconv.Itoa(runtime.NumCPU() - 1), "nice", "-n", "-10"}
	return exec.Command("chrt", append(front, args...)...)
}

// trivial is a server in the attackers' place that accepts and closes.
func trivial(t *testing.T) string {
	t.Helper()
	cmd := apart(os.Args[0], "-test.run=^TestTrivialProcess$")
	cmd.Env = append(os.Environ(), "BUSGATE_TEST_TRIVIAL=1")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	var addr string
	if _, err := fmt.Fscanf(out, "listening on %s\n", &addr); err != nil {
		t.Fatal(err)
	}
	return addr
}

// TestTrivialProcess is that server.
func TestTrivialProcess(t *testing.T) {
	if os.Getenv("BUSGATE_TEST_TRIVIAL") == "" {
		t.Skip("only as a child of another test")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("listening on %s\n", l.Addr())
	for {
		nc, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		nc.Close()
	}
}

// mosquittoMeter starts a mosquitto with the same user; nil: there is none.
func mosquittoMeter(t *testing.T) *meter {
	path, err := exec.LookPath("mosquitto")
	if _, err2 := exec.LookPath("mosquitto_passwd"); err != nil || err2 != nil {
		t.Log("mosquitto is not installed: no rows of it")
		return nil
	}
	dir := t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	_, port, _ := net.SplitHostPort(addr)
	users, conf, log := filepath.Join(dir, "users"), filepath.Join(dir, "conf"), filepath.Join(dir, "log")
	if out, err := exec.Command("mosquitto_passwd", "-b", "-c", users, "joe", "secret").CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	text := fmt.Sprintf("user root\nlistener %s 127.0.0.1\npassword_file %s\nlog_dest file %s\n", port, users, log)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := apart(path, "-c", conf)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	for range 200 {
		if nc, err := net.Dial("tcp", addr); err == nil {
			nc.Close()
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	settle(t, cmd.Process.Pid)
	m := &meter{pid: cmd.Process.Pid, log: log, addr: addr}
	m.witness(t)
	return m
}

func loadNow() string {
	text, _ := os.ReadFile("/proc/loadavg")
	first, _, _ := strings.Cut(string(text), " ")
	return first
}

// cpuTime is what a process has used of the processor.
func cpuTime(pid int) (d time.Duration) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	for _, task := range tasks {
		text, _ := os.ReadFile(task)
		ns, _, _ := strings.Cut(string(text), " ")
		v, _ := strconv.ParseInt(ns, 10, 64)
		d += time.Duration(v)
	}
	return d
}

func ownAddress() string {
	all, _ := net.InterfaceAddrs()
	for _, a := range all {
		if ip, ok := a.(*net.IPNet); ok && ip.IP.To4() != nil && !ip.IP.IsLoopback() {
			return ip.IP.String()
		}
	}
	return ""
}

func countLines(path string) int {
	text, _ := os.ReadFile(path)
	return strings.Count(string(text), "\n")
}

// rss is the resident memory of a process in MB.
func rss(pid int) float64 {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	_, rest, _ := strings.Cut(string(text), "VmRSS:")
	f := strings.Fields(rest)
	if len(f) == 0 {
		return 0
	}
	kb, _ := strconv.ParseFloat(f[0], 64)
	return kb / 1000
}

// knock connects over TCP, with the right password or a wrong one.
func knock(t *testing.T, addr, id string, right bool) *client {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(t, nc, packet.V5)
	p := &packet.Connect{Version: packet.V5, ClientID: id, CleanStart: true, HasUser: true, User: "joe", HasPassword: true, Password: []byte("secret")}
	if !right {
		p.Password = []byte("guess")
	}
	c.send(p)
	if right {
		if a := expect[*packet.Connack](c); a.Code != 0 {
			t.Fatalf("code 0x%02X", a.Code)
		}
	}
	return c
}

// part is a percentile.
func part(all []time.Duration, percent int) time.Duration {
	slices.Sort(all)
	return all[len(all)*percent/100]
}

// trip publishes one message after the other and takes each back.
func (c *client) trip(d time.Duration) (all []time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end); {
		began := time.Now()
		c.send(&packet.Publish{Topic: []byte("w"), QoS: 1, PID: 1, Payload: []byte("x")})
		for acked, came := false, false; !acked || !came; {
			switch p := c.next().(type) {
			case *packet.Ack:
				acked = true
			case *packet.Publish:
				came = true
				c.send(&packet.Ack{Type: packet.PUBACK, PID: p.PID})
			}
		}
		all = append(all, time.Since(began))
		time.Sleep(2 * time.Millisecond)
	}
	return all
}
