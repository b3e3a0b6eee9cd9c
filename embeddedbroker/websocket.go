package embeddedbroker

import (
	"bufio"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// wsGUID is fixed by RFC 6455, 1.3.
const wsGUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

// Opcodes and close codes of RFC 6455.
const (
	wsContinue = 0x0
	wsText     = 0x1
	wsBinary   = 0x2
	wsClose    = 0x8
	wsPing     = 0x9
	wsPong     = 0xA

	wsNormal     = 1000
	wsProtocol   = 1002
	wsUnsupport  = 1003
	wsTooLarge   = 1009
	wsMaxControl = 125
)

// NewWebSocketListener serves MQTT over WebSocket on path /mqtt: what Accept
// returns is a stream of bytes. maxPacket bounds a frame. The handshake is made
// by the first Read, so that Accept never waits for a client.
func NewWebSocketListener(l net.Listener, maxPacket int, origins ...string) net.Listener {
	return &wsListener{Listener: l, limit: uint64(max(maxPacket, 1024)) + 5, origins: origins}
}

type wsListener struct {
	net.Listener
	limit   uint64
	origins []string // hosts beside our own that pages may come from
}

func (l *wsListener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &wsConn{Conn: nc, l: l}, nil
}

// wsConn is the server side of one WebSocket. Read and Write may be called by
// one goroutine each.
type wsConn struct {
	net.Conn
	l *wsListener

	// Owned by Read.
	in     *bufio.Reader
	left   uint64 // of the running frame
	mask   [4]byte
	at     int  // place in the mask
	inside bool // a message is not finished
	err    error

	mu     sync.Mutex // over each frame that goes out
	closed bool       // no frame follows: a close frame was sent, or a part of one
	head   []byte

	limit sync.Mutex // after mu
	until time.Time  // the write deadline
}

// Read gives payload bytes of binary messages [MQTT-6.0.0-2].
func (w *wsConn) Read(p []byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	if w.in == nil {
		w.in = bufio.NewReaderSize(w.Conn, 1024)
		if err := w.upgrade(); err != nil {
			w.err = err
			return 0, err
		}
	}
	for w.left == 0 {
		if err := w.frame(); err != nil {
			if !isTimeout(err) {
				w.err = err
			}
			return 0, err
		}
	}
	n, err := w.in.Read(p[:min(uint64(len(p)), w.left)])
	for i := range n {
		p[i] ^= w.mask[w.at&3]
		w.at++
	}
	w.left -= uint64(n)
	return n, err
}

// frame reads the head of the next data frame and answers control frames.
func (w *wsConn) frame() error {
	head, err := w.in.Peek(2)
	if err != nil {
		return err
	}
	fin, op, masked, n := head[0]&0x80 != 0, head[0]&0x0F, head[1]&0x80 != 0, uint64(head[1]&0x7F)
	size := 2 + 4
	switch {
	case head[0]&0x70 != 0:
		return w.fail(wsProtocol, "reserved bits")
	case !masked:
		return w.fail(wsProtocol, "frame without a mask") // RFC 6455, 5.1
	case op >= wsClose && (!fin || n > wsMaxControl):
		return w.fail(wsProtocol, "malformed control frame")
	case n == 126:
		size += 2
	case n == 127:
		size += 8
	}
	if head, err = w.in.Peek(size); err != nil {
		return err
	}
	switch n {
	case 126:
		n = uint64(binary.BigEndian.Uint16(head[2:]))
	case 127:
		n = binary.BigEndian.Uint64(head[2:])
	}
	if n > w.l.limit {
		return w.fail(wsTooLarge, "frame over max_packet")
	}
	mask := [4]byte(head[size-4:])
	if op >= wsClose {
		return w.control(op, size, int(n), mask)
	}
	switch {
	case op == wsText:
		return w.fail(wsUnsupport, "text frame") // [MQTT-6.0.0-1]
	case op != wsBinary && op != wsContinue, (op == wsContinue) != w.inside:
		return w.fail(wsProtocol, "unexpected frame")
	}
	w.in.Discard(size)
	w.inside = !fin
	w.left, w.mask, w.at = n, mask, 0
	return nil
}

// control obeys a close, ping or pong frame.
func (w *wsConn) control(op byte, size, n int, mask [4]byte) error {
	all, err := w.in.Peek(size + n)
	if err != nil {
		return err
	}
	body := make([]byte, n)
	for i := range body {
		body[i] = all[size+i] ^ mask[i&3]
	}
	w.in.Discard(size + n)
	switch op {
	case wsPing:
		return w.pong(body)
	case wsPong:
		return nil
	case wsClose:
		if len(body) == 1 || len(body) > 2 && !utf8.Valid(body[2:]) {
			return w.fail(wsProtocol, "malformed close frame")
		}
		w.close(body[:min(len(body), 2)])
		return io.EOF
	}
	return w.fail(wsProtocol, "unknown opcode")
}

// fail closes with a code.
func (w *wsConn) fail(code uint16, text string) error {
	w.close(binary.BigEndian.AppendUint16(nil, code))
	return fmt.Errorf("websocket: %s", text)
}

func (w *wsConn) close(body []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.closed {
		w.closed = true
		w.Conn.SetWriteDeadline(time.Now().Add(farewellTime))
		w.sendLocked(wsClose, body)
	}
}

// Write sends p as one binary frame.
func (w *wsConn) Write(p []byte) (int, error) {
	if err := w.send(wsBinary, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (w *wsConn) send(op byte, p []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return net.ErrClosed
	}
	return w.sendLocked(op, p)
}

// SetWriteDeadline may be called at any time.
func (w *wsConn) SetWriteDeadline(t time.Time) error {
	w.limit.Lock()
	defer w.limit.Unlock()
	w.until = t
	return w.Conn.SetWriteDeadline(t)
}

// pong answers a ping: where the last deadline is over, because there was nothing
// to send since then, with one of its own.
func (w *wsConn) pong(body []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return net.ErrClosed
	}
	w.limit.Lock()
	if now := time.Now(); !now.Before(w.until) {
		w.Conn.SetWriteDeadline(now.Add(writeTime))
	}
	w.limit.Unlock()
	return w.sendLocked(wsPong, body)
}

// sendLocked writes head and payload in one go: on TLS each write is a record.
func (w *wsConn) sendLocked(op byte, p []byte) error {
	b := append(w.head[:0], 0x80|op)
	switch {
	case len(p) < 126:
		b = append(b, byte(len(p)))
	case len(p) <= 0xFFFF:
		b = binary.BigEndian.AppendUint16(append(b, 126), uint16(len(p)))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 127), uint64(len(p)))
	}
	b = append(b, p...)
	if cap(b) <= 4096 {
		w.head = b
	}
	_, err := w.Conn.Write(b)
	w.closed = w.closed || err != nil
	return err
}

