package embeddedbroker

import (
	"container/list"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"busgate/config/report"
	"busgate/embeddedbroker/packet"
)

// Limits on those who are not authenticated. Clients of this machine count for
// max_clients only: whoever can log in here needs no broker to do harm.
const (
	perAddress        = 50                     // connections
	maxWaiting        = 64                     // connections without a CONNECT that was accepted; the oldest goes
	maxBurstWaiting   = 4 * maxWaiting         // ... whatever its age, when so many come at once
	leastWait         = 500 * time.Millisecond // time to say CONNECT before that
	waitingPerAddress = 16
	maxAddresses      = 4096 // addresses and users that are remembered; the oldest goes
	loginWindow       = time.Minute
	loginFailures     = 5 // in the window; then the address is shut out for another
	loginDelay        = time.Second
	maxLoginDelay     = 30 * time.Second
	hashesAtOnce      = 2
)

// gatekeeper limits who gets in before anybody is authenticated.
type gatekeeper struct {
	hashing chan struct{}  // room for hashesAtOnce
	said    *report.Ladder // when a refusal is worth a line, by address

	mu      sync.Mutex
	open    int
	waiting list.List // of *conn, oldest first
	guests  guests
}

// guest is what is known of one address or user name.
type guest struct {
	key     any // netip.Addr or a user name
	open    int
	waiting int
	failed  int
	since   time.Time // of the first failure that counts
	shut    time.Time // refused until then
}

// guests is a bounded table; those with connections are never forgotten, and
// they are bounded by max_clients.
type guests struct {
	byKey map[any]*list.Element
	age   list.List // of *guest, longest untouched first
}

func (t *guests) get(key any) *guest {
	if e := t.byKey[key]; e != nil {
		t.age.MoveToBack(e)
		return e.Value.(*guest)
	}
	if t.byKey == nil {
		t.byKey = map[any]*list.Element{}
	}
	for e := t.age.Front(); e != nil && len(t.byKey) >= maxAddresses; e = e.Next() {
		if g := e.Value.(*guest); g.open == 0 {
			t.age.Remove(e)
			delete(t.byKey, g.key)
			break
		}
	}
	g := &guest{key: key}
	t.byKey[key] = t.age.PushBack(g)
	return g
}

func newGatekeeper() *gatekeeper {
	return &gatekeeper{hashing: make(chan struct{}, hashesAtOnce), said: report.NewLadder(nil)}
}

// addressOf is the address that limits count by: IPv6 by /64, and nothing for
// clients of this machine.
func addressOf(a net.Addr) (ip netip.Addr, local bool) {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return ip, true
	}
	ip = tcp.AddrPort().Addr().Unmap()
	if ip.IsLoopback() {
		return ip, true
	}
	if ip.Is6() {
		if p, err := ip.WithZone("").Prefix(64); err == nil {
			ip = p.Addr()
		}
	}
	return ip, false
}

// enter counts a connection; false: it is to be closed without a word.
func (g *gatekeeper) enter(c *conn) bool {
	c.b.n.socketsAll.Add(1)
	now := time.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	if !c.local {
		a := g.guests.get(c.ip)
		if a.open >= perAddress || now.Before(a.shut) {
			c.b.n.refusedConnects.Add(1)
			return false
		}
		if a.waiting >= waitingPerAddress {
			g.pushOutLocked(func(o *conn) bool { return o.ip == c.ip && now.Sub(o.came) >= leastWait })
		}
		if n := g.waiting.Len(); n >= maxWaiting {
			g.pushOutLocked(func(o *conn) bool { return n >= maxBurstWaiting || now.Sub(o.came) >= leastWait })
		}
		a.open++
		a.waiting++
		c.came = now
		c.place = g.waiting.PushBack(c)
	}
	g.open++
	return true
}

// pushOutLocked ends the oldest waiting connection of a kind.
func (g *gatekeeper) pushOutLocked(kind func(*conn) bool) {
	for e := g.waiting.Front(); e != nil; e = e.Next() {
		if o := e.Value.(*conn); kind(o) {
			o.b.n.refusedConnects.Add(1)
			g.admittedLocked(o)
			o.kick(&ending{text: "made room for newer connections before its CONNECT"})
			return
		}
	}
}

// admitted ends the time in which a connection may be pushed out.
func (g *gatekeeper) admitted(c *conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.admittedLocked(c)
}

func (g *gatekeeper) admittedLocked(c *conn) {
	if c.place == nil {
		return
	}
	g.waiting.Remove(c.place)
	c.place = nil
	g.guests.get(c.ip).waiting--
}

func (g *gatekeeper) leave(c *conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.admittedLocked(c)
	g.open--
	if !c.local {
		g.guests.get(c.ip).open--
	}
}

// full refuses a CONNECT over max_clients.
func (g *gatekeeper) full(c *conn, limit int) error {
	g.mu.Lock()
	over := limit > 0 && g.open > limit
	g.mu.Unlock()
	if !over {
		return nil
	}
	c.b.n.refusedConnects.Add(1)
	text := fmt.Sprintf("%d clients are connected, more are refused (max_clients)", limit)
	c.b.ladder.Fail(report.Report{Err: "max-clients", Level: slog.LevelWarn, Who: "broker", Text: text})
	return refuseConnect(packet.QuotaExceeded, "%s", text)
}

// hash runs one comparison of a password when there is room, within the time
// that a CONNECT has.
func (g *gatekeeper) hash(limit time.Duration, check func() bool) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case g.hashing <- struct{}{}:
	case <-timer.C:
		return false
	}
	defer func() { <-g.hashing }()
	return check()
}

// failed notes a wrong password and refuses it after a while that doubles.
func (g *gatekeeper) failed(c *conn, user string) error {
	now := time.Now()
	g.mu.Lock()
	n := max(g.guests.get(c.ip).fail(now), g.guests.get("user "+user).fail(now))
	if a := g.guests.get(c.ip); !c.local && a.failed >= loginFailures {
		a.shut = now.Add(loginWindow)
	}
	g.mu.Unlock()
	text := fmt.Sprintf("%s (client %s, user %s) wrong password", host(c.addr), report.Name(c.id), report.Name(user))
	if n > 1 {
		text += ", " + ordinal(n) + " time"
	}
	if _, say := g.said.Fail(report.Report{Err: "lan-login", Who: c.ip.String(), Text: text}); say {
		c.b.log.Warn("broker: "+text, "err", "lan-login")
	}
	delay := min(loginDelay<<min(n-1, 10), maxLoginDelay)
	if err := c.pause(delay); err != nil {
		return err
	}
	return refuseConnect(packet.NotAuthorized, "wrong password")
}

// fail counts a failure in the running window.
func (g *guest) fail(now time.Time) int {
	if now.Sub(g.since) >= loginWindow {
		g.since, g.failed = now, 0
	}
	g.failed++
	return g.failed
}

// succeeded forgets the failures of an address.
func (g *gatekeeper) succeeded(c *conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.guests.get(c.ip).failed = 0
}

func host(addr string) string {
	if h, _, err := net.SplitHostPort(addr); err == nil {
		return h
	}
	return addr
}

func ordinal(n int) string {
	suffix := "th"
	if n%100 < 11 || n%100 > 13 {
		switch n % 10 {
		case 1:
			suffix = "st"
		case 2:
			suffix = "nd"
		case 3:
			suffix = "rd"
		}
	}
	return fmt.Sprint(n) + suffix
}

// isExhausted says whether accept failed for want of descriptors or memory.
func isExhausted(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.ENOBUFS, syscall.ECONNABORTED} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
