package modbus

import (
	"encoding/hex"
	"fmt"
	"time"
)

// asciiSilence is the longest silence inside an ASCII frame (Modbus over serial
// line v1.02, 2.5.2.1).
const asciiSilence = time.Second

// maxLine bounds the characters of one ASCII frame: 253 bytes of data, unit,
// function and LRC.
const maxLine = 2*256 + 1

// asciiPort lets a Line speak ASCII: it takes RTU frames and writes them as
// lines, and gives back each line that comes as an RTU frame. A line with a wrong
// LRC becomes a frame with a wrong CRC, and characters that are no line become
// bytes that are no frame. One goroutine uses it.
type asciiPort struct {
	port    Port
	timeout time.Duration

	chars []byte    // read, not looked at yet
	line  []byte    // of a line that has begun, behind its colon
	open  bool      // a colon came
	junk  bool      // characters outside a line came
	stray bool      // ... before the line that was handed over last
	first time.Time // when the line that was handed over last began
	out   []byte    // a frame that did not fit
	room  [256]byte
}

func newASCIIPort(p Port) *asciiPort { return &asciiPort{port: p, timeout: -1} }

// SetReadTimeout bounds the wait for the first character of a line.
func (a *asciiPort) SetReadTimeout(d time.Duration) error {
	a.timeout = d
	return nil
}

// Close closes the port below.
func (a *asciiPort) Close() error { return a.port.Close() }

// Write sends one RTU frame as a line.
func (a *asciiPort) Write(frame []byte) (int, error) {
	if len(frame) < 4 {
		return 0, fmt.Errorf("write ascii frame: %d bytes are none", len(frame))
	}
	body := frame[:len(frame)-2]
	const digits = "0123456789ABCDEF"
	text := make([]byte, 0, 2*len(frame)+1)
	text = append(text, ':')
	for _, b := range body {
		text = append(text, digits[b>>4], digits[b&15])
	}
	check := lrc(body)
	text = append(text, digits[check>>4], digits[check&15], '\r', '\n')
	for done := 0; done < len(text); {
		n, err := a.port.Write(text[done:])
		if err != nil {
			return 0, err
		}
		done += n
	}
	return len(frame), nil
}

// Read gives one frame. It waits the read timeout for the first character, and
// through a line that has begun.
func (a *asciiPort) Read(p []byte) (int, error) {
	if len(a.out) > 0 {
		return a.give(p, a.out), nil
	}
	begin := time.Now()
	for {
		if f := a.scan(); f != nil {
			return a.give(p, f), nil
		}
		wait := a.timeout
		switch {
		case a.open:
			wait = asciiSilence
		case wait > 0:
			wait = max(0, wait-time.Since(begin))
		}
		if err := a.port.SetReadTimeout(wait); err != nil {
			return 0, err
		}
		n, err := a.port.Read(a.room[:])
		if err != nil {
			return 0, err
		}
		if n > 0 {
			a.chars = a.room[:n]
			continue
		}
		if a.open || a.junk { // broken off, or never a line
			a.open, a.junk, a.line = false, false, a.line[:0]
			return a.give(p, []byte{0}), nil
		}
		return 0, nil
	}
}

// give hands over as much of f as fits; the rest comes with the next Read.
func (a *asciiPort) give(p, f []byte) int {
	n := copy(p, f)
	a.out = f[n:]
	return n
}

// scan looks at the characters until a line ends. A colon begins a new one
// wherever it stands (Modbus over serial line v1.02, 2.5.2.1).
func (a *asciiPort) scan() []byte {
	for i, c := range a.chars {
		c &= 0x7F // a driver may leave the parity bit in
		switch {
		case c == ':':
			a.open, a.line, a.first = true, a.line[:0], time.Now()
		case !a.open:
			a.junk = a.junk || c != '\r' && c != '\n'
		case c == '\n':
			a.chars = a.chars[i+1:]
			a.open, a.junk, a.stray = false, false, a.junk
			return unwrap(a.line)
		case c == '\r':
		case len(a.line) >= maxLine:
			a.open, a.junk = false, true
		default:
			a.line = append(a.line, c)
		}
	}
	a.chars = nil
	return nil
}

// unwrap makes an RTU frame of a line without colon and line end.
func unwrap(line []byte) []byte {
	raw := make([]byte, hex.DecodedLen(len(line)), hex.DecodedLen(len(line))+1)
	if n, err := hex.Decode(raw, line); err != nil || n < 3 {
		return []byte{0}
	}
	body := raw[:len(raw)-1]
	check := raw[len(raw)-1]
	good := lrc(body) == check
	c := crc(body)
	if !good {
		c ^= 0xFFFF
	}
	return append(body, byte(c), byte(c>>8))
}

// lrc is the check of ASCII frames: the sum of all bytes and of it is 0 (Modbus
// over serial line v1.02, 6.2.1).
func lrc(b []byte) byte {
	var sum byte
	for _, c := range b {
		sum += c
	}
	return -sum
}
