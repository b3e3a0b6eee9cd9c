package console

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"busgate/config"
	"busgate/config/report"
)

// Pages are made and written by so many at once; more wait, then are sent away. A
// page that never gets ready, because a room is stuck, so holds up no health check.
const (
	pagesAtOnce = 4
	pageWait    = 5 * time.Second
)

// refusal is an answer that is no page.
type refusal struct {
	status int
	text   string
	retry  time.Duration // Retry-After; 0: none
	login  bool          // ask for a login
}

// names are what a request may call this gateway. Immutable.
type names map[string]bool

func namesOf(w *config.Web) *names {
	n := names{"localhost": true}
	if h, err := os.Hostname(); err == nil {
		n[canonical(h)], n[canonical(h)+".local"] = true, true
	}
	if h, _, err := net.SplitHostPort(w.Listen); err == nil && h != "" && h != "0.0.0.0" && h != "::" {
		n[canonical(h)] = true
	}
	for _, h := range w.Hosts {
		n[canonical(h)] = true
	}
	return &n
}

// canonical is a host name or address without port, brackets and final dot, in
// lower case.
func canonical(host string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	return strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
}

// knows says whether a request is meant for us: a name of ours, or the address
// that it came to.
func (n names) knows(r *http.Request) bool {
	host := canonical(r.Host)
	if n[host] {
		return true
	}
	local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	ip, err := netip.ParseAddr(host)
	return ok && err == nil && ip.Unmap() == addressOf(local.String())
}

// ServeHTTP answers one request. A fault of ours ends it with 500 and a line in
// the log, nothing else.
func (c *Console) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	defer func() {
		if p := recover(); p != nil {
			c.n.failed.Add(1)
			c.o.Log.Error("console: a page failed; this is a fault of busgate: please report it", "page", report.Name(r.URL.Path), "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			refuse(w, &refusal{status: http.StatusInternalServerError, text: "internal error, see the log"})
		}
	}()
	h := w.Header()
	h.Set("Content-Security-Policy", policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
	page, no := c.route(r)
	if no == nil && page != nil {
		no = c.guard.admit(r, &c.n)
	}
	switch {
	case no != nil:
		c.count(no)
		refuse(w, no)
	case page == nil:
		c.healthz(w)
	default:
		c.show(w, r, page)
	}
}

// route finds the page; nil without a refusal is /healthz.
func (c *Console) route(r *http.Request) (func(*http.Request) (kind string, body []byte), *refusal) {
	if !c.names.Load().knows(r) {
		return nil, &refusal{status: http.StatusMisdirectedRequest, text: "unknown host name " + report.Name(canonical(r.Host)) + ": add it to hosts in [web]"}
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return nil, &refusal{status: http.StatusMethodNotAllowed, text: "this console only shows: GET and HEAD"}
	}
	switch r.URL.Path {
	case "/healthz":
		return nil, nil
	case "/metrics":
		return c.metrics, nil
	case "/":
		return c.overview, nil
	}
	return nil, &refusal{status: http.StatusNotFound, text: "there is no page " + report.Name(r.URL.Path) + "; there are /, /metrics and /healthz"}
}

// show makes a page, then writes it.
func (c *Console) show(w http.ResponseWriter, r *http.Request, page func(*http.Request) (string, []byte)) {
	t := time.NewTimer(pageWait)
	defer t.Stop()
	select {
	case c.pages <- struct{}{}:
		defer func() { <-c.pages }()
	case <-t.C:
		no := &refusal{status: http.StatusServiceUnavailable, text: "too many ask at once", retry: pageWait}
		c.count(no)
		refuse(w, no)
		return
	case <-r.Context().Done():
		return
	}
	kind, body := page(r)
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	if r.Method == http.MethodGet {
		w.Write(body) // a client that left is no failure of ours
	}
}

// healthz says who makes no progress. It waits for nobody.
func (c *Console) healthz(w http.ResponseWriter) {
	if room := c.health.stuck(); room != "" {
		refuse(w, &refusal{status: http.StatusServiceUnavailable, text: room})
		return
	}
	refuse(w, &refusal{status: http.StatusOK, text: "ok"})
}

// refuse writes an answer of one line.
func refuse(w http.ResponseWriter, no *refusal) {
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Del("Content-Length")
	if no.status == http.StatusMethodNotAllowed {
		h.Set("Allow", "GET, HEAD")
	}
	if no.retry > 0 {
		h.Set("Retry-After", strconv.Itoa(int((no.retry+time.Second-1)/time.Second)))
	}
	if no.login {
		h.Set("WWW-Authenticate", `Basic realm="busgate", charset="UTF-8"`)
	}
	w.WriteHeader(no.status)
	fmt.Fprintln(w, no.text)
}

// count notes what was refused, by its reason.
func (c *Console) count(no *refusal) {
	switch no.status {
	case http.StatusMisdirectedRequest:
		c.n.host.Add(1)
	case http.StatusUnauthorized, http.StatusForbidden:
		c.n.login.Add(1)
	case http.StatusTooManyRequests:
		c.n.rate.Add(1)
	case http.StatusServiceUnavailable:
		c.n.busy.Add(1)
	}
}

// overview is the page for people.
func (c *Console) overview(*http.Request) (string, []byte) {
	s := c.o.Status()
	return "text/html; charset=utf-8", s.page()
}

// metrics is the page for Prometheus.
func (c *Console) metrics(r *http.Request) (string, []byte) {
	var m Metrics
	c.o.Metrics(&m, r.URL.Query().Get("points") == "1")
	c.ownNumbers(&m)
	return "text/plain; version=0.0.4; charset=utf-8", m.text()
}

// ownNumbers adds those of the console itself.
func (c *Console) ownNumbers(m *Metrics) {
	n := &c.n
	for _, x := range []struct {
		reason string
		n      uint64
	}{{"host", n.host.Load()}, {"login", n.login.Load()}, {"rate", n.rate.Load()}, {"busy", n.busy.Load()}, {"connections", n.connections.Load()}, {"error", n.failed.Load()}} {
		m.Count("busgate_web_refused_total", x.n, x.reason)
	}
	m.Count("busgate_web_logins_total", n.loginsOK.Load(), "ok")
	m.Count("busgate_web_logins_total", n.loginsWrong.Load(), "wrong")
	m.Count("busgate_web_logins_total", n.loginsRefused.Load(), "refused")
}
