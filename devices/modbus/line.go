package modbus

import (
	"context"
	"fmt"
	"sync"
	"time"

	"busgate/devices"
)

// Port is what a Line needs of a serial port. Read gives (0, nil) after a
// silence of the read timeout.
type Port interface {
	Read([]byte) (int, error)
	Write([]byte) (int, error)
	SetReadTimeout(time.Duration) error
	Close() error
}

// timing is how long things take on one wire.
type timing struct {
	char    time.Duration // one character; 0 over TCP
	gap     time.Duration // silence between frames: t3.5
	silence time.Duration // longest silence inside a frame
	latency time.Duration // how long the adapter holds bytes back
	ascii   bool          // each byte goes as two characters
}

// frame is how long an RTU frame of n bytes, its check included, takes the wire.
// In ASCII that are a colon, two characters for each byte, the LRC for the CRC,
// and CRLF (Modbus over serial line v1.02, 2.5.2).
func (t timing) frame(n int) time.Duration {
	if t.ascii {
		n = 2*n + 1
	}
	return time.Duration(n) * t.char
}

// patience is how long one exchange waits.
type patience struct {
	timeout time.Duration // first byte, from the end of the request
	window  time.Duration // after a timeout: how long the answer may still come
}

// exchange is when the last request and its answer were on the wire.
type exchange struct {
	sent  time.Time // end of the request
	first time.Time // first bytes of the answer
	end   time.Time // last bytes of the answer
	size  int       // bytes of the answer
}

const (
	maxDrain  = 64  // reads in one drain
	maxStray  = 8   // bytes before a frame that are forgiven
	bufSize   = 512 // bytes
	muteAfter = time.Second
	// strangersLast is how long a frame that nobody here asked for is held against
	// a wire.
	strangersLast = time.Hour
	// maxAnswer bounds an answer that trickles in, after its first byte.
	maxAnswer = 5 * time.Second
)

// Line speaks Modbus RTU on one port, or ASCII through an asciiPort. A late,
// damaged or foreign frame is never taken for the answer to a request it does not
// belong to:
//
//	owed → drain → gap → write → first byte → collect
//
// One goroutine calls exchange; the mutex is a guard against a second one.
type Line struct {
	port   Port
	timing timing
	late   func(unit byte, after time.Duration) // told of each late answer
	tap    *devices.Tap                         // may be nil

	mu     sync.Mutex
	quiet  time.Time // last byte that was on the wire, as far as known
	dirty  bool      // the last exchange did not end cleanly
	mute   time.Time // a wire that never stops talking is left alone until then
	looked time.Time // when it was last looked at what came
	owes   *ledger
	buf    [bufSize]byte
	junk   []byte    // what came while nothing was asked; whole frames are taken out
	others time.Time // somebody else's newest frame; zero: none yet
	last   exchange
	counts devices.Counts
	echoes echoes
	noOwed bool // tests: forget what is owed

	asking []byte        // the newest request
	shown  time.Time     // end of the newest frame that tap was shown
	keep   func(*ledger) // takes the account when the Line is closed; nil: nobody does
}

// newLine takes over the port. late may be nil.
func newLine(p Port, t timing, late func(byte, time.Duration)) *Line {
	if late == nil {
		late = func(byte, time.Duration) {}
	}
	return &Line{port: p, timing: t, late: late, dirty: true, junk: make([]byte, 0, bufSize), owes: &ledger{}}
}

// Close closes the port.
func (l *Line) Close() error {
	err := l.port.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.keep != nil {
		l.keep(l.owes)
		l.keep = nil
	}
	return err
}

func (l *Line) timings() exchange { return l.last }

func (l *Line) tally() *devices.Counts { return &l.counts }

// exchange sends one RTU frame and returns the answer, an exception included,
// which is valid until the next call. Errors: devices.ErrNoAnswer,
// devices.ErrBadFrame, the context's, or the port's. A request to unit 0 is a
// broadcast: nobody answers, and the answer is made up.
func (l *Line) exchange(ctx context.Context, req []byte, p patience) ([]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Until(l.mute) > 0 {
		return nil, fmt.Errorf("%w: the line is never quiet", devices.ErrBadFrame)
	}
	if err := l.listen(0); err != nil { // what came since the last exchange is not for this one
		return nil, err
	}
	if err := l.awaitOwed(ctx, req, p); err != nil {
		return nil, err
	}
	return l.ask(ctx, req, p)
}

