package embeddedbroker

import (
	"bytes"
	"context"
	"crypto/pbkdf2"
	"crypto/sha512"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"busgate/config"
	"busgate/embeddedbroker/packet"
)

// The bucket gives its burst at once and then one token each interval, from the
// zero value on and after any time without use.
func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const every, burst = 10 * time.Millisecond, 4
		var p pace
		for range 3 {
			for i := range 20 {
				want := time.Duration(0)
				if i >= burst {
					want = every
				}
				d := p.wait(time.Now(), every, burst)
				if d != want {
					t.Fatalf("token %d comes after %v, want %v", i, d, want)
				}
				time.Sleep(d)
				p.take(time.Now(), every)
			}
			time.Sleep(365 * 24 * time.Hour)
		}
	})
}

// 1000 honest clients that come back at once are all taken, none refused, in the
// time that their number takes at the pace of all.
func TestFleetComesBack(t *testing.T) {
	const fleet = 1000
	synctest.Test(t, func(t *testing.T) {
		path := usersFile(t, "joe:"+HashPassword([]byte("secret"), HashIterations))
		r := start(t, NewMemory(), func(c *config.Broker, _ *Options) { c.Anonymous, c.Users, c.MaxClients = false, path, fleet })
		for name, address := range map[string]func(int) string{
			"a proxy on this machine": func(int) string { return "127.0.0.1" },
			"an address each":         func(i int) string { return fmt.Sprintf("10.0.%d.%d", i>>8, i&255) },
		} {
			began := time.Now()
			clients := make([]*client, fleet)
			for i := range clients {
				clients[i] = r.dialFrom(packet.V311, address(i))
				clients[i].send(&packet.Connect{Version: packet.V311, ClientID: n("c", i), CleanStart: true, HasUser: true, User: "joe", HasPassword: true, Password: []byte("secret")})
			}
			for i, c := range clients {
				if a := expect[*packet.Connack](c); a.Code != 0 {
					t.Fatalf("%s: client %d gets %d", name, i, a.Code)
				}
			}
			if d := time.Since(began); d > fleet*acceptEvery+time.Second {
				t.Errorf("%s: the last is in after %v", name, d)
			}
			for _, c := range clients {
				c.close()
			}
			nap(time.Minute)
		}
		if s := r.b.Stats(); s.RefusedConnects != 0 || s.PacedConnects < fleet {
			t.Errorf("%d refused, %d paced", s.RefusedConnects, s.PacedConnects)
		}
	})
}

// A flood of one address is taken at its own pace: what goes beyond is closed and
// counted, others get in all the while, and it costs one line a minute.
func TestFloodOfOneAddress(t *testing.T) {
	for _, flood := range []string{"10.0.0.1", "127.0.0.1"} {
		synctest.Test(t, func(t *testing.T) {
			r, j := watched(t)
			began, taken := time.Now(), 0
			const many = 4000
			for i := range many {
				c := r.dialFrom(packet.V311, flood)
				c.raw(0xc0, 0) // PINGREQ is no CONNECT: it is gone at once
				if i%100 == 99 {
					if code := r.dialFrom(packet.V5, n("10.0.1.", i/100)).login("", ""); code != 0 {
						t.Errorf("another address gets 0x%02X", code)
					}
				}
			}
			synctest.Wait()
			took := time.Since(began)
			if took < (many-acceptBurst)*acceptEvery {
				t.Errorf("%d connections were taken in %v", many, took)
			}
			taken = many - int(r.b.Stats().RefusedConnects)
			if most := visitBurst + int(took/visitEvery) + 1; taken > most {
				t.Errorf("%d connections were let in, %d are the most", taken, most)
			}
			if n, minutes := j.about("WARN broker: "+flood+" "), int(took/offenceEvery)+1; n != minutes {
				t.Errorf("%d lines in %d minutes\n%.500s", n, minutes, j.all())
			}
		})
	}
}

