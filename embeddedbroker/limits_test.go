package embeddedbroker

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"busgate/config"
	"busgate/embeddedbroker/packet"
)

// from is a connection that claims an address.
type from struct {
	net.Conn
	addr net.Addr
}

func (f from) RemoteAddr() net.Addr { return f.addr }

func (r *rig) dialFrom(version byte, ip string) *client {
	r.t.Helper()
	a, b := net.Pipe()
	r.l.conns <- from{b, net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(ip), 1234))}
	return newClient(r.t, a, version)
}

// login sends CONNECT with a password and gives the code of the answer.
func (c *client) login(user, secret string) byte {
	c.t.Helper()
	c.send(&packet.Connect{Version: c.version, ClientID: "c", CleanStart: true, HasUser: true, User: user, HasPassword: true, Password: []byte(secret)})
	return expect[*packet.Connack](c).Code
}

func usersFile(t *testing.T, lines ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "users")
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestUsersFile(t *testing.T) {
	hash := HashPassword([]byte("secret"), HashIterations)
	u, err := parseUsers("f", []byte("# comment\r\njoe:"+hash+"\r\n\nann:"+HashPassword([]byte("other"), HashIterations)+"\n"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		user, secret string
		want         bool
	}{{"joe", "secret", true}, {"joe", "Secret", false}, {"joe", "", false}, {"ann", "other", true}, {"ann", "secret", false}, {"bob", "secret", false}} {
		if got := u.Check(c.user, []byte(c.secret)); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
	for line, want := range map[string]string{
		"joe:secret":              `f:1: user "joe": unknown password format (use busgate passwd)`,
		"joe:$5$x$y":              `f:1: user "joe": unknown password format (use busgate passwd)`,
		"joe:$7$0$YQ==$YQ==":      `f:1: user "joe": unknown password format (use busgate passwd)`,
		"joe:$7$101$YQ==$YQ==":    `f:1: user "joe": unknown password format (use busgate passwd)`,
		"\n\njoe":                 `f:3: not of the form name:hash (use busgate passwd)`,
		":" + hash:                `f:1: not of the form name:hash (use busgate passwd)`,
		"a:" + hash + "\njoe:abc": `f:2: user "joe": unknown password format (use busgate passwd)`,
	} {
		if _, err := parseUsers("f", []byte(line)); err == nil || err.Error() != want {
			t.Errorf("%q: %v, want %s", line, err, want)
		}
	}
}

func TestPeerUsersFileOfMosquitto(t *testing.T) {
	peers(t, "mosquitto_passwd")
	const tool = "mosquitto_passwd"
	path := filepath.Join(t.TempDir(), "users")
	if out, err := exec.Command(tool, "-b", "-c", path, "joe", "secret").CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	if out, err := exec.Command(tool, "-b", "-H", "sha512", path, "old", "secret").CombinedOutput(); err != nil {
		t.Logf("no $6$ from this mosquitto_passwd: %v %s", err, out)
	}
	u, err := LoadUsers(path)
	if err != nil {
		t.Fatal(err)
	}
	for name := range u.byName {
		if !u.Check(name, []byte("secret")) || u.Check(name, []byte("no")) {
			t.Errorf("user %s", name)
		}
	}
}

func FuzzUsersFile(f *testing.F) {
	f.Add([]byte("joe:" + HashPassword([]byte("x"), HashIterations) + "\nold:$6$c2FsdHNhbHQ=$"))
	f.Add([]byte("a:$7$101$YQ==$YQ==\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		u, err := parseUsers("f", b)
		if err != nil && !strings.HasPrefix(err.Error(), "f:") {
			t.Fatal(err)
		}
		if err == nil && len(u.byName) > len(b) {
			t.Fatal("more users than bytes")
		}
	})
}

func TestLogin(t *testing.T) {
	covers(t, "5", "MQTT-3.1.4-2")
	synctest.Test(t, func(t *testing.T) {
		path := usersFile(t, "joe:"+HashPassword([]byte("secret"), HashIterations))
		r := start(t, NewMemory(), func(c *config.Broker, _ *Options) { c.Anonymous, c.Users = false, path })
		for _, v := range versions {
			refused := packet.Refused3NotAuth
			if v == packet.V5 {
				refused = packet.NotAuthorized
			}
			if code := r.dial(v).login("joe", "secret"); code != 0 {
				t.Errorf("version %d: right password: %d", v, code)
			}
			if code := r.dial(v).login("joe", "wrong"); code != refused {
				t.Errorf("version %d: wrong password: %d", v, code)
			}
			if code := r.dial(v).login("bob", "secret"); code != refused {
				t.Errorf("version %d: unknown user: %d", v, code)
			}
			c := r.dial(v)
			c.send(&packet.Connect{Version: v, ClientID: "c", CleanStart: true})
			if a := expect[*packet.Connack](c); a.Code != refused {
				t.Errorf("version %d: anonymous: %d", v, a.Code)
			}
			c.ended()
			nap(2 * time.Minute)
		}
		// The file changes: ann comes, joe goes.
		joe := r.dial(packet.V5)
		joe.login("joe", "secret")
		if err := os.WriteFile(path, []byte("ann:"+HashPassword([]byte("new secret"), HashIterations)+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		nap(2 * lookInterval)
		if d := expect[*packet.Disconnect](joe); d.Code != packet.NotAuthorized {
			t.Errorf("removed user: 0x%02X", d.Code)
		}
		if code := r.dial(packet.V5).login("ann", "new secret"); code != 0 {
			t.Errorf("new user: %d", code)
		}
		os.WriteFile(path, []byte("broken"), 0o600)
		nap(2 * lookInterval)
		if code := r.dial(packet.V5).login("ann", "new secret"); code != 0 {
			t.Errorf("a broken file replaced a good one: %d", code)
		}
	})
}

// Who waits for the answer to its CONNECT when the broker stops is not told by
// a DISCONNECT, which may not come before CONNACK.
func TestStopBeforeConnack(t *testing.T) {
	covers(t, "5", "MQTT-3.14.0-1")
	synctest.Test(t, func(t *testing.T) {
		path := usersFile(t, "joe:"+HashPassword([]byte("secret"), 1))
		r := start(t, NewMemory(), func(c *config.Broker, _ *Options) { c.Anonymous, c.Users = false, path })
		var waiting []*client
		for _, v := range versions {
			c := r.dial(v)
			c.send(&packet.Connect{Version: v, ClientID: "c", CleanStart: true, HasUser: true, User: "joe", HasPassword: true, Password: []byte("wrong")})
			waiting = append(waiting, c)
		}
		synctest.Wait() // their answers come in a second
		r.stop()
		for _, c := range waiting {
			c.ended()
		}
	})
}

func TestFailedLoginsAreSlowedAndShutOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := usersFile(t, "joe:"+HashPassword([]byte("secret"), 1)) // it takes no time
		r := start(t, NewMemory(), func(c *config.Broker, _ *Options) { c.Anonymous, c.Users = false, path })
		for i := range loginFailures {
			began := time.Now()
			c := r.dialFrom(packet.V311, "192.168.1.23")
			c.login("joe", "wrong")
			if d := time.Since(began); d != loginDelay<<i {
				t.Errorf("failure %d was answered after %v", i+1, d)
			}
		}
		began := time.Now()
		r.dialFrom(packet.V311, "192.168.1.23").ended()
		if d := time.Since(began); d != 0 {
			t.Errorf("shut out after %v", d)
		}
		if code := r.dialFrom(packet.V311, "192.168.1.24").login("joe", "secret"); code != 0 {
			t.Errorf("another address: %d", code)
		}
		if code := r.dialFrom(packet.V311, "127.0.0.1").login("joe", "secret"); code != 0 {
			t.Errorf("this machine: %d", code)
		}
		nap(loginWindow + time.Second)
		if code := r.dialFrom(packet.V311, "192.168.1.23").login("joe", "secret"); code != 0 {
			t.Errorf("after a minute: %d", code)
		}
	})
}

func TestConnectionLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, NewMemory(), func(c *config.Broker, _ *Options) { c.MaxClients = 60 })
		// Those that do not say CONNECT push each other out.
		var idle []*client
		for range waitingPerAddress {
			idle = append(idle, r.dialFrom(packet.V311, "10.0.0.1"))
		}
		idle = append(idle, r.dialFrom(packet.V311, "10.0.0.1")) // all at once: that happens
		nap(leastWait)
		idle = append(idle, r.dialFrom(packet.V311, "10.0.0.1"))
		began := time.Now()
		idle[0].ended()
		if time.Since(began) != 0 {
			t.Error("the oldest is still there")
		}
		synctest.Wait()
		idle[1].silent()
		for _, c := range idle {
			c.close()
		}
		synctest.Wait()
		for i := range perAddress {
			c := r.dialFrom(packet.V5, "10.0.0.2")
			c.send(&packet.Connect{Version: packet.V5, ClientID: n("c", i), CleanStart: true})
			expect[*packet.Connack](c)
		}
		began = time.Now()
		r.dialFrom(packet.V5, "10.0.0.2").ended()
		if time.Since(began) > acceptEvery {
			t.Error("one more of an address was let in")
		}
		for i := range 10 {
			r.connect(packet.V311, n("d", i))
		}
		five, three := r.dial(packet.V5), r.dial(packet.V311)
		five.send(&packet.Connect{Version: packet.V5, ClientID: "x", CleanStart: true})
		if a := expect[*packet.Connack](five); a.Code != packet.QuotaExceeded {
			t.Errorf("over max_clients: 0x%02X", a.Code)
		}
		three.send(&packet.Connect{Version: packet.V311, ClientID: "x", CleanStart: true})
		if a := expect[*packet.Connack](three); a.Code != packet.Refused3Server {
			t.Errorf("over max_clients: %d", a.Code)
		}
	})
}

