package uplink

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
)

const (
	readBuffer  = 32 << 10
	writeBuffer = 64 << 10 // above it no new PUBLISH is written; answers always are
)

// wire carries packets over one connection. read belongs to one goroutine,
// flush to another; append may be called from a third and never waits.
type wire struct {
	conn    net.Conn
	raw     net.Conn // below TLS; closed when there is no time for a farewell
	in      *bufio.Reader
	max     int           // longest packet taken, in bytes of the whole packet
	timeout time.Duration // of one write
	wake    chan struct{} // something is to be flushed, or the wire is closed
	moved   chan struct{} // something was flushed

	mu      sync.Mutex
	buf     bytes.Buffer // packets not handed to the connection
	total   uint64       // bytes appended ever
	handed  uint64       // of them given to the connection, perhaps in vain
	flushed uint64       // of them written without an error
	closed  error        // why; the first reason stays
}

// newWire makes a wire of a connection that is ready for CONNECT.
func newWire(conn net.Conn, maxIn int64, timeout time.Duration) *wire {
	return &wire{
		conn: conn, raw: conn, in: bufio.NewReaderSize(conn, readBuffer), max: int(maxIn), timeout: timeout,
		wake: make(chan struct{}, 1), moved: make(chan struct{}, 1),
	}
}

// errMalformed is wrapped by every complaint about what the broker sent.
var errMalformed = errors.New("malformed packet")

// errOversize is wrapped by the complaint about a packet that is too long.
var errOversize = errors.New("exceeds max_packet_in")

// read returns the next packet, waiting for it.
func (w *wire) read() (packets.ControlPacket, error) {
	first, err := w.in.ReadByte()
	if err != nil {
		return nil, err
	}
	length, size := 0, 1
	for shift := 0; ; shift += 7 { // [MQTT-2.2.3]
		b, err := w.in.ReadByte()
		if err != nil {
			return nil, unexpected(err)
		}
		size++
		length |= int(b&0x7f) << shift
		if b < 0x80 {
			break
		}
		if shift == 21 {
			return nil, fmt.Errorf("%w: remaining length of more than four bytes", errMalformed)
		}
	}
	if size+length > w.max {
		return nil, fmt.Errorf("packet of %d bytes %w %d", size+length, errOversize, w.max)
	}
	body := make([]byte, length)
	if _, err := io.ReadFull(w.in, body); err != nil {
		return nil, unexpected(err)
	}
	return decode(first, body)
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// decode makes a packet of its first byte and its body. It checks what the
// codec takes for granted: flags, lengths, and that the packet is one that a
// broker may send.
func decode(first byte, body []byte) (packets.ControlPacket, error) {
	fh := packets.FixedHeader{MessageType: first >> 4, Dup: first&8 != 0, Qos: first >> 1 & 3, Retain: first&1 != 0, RemainingLength: len(body)}
	kind, flags := first>>4, first&0x0f
	want := -1 // of the body
	switch kind {
	case packets.Connack, packets.Puback, packets.Pubrec, packets.Pubcomp, packets.Unsuback:
		want = 2
	case packets.Pubrel:
		want = 2
		flags ^= 2 // [MQTT-3.6.1-1]
	case packets.Pingresp:
		want = 0
	case packets.Publish:
		if fh.Qos == 3 { // [MQTT-3.3.1-4]
			return nil, fmt.Errorf("%w: PUBLISH with QoS 3", errMalformed)
		}
		need := 2
		if fh.Qos > 0 {
			need = 4
		}
		if len(body) < 2 || len(body) < need+(int(body[0])<<8|int(body[1])) {
			return nil, fmt.Errorf("%w: PUBLISH shorter than its topic", errMalformed)
		}
		flags = 0
	case packets.Suback:
		if len(body) < 3 {
			return nil, fmt.Errorf("%w: SUBACK of %d bytes", errMalformed, len(body))
		}
	default:
		return nil, fmt.Errorf("%w: a broker does not send packets of type %d", errMalformed, kind)
	}
	if flags != 0 { // [MQTT-2.2.2-2]
		return nil, fmt.Errorf("%w: %s with flags %04b", errMalformed, packets.PacketNames[kind], first&0x0f)
	}
	if want >= 0 && len(body) != want {
		return nil, fmt.Errorf("%w: %s of %d bytes", errMalformed, packets.PacketNames[kind], len(body))
	}
	p, err := packets.NewControlPacketWithHeader(fh)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errMalformed, err)
	}
	if err := p.Unpack(bytes.NewBuffer(body)); err != nil {
		return nil, fmt.Errorf("%w: %w", errMalformed, err)
	}
	return p, nil
}