// Clients that were in before come back past all who guess, from their address
// too, and without a hash; a password that was changed is not remembered.
func TestKnownClientsComeBackPastThoseWhoGuess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := usersFile(t, "joe:"+HashPassword([]byte("secret"), 2000))
		r := start(t, NewMemory(), func(c *config.Broker, _ *Options) { c.Anonymous, c.Users = false, path })
		if code := r.dialFrom(packet.V5, "127.0.0.1").login("joe", "secret"); code != 0 {
			t.Fatalf("0x%02X", code)
		}
		for i := range 100 {
			c := r.dialFrom(packet.V311, "127.0.0.1")
			c.send(&packet.Connect{Version: packet.V311, ClientID: n("x", i), CleanStart: true, HasUser: true, User: "joe", HasPassword: true, Password: []byte(n("guess", i))})
		}
		nap(10 * time.Millisecond)
		r.b.gate.mu.Lock()
		if n := len(r.b.gate.hashing.queue); n < 50 {
			t.Errorf("only %d wait for their hash", n)
		}
		r.b.gate.mu.Unlock()
		began := time.Now()
		if code := r.dialFrom(packet.V5, "127.0.0.1").login("joe", "secret"); code != 0 {
			t.Errorf("a known client gets 0x%02X", code)
		}
		if d := time.Since(began); d > slowAccept {
			t.Errorf("a known client waits %v", d)
		}
		set := r.b.set.Load().users
		for _, x := range []struct {
			name, secret string
			want         bool
		}{{"joe", "secret", true}, {"joe", "guess1", false}, {"joe", "", false}, {"jo", "esecret", false}, {"ann", "secret", false}} {
			if set.remembers(x.name, []byte(x.secret)) != x.want {
				t.Errorf("%+v", x)
			}
		}
		if len(set.right) != 1 {
			t.Errorf("%d are remembered", len(set.right))
		}
		if err := os.WriteFile(path, []byte("joe:"+HashPassword([]byte("changed"), 1)+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		nap(2 * lookInterval)
		if fresh := r.b.set.Load().users; fresh == set || fresh.remembers("joe", []byte("secret")) {
			t.Error("the old password is remembered")
		}
	})
}

// Our PBKDF2, which rests, is the PBKDF2 of the standard library.
func TestDerive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, rounds := range []int{1, 2, 3, 101, 1000} {
			p := password{iterations: rounds, salt: []byte("salt and pepper")}
			want, err := pbkdf2.Key(sha512.New, "secret", p.salt, rounds, sha512.Size)
			if err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			if got := p.derive([]byte("secret"), rhythm{slice: 10, rest: time.Second}); !bytes.Equal(got, want) {
				t.Errorf("%d rounds: % x, want % x", rounds, got, want)
			}
			if d := time.Since(began); d != time.Duration((rounds-1)/10)*time.Second {
				t.Errorf("%d rounds rest %v", rounds, d)
			}
		}
		p := password{iterations: 50_000}
		began := time.Now()
		if p.derive([]byte("secret"), rhythm{slice: 10, rest: time.Second}); time.Since(began) > maxRests*time.Second {
			t.Errorf("many rounds rest %v", time.Since(began))
		}
	})
}

// Who subscribes, or writes to very long topics, without end waits between its
// packets; what others do does not.
func TestToilIsSlowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, j := watched(t)
		w := r.witness()
		c := r.connect(packet.V5, "c")
		began := time.Now()
		const rounds = 100
		filters := make([]packet.Filter, 100)
		for i := range filters {
			filters[i].Filter = n("f", i)
		}
		for range rounds {
			c.send(&packet.Subscribe{PID: 1, Filters: filters})
			expect[*packet.Suback](c)
		}
		want := rounds*time.Duration(len(filters))*filterToil - toilBurst
		if d := time.Since(began); d < want-toilRest || d > want+toilRest {
			t.Errorf("%d filters took %v, want some %v", rounds*len(filters), d, want)
		}
		nap(time.Minute)
		began = time.Now()
		for range rounds {
			c.publish(string(bytes.Repeat([]byte("x"), 61<<10)), "", 1, 1)
		}
		want = rounds*60*topicToil - toilBurst
		if d := time.Since(began); d < want-toilRest || d > want+toilRest {
			t.Errorf("%d long topics took %v, want some %v", rounds, d, want)
		}
		began = time.Now()
		for range 1000 {
			w.publish("witness", "x", 0, 0)
			w.receive("witness", "x")
			c.publish("short", "x", 1, 1)
		}
		if d := time.Since(began); d > toilRest {
			t.Errorf("usual work took %v", d)
		}
		if s := r.b.Stats(); s.Slowed < rounds || j.about("is slowed") != 2 {
			t.Errorf("%d slowed\n%s", s.Slowed, j.all())
		}
	})
}