func TestGuestTableIsBounded(t *testing.T) {
	var g guests
	for i := range 2 * maxAddresses {
		g.get(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}))
	}
	if len(g.byKey) != maxAddresses || g.age.Len() != maxAddresses {
		t.Errorf("%d remembered", len(g.byKey))
	}
	a, _ := addressOf(net.TCPAddrFromAddrPort(netip.MustParseAddrPort("[2001:db8:1:2:3::4]:5")))
	b, _ := addressOf(net.TCPAddrFromAddrPort(netip.MustParseAddrPort("[2001:db8:1:2:9::9]:5")))
	if a != b {
		t.Errorf("%v and %v are one /64", a, b)
	}
}

// HugeFirstPacket: a length that was only declared costs nothing.
func TestHugeFirstPacket(t *testing.T) {
	r := start(t, NewMemory())
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for typ := range byte(16) {
		c := r.dial(packet.V311)
		c.raw(typ<<4, 0xff, 0xff, 0xff, 0x7f, 0, 4, 'M', 'Q', 'T', 'T')
		c.ended()
	}
	runtime.ReadMemStats(&after)
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 1<<20 {
		t.Errorf("%d bytes were allocated", grown)
	}
}

func TestBufferGrowsWithWhatCame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, NewMemory())
		c := r.connect(packet.V311, "c")
		r.b.mu.Lock()
		server := r.b.sessions["c"].conn
		r.b.mu.Unlock()
		c.raw(0x30, 0x80, 0x80, 0x3f) // a PUBLISH of 1 MB
		const came = 3 * firstBuffer
		c.raw(make([]byte, came)...) // of which little comes
		synctest.Wait()
		if size := len(server.buf); size > 4*came {
			t.Errorf("the buffer has %d bytes", size)
		}
	})
}

