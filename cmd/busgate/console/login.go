package console

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"time"

	"busgate/config/report"
)

// The rule for wrong passwords: so many in a minute, of one address or for one
// user, then no more are looked at until the minute is over.
const (
	loginFailures = 5
	loginWindow   = time.Minute
	maxGuests     = 4096 // addresses and users that are remembered; the oldest goes
	maxUser       = 64   // bytes of a name that count
	hashWait      = 5 * time.Second
)

// guard decides who may see a page.
type guard struct {
	log     *slog.Logger
	load    func(path string) (Users, error)
	hashing chan struct{} // one password at a time: it is the dearest thing to ask for

	mu     sync.Mutex
	file   usersFile
	guests map[string]*guest
}

// usersFile is a reading of a users file.
type usersFile struct {
	path  string // "" = nobody needs to log in
	stamp stamp  // of the version that was read, or that could not be
	users Users  // nil: nobody can log in
}

// guest is what is known of an address or of a user's name.
type guest struct {
	failed int
	since  time.Time // of the first failure that counts, or of the login
	user   string    // of an address: who has logged in from there
}

// stamp tells two versions of a file apart.
type stamp struct {
	size int64
	mod  time.Time
}

func stampOf(path string) stamp {
	i, err := os.Stat(path)
	if err != nil {
		return stamp{}
	}
	return stamp{i.Size(), i.ModTime()}
}

// read reads a users file. With an error nobody can log in with what it returns.
func (g *guard) read(path string) (usersFile, error) {
	u := usersFile{path: path}
	if path == "" {
		return u, nil
	}
	u.stamp = stampOf(path)
	var err error
	if u.users, err = g.load(path); err != nil {
		u.users = nil
		return u, fmt.Errorf("users: %w", err)
	}
	return u, nil
}

// use goes over to another users file.
func (g *guard) use(u usersFile) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.file = u
}

// current are the users of the file as it is now. A version of it with a mistake
// is said once, and the users before it stay.
func (g *guard) current() Users {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.file.path != "" && stampOf(g.file.path) != g.file.stamp {
		fresh, err := g.read(g.file.path)
		if err != nil {
			fresh.users = g.file.users
			g.log.Error("console: the changed users file is not usable, the old users stay", "err", err)
		}
		g.file = fresh
	}
	return g.file.users
}

// admit lets in who asks from this machine, and who logs in. What a proxy on this
// machine passes on is not from it.
func (g *guard) admit(r *http.Request, n *counters) *refusal {
	g.mu.Lock()
	open := g.file.path == ""
	g.mu.Unlock()
	passedOn := r.Header.Get("X-Forwarded-For") != "" || r.Header.Get("Forwarded") != ""
	if onThisMachine(r.RemoteAddr) && (open || !passedOn) {
		return nil
	}
	name, secret, given := r.BasicAuth()
	switch {
	case open: // only loopback can be listened on then
		return &refusal{status: http.StatusForbidden, text: "only this machine may ask: there are no users in [web]"}
	case !given:
		return &refusal{status: http.StatusUnauthorized, text: "log in as a user of the gateway (busgate passwd NAME)", login: true}
	}
	users := g.current()
	addr := addressOf(r.RemoteAddr)
	if wait := g.shut(addr, name); wait > 0 {
		n.loginsRefused.Add(1)
		return tooMany(wait)
	}
	t := time.NewTimer(hashWait)
	defer t.Stop()
	select {
	case g.hashing <- struct{}{}:
		defer func() { <-g.hashing }()
	case <-t.C:
		return &refusal{status: http.StatusServiceUnavailable, text: "too many passwords are to be checked", retry: hashWait}
	}
	if wait := g.shut(addr, name); wait > 0 { // others failed while this one waited
		n.loginsRefused.Add(1)
		return tooMany(wait)
	}
	if users == nil || !users.Check(name, []byte(secret)) {
		n.loginsWrong.Add(1)
		g.failed(addr, name)
		return &refusal{status: http.StatusUnauthorized, text: "wrong user or password", login: true}
	}
	n.loginsOK.Add(1)
	g.succeeded(addr, name)
	return nil
}

func tooMany(wait time.Duration) *refusal {
	return &refusal{status: http.StatusTooManyRequests, text: "too many wrong passwords; try again in " + report.Duration(wait), retry: wait}
}

// keys are the two guests that a login is about. IPv6 counts by /64.
func keys(addr netip.Addr, user string) (byAddr, byUser string) {
	if addr.Is6() {
		if p, err := addr.Prefix(64); err == nil {
			addr = p.Addr()
		}
	}
	return addr.String(), "user " + user[:min(len(user), maxUser)]
}

// shut is for how long this login is not looked at. What others guess for a user
// does not shut out an address from which that user has logged in.
func (g *guard) shut(addr netip.Addr, user string) time.Duration {
	byAddr, byUser := keys(addr, user)
	now := time.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	wait := time.Duration(0)
	a := g.guests[byAddr]
	for i, x := range []*guest{a, g.guests[byUser]} {
		if x == nil || x.failed < loginFailures || i == 1 && a != nil && a.user == byUser {
			continue
		}
		wait = max(wait, x.since.Add(loginWindow).Sub(now))
	}
	return wait
}

func (g *guard) failed(addr netip.Addr, user string) {
	byAddr, byUser := keys(addr, user)
	now := time.Now()
	g.mu.Lock()
	n := 0
	for _, key := range []string{byAddr, byUser} {
		x := g.guestLocked(key)
		if now.Sub(x.since) >= loginWindow {
			x.since, x.failed = now, 0
		}
		x.failed++
		n = max(n, x.failed)
	}
	g.mu.Unlock()
	if n == 1 || n == loginFailures {
		g.log.Warn(fmt.Sprintf("console: %s: wrong password for user %s, %d in a minute", addr, report.Name(user), n), "err", "lan-offence")
	}
}

func (g *guard) succeeded(addr netip.Addr, user string) {
	byAddr, byUser := keys(addr, user)
	g.mu.Lock()
	defer g.mu.Unlock()
	x := g.guestLocked(byAddr)
	*x = guest{since: time.Now(), user: byUser}
}

// guestLocked is a guest by its key; for a new one in a full table the oldest goes.
func (g *guard) guestLocked(key string) *guest {
	if x := g.guests[key]; x != nil {
		return x
	}
	if g.guests == nil {
		g.guests = map[string]*guest{}
	}
	if len(g.guests) >= maxGuests {
		oldest := ""
		for k, x := range g.guests {
			if oldest == "" || x.since.Before(g.guests[oldest].since) {
				oldest = k
			}
		}
		delete(g.guests, oldest)
	}
	x := &guest{}
	g.guests[key] = x
	return x
}
