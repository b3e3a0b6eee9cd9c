package embeddedbroker

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"busgate/config"
	"busgate/embeddedbroker/packet"
)

// journal keeps the lines of a broker that people are to read.
type journal struct {
	mu    sync.Mutex
	lines []string
}

func (j *journal) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelInfo }
func (j *journal) WithAttrs([]slog.Attr) slog.Handler           { return j }
func (j *journal) WithGroup(string) slog.Handler                { return j }
func (j *journal) Handle(_ context.Context, r slog.Record) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, r.Level.String()+" "+r.Message)
	return nil
}

// about counts the lines that hold a text.
func (j *journal) about(text string) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(slices.DeleteFunc(slices.Clone(j.lines), func(l string) bool { return !strings.Contains(l, text) }))
}

func (j *journal) all() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Join(j.lines, "\n")
}

// watched starts a broker whose lines are kept.
func watched(t *testing.T, change ...func(*config.Broker, *Options)) (*rig, *journal) {
	j := &journal{}
	return start(t, NewMemory(), append(change, func(_ *config.Broker, o *Options) { o.Log = slog.New(j) })...), j
}

// served checks that a client goes on being served, and that a new one gets in.
func (r *rig) served(old *client) {
	r.t.Helper()
	old.publish("witness", "x", 0, 0)
	old.receive("witness", "x")
	c := r.dialFrom(packet.V311, "192.168.9.9")
	c.send(&packet.Connect{Version: packet.V311, ClientID: "fresh", CleanStart: true})
	if a := expect[*packet.Connack](c); a.Code != 0 {
		r.t.Errorf("a new client is refused: %d", a.Code)
	}
	c.close()
}

func (r *rig) witness() *client {
	c := r.connect(packet.V5, "witness")
	c.subscribe("witness", 0)
	return c
}

// waiting is how many connections have not logged in.
func (r *rig) waiting() int {
	g := r.b.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.waiting.Len()
}

// slip dials without reading; it is for thousands of connections.
func (r *rig) slip(ip string) *client {
	c := r.dialFrom(packet.V311, ip)
	c.raw(0x10)
	return c
}

// Connections that never say CONNECT neither keep clients out nor pile up,
// whether they come from far or from this machine.
func TestHostileHalfOpen(t *testing.T) {
	const many = 10_000
	for name, address := range map[string]func(int) string{
		"one address":    func(int) string { return "10.1.0.1" },
		"many addresses": func(i int) string { return fmt.Sprintf("10.%d.%d.1", i>>8, i&255) },
		"this machine":   func(int) string { return "127.0.0.1" },
	} {
		synctest.Test(t, func(t *testing.T) {
			r, j := watched(t, func(c *config.Broker, _ *Options) { c.MaxClients = 20 })
			w := r.witness()
			for i := range many {
				a := r.slip(address(i))
				if i%1000 == 999 {
					synctest.Wait()
					if n := r.waiting(); n > maxBurstWaiting+1 {
						t.Fatalf("%s: %d connections wait", name, n)
					}
					r.served(w)
				}
				t.Cleanup(a.close)
			}
			nap(connectTime)
			if n := r.waiting(); n != 0 {
				t.Errorf("%s: %d connections are left", name, n)
			}
			if n := j.about(address(1) + " "); n != 1 {
				t.Errorf("%s: %d lines\n%.500s", name, n, j.all())
			}
			nap(2 * time.Minute)
			r.slip(address(1)).close()
			r.slip(address(1))
			nap(connectTime)
			if n := j.about(address(1) + " "); n != 2 {
				t.Errorf("%s: %d lines in the next minute", name, n)
			}
			w.ping()
		})
	}
}

// A CONNECT that comes byte by byte has the same time as any.
func TestHostileSlowConnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, j := watched(t)
		w := r.witness()
		began := time.Now()
		var slow []*client
		for i := range 40 {
			c := r.dialFrom(packet.V311, fmt.Sprintf("10.0.0.%d", i))
			slow = append(slow, c)
			go func() {
				for _, b := range (&packet.Connect{Version: packet.V311, ClientID: "slow", CleanStart: true}).Append(nil, 0) {
					if _, err := c.nc.Write([]byte{b}); err != nil {
						return
					}
					time.Sleep(time.Second)
				}
			}()
		}
		for range 4 {
			nap(time.Second)
			r.served(w)
		}
		for _, c := range slow {
			c.ended()
		}
		if d := time.Since(began); d < connectTime || d > connectTime+40*acceptEvery {
			t.Errorf("the last is closed after %v", d)
		}
		if n := j.about("WARN broker: 10.0.0.7 is cut off: sent no CONNECT in time"); n != 1 {
			t.Errorf("%d lines\n%s", n, j.all())
		}
		w.ping()
		nap(time.Second) // for those that send
	})
}