func TestACLOfClients(t *testing.T) {
	covers(t, "5", "MQTT-3.9.3-1", "MQTT-3.9.3-2", "MQTT-3.8.4-7", "MQTT-3.1.3-8")
	covers(t, "311", "MQTT-3.9.3-1", "MQTT-3.9.3-2", "MQTT-3.1.3-9")
	rules := map[string][]config.Rule{"*": {{Verb: "readwrite", Filter: "open/#"}, {Verb: "deny", Filter: "open/secret/#"}, {Verb: "readwrite", Filter: "of/%c/#"}}}
	r := start(t, NewMemory(), func(c *config.Broker, _ *Options) { c.ACL = rules })
	for _, v := range versions {
		c := r.connect(v, "c")
		c.send(&packet.Subscribe{PID: 1, Filters: []packet.Filter{{Filter: "open/#", QoS: 2}, {Filter: "open/secret/x", QoS: 1}, {Filter: "closed"},
			{Filter: "#", QoS: 1}, {Filter: strings.Repeat("open/", maxLevels) + "#"}}})
		want := map[byte]string{packet.V31: "\x02\x01\x00\x01\x00", packet.V311: "\x02\x80\x80\x01\x80", packet.V5: "\x02\x87\x87\x01\x8f"}[v]
		if s := expect[*packet.Suback](c); string(s.Codes) != want {
			t.Errorf("version %d: codes % x", v, s.Codes)
		}
		r.b.Local("x").Publish(&Message{Topic: "closed", Payload: []byte("x")}, nil)
		r.b.Local("x").Publish(&Message{Topic: "open/secret/x", Payload: []byte("x")}, nil)
		c.publish("open/secret/x", "x", 1, 1)
		c.publish("closed", "x", 0, 0)
		c.publish("open/a", "yes", 0, 0)
		c.receive("open/a", "yes")
		c.ping()
		c.silent()
		c.close()
		bad := r.dial(v)
		bad.send(&packet.Connect{Version: v, ClientID: "a/#", CleanStart: true})
		want = map[byte]string{packet.V31: "\x02", packet.V311: "\x02", packet.V5: "\x85"}[v]
		if a := expect[*packet.Connack](bad); a.Code != want[0] {
			t.Errorf("version %d: an id that would widen a rule is answered 0x%02X", v, a.Code)
		}
		bad.ended()
		bad = r.dial(v)
		bad.send(&packet.Connect{Version: v, ClientID: "w", CleanStart: true, Will: &packet.Will{Topic: "closed"}})
		if a := expect[*packet.Connack](bad); a.Code == 0 {
			t.Errorf("version %d: a will that may not be written is accepted", v)
		}
	}
	// A reload judges the deliveries of standing subscriptions again.
	c := r.connect(packet.V5, "c")
	c.subscribe("open/#", 0)
	cfg := testConfig()
	cfg.ACL = map[string][]config.Rule{"*": {{Verb: "readwrite", Filter: "other/#"}}}
	if err := r.b.Update(cfg); err != nil {
		t.Fatal(err)
	}
	r.b.Local("x").Publish(&Message{Topic: "open/a", Payload: []byte("x")}, nil)
	c.ping()
	c.silent()
}

