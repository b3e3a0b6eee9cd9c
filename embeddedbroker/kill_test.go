package embeddedbroker

import (
	"bufio"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"busgate/embeddedbroker/packet"
)

var killRounds = flag.Int("kill.rounds", 10, "how often the broker is killed")

// child is a broker in a process of its own.
type child struct {
	cmd  *exec.Cmd
	in   io.Closer
	addr string
}

func startChild(t *testing.T, store string, env ...string) *child {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestChildProcess$", "-test.v")
	cmd.Env = append(append(os.Environ(), "BUSGATE_TEST_STORE="+store), env...)
	cmd.Stderr = os.Stderr
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
	c := &child{cmd: cmd, in: in}
	r := bufio.NewReader(out)
	var said []string
	for {
		line, err := r.ReadString('\n')
		if addr, ok := strings.CutPrefix(line, "listening on "); ok {
			c.addr = strings.TrimSpace(addr)
			break
		}
		said = append(said, line)
		if err != nil {
			t.Fatalf("the child ended: %q %v", said, cmd.Wait())
		}
	}
	go io.Copy(io.Discard, r)
	return c
}

func (c *child) kill() {
	c.cmd.Process.Kill()
	c.cmd.Wait()
	c.in.Close()
}

// connect attaches without the checks of the in-process rig; nil when the child
// is gone.
func (c *child) connect(t *testing.T, id string) *client {
	nc, err := net.Dial("tcp", c.addr)
	if err != nil {
		return nil
	}
	cl := newClient(t, nc, packet.V311)
	p := packet.Connect{Version: packet.V311, ClientID: id}
	nc.Write(p.Append(nil, 0))
	if p, ok := cl.poll(); !ok {
		return nil
	} else if a, ok := p.(*packet.Connack); !ok || a.Code != 0 {
		t.Errorf("%s: got %+v", id, p)
		return nil
	} else {
		cl.ack = a
	}
	return cl
}

// poll waits for the next packet; false when the connection ended.
func (c *client) poll() (packet.Packet, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.got) == 0 && c.err == nil {
		c.cond.Wait()
	}
	if len(c.got) == 0 {
		return nil, false
	}
	p := c.got[0]
	c.got = c.got[1:]
	return p, true
}

func (c *client) try(p packet.Packet) { c.nc.Write(p.Append(nil, c.version)) }

// sender publishes rising numbers and remembers what was acknowledged, over the
// deaths of the broker.
type sender struct {
	id   string
	qos  byte
	next int
	pid  uint16

	open  map[uint16]int // packet id -> number: no PUBACK or PUBREC yet
	order []uint16       // of open
	rel   []uint16       // PUBREC came, PUBCOMP not yet
	done  map[int]bool
	tick  chan<- struct{} // one for each number that is done, as far as there is room
}

func newSender(id string, qos byte, tick chan<- struct{}) *sender {
	return &sender{id: id, qos: qos, tick: tick, open: map[uint16]int{}, done: map[int]bool{}}
}

// run publishes until the connection breaks or limit messages were completed.
func (s *sender) run(c *client, limit int) {
	for _, pid := range s.order { // first what the former connection left, in order
		if n, ok := s.open[pid]; ok {
			s.publish(c, pid, n, true)
		}
	}
	for _, pid := range s.rel {
		c.try(&packet.Ack{Type: packet.PUBREL, PID: pid})
	}
	sent := 0
	for {
		for len(s.open)+len(s.rel) < 50 && sent < limit {
			s.pid = s.pid%65535 + 1
			s.next++
			sent++
			s.open[s.pid] = s.next
			s.order = append(s.order, s.pid)
			s.publish(c, s.pid, s.next, false)
		}
		if len(s.open)+len(s.rel) == 0 {
			return
		}
		p, ok := c.poll()
		if !ok {
			return
		}
		if a, ok := p.(*packet.Ack); ok {
			s.answer(c, a)
		}
	}
}

func (s *sender) publish(c *client, pid uint16, n int, dup bool) {
	c.try(&packet.Publish{Topic: []byte("k/" + s.id), QoS: s.qos, PID: pid, Dup: dup, Payload: []byte(strconv.Itoa(n))})
}

func (s *sender) answer(c *client, a *packet.Ack) {
	switch a.Type {
	case packet.PUBACK, packet.PUBREC:
		if n, ok := s.open[a.PID]; ok {
			s.done[n] = true
			select {
			case s.tick <- struct{}{}:
			default:
			}
			delete(s.open, a.PID)
			s.order = without(s.order, a.PID)
			if a.Type == packet.PUBREC {
				s.rel = append(s.rel, a.PID)
			}
		}
		if a.Type == packet.PUBREC {
			c.try(&packet.Ack{Type: packet.PUBREL, PID: a.PID})
		}
	case packet.PUBCOMP:
		s.rel = without(s.rel, a.PID)
	}
}