// ask makes an exchange that nothing stands in the way of.
func (l *Line) ask(ctx context.Context, req []byte, p patience) ([]byte, error) {
	if err := l.drain(); err != nil {
		return nil, err
	}
	if err := l.awaitGap(); err != nil {
		return nil, err
	}
	if len(l.junk) > 0 {
		l.show(l.junk, 0, devices.MarkStray)
		l.junk = l.junk[:0]
	}
	l.asking = append(l.asking[:0], req...)
	l.counts.Requests++
	l.owes.sent(req)
	if err := l.write(req); err != nil {
		l.owe(req, p.window)
		return nil, err
	}
	if req[0] == 0 {
		return l.broadcast(ctx, req)
	}
	return l.collect(req, p)
}

// drain reads until the wire was silent for so long that the FIFO of an adapter
// and its USB packets are empty. Draining for t3.5 only lets remains of one
// answer into the next.
func (l *Line) drain() error {
	if !l.dirty {
		return nil
	}
	quiet := max(l.timing.gap, l.timing.silence)
	for range maxDrain {
		wait := quiet - time.Since(l.quiet)
		if l.quiet.IsZero() {
			wait = quiet
		}
		n, err := l.read(l.buf[:], wait)
		if err != nil {
			return err
		}
		if n == 0 {
			l.dirty = false
			return nil
		}
		l.counts.Stale += uint64(n)
		l.sift(l.buf[:n])
	}
	l.counts.Bad++
	l.mute = time.Now().Add(muteAfter)
	return fmt.Errorf("%w: the line is never quiet", devices.ErrBadFrame)
}

// awaitGap waits for the silence before a frame inside Read: that is exact, and
// sees stray bytes, which time.Sleep is and does not. What is measured is the
// arrival here, never before the end on the wire, so t3.5 needs no margin.
func (l *Line) awaitGap() error {
	for range maxDrain {
		wait := l.timing.gap - time.Since(l.quiet)
		if wait <= 0 {
			return nil
		}
		if err := l.listen(wait); err != nil {
			return err
		}
	}
	return nil
}

func (l *Line) write(req []byte) error {
	start := time.Now()
	for done := 0; done < len(req); {
		n, err := l.port.Write(req[done:])
		if err != nil {
			l.dirty = true
			return fmt.Errorf("write: %w", err)
		}
		done += n
	}
	l.counts.BytesOut += l.onWire(len(req))
	l.last = exchange{sent: start.Add(l.timing.frame(len(req)))}
	l.showRequest(req, start)
	l.quiet = l.last.sent
	return nil
}

// broadcast waits until all units have worked on the request.
func (l *Line) broadcast(ctx context.Context, req []byte) ([]byte, error) {
	l.dirty = true
	for end := l.last.sent.Add(100 * time.Millisecond); ; {
		wait := time.Until(end)
		if wait <= 0 {
			break
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := l.listen(wait); err != nil {
			return nil, err
		}
	}
	return seal(append(l.buf[:0], req[:6]...)), nil
}

// onWire is how many characters n bytes of frames are.
func (l *Line) onWire(n int) uint64 {
	if l.timing.ascii {
		return 2*uint64(n) + 1
	}
	return uint64(n)
}

// began is when the bytes that were just read began to come, as far as known.
func (l *Line) began() time.Time {
	if a, ok := l.port.(*asciiPort); ok && !a.first.IsZero() {
		return a.first
	}
	return time.Now()
}

// read waits at most d for bytes; 0 and nil is silence.
func (l *Line) read(p []byte, d time.Duration) (int, error) {
	if err := l.port.SetReadTimeout(max(d, 0)); err != nil {
		return 0, fmt.Errorf("read: %w", err)
	}
	n, err := l.port.Read(p)
	if n > 0 {
		l.quiet = time.Now()
		l.counts.BytesIn += l.onWire(n)
	}
	if err != nil {
		return n, fmt.Errorf("read: %w", err)
	}
	return n, nil
}