func TestOrdinals(t *testing.T) {
	for n, want := range map[int]string{1: "1st", 2: "2nd", 3: "3rd", 4: "4th", 11: "11th", 12: "12th", 13: "13th", 22: "22nd", 101: "101st", 111: "111th"} {
		if got := ordinal(n); got != want {
			t.Error(fmt.Sprint(n), got)
		}
	}
}

// A users file that is read again while Update brings another configuration does
// not bring back the former one.
func TestUsersThatAreReadAgainUndoNoUpdate(t *testing.T) {
	path := usersFile(t, "joe:"+HashPassword([]byte("secret"), 1))
	r := start(t, NewMemory(), func(c *config.Broker, _ *Options) { c.Users = path })
	old := r.b.set.Load()
	fresh, err := newSettings(old.cfg)
	if err != nil {
		t.Fatal(err)
	}
	cfg := old.cfg
	cfg.MaxClients = 7
	if err := r.b.Update(cfg); err != nil {
		t.Fatal(err)
	}
	if r.b.replace(old, fresh) || r.b.set.Load().cfg.MaxClients != 7 {
		t.Error("the former configuration is back")
	}
	if now := r.b.set.Load(); !r.b.replace(now, fresh) || r.b.set.Load() != fresh {
		t.Error("the users are not read again")
	}
}

// Who takes a session over reads with rights of its own, also what the user before
// was judged for a moment ago.
func TestSessionOfAnotherUser(t *testing.T) {
	rules := map[string][]config.Rule{"joe": {{Verb: "read", Filter: "#"}}, "ann": {{Verb: "read", Filter: "open"}}}
	r := start(t, NewMemory(), func(c *config.Broker, _ *Options) { c.ACL = rules })
	as := func(user string) option { return func(p *packet.Connect) { p.HasUser, p.User = true, user } }
	c := r.connect(packet.V311, "c", persistent, as("joe"))
	c.subscribe("#", 0)
	l := r.b.Local("x")
	say := func() {
		l.Publish(&Message{Topic: "secret"}, nil)
		l.Publish(&Message{Topic: "open"}, nil)
	}
	say()
	c.receive("secret", "")
	c.receive("open", "")
	c = r.connect(packet.V311, "c", persistent, as("ann"))
	say()
	c.receive("open", "")
	c.ping()
	c.silent()
}
