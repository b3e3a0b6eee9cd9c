package embeddedbroker

import (
	"bytes"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"os"
	"strconv"
	"strings"

	"busgate/embeddedbroker/packet"
)

// maxIterations bounds what a line of the users file can cost.
const maxIterations = 10_000_000

// Users is one reading of a users file in the format of mosquitto_passwd.
type Users struct {
	byName map[string]password
	stamp  stamp    // of the file, for the timers
	dummy  password // hashed for names that do not exist, so that time tells nothing
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
	u := &Users{byName: map[string]password{}, dummy: password{iterations: HashIterations, salt: make([]byte, 12), hash: make([]byte, 64)}}
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
	salt := make([]byte, 12)
	rand.Read(salt)
	sum, err := pbkdf2.Key(sha512.New, string(secret), salt, iterations, sha512.Size)
	if err != nil {
		panic("embeddedbroker: " + err.Error()) // fixed parameters of ours
	}
	return fmt.Sprintf("$7$%d$%s$%s", iterations, base64.StdEncoding.EncodeToString(salt), base64.StdEncoding.EncodeToString(sum))
}

// Has says whether there is a user of that name.
func (u *Users) Has(name string) bool {
	_, ok := u.byName[name]
	return ok
}

// Check compares in constant time, also for a name that does not exist.
func (u *Users) Check(name string, secret []byte) bool {
	p, known := u.byName[name]
	if !known {
		p = u.dummy
	}
	var sum []byte
	if p.iterations == 0 {
		h := sha512.Sum512(append(bytes.Clone(secret), p.salt...))
		sum = h[:]
	} else {
		var err error
		if sum, err = pbkdf2.Key(sha512.New, string(secret), p.salt, p.iterations, sha512.Size); err != nil {
			return false
		}
	}
	return subtle.ConstantTimeCompare(sum, p.hash) == 1 && known
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
		ok, err := c.b.gate.hash(c, func() bool { return set.users.Check(p.User, p.Password) })
		if err != nil {
			return err
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
	b.log.Info("broker: users read again", "users", len(fresh.users.byName))
	b.apply(fresh)
}
