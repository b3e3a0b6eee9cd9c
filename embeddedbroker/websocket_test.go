package embeddedbroker

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"busgate/config"
	"busgate/embeddedbroker/packet"
)

// wsClient is the other end of a WebSocket, with masked frames.
type wsClient struct {
	net.Conn
	in   *bufio.Reader
	left int
	size int // of the frames that are sent; 0 = as written
}

func wsDial(t *testing.T, addr string, header ...string) (*wsClient, *http.Response) {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	path := "/mqtt"
	lines := "Host: plant\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
	sub := "Sec-WebSocket-Protocol: chat, mqtt\r\n"
	for _, h := range header {
		switch {
		case strings.HasPrefix(h, "/"):
			path = h
		case strings.HasPrefix(h, "Sec-WebSocket-Protocol"):
			sub = h
		default:
			lines += h + "\r\n"
		}
	}
	fmt.Fprintf(nc, "GET %s HTTP/1.1\r\n%s%s\r\n", path, lines, sub)
	in := bufio.NewReader(nc)
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatal(err)
	}
	return &wsClient{Conn: nc, in: in}, resp
}

func (w *wsClient) frame(op byte, fin bool, p []byte) {
	b := []byte{op}
	if fin {
		b[0] |= 0x80
	}
	switch {
	case len(p) < 126:
		b = append(b, 0x80|byte(len(p)))
	case len(p) < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 0x80|126), uint16(len(p)))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 0x80|127), uint64(len(p)))
	}
	mask := []byte{1, 2, 3, 4}
	b = append(b, mask...)
	for i, c := range p {
		b = append(b, c^mask[i&3])
	}
	w.Conn.Write(b)
}

func (w *wsClient) Write(p []byte) (int, error) {
	n := len(p)
	for w.size > 0 && len(p) > w.size {
		w.frame(wsBinary, true, p[:w.size])
		p = p[w.size:]
	}
	w.frame(wsBinary, true, p)
	return n, nil
}

// head reads the head of a frame of the server.
func (w *wsClient) head() (op byte, n int, err error) {
	var h [2]byte
	if _, err := io.ReadFull(w.in, h[:]); err != nil {
		return 0, 0, err
	}
	n = int(h[1])
	switch n {
	case 126:
		var b [2]byte
		io.ReadFull(w.in, b[:])
		n = int(binary.BigEndian.Uint16(b[:]))
	case 127:
		var b [8]byte
		io.ReadFull(w.in, b[:])
		n = int(binary.BigEndian.Uint64(b[:]))
	}
	return h[0] & 15, n, nil
}

func (w *wsClient) Read(p []byte) (int, error) {
	for w.left == 0 {
		op, n, err := w.head()
		if err != nil {
			return 0, err
		}
		if op == wsClose {
			io.CopyN(io.Discard, w.in, int64(n))
			return 0, io.EOF
		}
		w.left = n
	}
	n, err := w.in.Read(p[:min(len(p), w.left)])
	w.left -= n
	return n, err
}

