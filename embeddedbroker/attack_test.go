package embeddedbroker

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"busgate/embeddedbroker/packet"
)

// attack is run by four goroutines of TestAttackProcess.
type attack struct {
	name   string
	inside bool // it needs a broker that lets it in
	do     func(t *testing.T, addr string, i int, going func() bool)
}

// hits counts connections, or packets of those who are let in.
var hits atomic.Int64

var attacks = []attack{
	{"slow CONNECT", false, func(t *testing.T, addr string, _ int, going func() bool) {
		var open []net.Conn
		for going() {
			for len(open) < 100 {
				if nc, err := net.Dial("tcp", addr); err == nil {
					hits.Add(1)
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
	{"256 MB first", false, func(t *testing.T, addr string, _ int, going func() bool) {
		junk := make([]byte, 64<<10)
		for going() {
			nc, err := net.Dial("tcp", addr)
			if err != nil {
				continue
			}
			hits.Add(1)
			nc.Write([]byte{0x10, 0xff, 0xff, 0xff, 0x7f, 0, 4, 'M', 'Q', 'T', 'T', 5, 2, 0, 0})
			for i := 0; i < 16 && going(); i++ {
				if _, err := nc.Write(junk); err != nil {
					break
				}
			}
			nc.Close()
		}
	}},
	{"10,000 half open", false, func(t *testing.T, addr string, _ int, going func() bool) {
		var open []net.Conn
		for going() {
			if len(open) == 2500 {
				open[0].Close()
				open = open[1:]
			}
			if nc, err := net.Dial("tcp", addr); err == nil {
				hits.Add(1)
				open = append(open, nc)
			}
		}
		for _, nc := range open {
			nc.Close()
		}
	}},
	{"long topics", true, func(t *testing.T, addr string, i int, going func() bool) {
		c := knock(t, addr, n("long", i), true)
		long := strings.Repeat("x", 65_000)
		for k := 0; going(); k++ {
			c.publish(n(long, k), "x", 1, 1)
			hits.Add(1)
		}
		c.close()
	}},
	{"subscriptions", true, func(t *testing.T, addr string, i int, going func() bool) {
		c := knock(t, addr, n("subs", i), true)
		for k := 0; going(); k++ {
			s := &packet.Subscribe{PID: 1}
			for l := range 100 {
				s.Filters = append(s.Filters, packet.Filter{Filter: fmt.Sprintf("a/%d/%d/+/#", k, l)})
			}
			hits.Add(1)
			c.try(s)
			if _, ok := c.poll(); !ok {
				return
			}
		}
		c.close()
	}},
	{"wrong passwords", false, func(t *testing.T, addr string, i int, going func() bool) {
		for k := 0; going(); k++ {
			nc, err := net.Dial("tcp", addr)
			if err != nil {
				continue
			}
			p := packet.Connect{Version: packet.V311, ClientID: n("x", i), CleanStart: true, HasUser: true, User: n("u", k), HasPassword: true, Password: []byte("guess")}
			hits.Add(1)
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
	fmt.Println(hits.Load())
	wg.Wait()
}

// attacker is a running attack.
type attacker struct {
	cmd *exec.Cmd
	in  io.Closer
	out io.Reader
}

func (a *attack) launch(t *testing.T, addr string) *attacker {
	cmd := apart(os.Args[0], "-test.run=^TestAttackProcess$")
	cmd.Env = append(os.Environ(), "BUSGATE_TEST_ATTACK="+a.name+"@"+addr)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return &attacker{cmd, in, out}
}

// end stops the attack and tells how often it hit.
func (p *attacker) end() (hits int) {
	p.in.Close()
	fmt.Fscanf(p.out, "%d\n", &hits)
	p.cmd.Wait()
	return hits
}
