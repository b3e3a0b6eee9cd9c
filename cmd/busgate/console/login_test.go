package console

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"busgate/config"
)

// login is the status of a request from an address, with a login if there is one.
func login(c *Console, path, from, user, secret string) int {
	r := request("GET", path, from)
	if user != "" {
		r.SetBasicAuth(user, secret)
	}
	return answer(c, r).StatusCode
}

func TestWhoMaySee(t *testing.T) {
	users := usersOf(t, "eva:right\n")
	with, _ := open(t, config.Web{Listen: "127.0.0.1:8080", Users: users}, nil)
	without, _ := open(t, config.Web{Listen: "127.0.0.1:8080"}, nil)
	broken, _ := open(t, config.Web{Listen: "127.0.0.1:8080", Users: users + "-missing"}, nil)
	for _, x := range []struct {
		fact                     string
		c                        *Console
		path, from, user, secret string
		status                   int
	}{
		{"a program on this machine", with, "/metrics", near, "", "", 200},
		{"over IPv6, too", with, "/", "[::1]:40000", "", "", 200},
		{"mapped, too", with, "/", "[::ffff:127.0.0.1]:40000", "", "", 200},
		{"health needs no login", with, "/healthz", far, "", "", 200},
		{"from the network a login is asked for", with, "/metrics", far, "", "", 401},
		{"... for the page, too", with, "/", far, "", "", 401},
		{"the right one is let in", with, "/metrics", far, "eva", "right", 200},
		{"a wrong one is not", with, "/metrics", far, "eva", "wrong", 401},
		{"an unknown user is not", with, "/", far, "adam", "right", 401},
		{"without users the network is shut out", without, "/", far, "eva", "right", 403},
		{"without users this machine is not", without, "/", near, "", "", 200},
		{"an unreadable users file lets nobody in", broken, "/", far, "eva", "right", 401},
		{"... but this machine", broken, "/", near, "", "", 200},
		{"an address that is none", with, "/", "@", "", "", 401},
	} {
		if got := login(x.c, x.path, x.from, x.user, x.secret); got != x.status {
			t.Errorf("%s: %d", x.fact, got)
		}
	}
	for _, h := range []string{"X-Forwarded-For", "Forwarded"} {
		for c, want := range map[*Console]int{with: 401, without: 200} {
			r := request("GET", "/", near)
			r.Header.Set(h, "203.0.113.7")
			if a := answer(c, r); a.StatusCode != want {
				t.Errorf("passed on by a proxy with %s: %d, want %d", h, a.StatusCode, want)
			}
		}
	}
	if a := answer(with, request("GET", "/", far)); a.Header.Get("WWW-Authenticate") != `Basic realm="busgate", charset="UTF-8"` {
		t.Error(a.Header)
	}
	if n := &with.n; n.loginsOK.Load() != 1 || n.loginsWrong.Load() != 2 || n.loginsRefused.Load() != 0 {
		t.Errorf("%d right, %d wrong", n.loginsOK.Load(), n.loginsWrong.Load())
	}
}

