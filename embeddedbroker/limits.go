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

// Limits on those who are not authenticated. The number of connections by address
// leaves clients of this machine out: behind a proxy or a tunnel all of them have
// one address. Their pace (pace.go) and their waiting have bounds like any.
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

	offenceEvery = time.Minute // a line about one address, at most
	comings      = 120         // clients of one address that are said to come or go, in that time
)

// gatekeeper limits who gets in before anybody is authenticated.
type gatekeeper struct {
	mu      sync.Mutex
	clients int       // those that were admitted
	waiting list.List // of *conn without a CONNECT that was accepted, oldest first
	near    int       // of them of this machine
	guests  guests
	accepts pace
	crowd   int   // visitBurst
	wrong   guest // failed logins of everybody
	hashing hashing
	lines   []string // to be logged when mu is free
}

// guest is what is known of one address or user name.
type guest struct {
	key     any // netip.Addr or a user name
	open    int
	waiting int
	visits  pace
	failed  int
	since   time.Time // of the first failure that counts
	shut    time.Time // refused until then

	said    time.Time // the last line about an offence
	unsaid  int       // offences since then
	lines   int       // about coming and going, since counted
	counted time.Time
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
	return &gatekeeper{crowd: visitBurst}
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
	c.came = now
	g.mu.Lock()
	defer g.unlock(c.b)
	a := g.guests.get(c.ip)
	if a.visits.wait(now, visitEvery, g.crowd) > 0 {
		g.refuseLocked(c, fmt.Sprintf("opens more than %d connections a second, more are refused", time.Second/visitEvery))
		return false
	}
	a.visits.take(now, visitEvery)
	if c.local {
		if g.near >= maxBurstWaiting {
			g.pushOutLocked(func(o *conn) bool { return o.local })
		}
		g.near++
		c.place = g.waiting.PushBack(c)
		return true
	}
	switch {
	case now.Before(a.shut):
		g.refuseLocked(c, "is refused for a minute after wrong passwords")
		return false
	case a.open >= perAddress:
		g.refuseLocked(c, fmt.Sprintf("has %d connections, more are refused", perAddress))
		return false
	}
	if a.waiting >= waitingPerAddress {
		g.pushOutLocked(func(o *conn) bool { return o.ip == c.ip && now.Sub(o.came) >= leastWait })
	}
	if n := g.waiting.Len() - g.near; n >= maxWaiting {
		g.pushOutLocked(func(o *conn) bool { return !o.local && (n >= maxBurstWaiting || now.Sub(o.came) >= leastWait) })
	}
	a.open++
	a.waiting++
	c.place = g.waiting.PushBack(c)
	return true
}

func (g *gatekeeper) refuseLocked(c *conn, text string) {
	c.b.n.refusedConnects.Add(1)
	g.offenceLocked(c, text)
}

// pushOutLocked ends the oldest waiting connection of a kind.
func (g *gatekeeper) pushOutLocked(kind func(*conn) bool) {
	for e := g.waiting.Front(); e != nil; e = e.Next() {
		if o := e.Value.(*conn); kind(o) {
			o.b.n.refusedConnects.Add(1)
			g.waitedLocked(o)
			o.kick(&ending{text: "made room for newer connections before its CONNECT", fault: true, reset: true})
			return
		}
	}
}

// admit counts a client that may come in, and ends the time in which it may be
// pushed out. Over max_clients it is refused, unless it replaces a connection
// of its own.
func (g *gatekeeper) admit(c *conn, limit int, again bool) error {
	g.mu.Lock()
	over := g.clients >= limit && limit > 0 && !again
	if !over {
		g.waitedLocked(c)
		c.inside = true
		g.clients++
	}
	g.mu.Unlock()
	if over {
		return overFull(c, limit)
	}
	return nil
}

// full refuses a CONNECT over max_clients before it costs anything.
func (g *gatekeeper) full(c *conn, limit int, again bool) error {
	g.mu.Lock()
	over := g.clients >= limit && limit > 0 && !again
	g.mu.Unlock()
	if over {
		return overFull(c, limit)
	}
	return nil
}