func TestWebSocket(t *testing.T) {
	covers(t, "5", "MQTT-6.0.0-2", "MQTT-6.0.0-3", "MQTT-6.0.0-4")
	covers(t, "311", "MQTT-6.0.0-2", "MQTT-6.0.0-3", "MQTT-6.0.0-4")
	_, ls := listenAll(t, func(c *config.Broker) {
		c.WebSocket.Listen = "127.0.0.1:0"
		c.WebSocket.Origins = []string{"dash.example", "other.example:3000", "https://third.example"}
	})
	addr := ls[0].Addr().String()
	for _, size := range []int{0, 3, 7, 126, 65536} { // [MQTT-6.0.0-2]
		w, resp := wsDial(t, addr)
		if resp.StatusCode != 101 || resp.Header.Get("Sec-WebSocket-Accept") != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" || resp.Header.Get("Sec-WebSocket-Protocol") != "mqtt" {
			t.Fatalf("%+v", resp)
		}
		w.size = size
		talk(t, w, "ws")
	}
	for _, size := range []int{0, 5} { // four packets in a frame, and frames that end inside any of them
		w, _ := wsDial(t, addr)
		w.size = size
		c := newClient(t, w, packet.V5)
		var all []byte
		for _, p := range []packet.Packet{&packet.Connect{Version: packet.V5, ClientID: "many", CleanStart: true},
			&packet.Subscribe{PID: 1, Filters: []packet.Filter{{Filter: "a"}}}, &packet.Publish{Topic: []byte("b"), QoS: 1, PID: 2}, &packet.Ping{Type: packet.PINGREQ}} {
			all = p.Append(all, packet.V5)
		}
		w.Write(all)
		expect[*packet.Connack](c)
		expect[*packet.Suback](c)
		c.acked(packet.PUBACK, 2)
		expect[*packet.Ping](c)
		c.close()
	}
	for what, c := range map[string]struct {
		header []string
		status int
		sub    string // the subprotocol returned
	}{
		"no subprotocol":     {[]string{"Sec-WebSocket-Protocol: chat\r\n"}, 400, ""},
		"another path":       {[]string{"/other"}, 404, ""},
		"a page of others":   {[]string{"Origin: https://evil.example"}, 403, ""},
		"our own page":       {[]string{"Origin: http://plant:8080"}, 101, "mqtt"},
		"the old MQTT":       {[]string{"Sec-WebSocket-Protocol: mqttv3.1\r\n"}, 101, "mqttv3.1"},
		"the old and mqtt":   {[]string{"Sec-WebSocket-Protocol: mqttv3.1, mqtt\r\n"}, 101, "mqtt"},
		"no origin, a query": {[]string{"/mqtt?x=1"}, 101, "mqtt"},
		"a host allowed":     {[]string{"Origin: https://dash.example"}, 101, "mqtt"},
		"with its port":      {[]string{"Origin: https://dash.example:8443"}, 403, ""},
		"a port allowed":     {[]string{"Origin: http://other.example:3000"}, 101, "mqtt"},
		"an origin allowed":  {[]string{"Origin: https://third.example"}, 101, "mqtt"},
		"by another scheme":  {[]string{"Origin: http://third.example"}, 403, ""},
	} {
		if _, resp := wsDial(t, addr, c.header...); resp.StatusCode != c.status || resp.Header.Get("Sec-WebSocket-Protocol") != c.sub {
			t.Errorf("%s: %d %q", what, resp.StatusCode, resp.Header.Get("Sec-WebSocket-Protocol"))
		}
	}
}

func TestWebSocketFrames(t *testing.T) {
	covers(t, "5", "MQTT-6.0.0-1")
	covers(t, "311", "MQTT-6.0.0-1")
	_, ls := listenAll(t, func(c *config.Broker) { c.WebSocket.Listen = "127.0.0.1:0"; c.MaxPacket = 2000 })
	addr := ls[0].Addr().String()
	for what, c := range map[string]struct {
		send func(*wsClient)
		code uint16
	}{
		"text":                  {func(w *wsClient) { w.frame(wsText, true, []byte("x")) }, wsUnsupport},
		"no mask":               {func(w *wsClient) { w.Conn.Write([]byte{0x82, 1, 0x10, 0, 0, 0, 0, 0}) }, wsProtocol},
		"reserved bit":          {func(w *wsClient) { w.frame(0x40|wsBinary, true, nil) }, wsProtocol},
		"continuation of none":  {func(w *wsClient) { w.frame(wsContinue, true, []byte("x")) }, wsProtocol},
		"long ping":             {func(w *wsClient) { w.frame(wsPing, true, make([]byte, 126)) }, wsProtocol},
		"over max_packet":       {func(w *wsClient) { w.frame(wsBinary, true, make([]byte, 3000)) }, wsTooLarge},
		"unknown opcode":        {func(w *wsClient) { w.frame(0xB, true, nil) }, wsProtocol},
		"new message in a part": {func(w *wsClient) { w.frame(wsBinary, false, []byte{0x10}); w.frame(wsBinary, true, []byte{0x10}) }, wsProtocol},
		"close":                 {func(w *wsClient) { w.frame(wsClose, true, []byte{3, 0xe8}) }, wsNormal},
	} {
		w, _ := wsDial(t, addr)
		c.send(w)
		op, n, err := w.head()
		if err != nil || op != wsClose || n != 2 {
			t.Errorf("%s: opcode %d, %d bytes, %v", what, op, n, err)
			continue
		}
		var code [2]byte
		io.ReadFull(w.in, code[:])
		if got := binary.BigEndian.Uint16(code[:]); got != c.code {
			t.Errorf("%s: closed with %d, want %d", what, got, c.code)
		}
		if n, _ := io.Copy(io.Discard, w.in); n > 0 { // and the connection with it
			t.Errorf("%s: %d bytes behind the close frame", what, n)
		}
	}
	w, _ := wsDial(t, addr)
	w.frame(wsPing, true, []byte("hello"))
	op, n, _ := w.head()
	body := make([]byte, n)
	io.ReadFull(w.in, body)
	if op != wsPong || string(body) != "hello" {
		t.Errorf("ping: %d %q", op, body)
	}
	// A packet in parts, with a ping between them.
	p := (&packet.Connect{Version: packet.V311, ClientID: "parts", CleanStart: true}).Append(nil, 0)
	w.frame(wsBinary, false, p[:3])
	w.frame(wsPing, true, nil)
	w.frame(wsContinue, true, p[3:])
	for _, want := range []byte{wsPong, wsBinary} {
		op, n, err := w.head()
		if err != nil || op != want {
			t.Fatalf("opcode %d %v, want %d", op, err, want)
		}
		io.CopyN(io.Discard, w.in, int64(n))
	}
}

