package console

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"busgate/config"
)

// client is one without proxies and kept connections.
var client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patient}

func get(t *testing.T, addr, path string) (int, string) {
	t.Helper()
	r, err := client.Get("http://" + addr + path)
	if err != nil {
		return 0, err.Error()
	}
	return r.StatusCode, body(t, r)
}

// taken binds a free port of this machine.
func taken(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

// addrOf is where a console listens now; "" nowhere.
func addrOf(c *Console) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ln == nil {
		return ""
	}
	return c.ln.Addr().String()
}

// TestPortInUse: it is said what to do, and the console comes when the port is free.
func TestPortInUse(t *testing.T) {
	other := taken(t)
	addr := other.Addr().String()
	c, book := open(t, config.Web{Listen: addr}, nil)
	c.retry = time.Millisecond
	run(t, c)
	_, port, _ := net.SplitHostPort(addr)
	book.until(t, "level=ERROR msg=\"console: "+addr+" is in use by another program (sudo ss -ltnp 'sport = :"+port+"' names it); set listen in [web]\"")
	other.Close()
	book.until(t, "answers on http://"+addr+" after")
	if code, text := get(t, addr, "/healthz"); code != 200 {
		t.Errorf("%d %s", code, text)
	}
	if n := strings.Count(book.String(), "level=ERROR"); n != 1 {
		t.Errorf("%d errors:\n%s", n, book)
	}
}

func TestAddressThatIsNotThere(t *testing.T) {
	c, book := open(t, config.Web{Listen: "192.0.2.1:8080"}, nil)
	run(t, c)
	book.until(t, "console: 192.0.2.1:8080 cannot be opened (")
}

func TestUpdate(t *testing.T) {
	c, book := open(t, config.Web{Listen: ""}, nil)
	run(t, c)
	free := taken(t)
	first := free.Addr().String()
	free.Close()
	if err := c.Update(config.Web{Listen: first}); err != nil {
		t.Fatal(err)
	}
	if code, text := get(t, first, "/healthz"); code != 200 { // bound already: the kernel keeps who comes early
		t.Fatalf("off to on: %d %s", code, text)
	}

	kept, err := net.Dial("tcp", first) // a connection that stays open
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	fmt.Fprintf(kept, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
	line, err := bufio.NewReader(kept).ReadString('\n')
	if err != nil || !strings.Contains(line, "200") {
		t.Fatalf("%q %v", line, err)
	}

	busy := taken(t)
	if err := c.Update(config.Web{Listen: busy.Addr().String(), Hosts: []string{"other"}}); err == nil || !strings.Contains(err.Error(), "is in use by another program") {
		t.Errorf("a port in use: %v", err)
	}
	if addrOf(c) != first || (*c.names.Load())["other"] {
		t.Errorf("a refused change left %s, %v", addrOf(c), *c.names.Load())
	}
	if code, text := get(t, first, "/healthz"); code != 200 {
		t.Errorf("after a refused change: %d %s", code, text)
	}
	if err := c.Update(config.Web{Listen: first, Users: "/nowhere/passwd"}); err == nil {
		t.Error("a users file that is not there was taken")
	}

	_, port, _ := net.SplitHostPort(first)
	if err := c.Update(config.Web{Listen: ":" + port}); err != nil { // covers the address that is open
		t.Fatal(err)
	}
	if code, text := get(t, first, "/healthz"); code != 200 {
		t.Errorf("on all addresses: %d %s", code, text)
	}
	if _, err := io.ReadAll(kept); err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Error(err)
	} // it ended: connections of an address that is closed do not stay

	free = taken(t)
	second := free.Addr().String()
	free.Close()
	if err := c.Update(config.Web{Listen: second}); err != nil {
		t.Fatal(err)
	}
	if code, text := get(t, second, "/healthz"); code != 200 {
		t.Errorf("elsewhere: %d %s", code, text)
	}
	if code, text := get(t, first, "/healthz"); code != 0 || !strings.Contains(text, "refused") {
		t.Errorf("the address before: %d %s", code, text)
	}

	if err := c.Update(config.Web{Listen: ""}); err != nil {
		t.Fatal(err)
	}
	if addrOf(c) != "" {
		t.Error("off, and still open")
	}
	if code, text := get(t, second, "/healthz"); code != 0 || !strings.Contains(text, "refused") {
		t.Errorf("off: %d %s", code, text)
	}
	if strings.Contains(book.String(), "level=ERROR") {
		t.Error(book)
	}
}