// A first packet costs what came of it, and no more than a CONNECT may have.
func TestHostileFirstPacket(t *testing.T) {
	r, j := watched(t)
	w := r.witness()
	heap := heapNow()
	for i := range 64 {
		c := r.dialFrom(packet.V5, "10.0.0.1")
		c.raw(byte(i)<<4, 0xff, 0xff, 0xff, 0x7f, 0, 4, 'M', 'Q', 'T', 'T')
		c.ended()
	}
	for range 8 {
		c := r.dialFrom(packet.V5, "10.0.0.2")
		c.raw(0x10, 0xff, 0xff, 0x7f, 0, 4, 'M', 'Q', 'T', 'T', 5, 2, 0, 0) // 2 MB, and it goes on
		c.raw(make([]byte, 1<<20)...)
		c.ended()
	}
	if grown := heapNow() - heap; grown > 4<<20 {
		t.Errorf("%d bytes more are in use", grown)
	}
	r.served(w)
	if a, b := j.about("10.0.0.1 "), j.about("10.0.0.2 "); a != 1 || b != 1 {
		t.Errorf("%d and %d lines\n%s", a, b, j.all())
	}
}

func heapNow() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// Wrong passwords as fast as they can be sent: those who know theirs get in,
// nobody's hashing piles up, and each offender has one line a minute.
func TestHostilePasswords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := usersFile(t, "joe:"+HashPassword([]byte("secret"), 1))
		r, j := watched(t, func(c *config.Broker, _ *Options) { c.Anonymous, c.Users = false, path; c.MaxClients = 20 })
		for _, ip := range []string{"10.0.0.1", "127.0.0.1"} {
			for i := range 3000 {
				c := r.dialFrom(packet.V311, ip)
				c.try(&packet.Connect{Version: packet.V311, ClientID: "x", CleanStart: true, HasUser: true, User: n("u", i%7), HasPassword: true, Password: []byte("guess")})
				if i%500 == 499 {
					if n := r.waiting(); n > 2*maxBurstWaiting {
						t.Fatalf("%s: %d wait", ip, n)
					}
					for _, good := range []string{"10.0.0.2", "127.0.0.2"} {
						began := time.Now()
						if code := r.dialFrom(packet.V5, good).login("joe", "secret"); code != 0 {
							t.Errorf("%s: the right password gets 0x%02X", good, code)
						}
						if d := time.Since(began); d > slowAccept {
							t.Errorf("%s: the right password takes %v", good, d)
						}
					}
				}
			}
			offence := regexp.MustCompile(`WARN broker: ` + ip + ` \(client "x", user "u[0-6]"\) wrong password`) // whoever was judged first
			if n := len(offence.FindAllString(j.all(), -1)); n != 1 || j.about("WARN broker: "+ip) != 1 {
				t.Errorf("%d lines\n%s", n, j.all())
			}
		}
		nap(2 * maxLoginDelay)
		if n := r.waiting(); n != 0 {
			t.Errorf("%d connections are left", n)
		}
	})
}

// A client that comes and goes all the time is said so once a minute.
func TestHostileComingAndGoing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, j := watched(t)
		for i := range 500 {
			c := r.dialFrom(packet.V311, "10.0.0.1")
			c.send(&packet.Connect{Version: packet.V311, ClientID: n("c", i), CleanStart: true})
			expect[*packet.Connack](c)
			c.close()
			synctest.Wait()
		}
		if n := j.about("client connected") + j.about("client gone"); n >= comings {
			t.Errorf("%d lines", n)
		}
		if n := j.about("comes and goes all the time"); n != 1 {
			t.Errorf("%d lines", n)
		}
	})
}

// Accept that fails for want of descriptors is tried again, and said once.
func TestAcceptWithoutDescriptors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, j := watched(t)
		l := &starved{pipeListener: newPipeListener(), left: 50}
		r.wg.Go(func() { r.b.Serve(context.Background(), l) })
		nap(time.Minute)
		a := r.l
		r.l = l.pipeListener
		r.connect(packet.V311, "c").ping()
		r.l = a
		if n := j.about("no more clients until one leaves"); n != 1 {
			t.Errorf("%d lines\n%s", n, j.all())
		}
	})
}

// starved is a listener without descriptors for a while.
type starved struct {
	*pipeListener
	left int
}

func (s *starved) Accept() (net.Conn, error) {
	if s.left > 0 {
		s.left--
		return nil, &net.OpError{Op: "accept", Err: syscall.EMFILE}
	}
	return s.pipeListener.Accept()
}
