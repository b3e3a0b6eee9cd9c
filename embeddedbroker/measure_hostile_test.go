package embeddedbroker

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"busgate/embeddedbroker/packet"
)

// TestMeasureHostile prints what hostile clients cost the others: the time from
// PUBLISH to the copy of a subscriber, at QoS 1, without and with each attack,
// and the memory and the lines of the broker. The broker has one core; the
// attackers, a process of the lowest priority, and the witness have another. It
// asserts nothing: machines are shared.
func TestMeasureHostile(t *testing.T) {
	if os.Getenv("BUSGATE_MEASURE") == "" {
		t.Skip("takes two minutes and asserts nothing: BUSGATE_MEASURE=1 go test -v -run MeasureHostile ./embeddedbroker")
	}
	dir := t.TempDir()
	users := usersFile(t, "joe:"+HashPassword([]byte("secret"), HashIterations))
	log := filepath.Join(dir, "log")
	b := startChild(t, filepath.Join(dir, "store.db"), "BUSGATE_TEST_LISTEN=0.0.0.0:0", "BUSGATE_TEST_USERS="+users, "BUSGATE_TEST_LOG="+log)
	defer b.kill()
	pin(b.cmd.Process.Pid, 0)
	pin(os.Getpid(), 1)
	_, port, _ := net.SplitHostPort(b.addr)
	places := map[string]string{"this machine": "127.0.0.1:" + port}
	if ip := ownAddress(); ip != "" {
		places["another address"] = net.JoinHostPort(ip, port)
	}
	w := knock(t, places["this machine"], "witness", true)
	w.subscribe("w", 1)
	w.trip(500 * time.Millisecond)
	t.Logf("%-34s %10s %10s %8s %8s %7s %9s", "attack", "p50", "p99", "x p50", "x p99", "MB", "lines")
	for _, a := range attacks {
		for place, addr := range places {
			lines, rest, most := countLines(log), b.rss(), 0.0
			p := a.launch(t, addr)
			time.Sleep(time.Second)
			var calm, under []time.Duration
			for range 8 { // in turn, so that what else the machine does falls on both
				under = append(under, w.trip(600*time.Millisecond)...)
				most = max(most, b.rss())
				p.cmd.Process.Signal(syscall.SIGSTOP)
				time.Sleep(100 * time.Millisecond)
				calm = append(calm, w.trip(600*time.Millisecond)...)
				p.cmd.Process.Signal(syscall.SIGCONT)
				time.Sleep(100 * time.Millisecond)
			}
			p.end()
			t.Logf("%-18s %-15s %10v %10v %8.2f %8.2f %+7.1f %9d", a.name, place, part(under, 50), part(under, 99),
				float64(part(under, 50))/float64(part(calm, 50)), float64(part(under, 99))/float64(part(calm, 99)), most-rest, countLines(log)-lines)
		}
	}
}

// pin keeps a process on one core, where there are two.
func pin(pid, core int) {
	if runtime.NumCPU() > 1 {
		var set unix.CPUSet
		set.Set(core)
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
		for _, task := range tasks {
			id, _ := strconv.Atoi(filepath.Base(task))
			unix.SchedSetaffinity(id, &set)
		}
	}
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

// rss is the resident memory of the broker in MB.
func (c *child) rss() float64 {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.cmd.Process.Pid))
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

// attack is run by four goroutines of TestAttackProcess.
type attack struct {
	name string
	do   func(t *testing.T, addr string, i int, going func() bool)
}

var attacks = []attack{
	{"slow CONNECT", func(t *testing.T, addr string, _ int, going func() bool) {
		var open []net.Conn
		for going() {
			for len(open) < 100 {
				if nc, err := net.Dial("tcp", addr); err == nil {
					open = append(open, nc)
				}
			}
			for _, nc := range open {
				nc.Write([]byte{0x10})
			}
			time.Sleep(100 * time.Millisecond)
		}
		for _, nc := range open {
			nc.Close()
		}
	}},
	{"256 MB first", func(t *testing.T, addr string, _ int, going func() bool) {
		junk := make([]byte, 64<<10)
		for going() {
			nc, err := net.Dial("tcp", addr)
			if err != nil {
				continue
			}
			nc.Write([]byte{0x10, 0xff, 0xff, 0xff, 0x7f, 0, 4, 'M', 'Q', 'T', 'T', 5, 2, 0, 0})
			for i := 0; i < 16 && going(); i++ {
				if _, err := nc.Write(junk); err != nil {
					break
				}
			}
			nc.Close()
		}
	}},
	{"10,000 half open", func(t *testing.T, addr string, _ int, going func() bool) {
		var open []net.Conn
		for going() {
			if len(open) == 2500 {
				open[0].Close()
				open = open[1:]
			}
			if nc, err := net.Dial("tcp", addr); err == nil {
				open = append(open, nc)
			}
		}
		for _, nc := range open {
			nc.Close()
		}
	}},
	{"long topics", func(t *testing.T, addr string, i int, going func() bool) {
		c := knock(t, addr, n("long", i), true)
		long := strings.Repeat("x", 65_000)
		for k := 0; going(); k++ {
			c.publish(n(long, k), "x", 1, 1)
		}
		c.close()
	}},
	{"subscriptions", func(t *testing.T, addr string, i int, going func() bool) {
		c := knock(t, addr, n("subs", i), true)
		for k := 0; going(); k++ {
			s := &packet.Subscribe{PID: 1}
			for l := range 100 {
				s.Filters = append(s.Filters, packet.Filter{Filter: fmt.Sprintf("a/%d/%d/+/#", k, l)})
			}
			c.try(s)
			if _, ok := c.poll(); !ok {
				return
			}
		}
		c.close()
	}},
	{"wrong passwords", func(t *testing.T, addr string, i int, going func() bool) {
		for k := 0; going(); k++ {
			nc, err := net.Dial("tcp", addr)
			if err != nil {
				continue
			}
			p := packet.Connect{Version: packet.V311, ClientID: n("x", i), CleanStart: true, HasUser: true, User: n("u", k), HasPassword: true, Password: []byte("guess")}
			nc.Write(p.Append(nil, 0))
			time.AfterFunc(100*time.Millisecond, func() { nc.Close() })
		}
	}},
}

// TestAttackProcess is an attacker that TestMeasureHostile starts.
func TestAttackProcess(t *testing.T) {
	name, addr, ok := strings.Cut(os.Getenv("BUSGATE_TEST_ATTACK"), "@")
	if !ok {
		t.Skip("only as a child of another test")
	}
	over := make(chan struct{})
	var wg sync.WaitGroup
	for _, a := range attacks {
		for i := range 4 {
			if a.name == name {
				wg.Go(func() { a.do(t, addr, i, func() bool { return !isStopped(over) }) })
			}
		}
	}
	os.Stdin.Read(make([]byte, 1)) // the parent's end closes when it has seen enough
	close(over)
	wg.Wait()
}

// attacker is a running attack.
type attacker struct {
	cmd *exec.Cmd
	in  io.Closer
}

func (a *attack) launch(t *testing.T, addr string) *attacker {
	cmd := exec.Command("nice", "-n", "19", os.Args[0], "-test.run=^TestAttackProcess$") // nice becomes it: one process
	cmd.Env = append(os.Environ(), "BUSGATE_TEST_ATTACK="+a.name+"@"+addr)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return &attacker{cmd, in}
}

func (p *attacker) end() {
	p.in.Close()
	p.cmd.Wait()
}
