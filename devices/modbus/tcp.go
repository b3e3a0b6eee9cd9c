package modbus

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"busgate/devices"
)

const (
	headerLen = 7 // MBAP: transaction, protocol, length, unit (Modbus messaging on TCP v1.0b, 3.1.3)
	maxADU    = 260
	sentIDs   = 64 // requests whose time is remembered
	// maxSilent timeouts in a row close a connection: a half-open one never answers.
	maxSilent = 3
	// maxAtOnce connections closed before their first answer are a limit of the peer.
	maxAtOnce = 3
)

// TCP speaks Modbus TCP to one endpoint. Transaction ids are its own, so that
// an answer that comes too late is known for what it is and dropped, instead of
// putting every later exchange out of step (goburrow/modbus#64).
// One goroutine calls exchange; the mutex is a guard against a second one.
type TCP struct {
	addr string
	dial func(context.Context) (net.Conn, error)
	late func(unit byte, after time.Duration)
	tap  *devices.Tap // may be nil

	datagrams bool // UDP: nothing is connected, nothing can be closed by the peer
	noIDs     bool // tests: take any answer

	mu      sync.Mutex
	conn    net.Conn
	proven  bool // this connection has given an answer
	id      uint16
	asked   uint64 // requests on this connection
	sent    [sentIDs]sentID
	silent  int // timeouts in a row
	strange int // answers of another unit in a row
	buf     [maxADU]byte
	have    int // bytes in buf of an answer that is not complete
	last    exchange
	counts  devices.Counts
}

// sentID is when a request was sent.
type sentID struct {
	id uint16
	at time.Time
}

func newTCP(addr string, dial func(context.Context) (net.Conn, error), late func(byte, time.Duration)) *TCP {
	if late == nil {
		late = func(byte, time.Duration) {}
	}
	return &TCP{addr: addr, dial: dial, late: late}
}

func (t *TCP) timings() exchange { return t.last }

func (t *TCP) tally() *devices.Counts { return &t.counts }

func (t *TCP) owing([]byte) time.Duration { return 0 }

// Close closes the connection.
func (t *TCP) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.hangUp()
}

func (t *TCP) hangUp() error {
	if t.conn == nil {
		return nil
	}
	err := t.conn.Close()
	t.conn, t.have, t.proven, t.silent, t.strange = nil, 0, false, 0, 0
	return err
}

// connect makes sure that there is a connection.
func (t *TCP) connect(ctx context.Context) error {
	if t.conn != nil {
		return nil
	}
	c, err := t.dial(ctx)
	if err != nil {
		return err
	}
	t.conn = c
	t.asked = 0 // no answer comes over from the old connection
	return nil
}

// exchange sends an ADU with its MBAP header and returns the answer, valid until
// the next call, under the transaction id of the request. A connection that was
// closed while it was idle is made anew once, and a read is asked again on it.
func (t *TCP) exchange(ctx context.Context, adu []byte, p patience) ([]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	read := adu[headerLen] <= 4
	for atonce := 0; ; {
		if err := t.connect(ctx); err != nil {
			return nil, err
		}
		proven := t.proven
		ans, sent, err := t.once(adu, p)
		if err == nil || errors.Is(err, devices.ErrNoAnswer) || errors.Is(err, devices.ErrBadFrame) {
			return ans, err
		}
		t.hangUp()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if t.datagrams { // nobody listens there
			return nil, unreachable(t.addr, err)
		}
		if !proven {
			if atonce++; atonce >= maxAtOnce {
				return nil, atOnce(t.addr, err)
			}
		}
		if sent && !read {
			return nil, fmt.Errorf("%w: %w", devices.ErrNoAnswer, err) // it may have been done
		}
	}
}

