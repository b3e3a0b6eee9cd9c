package embeddedbroker

import (
	"container/list"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"time"

	"busgate/embeddedbroker/packet"
)

// Bounds of one connection.
const (
	connectTime   = 5 * time.Second // accept to a complete CONNECT
	shakeTime     = 5 * time.Second // more for TLS and WebSocket
	connectSize   = 64 << 10        // bytes of a CONNECT
	firstBuffer   = 256             // read buffer; grows with the bytes that came
	usualBuffer   = 64 << 10        // ... to this; further for one large packet
	inboundBytes  = 1 << 20         // unanswered input at which the reader waits
	inboundSlots  = 1000            // unanswered packets at which the reader waits
	outputBytes   = 256 << 10       // own answers at which the reader waits
	writeTime     = 30 * time.Second
	farewellTime  = time.Second // for the last packet to leave and be read
	receiveMax    = 1000        // announced to 5.0 clients
	inboundAlias  = 16          // announced to 5.0 clients
	inboundTopics = 64 << 10    // bytes of the topics behind them
	outboundAlias = 256         // used at most, whatever the client allows
	fullWait      = 10 * time.Second
	fullRetry     = 200 * time.Millisecond
)

// ending is why a connection ends.
type ending struct {
	code  byte   // reason code of 5.0 for the client; 0 = it is told nothing
	text  string // for the log; "" = nothing worth a line
	clean bool   // by DISCONNECT: the will is deleted
	early bool   // before CONNACK: code goes into one
	fault bool   // the client broke a rule or a limit
	said  bool   // it has its line already
	reset bool   // the kernel is to keep nothing of the connection
}

func (e *ending) Error() string { return e.text }

// conn is one network connection. Its reader runs in loop; its writer is
// started when there is output and ends when that is drained.
type conn struct {
	b    *Broker
	nc   net.Conn
	addr string

	ip     netip.Addr // what limits count by
	came   time.Time
	place  *list.Element // in the queue of those who did not log in yet; gatekeeper.mu
	inside bool          // counts for max_clients; gatekeeper.mu
	local  bool          // of this machine: no limits by address
	claims string        // the user name of a refused login

	// Set before the session is attached, constant afterwards.
	id       string
	user     string
	version  byte
	bridge   bool
	keep     time.Duration // 1.5 keep-alives; 0 = none
	window   int
	maxOut   int // largest packet for the client; 0 = no limit
	aliasMax uint16
	sess     *session

	origin origin // guarded by core.mu

	// Owned by the reader.
	buf     []byte
	r, w    int
	last    int       // bytes of the last read
	filled  bool      // it took all the room there was
	now     time.Time // of the last read
	wall    time.Time // the same in UTC; zero while the clock is not known
	topic   string    // of the last PUBLISH
	renewed time.Time
	aliasIn map[uint16]string
	aliased int // bytes of the topics in it
	toils   pace
	pub     packet.Publish

	aliasOut map[string]uint16 // guarded by the session's mutex

	mu        sync.Mutex
	cond      sync.Cond // of mu: the writer ended, answers left, or the connection is to end
	ctl       []byte    // packets that are not messages, in order
	slots     slots
	slotBytes int
	open      map[uint16]struct{} // inbound QoS 1 and 2 that are not completed, 5.0
	ready     bool                // CONNACK is queued: messages may follow
	granted   bool                // a SUBACK is in ctl
	holding   int                 // SUBACKs that messages wait for
	dirty     bool                // there may be output
	writing   bool                // the writer runs
	parked    bool                // the reader waits
	dead      bool                // no output any more
	kicked    *ending             // first reason to end that came from elsewhere
	deadline  time.Time           // of the current writes
}

func newConn(b *Broker, nc net.Conn) *conn {
	c := &conn{b: b, nc: nc, addr: nc.RemoteAddr().String()}
	c.ip, c.local = addressOf(nc.RemoteAddr())
	if c.addr == "" || c.addr == "@" {
		c.addr = "unix"
	}
	c.cond.L = &c.mu
	return c
}

// serve runs the connection to its end and calls gone. From the handshake on it
// has another goroutine: a client that says nothing keeps the stack of that one,
// not what TLS, the login and the log needed.
func (c *conn) serve(gone func()) {
	if err := c.handshake(); err != nil {
		c.finish(err)
		gone()
		return
	}
	go func() {
		c.finish(c.loop())
		gone()
	}()
}

