package console

import (
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"busgate/cmd/busgate/console/metricstest"
	"busgate/config"
)

const near, far = "127.0.0.1:40000", "192.168.1.23:40000"

func TestRoutes(t *testing.T) {
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	c, _ := open(t, config.Web{Listen: "127.0.0.1:8080", Hosts: []string{"Gateway.Example"}}, nil)
	for _, x := range []struct {
		fact, method, target, host string
		status                     int
		kind, text                 string
	}{
		{"the page for people", "GET", "/", "", 200, "text/html; charset=utf-8", `<th scope="row">grid</th><td>online</td>`},
		{"numbers", "GET", "/metrics", "", 200, "text/plain; version=0.0.4; charset=utf-8", "\nbusgate_uptime_seconds 1.5\n"},
		{"numbers with points", "GET", "/metrics?points=1", "", 200, "text/plain; version=0.0.4; charset=utf-8", "\nbusgate_point{device=\"grid\",point=\"voltage\"} 230\n"},
		{"health", "GET", "/healthz", "", 200, "text/plain; charset=utf-8", "ok\n"},
		{"HEAD has no body", "HEAD", "/", "", 200, "text/html; charset=utf-8", ""},
		{"nothing else", "GET", "/index.html", "", 404, "text/plain; charset=utf-8", `there is no page "/index.html"; there are /, /metrics and /healthz`},
		{"no path below", "GET", "/metrics/", "", 404, "text/plain; charset=utf-8", ""},
		{"no POST", "POST", "/", "", 405, "text/plain; charset=utf-8", "GET and HEAD"},
		{"no DELETE", "DELETE", "/metrics", "", 405, "text/plain; charset=utf-8", ""},
		{"no OPTIONS", "OPTIONS", "/healthz", "", 405, "text/plain; charset=utf-8", ""},
		{"localhost", "GET", "/healthz", "localhost:8080", 200, "text/plain; charset=utf-8", ""},
		{"the host name", "GET", "/healthz", host, 200, "text/plain; charset=utf-8", ""},
		{"the host name in mDNS", "GET", "/healthz", strings.ToUpper(host) + ".local.:8080", 200, "text/plain; charset=utf-8", ""},
		{"a name of hosts, in any case", "GET", "/healthz", "gateway.EXAMPLE:8080", 200, "text/plain; charset=utf-8", ""},
		{"a foreign name", "GET", "/healthz", "evil.example", 421, "text/plain; charset=utf-8", `unknown host name "evil.example": add it to hosts in [web]`},
		{"a foreign name that ends like ours", "GET", "/metrics", "evil-localhost", 421, "text/plain; charset=utf-8", ""},
		{"another address", "GET", "/", "10.0.0.1:8080", 421, "text/plain; charset=utf-8", ""},
		{"no name", "GET", "/", " ", 421, "text/plain; charset=utf-8", ""},
		{"a name that is no text", "GET", "/", "\x00\n" + strings.Repeat("x", 300), 421, "text/plain; charset=utf-8", `unknown host name "\x00\n`},
	} {
		r := request(x.method, x.target, near)
		if x.host != "" {
			r.Host = strings.TrimSpace(x.host)
			if x.host[0] == 0 {
				r.Host = x.host
			}
		}
		a := answer(c, r)
		text := body(t, a)
		if a.StatusCode != x.status || a.Header.Get("Content-Type") != x.kind || !strings.Contains(text, x.text) || x.method == "HEAD" && text != "" {
			t.Errorf("%s: %d %q\n%s", x.fact, a.StatusCode, a.Header.Get("Content-Type"), text)
		}
		if n := strings.Count(text, "\n"); x.status >= 400 && (n != 1 || len(text) > 400) {
			t.Errorf("%s: %d lines, %d bytes", x.fact, n, len(text))
		}
		if allow := a.Header.Get("Allow"); (x.status == 405) != (allow == "GET, HEAD") {
			t.Errorf("%s: Allow %q", x.fact, allow)
		}
		for name, want := range map[string]string{
			"Content-Security-Policy":    policy,
			"X-Content-Type-Options":     "nosniff",
			"Referrer-Policy":            "no-referrer",
			"Cross-Origin-Opener-Policy": "same-origin",
			"Cache-Control":              "no-store",
		} {
			if got := a.Header.Get(name); got != want {
				t.Errorf("%s: %s is %q", x.fact, name, got)
			}
		}
	}
	text, err := metricstest.Read([]byte(body(t, answer(c, request("GET", "/metrics", near)))))
	if err != nil {
		t.Fatal(err)
	}
	if n, _ := text.Value("busgate_web_refused_total", "reason", "host"); n != 5 {
		t.Errorf("%v foreign hosts were counted", n)
	}
}

