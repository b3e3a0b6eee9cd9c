package embeddedbroker

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"busgate/embeddedbroker/packet"
)

// maxIterations bounds what a line of the users file can cost.
const maxIterations = 10_000_000

// Users is one reading of a users file in the format of mosquitto_passwd.
type Users struct {
	byName map[string]password
	stamp  stamp    // of the file, for the timers
	dummy  password // hashed for names that do not exist, so that time tells nothing
	key    [32]byte // random, of mac

	mu    sync.Mutex
	right map[string][sha256.Size]byte // mac of the password that was right, by user; as many as byName at most
}

// password is $7$iterations$salt$hash (PBKDF2-SHA512) or $6$salt$hash (SHA-512
// of password and salt).
type password struct {
	iterations int // 0 = $6$
	salt, hash []byte
}

// LoadUsers reads a users file; an error names file and line.
func LoadUsers(path string) (*Users, error) {
	at := stampOf(path)
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	u, err := parseUsers(path, text)
	if err == nil {
		u.stamp = at
	}
	return u, err
}

func parseUsers(path string, text []byte) (*Users, error) {
	u := &Users{byName: map[string]password{}, right: map[string][sha256.Size]byte{}, dummy: password{iterations: HashIterations, salt: make([]byte, 12), hash: make([]byte, 64)}}
	rand.Read(u.key[:])
	n := 0
	for line := range bytes.Lines(text) {
		n++
		l := strings.TrimRight(string(line), "\r\n")
		if l == "" || l[0] == '#' {
			continue
		}
		name, hash, ok := strings.Cut(l, ":")
		if !ok || name == "" {
			return nil, fmt.Errorf("%s:%d: not of the form name:hash (use busgate passwd)", path, n)
		}
		p, ok := parsePassword(hash)
		if !ok {
			return nil, fmt.Errorf("%s:%d: user %q: unknown password format (use busgate passwd)", path, n, name)
		}
		u.byName[name] = p
		u.dummy.iterations = p.iterations
	}
	return u, nil
}

func parsePassword(s string) (p password, ok bool) {
	f := strings.Split(s, "$")
	switch {
	case len(f) == 5 && f[0] == "" && f[1] == "7":
		n, err := strconv.Atoi(f[2])
		if err != nil || n < 1 || n > maxIterations {
			return p, false
		}
		p.iterations = n
		f = f[3:]
	case len(f) == 4 && f[0] == "" && f[1] == "6":
		f = f[2:]
	default:
		return p, false
	}
	var err1, err2 error
	p.salt, err1 = base64.StdEncoding.DecodeString(f[0])
	p.hash, err2 = base64.StdEncoding.DecodeString(f[1])
	return p, err1 == nil && err2 == nil && len(p.hash) == sha512.Size
}

// HashIterations is what a password is worth by default: a login costs some 10 ms on a Pi.
const HashIterations = 20_000

// HashPassword makes what stands behind the colon of a line in a users file.
// iterations is at least 1; mosquitto_passwd takes 101.
func HashPassword(secret []byte, iterations int) string {
	p := password{iterations: iterations, salt: make([]byte, 12)}
	rand.Read(p.salt)
	sum := p.derive(secret, rhythm{slice: maxIterations + 1})
	return fmt.Sprintf("$7$%d$%s$%s", iterations, base64.StdEncoding.EncodeToString(p.salt), base64.StdEncoding.EncodeToString(sum))
}

// Has says whether there is a user of that name.
func (u *Users) Has(name string) bool {
	_, ok := u.byName[name]
	return ok
}

// Check compares in constant time, also for a name that does not exist.
func (u *Users) Check(name string, secret []byte) bool {
	return u.check(name, secret, rhythm{slice: maxIterations + 1})
}

func (u *Users) check(name string, secret []byte, r rhythm) bool {
	if u.remembers(name, secret) {
		return true // another connection asked meanwhile
	}
	p, known := u.byName[name]
	if !known {
		p = u.dummy
	}
	right := subtle.ConstantTimeCompare(p.derive(secret, r), p.hash) == 1 && known
	if right {
		mac := u.mac(name, secret)
		u.mu.Lock()
		u.right[name] = mac
		u.mu.Unlock()
	}
	return right
}

// derive is the hash of a secret: SHA-512, or PBKDF2 with HMAC-SHA512 (RFC 8018,
// 5.2), of which one block is enough. The rests are why it is not crypto/pbkdf2.
func (p *password) derive(secret []byte, r rhythm) []byte {
	if p.iterations == 0 {
		sum := sha512.Sum512(append(bytes.Clone(secret), p.salt...))
		return sum[:]
	}
	prf := hmac.New(sha512.New, secret)
	prf.Write(p.salt)
	prf.Write([]byte{0, 0, 0, 1})
	round := prf.Sum(nil)
	sum := bytes.Clone(round)
	r = r.during(p.iterations)
	began := time.Now()
	for i := 1; i < p.iterations; i++ {
		if i%r.slice == 0 {
			r.pause(began)
			began = time.Now()
		}
		prf.Reset()
		prf.Write(round)
		round = prf.Sum(round[:0])
		subtle.XORBytes(sum, sum, round)
	}
	return sum
}

// mac stands for a right password in memory: under a key of this reading
// of the file.
func (u *Users) mac(name string, secret []byte) (mac [sha256.Size]byte) {
	h := hmac.New(sha256.New, u.key[:])
	fmt.Fprintf(h, "%d:%s", len(name), name)
	h.Write(secret)
	h.Sum(mac[:0])
	return mac
}

// remembers says whether this password of this user was right before. It costs
// next to nothing, so that those who are known come back past all who guess.
func (u *Users) remembers(name string, secret []byte) bool {
	u.mu.Lock()
	was, ok := u.right[name]
	u.mu.Unlock()
	if !ok {
		return false
	}
	is := u.mac(name, secret)
	return subtle.ConstantTimeCompare(was[:], is[:]) == 1
}

// login judges user name and password. The name in a verified certificate
// needs no password.
func (c *conn) login(p *packet.Connect, set *settings) error {
	if name := commonName(c.nc); name != "" {
		c.user = name
		return nil
	}
	if set.users == nil {
		c.user = p.User
		return nil
	}
	if !p.HasUser && set.cfg.Anonymous {
		return nil
	}
	if p.HasUser {
		ok := set.users.remembers(p.User, p.Password)
		if !ok {
			var err error
			if ok, err = c.b.gate.hash(c, func(r rhythm) bool { return set.users.check(p.User, p.Password, r) }); err != nil {
				return err
			}
		}
		if ok {
			c.b.gate.succeeded(c)
			c.user = p.User
			return nil
		}
	}
	c.b.n.failedLogins.Add(1)
	return c.b.gate.failed(c, p.User)
}

// watchUsers reads the users file again when it has changed. A file with a
// mistake changes nothing.
func (b *Broker) watchUsers() {
	set := b.set.Load()
	if set.users == nil || stampOf(set.cfg.Users) == set.users.stamp {
		return
	}
	fresh, err := newSettings(set.cfg)
	if err != nil {
		set.users.stamp = stampOf(set.cfg.Users) // said once a version
		b.log.Error("broker: the changed users file is not usable, the old users stay", "err", err)
		return
	}
	if b.replace(set, fresh) { // else Update has read them
		b.log.Info("broker: users read again", "users", len(fresh.users.byName))
	}
}