// loop reads packets until something ends the connection.
func (c *conn) loop() error {
	for {
		h, body, err := c.packet(c.b.set.Load().maxPacket)
		if err != nil {
			return err
		}
		if err := c.handle(h, body); err != nil {
			return err
		}
		if err := c.throttle(); err != nil {
			return err
		}
		if c.b.crowded.Load() && c.b.crowded.Swap(false) {
			runtime.Gosched() // on one core the writers would run too late
		}
	}
}

// packet returns the next packet; body is valid until the next call.
func (c *conn) packet(limit int) (h packet.Header, body []byte, err error) {
	for {
		h, n, err := packet.ReadHeader(c.buf[c.r:c.w])
		if err != nil {
			return h, nil, err
		}
		need := 0
		if n > 0 {
			if need = n + h.Length; need > limit {
				return h, nil, &packet.Error{Code: packet.TooLarge, Text: fmt.Sprintf("packet of %d bytes exceeds max_packet %d", need, limit)}
			}
			if c.w-c.r >= need {
				body = c.buf[c.r+n : c.r+need : c.r+need]
				c.r += need
				return h, body, nil
			}
			if c.sess == nil && h.Type != packet.CONNECT {
				return h, nil, errNotConnect
			}
		}
		if err := c.more(need); err != nil {
			return h, nil, err
		}
	}
}

var errNotConnect = &packet.Error{Text: "first packet is not CONNECT"}

// more reads once. The buffer grows with the bytes that came, never to a length
// that was only declared, and shrinks when little comes.
func (c *conn) more(need int) error {
	c.idle()
	switch {
	case c.r == c.w:
		c.r, c.w = 0, 0
		if len(c.buf) > 16*firstBuffer && c.last < len(c.buf)/8 || c.buf == nil {
			c.buf = make([]byte, firstBuffer)
		}
	case c.r > 0:
		c.w = copy(c.buf, c.buf[c.r:c.w])
		c.r = 0
	}
	if limit := max(usualBuffer, need); (c.filled || c.w == len(c.buf)) && len(c.buf) < limit {
		grown := make([]byte, min(4*len(c.buf), limit))
		copy(grown, c.buf[:c.w])
		c.buf = grown
	}
	n, err := c.nc.Read(c.buf[c.w:])
	c.w += n
	c.last, c.filled = n, c.w == len(c.buf)
	c.b.n.receivedBytes.Add(uint64(n))
	if n > 0 {
		c.now = time.Now()
		c.wall = c.b.wall(c.now)
		c.renew()
		return nil
	}
	return err
}

// idle is called before the reader may block: what it collected goes on.
func (c *conn) idle() {
	if s := c.sess; s != nil && s.consumer != 0 {
		s.mu.Lock()
		if s.conn == c {
			s.flushSettleLocked()
		}
		s.mu.Unlock()
	}
	c.mu.Lock()
	out := len(c.ctl) > 0
	c.mu.Unlock()
	if out {
		c.wake()
	}
}

// renew moves the read deadline, at most once a second.
func (c *conn) renew() {
	if c.keep == 0 || c.sess == nil {
		return
	}
	slack := min(time.Second, c.keep/8)
	if c.now.Sub(c.renewed) < slack {
		return
	}
	c.renewed = c.now
	c.setReadDeadline(c.now.Add(c.keep + slack))
}

// setReadDeadline does nothing once the connection is to end: kick has set the
// last deadline.
func (c *conn) setReadDeadline(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.kicked == nil {
		c.nc.SetReadDeadline(t)
	}
}

// throttle holds the reader back while too much of its own client's input is
// unanswered or too many answers are not taken.
func (c *conn) throttle() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.kicked == nil && (c.slotBytes >= inboundBytes || c.slots.n >= inboundSlots || len(c.ctl) >= outputBytes) {
		c.parked = true
		if len(c.ctl) > 0 && !c.writing {
			c.startLocked()
		}
		c.cond.Wait()
	}
	if c.parked {
		c.listenLocked()
	}
	c.parked = false
	if c.kicked != nil {
		return c.kicked
	}
	return nil
}