func TestLoginRate(t *testing.T) {
	users := usersOf(t, "eva:right\nadam:right\n")
	bubble := func(fact string, fn func(t *testing.T, c *Console, book *logbook)) {
		t.Run(fact, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, book := open(t, config.Web{Listen: "127.0.0.1:8080", Users: users}, nil)
				fn(t, c, book)
			})
		})
	}
	at := func(n int) string { return fmt.Sprintf("192.168.1.%d:40000", n) }
	bubble("an address has five tries a minute, then the right password is not looked at", func(t *testing.T, c *Console, book *logbook) {
		for i := range loginFailures {
			if got := login(c, "/", at(1), fmt.Sprint("nobody", i), "x"); got != 401 {
				t.Fatalf("try %d: %d", i+1, got)
			}
			time.Sleep(time.Second)
		}
		r := request("GET", "/", at(1))
		r.SetBasicAuth("eva", "right")
		a := answer(c, r)
		if a.StatusCode != http.StatusTooManyRequests || a.Header.Get("Retry-After") != "55" {
			t.Errorf("%d, Retry-After %s", a.StatusCode, a.Header.Get("Retry-After"))
		}
		if got := login(c, "/", at(2), "eva", "right"); got != 200 {
			t.Errorf("another address: %d", got)
		}
		time.Sleep(55*time.Second - time.Nanosecond)
		if got := login(c, "/", at(1), "eva", "right"); got != 429 {
			t.Errorf("just before the end of the minute: %d", got)
		}
		time.Sleep(time.Nanosecond)
		if got := login(c, "/", at(1), "eva", "right"); got != 200 {
			t.Errorf("after the minute: %d", got)
		}
		if n := strings.Count(book.String(), "wrong password"); n != 2 { // the first and the fifth
			t.Errorf("%d lines:\n%s", n, book)
		}
		asked := c.guard.file.users.(*people).asked
		if asked != loginFailures+2 || c.n.loginsRefused.Load() != 2 {
			t.Errorf("%d passwords were looked at, %d not", asked, c.n.loginsRefused.Load())
		}
	})
	bubble("a user has five tries a minute from anywhere, but where the user has been is not shut", func(t *testing.T, c *Console, _ *logbook) {
		if got := login(c, "/", at(99), "eva", "right"); got != 200 {
			t.Fatal(got)
		}
		for i := range loginFailures {
			login(c, "/", at(i), "eva", "x")
		}
		if got := login(c, "/", at(50), "eva", "right"); got != 429 {
			t.Errorf("from elsewhere: %d", got)
		}
		if got := login(c, "/", at(99), "eva", "right"); got != 200 {
			t.Errorf("from where she was: %d", got)
		}
		if got := login(c, "/", at(50), "adam", "right"); got != 200 {
			t.Errorf("another user: %d", got)
		}
	})
	bubble("IPv6 counts by /64", func(t *testing.T, c *Console, _ *logbook) {
		for i := range loginFailures {
			login(c, "/", fmt.Sprintf("[2001:db8::%d]:1", i+1), fmt.Sprint("u", i), "x")
		}
		if got := login(c, "/", "[2001:db8::ffff]:1", "eva", "right"); got != 429 {
			t.Errorf("the same network: %d", got)
		}
		if got := login(c, "/", "[2001:db8:0:1::1]:1", "eva", "right"); got != 200 {
			t.Errorf("another network: %d", got)
		}
	})
	bubble("addresses and names are bounded", func(t *testing.T, c *Console, _ *logbook) {
		for i := range maxGuests/2 + 60 {
			time.Sleep(time.Millisecond)
			login(c, "/", fmt.Sprintf("10.%d.%d.1:1", i>>8, i&255), fmt.Sprint("user", i), "x")
		}
		if n := len(c.guard.guests); n != maxGuests {
			t.Errorf("%d guests", n)
		}
	})
}

// TestUsersFileChanges: the newest version counts, and one with a mistake does not.
func TestUsersFileChanges(t *testing.T) {
	file := usersOf(t, "eva:one\n")
	c, book := open(t, config.Web{Listen: "127.0.0.1:8080", Users: file}, nil)
	put := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, x := range []struct {
		fact, text, secret string
		status             int
	}{
		{"the first", "", "one", 200},
		{"a new password", "eva:three\n", "three", 200},
		{"the old one is over", "", "one", 401},
		{"a mistake keeps the users before it", "no colon", "three", 200},
		{"... and is said once", "", "three", 200},
		{"a mended one", "eva:seventeen\n", "seventeen", 200},
	} {
		if x.text != "" {
			put(x.text)
		}
		if got := login(c, "/", far, "eva", x.secret); got != x.status {
			t.Errorf("%s: %d", x.fact, got)
		}
	}
	if n := strings.Count(book.String(), "the old users stay"); n != 1 {
		t.Errorf("%d lines:\n%s", n, book)
	}
}