// pipes is a listener in memory, as virtual time needs it.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return &piped{c}, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error { p.once.Do(func() { close(p.closed) }); return nil }

func (p *pipes) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 8080} }

// dial connects and says something.
func (p *pipes) dial(text string) net.Conn {
	here, there := net.Pipe()
	p.conns <- there
	go io.WriteString(here, text) // ends when it was read, or there is nobody more
	return here
}

// piped comes from this machine.
type piped struct{ net.Conn }

func (*piped) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 40000} }

// TestNothingIsLeft: with a connection that never said a word, one that said half
// a request, one that idles and one in mid-answer, Run ends within its time but
// not before that answer does, and leaves no goroutine: the bubble would not end.
func TestNothingIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		ln := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
		c, _ := open(t, config.Web{Listen: "127.0.0.1:8080"}, func(o *Options) {
			o.Listener = ln
			o.Rooms = []Room{{"buffer", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }}}
			o.Metrics = func(*Metrics, bool) { <-release }
		})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan time.Time, 1)
		go func() {
			if err := c.Run(ctx); err != nil {
				t.Error(err)
			}
			ended <- time.Now()
		}()
		const ask = " HTTP/1.1\r\nHost: localhost\r\n\r\n"
		conns := []net.Conn{ln.dial(""), ln.dial("GET / HT"), ln.dial("GET /metrics" + ask), ln.dial("GET /healthz" + ask)}
		if line, err := bufio.NewReader(conns[3]).ReadString('\n'); err != nil || !strings.Contains(line, "200") {
			t.Errorf("%q %v", line, err)
		}
		synctest.Wait() // the one in mid-answer is
		cancel()
		at := time.Now()
		time.Sleep(stopTime)
		synctest.Wait()
		select {
		case <-ended:
			t.Error("Run ended before an answer did")
		default:
		}
		close(release)
		if took := (<-ended).Sub(at); took != stopTime {
			t.Errorf("Run took %v to end", took)
		}
		for _, conn := range conns {
			conn.Close()
		}
	})
}

func TestServerLimits(t *testing.T) {
	c, _ := open(t, config.Web{}, nil)
	var wg sync.WaitGroup
	s := c.server(&wg)
	if s.ReadHeaderTimeout != 5*time.Second || s.ReadTimeout != 30*time.Second || s.WriteTimeout != 30*time.Second || s.IdleTimeout != time.Minute || s.MaxHeaderBytes != 16<<10 {
		t.Errorf("%+v", s)
	}
	ln := taken(t)
	c, _ = open(t, config.Web{}, func(o *Options) { o.Listener = ln })
	run(t, c)
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "GET / HTTP/1.1\r\nHost: localhost\r\nX: "+strings.Repeat("x", 64<<10))
	if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil && !errors.Is(err, syscall.ECONNRESET) || err == nil && !strings.Contains(line, "431") {
		t.Errorf("%q %v", line, err)
	}
}

func TestPlaces(t *testing.T) {
	var p places
	for range maxConns - kept {
		if !p.enter(true) {
			t.Fatal("no room for those on the network")
		}
	}
	if p.enter(true) {
		t.Error("the network took a place that is kept")
	}
	for range kept {
		if !p.enter(false) {
			t.Fatal("no room for this machine")
		}
	}
	if p.enter(false) {
		t.Error("more than all places")
	}
	p.leave(true)
	if !p.enter(false) || p.enter(true) {
		t.Error("a free place goes to who comes first")
	}
}

// TestTooManyConnections: the 129th is closed and counted, and has a place when
// another one leaves.
func TestTooManyConnections(t *testing.T) {
	ln := taken(t)
	c, _ := open(t, config.Web{}, func(o *Options) { o.Listener = ln })
	run(t, c)
	addr := ln.Addr().String()
	ask := func(conn net.Conn) error {
		fmt.Fprintf(conn, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
		_, err := bufio.NewReader(conn).ReadString('\n')
		return err
	}
	var conns []net.Conn
	for range maxConns {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := ask(conn); err != nil { // answered: it has its place
			t.Fatal(err)
		}
		conns = append(conns, conn)
	}
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := ask(conn); err == nil {
		t.Error("the 129th was answered")
	}
	if n := c.n.connections.Load(); n != 1 {
		t.Errorf("%d counted", n)
	}
	conns[0].Close()
	for limit := time.Now().Add(patient); ; {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		err = ask(conn)
		conn.Close()
		if err == nil {
			break
		}
		if time.Now().After(limit) {
			t.Fatal("no place became free")
		}
	}
}
