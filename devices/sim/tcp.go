package sim

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// maxInFlight bounds the requests of one connection that wait for their answer;
// the next one is not read before one has left.
const maxInFlight = 16

// TCPFaults is what a Modbus TCP server does wrong. Shares are 0..1.
type TCPFaults struct {
	Lose      float64       // answers that never come
	Late      float64       // answers that come LateBy later; later ones overtake them
	LateBy    time.Duration //
	Swap      bool          // every other answer waits 20 ms, so that the next one overtakes it
	WrongID   float64       // answers under another transaction number
	WrongUnit float64       // answers that name another unit
	Split     float64       // answers in two pieces, 5 ms apart; that is legal
	Half      float64       // answers that end in the middle; the stream is out of step then
	Reset     float64       // requests that the server answers with a reset of the connection
	Exception byte          // every answer is this exception: 10 and 11 are those of a gateway
	MaxConns  int           // further connections are closed at once; 0 = no limit
}

// TCP is a Modbus TCP server with units behind it. Safe for concurrent use.
type TCP struct {
	rtu bool // RTU frames without MBAP header
	ln  net.Listener

	mu     sync.Mutex
	units  map[byte]*Unit
	faults TCPFaults
	rng    *rand.Rand
	conns  int
	count  uint64
	served uint64
}

// NewTCP makes a server for connections that the caller brings to ServeConn; a
// net.Pipe works in a testing/synctest bubble.
func NewTCP(seed uint64, units ...*Unit) *TCP {
	t := &TCP{units: map[byte]*Unit{}, rng: rand.New(rand.NewPCG(seed, 1))}
	for _, u := range units {
		t.units[u.ID] = u
	}
	return t
}

// ListenTCP binds addr, such as "127.0.0.1:0". Run serves and closes it.
func ListenTCP(addr string, seed uint64, units ...*Unit) (*TCP, error) {
	t := NewTCP(seed, units...)
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("simulated modbus tcp: %w", err)
	}
	t.ln = ln
	return t, nil
}

// ListenRTU is ListenTCP for RTU frames over TCP, as serial servers speak it.
func ListenRTU(addr string, seed uint64, units ...*Unit) (*TCP, error) {
	t, err := ListenTCP(addr, seed, units...)
	if err == nil {
		t.rtu = true
	}
	return t, err
}

// Addr is host:port of the listener.
func (t *TCP) Addr() string { return t.ln.Addr().String() }

// SetFaults replaces the faults.
func (t *TCP) SetFaults(f TCPFaults) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.faults = f
}

// Served counts the requests that units answered.
func (t *TCP) Served() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.served
}

// Run accepts connections until ctx ends, then closes the listener and all of them.
func (t *TCP) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { t.ln.Close() })
	defer stop()
	defer t.ln.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := t.ln.Accept()
		if ctx.Err() != nil {
			if err == nil {
				c.Close()
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("simulated modbus tcp %s: %w", t.Addr(), err)
		}
		if !t.admit() {
			c.Close()
			continue
		}
		wg.Go(func() {
			defer t.leave()
			t.ServeConn(ctx, c)
		})
	}
}

func (t *TCP) admit() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.faults.MaxConns > 0 && t.conns >= t.faults.MaxConns {
		return false
	}
	t.conns++
	return true
}

func (t *TCP) leave() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.conns--
}

// ServeConn serves one connection until it or ctx ends, and closes it.
func (t *TCP) ServeConn(ctx context.Context, c net.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	s := &session{tcp: t, conn: c, room: make(chan struct{}, maxInFlight), writing: make(chan struct{}, 1)}
	defer s.wg.Wait()
	defer cancel()
	defer c.Close()
	for {
		r, err := s.read()
		if err != nil {
			return
		}
		select {
		case s.room <- struct{}{}:
		case <-ctx.Done():
			return
		}
		if !s.handle(ctx, r) {
			return
		}
	}
}

// session is one connection. Only its reader touches free.
type session struct {
	tcp  *TCP
	conn net.Conn
	room chan struct{}
	free time.Time // when the units have done what was asked so far
	wg   sync.WaitGroup

	writing chan struct{} // holds one: one answer is written at a time
}

// request is one PDU and where its answer goes.
type request struct {
	id   uint16
	unit byte
	pdu  []byte
}

var errFraming = errors.New("no modbus frame")