// CloseWrite sends the close frame: nothing follows it.
func (w *wsConn) CloseWrite() error {
	w.close(binary.BigEndian.AppendUint16(nil, wsNormal))
	return nil
}

var errUpgrade = errors.New("websocket: no upgrade")

// upgrade reads the HTTP request and answers it (RFC 6455, 4.2).
func (w *wsConn) upgrade() error {
	limited := &io.LimitedReader{R: w.in, N: 16 << 10}
	r, err := http.ReadRequest(bufio.NewReaderSize(oneByte{limited}, 16))
	if err != nil {
		return fmt.Errorf("websocket: %w", err)
	}
	sub := subprotocol(r.Header.Values("Sec-WebSocket-Protocol"))
	key := r.Header.Get("Sec-WebSocket-Key")
	raw, kerr := base64.StdEncoding.DecodeString(key)
	status := 0
	switch {
	case r.URL.Path != "/mqtt":
		status = http.StatusNotFound
	case r.Method != http.MethodGet || !has(r.Header.Values("Connection"), "upgrade") || !has(r.Header.Values("Upgrade"), "websocket"),
		kerr != nil || len(raw) != 16, sub == "":
		status = http.StatusBadRequest
	case r.Header.Get("Sec-WebSocket-Version") != "13":
		status = http.StatusUpgradeRequired
	case !w.l.originOK(r):
		status = http.StatusForbidden
	}
	if status != 0 {
		fmt.Fprintf(w.Conn, "HTTP/1.1 %d %s\r\nSec-WebSocket-Version: 13\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", status, http.StatusText(status))
		return errUpgrade
	}
	sum := sha1.Sum([]byte(key + wsGUID))
	_, err = fmt.Fprintf(w.Conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\nSec-WebSocket-Protocol: %s\r\n\r\n",
		base64.StdEncoding.EncodeToString(sum[:]), sub)
	return err
}

// oneByte keeps the parser of the request from reading into the frames behind it.
type oneByte struct{ r io.Reader }

func (o oneByte) Read(p []byte) (int, error) { return o.r.Read(p[:min(len(p), 1)]) }

// subprotocol picks what both sides speak; "" = nothing [MQTT-6.0.0-3] [MQTT-6.0.0-4].
func subprotocol(offers []string) string {
	for _, want := range []string{"mqtt", "mqttv3.1"} {
		if has(offers, want) {
			return want
		}
	}
	return ""
}

// has looks for a token in comma-separated header values.
func has(values []string, token string) bool {
	for _, v := range values {
		for t := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(strings.TrimSpace(t), token) {
				return true
			}
		}
	}
	return false
}

// originOK keeps pages of other sites out: a browser sends its page's origin.
func (l *wsListener) originOK(r *http.Request) bool {
	o := r.Header.Get("Origin")
	if o == "" {
		return true
	}
	u, err := url.Parse(o)
	if err != nil || u.Host == "" {
		return false
	}
	if strings.EqualFold(host(u.Host), host(r.Host)) {
		return true
	}
	for _, allowed := range l.origins {
		if strings.EqualFold(u.Host, allowed) || strings.EqualFold(o, allowed) {
			return true
		}
	}
	return false
}
