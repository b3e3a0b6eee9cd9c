package modbus

import (
	"context"
	"fmt"
	"time"

	"busgate/devices"
)

// listenSlice is how long one read of a listener waits: how soon it ends with its context.
const listenSlice = 100 * time.Millisecond

// Listen opens a serial bus and gives every frame on it to emit until ctx ends.
// It never sends. It knows frames by their check; bytes that belong to none come
// as MarkCRC after a silence. The error is the context's or a devices.Trouble.
func (d *Driver) Listen(ctx context.Context, w devices.Wire, emit func(devices.Frame)) error {
	f, err := d.Open(ctx, w)
	if err != nil {
		return err
	}
	defer f.Close()
	return Overhear(ctx, f, emit)
}

// Overhear is Listen on a Field of this package that is open. It is called like
// a method of the Field. Only a serial bus can be listened to: over a network
// nobody else's frames come by.
func Overhear(ctx context.Context, wire devices.Field, emit func(devices.Frame)) error {
	f, ok := wire.(*field)
	if !ok {
		return fmt.Errorf("this bus does not speak Modbus RTU")
	}
	l, ok := f.link.(*Line)
	if !ok || f.bus.TCP != "" {
		return fmt.Errorf("bus %s is no serial line: over a network nobody else's frames come by", f.bus.Name)
	}
	return l.overhear(ctx, emit)
}

// overhear listens until ctx ends.
func (l *Line) overhear(ctx context.Context, emit func(devices.Frame)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := &ear{timing: l.timing, emit: func(f devices.Frame) {
		l.tap.Note(f)
		emit(f)
	}}
	defer func() { l.dirty = true }()
	var room [bufSize]byte
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		wait := listenSlice
		if len(e.buf) > 0 {
			wait = l.timing.silence
		}
		n, err := l.read(room[:], wait)
		if err != nil {
			return err
		}
		e.hear(room[:n], time.Now())
		l.counts.Stale += uint64(n)
	}
}

// ear cuts what is said on a wire into frames: by the check, over all lengths
// that a frame which begins so can have, and where that fails by silence.
type ear struct {
	timing timing
	emit   func(devices.Frame)

	buf   []byte
	begun time.Time // first byte of buf, as it came
	ended time.Time // end of the last frame
	last  []byte    // the newest good frame
	at    time.Time // ... and its end
}

// hear takes bytes that came at now; none is a silence long enough to end any frame.
func (e *ear) hear(p []byte, now time.Time) {
	if len(e.buf) == 0 {
		e.begun = now
	}
	e.buf = append(e.buf, p...)
	for len(e.buf) > 0 {
		if n := frameLen(e.last, e.buf); n > 0 {
			e.frame(n, now)
			continue
		}
		if len(p) > 0 && len(e.buf) < bufSize {
			return // it may go on
		}
		junk := e.junk()
		e.say(e.buf[:junk], now, devices.MarkCRC)
		e.cut(junk, now)
	}
}

// junk is how many bytes stand before the next good frame; all when there is none.
func (e *ear) junk() int {
	for at := 1; at+minFrame <= len(e.buf); at++ {
		if overheard(e.buf[at:]) > 0 {
			return at
		}
	}
	return len(e.buf)
}

// frame says the good frame of n bytes at the start of buf.
func (e *ear) frame(n int, now time.Time) {
	f := e.buf[:n]
	e.say(f, now, devices.MarkOK)
	e.last, e.at = append(e.last[:0], f...), now
	e.cut(n, now)
}

func (e *ear) say(f []byte, now time.Time, mark devices.Mark) {
	out := devices.Frame{At: now, Data: append([]byte(nil), f...), Mark: mark}
	if !e.ended.IsZero() {
		out.Gap = max(0, now.Sub(e.ended)-e.timing.frame(len(f)))
	}
	if mark == devices.MarkOK && answers(e.last, f) {
		out.RTT = max(out.Gap, 1)
	}
	e.emit(out)
}

func (e *ear) cut(n int, now time.Time) {
	e.buf = append(e.buf[:0], e.buf[n:]...)
	e.begun, e.ended = now, now
}

// frameLen is the length of the good frame at the start of f, 0 when there is
// none (yet). last is the frame before it.
func frameLen(last, f []byte) int {
	if len(f) < minFrame {
		return 0
	}
	if len(last) >= 6 {
		if n := answerLen(last, f); n >= minFrame && n <= len(f) && crc(f[:n]) == 0 {
			return n
		}
	}
	if n := overheard(f); n > 0 {
		return n
	}
	if f[1] == 0x2B && len(f) >= 7 && crc(f[:7]) == 0 { // who are you
		return 7
	}
	return foreignLen(f)
}

// answers says that f is the answer to the request req.
func answers(req, f []byte) bool {
	return len(req) >= 6 && len(f) >= minFrame && answerLen(req, f) == len(f)
}
