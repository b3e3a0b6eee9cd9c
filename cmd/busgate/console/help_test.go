package console

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"busgate/config"
	"busgate/config/report"
)

// patient is how long a test waits for what must come; it measures nothing.
const patient = 30 * time.Second

// logbook is a log that a test can read and wait for.
type logbook struct {
	slog.Handler
	mu   sync.Mutex
	text strings.Builder
	more chan struct{}
}

func (l *logbook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case l.more <- struct{}{}:
	default:
	}
	return l.text.Write(p)
}

func (l *logbook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// until waits for a text in the log.
func (l *logbook) until(t *testing.T, text string) {
	t.Helper()
	limit := time.After(patient)
	for !strings.Contains(l.String(), text) {
		select {
		case <-l.more:
		case <-limit:
			t.Fatalf("no %q in the log:\n%s", text, l)
		}
	}
}

// people is a Users that knows one password each, and counts who asks.
type people struct {
	mu    sync.Mutex
	of    map[string]string
	asked int
}

func (p *people) Check(name string, secret []byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked++
	right, ok := p.of[name]
	return ok && right == string(secret)
}

// open makes a console whose functions can be changed by edit.
func open(t *testing.T, cfg config.Web, edit func(*Options)) (*Console, *logbook) {
	t.Helper()
	book := &logbook{more: make(chan struct{}, 1)}
	log := slog.New(slog.NewTextHandler(book, &slog.HandlerOptions{Level: slog.LevelDebug}))
	o := Options{
		Log: log, Ladder: report.NewLadder(log),
		Status: func() Status {
			return Status{Gateway: "plant-a", About: "busgate 1.0", Summary: "1 of 1 device online",
				Tables: []Table{{Head: []string{"DEVICE", "STATE"}, Rows: [][]string{{"grid", "online"}}}}}
		},
		Metrics: func(m *Metrics, points bool) {
			m.Gauge("busgate_uptime_seconds", 1.5)
			if points {
				m.Gauge("busgate_point", 230, "grid", "voltage")
			}
		},
		Users: func(path string) (Users, error) {
			text, err := os.ReadFile(path)
			if err != nil {
				return nil, err
			}
			p := &people{of: map[string]string{}}
			for line := range strings.Lines(string(text)) {
				name, secret, ok := strings.Cut(strings.TrimSpace(line), ":")
				if !ok {
					return nil, errors.New(path + ": not of the form name:hash")
				}
				p.of[name] = secret
			}
			return p, nil
		},
	}
	if edit != nil {
		edit(&o)
	}
	return New(cfg, o), book
}

// usersOf writes a users file.
func usersOf(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "passwd")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// request is one that came to 127.0.0.1:8080 from an address.
func request(method, target, from string) *http.Request {
	r := httptest.NewRequest(method, target, nil)
	r.Host = "127.0.0.1:8080"
	r.RemoteAddr = from
	local := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 8080}
	return r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, local))
}

func answer(c *Console, r *http.Request) *http.Response {
	w := httptest.NewRecorder()
	c.ServeHTTP(w, r)
	return w.Result()
}

func body(t *testing.T, r *http.Response) string {
	t.Helper()
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// run runs a console until the end of the test, or until stop, which waits.
func run(t *testing.T, c *Console) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(patient):
			t.Error("Run does not end")
		}
	})
	t.Cleanup(stop)
	return stop
}