func without(s []uint16, v uint16) []uint16 {
	for i, x := range s {
		if x == v {
			return append(s[:i], s[i+1:]...)
		}
	}
	return s
}

// receiver is a subscriber that keeps the rules of QoS 2 over reconnects.
type receiver struct {
	mu   sync.Mutex
	open map[uint16]bool // QoS 2 ids received and not released
	got  map[string][]int
}

// run takes messages until the connection breaks or until is true.
func (r *receiver) run(c *client, until func() bool) {
	for !until() {
		p, ok := c.poll()
		if !ok {
			return
		}
		switch p := p.(type) {
		case *packet.Publish:
			n, _ := strconv.Atoi(string(p.Payload))
			r.mu.Lock()
			if p.QoS != 2 || !r.open[p.PID] {
				r.got[string(p.Topic)] = append(r.got[string(p.Topic)], n)
			}
			if p.QoS == 2 {
				r.open[p.PID] = true
			}
			r.mu.Unlock()
			typ := packet.PUBACK
			if p.QoS == 2 {
				typ = packet.PUBREC
			}
			c.try(&packet.Ack{Type: typ, PID: p.PID})
		case *packet.Ack:
			if p.Type == packet.PUBREL {
				r.mu.Lock()
				delete(r.open, p.PID)
				r.mu.Unlock()
				c.try(&packet.Ack{Type: packet.PUBCOMP, PID: p.PID})
			}
		}
	}
}

// TestKill is AckThenLose: kill -9 under load, with a persistent subscriber
// that is connected in every other round. Nothing acknowledged is lost, nothing
// comes twice at QoS 2, nothing overtakes.
func TestKill(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	store := filepath.Join(t.TempDir(), "store.db")
	tick := make(chan struct{}, 4096)
	one, two := newSender("one", 1, tick), newSender("two", 2, tick)
	r := &receiver{open: map[uint16]bool{}, got: map[string][]int{}}
	for round := range *killRounds + 1 {
		ch := startChild(t, store)
		last := round == *killRounds
		sub := ch.connect(t, "sub")
		if sub == nil {
			t.Fatal("no subscriber")
		}
		if sub.ack.SessionPresent != (round > 0) {
			t.Errorf("round %d: session present %v", round, sub.ack.SessionPresent)
		}
		if round == 0 {
			sub.subscribe("k/#", 2)
		}
		var wg sync.WaitGroup
		limit := 1 << 30
		if last {
			limit = 100
		}
		if live := round%2 == 1; live && !last {
			wg.Go(func() { r.run(sub, func() bool { return false }) })
		} else {
			sub.close()
		}
		for _, s := range []*sender{one, two} {
			c := ch.connect(t, s.id)
			if c == nil {
				t.Fatal("no publisher")
			}
			wg.Go(func() { s.run(c, limit) })
		}
		if !last {
			for range rand.IntN(2000) {
				<-tick
			}
			ch.kill()
			wg.Wait()
			continue
		}
		wg.Wait()
		r.run(ch.connect(t, "sub"), func() bool {
			r.mu.Lock()
			defer r.mu.Unlock()
			a, b := r.got["k/one"], r.got["k/two"]
			return len(a) > 0 && len(b) > 0 && a[len(a)-1] == one.next && b[len(b)-1] == two.next
		})
		ch.kill()
	}
	r.judge(t, one)
	r.judge(t, two)
}

func (r *receiver) judge(t *testing.T, s *sender) {
	t.Helper()
	got := r.got["k/"+s.id]
	count := map[int]int{}
	top, inversions, lost, twice := 0, 0, 0, 0
	for _, n := range got {
		count[n]++
		switch {
		case count[n] > 1:
			twice++
		case n < top:
			inversions++
		}
		top = max(top, n)
	}
	for n := range s.done {
		if count[n] == 0 {
			lost++
		}
	}
	what := fmt.Sprintf("QoS %d: %d acknowledged, %d received", s.qos, len(s.done), len(got))
	what = fmt.Sprintf("%s: %d lost, %d overtaken, %d twice", what, lost, inversions, twice)
	if lost > 0 || inversions > 0 || s.qos == 2 && twice > 0 {
		t.Error(what)
	} else {
		t.Log(what)
	}
}