// ready tells whether read would return without waiting.
func (w *wire) ready() bool {
	head, _ := w.in.Peek(min(w.in.Buffered(), 5))
	length := 0
	for i := 1; i < len(head); i++ {
		length |= int(head[i]&0x7f) << (7 * (i - 1))
		if head[i] < 0x80 {
			return w.in.Buffered() >= i+1+length
		}
	}
	return false
}

// append queues a packet and returns the offset of its end in the stream.
func (w *wire) append(p packets.ControlPacket) uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	before := w.buf.Len()
	_ = p.Write(&w.buf) // a bytes.Buffer takes everything
	w.total += uint64(w.buf.Len() - before)
	select {
	case w.wake <- struct{}{}:
	default:
	}
	return w.total
}

// full tells that no new PUBLISH should be appended now.
func (w *wire) full() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.Len() >= writeBuffer
}

// progress returns how far the stream was handed to the connection, and how far
// it was written without an error.
func (w *wire) progress() (handed, flushed uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.handed, w.flushed
}

// flush writes what is appended until the wire is closed: many packets with one
// write, one deadline for each write.
func (w *wire) flush() {
	var spare bytes.Buffer
	for range w.wake {
		for {
			w.mu.Lock()
			if w.closed != nil {
				w.mu.Unlock()
				return
			}
			if w.buf.Len() == 0 {
				w.mu.Unlock()
				break
			}
			w.buf, spare = spare, w.buf
			n := uint64(spare.Len())
			w.handed += n
			w.mu.Unlock()

			_ = w.conn.SetWriteDeadline(time.Now().Add(w.timeout)) // a dead connection shows in Write
			_, err := w.conn.Write(spare.Bytes())
			spare.Reset()
			if spare.Cap() > 4*writeBuffer {
				spare = bytes.Buffer{}
			}
			if err != nil {
				w.close(writeFailure(err, w.timeout))
				return
			}
			w.mu.Lock()
			w.flushed += n
			w.mu.Unlock()
			select {
			case w.moved <- struct{}{}:
			default:
			}
		}
	}
}

func writeFailure(err error, timeout time.Duration) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return &closing{reason: "write-timeout", err: fmt.Errorf("a write did not end in %v", timeout)}
	}
	return &closing{reason: "write", err: err}
}

// close closes the connection; the first reason stays. It may be called from
// any goroutine, more than once.
func (w *wire) close(why error) {
	w.mu.Lock()
	first := w.closed == nil
	if first {
		w.closed = why
	}
	w.mu.Unlock()
	switch {
	case !first:
	case errors.Is(why, errStopped):
		_ = w.conn.Close()
	default:
		_ = w.raw.Close()
	}
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// why is the reason of close, nil while open.
func (w *wire) why() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.closed
}

// errStopped is in the reason of a connection that we end in order.
var errStopped = errors.New("stopped")

// closing is why a connection was closed.
type closing struct {
	reason string // a word for the metric
	err    error
}

func (c *closing) Error() string { return c.err.Error() }
func (c *closing) Unwrap() error { return c.err }

// counted counts the bytes of a connection below TLS, and the calls that moved
// them: about one packet each.
type counted struct {
	net.Conn
	c *traffic
}

// traffic is shared by all connections of a link.
type traffic struct{ in, out, packets atomic.Uint64 }

// total is the traffic as a provider counts it.
func (t *traffic) total() uint64 { return t.in.Load() + t.out.Load() + packetCost*t.packets.Load() }

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 {
		c.c.in.Add(uint64(n))
		c.c.packets.Add(1)
	}
	return n, err
}

func (c *counted) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.c.out.Add(uint64(n))
	c.c.packets.Add(uint64(n+1459) / 1460)
	return n, err
}