// A pause ends by its own timer, however close that is to the time it waits for.
// Virtual time would not show it: there both are the same.
func TestPauseEnds(t *testing.T) {
	nc, other := net.Pipe()
	defer nc.Close()
	defer other.Close()
	c := &conn{nc: nc}
	c.cond.L = &c.mu
	for range 1000 {
		stuck := time.AfterFunc(10*time.Second, func() { c.kick(&ending{text: "it does not end"}) })
		if err := c.pause(20 * time.Microsecond); err != nil {
			t.Fatal(err)
		}
		stuck.Stop()
	}
}

// A refused connection ends with a reset and leaves nothing in the kernel.
func TestShutResets(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	shut(b)
	if _, err := a.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client reads %v", err)
	}
}

// A connection that makes room for newer ones ends with a reset.
func TestPushedOutIsReset(t *testing.T) {
	r := start(t, NewMemory())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.wg.Go(func() { r.b.Serve(context.Background(), l) })
	r.b.gate.mu.Lock()
	r.b.gate.near = maxBurstWaiting - 1
	r.b.gate.mu.Unlock()
	oldest, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer oldest.Close()
	newer, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer newer.Close()
	if _, err := oldest.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the oldest reads %v", err)
	}
}

// A slice that took long is followed by a rest in proportion, a short one by the
// least, and a file that asks for many rounds has larger slices, not more rests.
func TestRhythm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := rhythm{slice: 16, rest: time.Millisecond, share: 3}
		for took, want := range map[time.Duration]time.Duration{0: time.Millisecond, 300 * time.Microsecond: time.Millisecond, time.Millisecond: 3 * time.Millisecond, time.Second: longestRest} {
			began := time.Now()
			time.Sleep(took)
			slept := time.Now()
			if r.pause(began); time.Since(slept) != want {
				t.Errorf("after %v it rests %v, want %v", took, time.Since(slept), want)
			}
		}
	})
	r := rhythm{slice: 16}
	for rounds, want := range map[int]int{101: 16, HashIterations: 16, 100 * maxRests: 100, maxIterations: maxIterations / maxRests} {
		if got := r.during(rounds).slice; got != want {
			t.Errorf("%d rounds are hashed in slices of %d, want %d", rounds, got, want)
		}
	}
}

// Those who want much go on one after the other, however many come at once, and
// who comes alone waits for no one.
func TestLineSpreads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, NewMemory())
		defer r.stop()
		const clients = 20
		fs, _ := many()
		all := make([]*client, clients)
		for i := range all {
			all[i] = r.connect(packet.V5, n("c", i))
			all[i].send(&packet.Subscribe{PID: 1, Filters: fs})
		}
		began, was := time.Now(), r.hung()
		for range 50 {
			time.Sleep(breath)
			synctest.Wait()
			got := r.hung()
			if got-was > 2*filtersAtOnce { // one at each end of it
				t.Fatalf("%d filters of %d clients within %v", got-was, clients, breath)
			}
			was = got
		}
		for _, c := range all {
			expect[*packet.Suback](c)
		}
		if d, most := time.Since(began), clients*time.Duration(len(fs)/filtersAtOnce)*breath; d > most {
			t.Errorf("took %v, want %v at most", d, most)
		}
		c := r.connect(packet.V5, "alone")
		began = time.Now()
		c.subscribe("t", 0)
		if d := time.Since(began); d > 0 {
			t.Errorf("one filter took %v", d)
		}
	})
}