func (s *session) read() (request, error) {
	if s.tcp.rtu {
		return s.readRTU()
	}
	var head [7]byte // Modbus Messaging on TCP/IP v1.0b, 3.1.3
	if _, err := io.ReadFull(s.conn, head[:]); err != nil {
		return request{}, err
	}
	n := int(binary.BigEndian.Uint16(head[4:]))
	if binary.BigEndian.Uint16(head[2:]) != 0 || n < 2 || n > 254 {
		return request{}, errFraming
	}
	r := request{binary.BigEndian.Uint16(head[:]), head[6], make([]byte, n-1)}
	_, err := io.ReadFull(s.conn, r.pdu)
	return r, err
}

func (s *session) readRTU() (request, error) {
	buf := make([]byte, 1, 260)
	if _, err := io.ReadFull(s.conn, buf); err != nil {
		return request{}, err
	}
	for {
		n := requestLength(buf[1:])
		if n < 0 || len(buf) > 256 {
			return request{}, errFraming
		}
		if n > 0 && len(buf) == n+3 {
			unit, pdu, ok := Line{}.open(buf)
			if !ok {
				return request{}, errFraming
			}
			return request{0, unit, pdu}, nil
		}
		var b [1]byte
		if _, err := io.ReadFull(s.conn, b[:]); err != nil {
			return request{}, err
		}
		buf = append(buf, b[0])
	}
}

// handle lets the unit answer and sends the answer when its time comes. false
// ends the connection.
func (s *session) handle(ctx context.Context, r request) bool {
	plan, u := s.tcp.plan(r)
	if plan.reset {
		if c, ok := s.conn.(*net.TCPConn); ok {
			c.SetLinger(0)
		}
		return false
	}
	if u == nil || plan.lost {
		<-s.room
		return true
	}
	think, _, _ := u.settings()
	now := time.Now()
	if s.free.Before(now) {
		s.free = now
	}
	s.free = s.free.Add(think)
	at := s.free.Add(plan.delay)
	pdu := u.Serve(r.pdu, s.free)
	if pdu == nil {
		<-s.room
		return true
	}
	if plan.exception != 0 {
		pdu = exception(r.pdu[0], plan.exception)
	}
	out := s.seal(r, pdu, plan)
	if d := time.Until(at); s.tcp.rtu || d <= 0 { // without transaction numbers: one after another
		defer func() { <-s.room }()
		if wait(ctx, d) {
			s.send(ctx, out, plan)
		}
		return true
	}
	s.wg.Go(func() {
		defer func() { <-s.room }()
		if wait(ctx, time.Until(at)) {
			s.send(ctx, out, plan)
		}
	})
	return true
}

func (s *session) seal(r request, pdu []byte, p plan) []byte {
	if p.wrongUnit {
		r.unit++
	}
	if s.tcp.rtu {
		return Line{}.Seal(r.unit, pdu)
	}
	if p.wrongID {
		r.id += 0x4000
	}
	out := binary.BigEndian.AppendUint16(nil, r.id)
	out = binary.BigEndian.AppendUint16(out, 0)
	out = binary.BigEndian.AppendUint16(out, uint16(len(pdu)+1))
	return append(append(out, r.unit), pdu...)
}

func (s *session) send(ctx context.Context, out []byte, p plan) {
	s.writing <- struct{}{} // no mutex: a bubble of virtual time must see that this waits
	defer func() { <-s.writing }()
	half := len(out) / 2
	switch {
	case p.half:
		s.conn.Write(out[:half])
	case p.split:
		s.conn.Write(out[:half])
		if wait(ctx, 5*time.Millisecond) {
			s.conn.Write(out[half:])
		}
	default:
		s.conn.Write(out)
	}
}

// plan is what happens to one answer.
type plan struct {
	delay                                        time.Duration
	exception                                    byte
	lost, reset, wrongID, wrongUnit, half, split bool
}

// plan draws the faults of one answer, always in the same order.
func (t *TCP) plan(r request) (plan, *Unit) {
	t.mu.Lock()
	defer t.mu.Unlock()
	roll := func(p float64) bool { return p > 0 && t.rng.Float64() < p }
	f := t.faults
	t.count++
	p := plan{
		exception: f.Exception,
		lost:      roll(f.Lose), reset: roll(f.Reset), wrongID: roll(f.WrongID), wrongUnit: roll(f.WrongUnit),
		half: roll(f.Half), split: roll(f.Split),
	}
	if roll(f.Late) {
		p.delay = f.LateBy
	}
	if f.Swap && t.count%2 == 1 {
		p.delay += 20 * time.Millisecond
	}
	u := t.units[r.unit]
	if u != nil {
		if _, _, uf := u.settings(); uf.Dead {
			u = nil
		} else {
			t.served++
		}
	}
	return p, u
}

// wait is false when ctx ended first.
func wait(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	tm := time.NewTimer(d)
	defer tm.Stop()
	select {
	case <-tm.C:
		return true
	case <-ctx.Done():
		return false
	}
}