func overFull(c *conn, limit int) error {
	c.b.n.refusedConnects.Add(1)
	text := fmt.Sprintf("%d clients are connected, more are refused (max_clients)", limit)
	c.b.ladder.Fail(report.Report{Err: "max-clients", Level: slog.LevelWarn, Who: "broker", Text: text})
	e := refuseConnect(packet.QuotaExceeded, "%s", text)
	e.said = true
	return e
}

func (g *gatekeeper) waitedLocked(c *conn) {
	if c.place == nil {
		return
	}
	g.waiting.Remove(c.place)
	c.place = nil
	if c.local {
		g.near--
		return
	}
	g.guests.get(c.ip).waiting--
}

func (g *gatekeeper) leave(c *conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.waitedLocked(c)
	if c.inside {
		g.clients--
	}
	if !c.local {
		g.guests.get(c.ip).open--
	}
}

// offence says in one line a minute and address what somebody does.
func (g *gatekeeper) offence(c *conn, text string) {
	g.mu.Lock()
	defer g.unlock(c.b)
	g.offenceLocked(c, text)
}

// unlock lets mu go and logs what was to be said meanwhile.
func (g *gatekeeper) unlock(b *Broker) {
	lines := g.lines
	g.lines = nil
	g.mu.Unlock()
	for _, l := range lines {
		b.log.Warn("broker: "+l, "err", "lan-offence")
	}
}

func (g *gatekeeper) offenceLocked(c *conn, text string) {
	a, now := g.guests.get(c.ip), time.Now()
	if !a.said.IsZero() && now.Sub(a.said) < offenceEvery {
		a.unsaid++
		return
	}
	line := host(c.addr)
	if c.id != "" {
		line += " (client " + report.Name(c.id)
		if c.claims != "" {
			line += ", user " + report.Name(c.claims)
		}
		line += ")"
	}
	line += " " + report.Line(text)
	if a.unsaid > 0 {
		line += fmt.Sprintf("; %s more like it since %s", report.Count(uint64(a.unsaid)), a.said.Local().Format("15:04:05"))
	}
	a.said, a.unsaid = now, 0
	g.lines = append(g.lines, line)
}

// mayTell says whether that a client comes or goes is worth a line: not when its
// address does little else.
func (g *gatekeeper) mayTell(c *conn) bool {
	g.mu.Lock()
	defer g.unlock(c.b)
	a, now := g.guests.get(c.ip), time.Now()
	if now.Sub(a.counted) >= offenceEvery {
		a.counted, a.lines = now, 0
	}
	if a.lines++; a.lines == comings {
		g.offenceLocked(c, "comes and goes all the time: the rest of this minute is left out")
	}
	return a.lines < comings
}

// failed notes a wrong password and refuses it after a while that doubles.
func (g *gatekeeper) failed(c *conn, user string) error {
	now := time.Now()
	g.mu.Lock()
	g.wrong.fail(now)
	n := max(g.guests.get(c.ip).fail(now), g.guests.get("user "+user[:min(len(user), 64)]).fail(now)) // it may be long
	if a := g.guests.get(c.ip); !c.local && a.failed >= loginFailures {
		a.shut = now.Add(loginWindow)
	}
	g.mu.Unlock()
	text := "wrong password"
	if user == "" {
		text = "wants in without a user name"
	}
	if n > 1 {
		text += ", " + ordinal(n) + " time"
	}
	c.claims = user
	g.offence(c, text)
	delay := min(loginDelay<<min(n-1, 10), maxLoginDelay)
	if err := c.pause(delay); err != nil {
		return err
	}
	e := refuseConnect(packet.NotAuthorized, "wrong password")
	e.said = true
	return e
}

// fail counts a failure in the running window.
func (g *guest) fail(now time.Time) int {
	if now.Sub(g.since) >= loginWindow {
		g.since, g.failed = now, 0
	}
	g.failed++
	return g.failed
}

// failing says whether the failures of the running window are too many.
func (g *guest) failing(now time.Time) bool {
	return g.failed >= loginFailures && now.Sub(g.since) < loginWindow
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
