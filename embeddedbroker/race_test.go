package embeddedbroker

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"testing"

	"busgate/config"
	"busgate/embeddedbroker/packet"
)

// loose is a client of the storms: nothing that goes wrong on its connection
// fails the test.
func (r *rig) loose(version byte, id string, opts ...option) (*client, bool) {
	a, b := net.Pipe()
	select {
	case r.l.conns <- b:
	case <-r.l.done:
		return nil, false
	}
	c := newClient(r.t, a, version)
	p := &packet.Connect{Version: version, ClientID: id, CleanStart: true}
	for _, o := range opts {
		o(p)
	}
	c.try(p)
	for {
		got, ok := c.poll()
		if !ok {
			return c, false
		}
		if ack, is := got.(*packet.Connack); is {
			c.ack = ack
			return c, ack.Code == 0
		}
	}
}

// TakeoverRace: the session is torn from connection to connection while
// messages flow; none is lost, none overtakes.
func TestTakeoverRace(t *testing.T) {
	for _, v := range versions {
		r := start(t, NewMemory())
		first := r.connect(v, "sub", persistent)
		first.subscribe("t", 2)
		const total = 400
		rc := &receiver{open: map[uint16]bool{}, got: map[string][]int{}}
		done := func() bool {
			rc.mu.Lock()
			defer rc.mu.Unlock()
			got := rc.got["t"]
			return len(got) > 0 && got[len(got)-1] == total
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			p := r.connect(v, "pub")
			for i := range total {
				p.publish("t", fmt.Sprint(i+1), 2, uint16(i+1))
			}
		})
		// One connection after the other; the older one is read to its end first,
		// as a client does that keeps its state.
		c := first
		for i := 0; !done(); i++ {
			n := 0
			stop := rand.IntN(30)
			rc.run(c, func() bool { n++; return n > stop || done() })
			if done() {
				break
			}
			next, ok := r.loose(v, "sub", persistent)
			if !ok {
				t.Fatal("takeover refused")
			}
			rc.run(c, func() bool { return false })
			c = next
		}
		wg.Wait()
		for i, n := range rc.got["t"] {
			if n != i+1 {
				t.Fatalf("version %d: message %d is %d", v, i+1, n)
			}
		}
		r.stop()
	}
}

// Everything at once, for the race detector: connects, takeovers, wills,
// subscriptions, publishes, kicks, and the end of the broker in the middle.
func TestStorm(t *testing.T) {
	r := start(t, NewMemory())
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(1, uint64(w)))
			for range 40 {
				opts := []option{clean}
				if rnd.IntN(2) == 0 {
					opts = []option{persistent}
				}
				if rnd.IntN(3) == 0 {
					opts = append(opts, will("w", "gone", byte(rnd.IntN(3)), rnd.IntN(2) == 0))
				}
				c, ok := r.loose(versions[rnd.IntN(3)], n("c", rnd.IntN(4)), opts...)
				if c == nil {
					return
				}
				for i := 0; ok && i < 20; i++ {
					switch rnd.IntN(5) {
					case 0:
						c.try(&packet.Subscribe{PID: 1, Filters: []packet.Filter{{Filter: []string{"a/#", "+/b", "#", "$share/g/a/+"}[rnd.IntN(4)], QoS: byte(rnd.IntN(3))}}})
					case 1:
						c.try(&packet.Unsubscribe{PID: 1, Filters: []string{"a/#"}})
					default:
						qos := byte(rnd.IntN(3))
						p := &packet.Publish{Topic: []byte("a/b"), QoS: qos, Retain: rnd.IntN(4) == 0, Payload: []byte("x")}
						if qos > 0 {
							p.PID = uint16(i + 1)
						}
						c.try(p)
					}
				}
				if rnd.IntN(2) == 0 {
					c.try(&packet.Disconnect{})
				}
				if rnd.IntN(5) == 0 {
					r.b.DropSession(n("c", rnd.IntN(4)))
				}
				r.b.Clients()
				c.close()
			}
		})
	}
	wg.Wait()
	r.stop()
}

var stormClients = flag.Int("storm.clients", 100, "how many clients storm at once")