func TestPolicy(t *testing.T) {
	for _, x := range []string{"default-src 'none'", "style-src 'sha256-", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"} {
		if !strings.Contains(policy, x) {
			t.Errorf("no %s", x)
		}
	}
	if strings.Contains(policy, "unsafe") || strings.Contains(policy, "script-src") {
		t.Error(policy)
	}
}

// TestHostileTextOnThePage: what comes from outside is shown, and is no markup.
func TestHostileTextOnThePage(t *testing.T) {
	const evil = `<img src=x onerror="alert('1')">&`
	s := Status{Gateway: evil, About: evil, Summary: evil, Tables: []Table{{Head: []string{evil}, Rows: [][]string{{evil, evil}}}}}
	page := string(s.page())
	if strings.Contains(page, "<img") || strings.Count(page, "&lt;img src=x onerror=&#34;alert(&#39;1&#39;)&#34;&gt;&amp;") != 7 {
		t.Error(page)
	}
	for _, x := range []string{"<script", "style=", "http://", "https://", " on"} {
		rest := strings.ReplaceAll(page, "onerror", "")
		if strings.Contains(rest, x+"click") || x != " on" && strings.Contains(rest, x) {
			t.Errorf("%q is in the page", x)
		}
	}
}

func TestPanicIsOnePage(t *testing.T) {
	bad := true
	c, book := open(t, config.Web{Listen: "127.0.0.1:8080"}, func(o *Options) {
		good := o.Status
		o.Status = func() Status {
			if bad {
				panic("no \n device")
			}
			return good()
		}
	})
	for range pagesAtOnce + 1 { // each gives its place back
		a := answer(c, request("GET", "/", near))
		if text := body(t, a); a.StatusCode != 500 || text != "internal error, see the log\n" {
			t.Errorf("%d %s", a.StatusCode, text)
		}
	}
	if log := book.String(); strings.Count(log, "level=ERROR") != pagesAtOnce+1 || !strings.Contains(log, `no \n device`) {
		t.Error(log)
	}
	bad = false
	if a := answer(c, request("GET", "/", near)); a.StatusCode != 200 {
		t.Error(a.Status)
	}
	if n := c.n.failed.Load(); n != pagesAtOnce+1 {
		t.Error(n)
	}
}

// TestStuckPageHoldsUpNoHealthCheck: four requests that never end take all
// places, further ones are sent away, and /healthz answers at once.
func TestStuckPageHoldsUpNoHealthCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		c, _ := open(t, config.Web{Listen: "127.0.0.1:8080"}, func(o *Options) {
			o.Metrics = func(*Metrics, bool) { <-release }
		})
		var wg sync.WaitGroup
		for range pagesAtOnce {
			wg.Go(func() { answer(c, request("GET", "/metrics", near)) })
		}
		synctest.Wait()
		began := time.Now()
		a := answer(c, request("GET", "/", near))
		if took := time.Since(began); a.StatusCode != 503 || took != pageWait || a.Header.Get("Retry-After") != strconv.Itoa(int(pageWait/time.Second)) {
			t.Errorf("%d after %v", a.StatusCode, took)
		}
		began = time.Now()
		if a := answer(c, request("GET", "/healthz", near)); a.StatusCode != 200 || time.Since(began) != 0 {
			t.Errorf("healthz: %d after %v", a.StatusCode, time.Since(began))
		}
		close(release)
		wg.Wait()
		if a := answer(c, request("GET", "/", near)); a.StatusCode != http.StatusOK || c.n.busy.Load() != 1 {
			t.Errorf("%d, %d counted", a.StatusCode, c.n.busy.Load())
		}
	})
}