// bytesConn is a connection that has its input and forgets its output.
type bytesConn struct {
	net.Conn
	in *bytes.Reader
}

func (b bytesConn) Read(p []byte) (int, error)       { return b.in.Read(p) }
func (b bytesConn) Write(p []byte) (int, error)      { return len(p), nil }
func (b bytesConn) Close() error                     { return nil }
func (b bytesConn) SetWriteDeadline(time.Time) error { return nil }

func FuzzWebSocket(f *testing.F) {
	hello := "GET /mqtt HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
	f.Add([]byte(hello + "\x82\x81\x01\x02\x03\x04x"))
	f.Add([]byte(hello + "\x89\x80\x01\x02\x03\x04\x02\xfe\x00\x7f\x01\x02\x03\x04x"))
	f.Fuzz(func(t *testing.T, b []byte) {
		w := &wsConn{Conn: bytesConn{in: bytes.NewReader(b)}, l: &wsListener{limit: 1000}}
		total := 0
		p := make([]byte, 100)
		for {
			n, err := w.Read(p)
			if total += n; total > len(b) {
				t.Fatal("more came out than went in")
			}
			if err != nil {
				return
			}
		}
	})
}

// knock opens a WebSocket in a bubble.
func (r *rig) knock() *wsClient {
	r.t.Helper()
	l := newPipeListener()
	r.wg.Go(func() { r.b.Serve(context.Background(), NewWebSocketListener(l, 1000)) })
	a, b := net.Pipe()
	l.conns <- b
	fmt.Fprint(a, "GET /mqtt HTTP/1.1\r\nHost: plant\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"+
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n")
	w := &wsClient{Conn: a, in: bufio.NewReader(a)}
	if resp, err := http.ReadResponse(w.in, nil); err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		r.t.Fatal(resp, err)
	}
	r.t.Cleanup(func() { a.Close() })
	return w
}

// login sends CONNECT and waits for its answer.
func (w *wsClient) login(t *testing.T, keep uint16) {
	t.Helper()
	w.Write((&packet.Connect{Version: packet.V311, ClientID: "ws", CleanStart: true, KeepAlive: keep}).Append(nil, 0))
	var ack [4]byte
	if _, err := io.ReadFull(w, ack[:]); err != nil || ack != [4]byte{0x20, 2} {
		t.Fatalf("% x %v", ack, err)
	}
}

// A ping is answered however long nothing was sent before it.
func TestPingAfterALongSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, NewMemory())
		w := r.knock()
		w.login(t, 0)
		for range 3 {
			nap(time.Hour)
			w.frame(wsPing, true, []byte("x"))
			op, n, err := w.head()
			if err != nil || op != wsPong {
				t.Fatalf("opcode %d %v, want a pong", op, err)
			}
			io.CopyN(io.Discard, w.in, int64(n))
		}
	})
}

// A client that asks for pongs and reads none is not in the way: neither before its
// CONNECT, nor when it is to end.
func TestPingsOfAClientThatDoesNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, NewMemory())
		w := r.knock()
		go w.frame(wsPing, true, nil)
		nap(connectTime + shakeTime + farewellTime)
		if n := r.waiting(); n != 0 {
			t.Errorf("%d wait for ever to say CONNECT", n)
		}
		w = r.knock()
		w.login(t, 65535) // it may be silent for a day
		go w.frame(wsPing, true, nil)
		synctest.Wait()
		began := time.Now()
		r.b.DropSession("ws")
		for r.b.gate.inside() > 0 && time.Since(began) < time.Hour {
			nap(time.Second)
		}
		if d := time.Since(began); d > 2*farewellTime {
			t.Errorf("gone after %v", d)
		}
	})
}

// Who is to end gets no more than a moment for a write that is under way: the
// reader of a WebSocket may wait for it.
func TestEndOfAWriteThatNobodyTakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, NewMemory())
		a, b := net.Pipe()
		defer a.Close()
		c := newConn(r.b, b)
		began, ended := time.Now(), time.Duration(0)
		go func() {
			b.Write([]byte("x"))
			ended = time.Since(began)
		}()
		synctest.Wait()
		c.kick(&ending{})
		nap(time.Hour)
		if b.Close(); ended != farewellTime {
			t.Errorf("the write ended after %v", ended)
		}
		synctest.Wait()
	})
}

// inside is how many clients were let in and are not gone.
func (g *gatekeeper) inside() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.clients
}