// once makes one try on the connection as it is. sent says that the whole request went out.
func (t *TCP) once(adu []byte, p patience) (ans []byte, sent bool, err error) {
	t.id++
	id := t.id
	t.counts.Requests++
	t.asked++
	frame := append([]byte(nil), adu...)
	binary.BigEndian.PutUint16(frame, id)
	if err := t.conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return nil, false, err
	}
	n, err := t.conn.Write(frame)
	t.counts.BytesOut += uint64(n)
	if err != nil {
		return nil, false, fmt.Errorf("write: %w", err)
	}
	now := time.Now()
	t.tap.Note(devices.Frame{At: now, Out: true, Data: frame[6:], Gap: t.gap(now), Mark: devices.MarkOK})
	t.last = exchange{sent: now}
	t.sent[id%sentIDs] = sentID{id, now}
	if err := t.conn.SetReadDeadline(now.Add(p.timeout)); err != nil {
		return nil, true, err
	}
	for {
		ans, err := t.frame()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			t.counts.Timeouts++
			t.tap.Note(devices.Frame{At: time.Now(), Gap: p.timeout, RTT: p.timeout, Mark: devices.MarkSilence})
			if t.silent++; t.silent >= maxSilent || t.have > 0 { // half-open, or stuck inside a frame
				t.hangUp()
			}
			return nil, true, devices.ErrNoAnswer
		case errors.Is(err, devices.ErrBadFrame):
			t.counts.Bad++
			t.hangUp()
			return nil, true, err
		case err != nil:
			return nil, true, fmt.Errorf("read: %w", err)
		}
		mine, err := t.judge(ans, frame, id)
		if err != nil {
			t.counts.Bad++
			t.hangUp()
			return nil, true, err
		}
		if mine {
			t.proven, t.silent, t.strange = true, 0, 0
			t.counts.Good++
			t.last.end, t.last.size = time.Now(), len(ans)
			t.show(ans, devices.MarkOK)
			copy(ans, adu[:2])
			return ans, true, nil
		}
	}
}

// frame reads one ADU.
func (t *TCP) frame() ([]byte, error) {
	for need := headerLen; ; {
		if t.have >= headerLen {
			proto, n := binary.BigEndian.Uint16(t.buf[2:]), int(binary.BigEndian.Uint16(t.buf[4:]))
			if proto != 0 || n < 3 || n > maxADU-6 {
				return nil, fmt.Errorf("%w: header % x", devices.ErrBadFrame, t.buf[:headerLen])
			}
			need = 6 + n
		}
		if t.have >= need && need > headerLen {
			t.have = 0 // never more than one frame is read
			return t.buf[:need], nil
		}
		n, err := t.conn.Read(t.buf[t.have:need])
		if n > 0 {
			if t.have == 0 {
				t.last.first = time.Now()
			}
			t.have += n
			t.counts.BytesIn += uint64(n)
			continue
		}
		if err == nil {
			err = io.ErrNoProgress
		}
		return nil, err
	}
}

// judge says whether ans is the answer to the request with that id. An older
// answer of ours is late and dropped; anything else means that the connection is
// out of step, an error.
func (t *TCP) judge(ans, req []byte, id uint16) (mine bool, err error) {
	got := binary.BigEndian.Uint16(ans)
	if got != id && !t.noIDs {
		if age := id - got; uint64(age) >= t.asked {
			return false, fmt.Errorf("%w: unknown transaction %d", devices.ErrBadFrame, got)
		}
		t.counts.Late++
		t.show(ans, devices.MarkLate)
		if s := t.sent[got%sentIDs]; s.id == got {
			t.late(ans[6], time.Since(s.at))
		}
		return false, nil
	}
	if ans[6] != req[6] {
		t.counts.Foreign++ // the right one may follow
		t.show(ans, devices.MarkForeign)
		if t.strange++; t.strange >= 2 {
			return false, fmt.Errorf("%w: unit %d answers for unit %d", devices.ErrBadFrame, ans[6], req[6])
		}
		return false, nil
	}
	if !fits(req, ans) {
		return false, fmt.Errorf("%w: % x", devices.ErrBadFrame, ans[:min(len(ans), 32)])
	}
	return true, nil
}

// fits says that the PDU of ans answers that of req: function, byte count and echo.
func fits(req, ans []byte) bool {
	// The PDU rules are those of RTU; both start at the unit, and ans lacks the check.
	n := answerLen(req[6:], ans[6:])
	return n == len(ans)-6+2
}

// gap is how long the connection was quiet before now.
func (t *TCP) gap(now time.Time) time.Duration {
	if t.last.end.IsZero() {
		return 0
	}
	return max(0, now.Sub(t.last.end))
}

// show lets those who watch see an answer, from its unit on.
func (t *TCP) show(ans []byte, mark devices.Mark) {
	rtt := max(t.last.first.Sub(t.last.sent), 1)
	t.tap.Note(devices.Frame{At: time.Now(), Data: ans[6:], Gap: rtt, RTT: rtt, Mark: mark})
}