// kick ends the connection from outside; the first reason counts, and only that
// one is answered with true.
func (c *conn) kick(e *ending) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.kicked != nil {
		return false
	}
	c.kicked = e
	c.nc.SetReadDeadline(time.Unix(1, 0))
	c.nc.SetWriteDeadline(time.Now().Add(farewellTime)) // the reader may be in a write, or wait for one (WebSocket)
	c.cond.Broadcast()
	return true
}

// finish detaches the session, tells the client why where it can be told, and
// closes.
func (c *conn) finish(err error) {
	e := c.reason(err)
	if c.sess != nil {
		c.b.detach(c, e)
	}
	c.log(e)
	c.mu.Lock()
	if c.kicked == nil {
		c.kicked = e
	}
	c.slots = slots{}
	c.sayLocked(e)
	limit := time.Now().Add(farewellTime)
	c.deadline = limit
	c.nc.SetWriteDeadline(limit)
	if len(c.ctl) > 0 && !c.writing && !c.dead {
		c.startLocked()
	}
	for c.writing {
		c.cond.Wait()
	}
	told := e.code != 0 && !c.dead
	c.dead = true
	c.mu.Unlock()
	if e.reset {
		shut(c.nc)
		return
	}
	if told {
		c.linger(limit)
	}
	c.nc.Close()
}

// sayLocked queues the last packet.
func (c *conn) sayLocked(e *ending) {
	switch {
	case e.code == 0 || c.dead:
	case e.early:
		code := e.code
		if c.version != packet.V5 {
			if code = refused3(e.code); code == 0 {
				e.code = 0
				return
			}
		}
		ack := packet.Connack{Code: code}
		c.ctl = ack.Append(c.ctl, c.version)
	case c.version == packet.V5 && !e.clean && c.sess != nil: // never before CONNACK [MQTT-3.14.0-1]
		d := packet.Disconnect{Code: e.code}
		c.ctl = d.Append(c.ctl, c.version)
	}
}

// linger lets the client read the last packet instead of a reset: it closes the
// sending half and drops what still comes.
func (c *conn) linger(limit time.Time) {
	half, ok := c.nc.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	c.nc.SetReadDeadline(limit)
	var waste [512]byte
	for {
		if _, err := c.nc.Read(waste[:]); err != nil {
			return
		}
	}
}

// reason turns what ended the reader into an ending.
func (c *conn) reason(err error) *ending {
	c.mu.Lock()
	kicked := c.kicked
	c.mu.Unlock()
	early := c.sess == nil
	var bad *packet.Error
	var end *ending
	switch {
	case errors.As(err, &end):
		return end
	case errors.As(err, &bad):
		return &ending{code: bad.Code, text: bad.Text, early: early, fault: true}
	case kicked != nil:
		return kicked
	case errors.Is(err, os.ErrDeadlineExceeded) && !early:
		return &ending{code: packet.KeepAliveTimeout, text: "nothing heard for 1.5 keep-alives"}
	case errors.Is(err, os.ErrDeadlineExceeded):
		return &ending{text: "sent no CONNECT in time", fault: true}
	case errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed):
		return &ending{text: "connection closed by the client"}
	}
	return &ending{text: err.Error()}
}

func (c *conn) log(e *ending) {
	switch {
	case e.said:
	case e.fault:
		verb := "is cut off: "
		if e.early {
			verb = "is refused: "
		}
		c.b.gate.offence(c, verb+e.text)
	case c.sess == nil:
		c.b.log.Debug("connection ended before connect", "addr", c.addr, "reason", e.text)
	case e.clean:
		c.b.log.Debug("client left", "client", c.id, "addr", c.addr)
	case c.b.gate.mayTell(c):
		c.b.log.Info("client gone", "client", c.id, "addr", c.addr, "reason", e.text)
	}
}

// refused3 is the return code of a 3.x CONNACK for a reason code; 0 = none fits.
func refused3(code byte) byte {
	switch code {
	case packet.BadVersion:
		return packet.Refused3Version
	case packet.BadClientID:
		return packet.Refused3ClientID
	case packet.ServerUnavailable, packet.ServerBusy, packet.QuotaExceeded, packet.ImplementationError, packet.ServerShutdown:
		return packet.Refused3Server
	case packet.BadLogin, packet.NotAuthorized, packet.BadAuthMethod:
		return packet.Refused3NotAuth
	}
	return 0
}