// TestStormOfClients: many clients connect, take each other's sessions over,
// subscribe, publish, answer and close at once; for the race detector, with 1000
// of them: go test -race -run StormOfClients ./embeddedbroker -storm.clients 1000.
// What it leaves is what was promised: no connection, no goroutine of one, the
// persistent sessions, and a broker that serves.
func TestStormOfClients(t *testing.T) {
	many := *stormClients
	r := start(t, NewMemory(), func(c *config.Broker, _ *Options) { c.MaxClients = 2 * many })
	r.b.gate.crowd = 6*many + 1 // all of them have one address
	idle := runtime.NumGoroutine()
	var wg sync.WaitGroup
	for w := range many {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(2, uint64(w)))
			for round := range 6 {
				id, opts := n("s", rnd.IntN(many/2)), []option{clean, will("gone", "x", 1, false)}
				if id[len(id)-1]%2 == 0 {
					opts = []option{persistent, will("gone", "x", 2, true)}
				}
				c, ok := r.loose(versions[rnd.IntN(3)], id, opts...)
				if !ok {
					continue // taken over already
				}
				c.try(&packet.Subscribe{PID: 1, Filters: []packet.Filter{{Filter: n("t/", rnd.IntN(50)), QoS: byte(rnd.IntN(3))}, {Filter: "$share/g/t/+", QoS: 1}, {Filter: "gone", QoS: 1}}})
				for i := range 5 {
					c.try(&packet.Publish{Topic: []byte(n("t/", rnd.IntN(50))), QoS: byte(1 + i%2), PID: uint16(i + 1), Payload: []byte("x")})
				}
				for range rnd.IntN(7) { // SUBACK and five answers come in any case
					if p, ok := c.poll(); !ok {
						break
					} else if m, is := p.(*packet.Publish); is && m.QoS > 0 {
						c.try(&packet.Ack{Type: packet.PUBACK + packet.Type(m.QoS-1), PID: m.PID})
					}
				}
				switch (w + round) % 3 {
				case 0:
					c.try(&packet.Disconnect{})
				case 1:
					r.b.DropSession(id)
				}
				c.close()
			}
		})
	}
	wg.Wait()
	for r.b.Stats().Clients > 0 {
		runtime.Gosched()
	}
	for _, c := range r.b.Clients() {
		if !c.Persistent {
			t.Errorf("%s is left", c.ID)
		}
	}
	c := r.connect(packet.V5, "after")
	c.subscribe("after", 2)
	c.publish("after", "x", 0, 0)
	c.receive("after", "x")
	c.close()
	r.stop()
	for runtime.NumGoroutine() > idle {
		runtime.Gosched()
	}
}

func TestRouteAllocatesNothingPerSubscriber(t *testing.T) {
	cost := func(sessions int) float64 {
		r := start(t, NewMemory())
		defer r.stop()
		for i := range sessions {
			s := newSession(r.b, n("s", i), 0)
			s.conn = &conn{b: r.b, dead: true} // connected, and nobody writes
			for range 200 {                    // room for all that comes
				s.q0.push(item{})
			}
			s.q0.head, s.q0.n = 0, 0
			v := &sub{filter: "t", sess: s, Subscription: Subscription{Filter: "t"}}
			r.b.mu.Lock()
			s.subs["t"] = v
			r.b.subs.add(v)
			r.b.mu.Unlock()
		}
		l := r.b.Local("x")
		m := &Message{Topic: "t"}
		return testing.AllocsPerRun(100, func() { l.Publish(m, nil) })
	}
	if one, many := cost(1), cost(500); many > one {
		t.Errorf("%v allocations for 1 subscriber, %v for 500", one, many)
	}
}

func FuzzConnection(f *testing.F) {
	connect := (&packet.Connect{Version: packet.V5, ClientID: "c", CleanStart: true}).Append(nil, 0)
	f.Add(append(connect, (&packet.Publish{Topic: []byte("t"), QoS: 1, PID: 1}).Append(nil, packet.V5)...))
	f.Add(append((&packet.Connect{Version: packet.V311, ClientID: "c"}).Append(nil, 0), 0x82, 6, 0, 1, 0, 1, '#', 2, 0x30, 3, 0, 1, 't', 0xc0, 0, 0xe0, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := start(t, NewMemory())
		a, c := net.Pipe()
		r.l.conns <- c
		done := make(chan struct{})
		go func() {
			defer close(done)
			buf := make([]byte, 4096)
			for {
				if _, err := a.Read(buf); err != nil {
					return
				}
			}
		}()
		a.Write(b)
		a.Close()
		<-done
		r.stop()
	})
}
