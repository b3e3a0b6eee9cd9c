package sim

import (
	"fmt"
	"time"
)

// Line says how characters travel.
type Line struct {
	Baud    int           // bit/s; 0 = 9600
	Format  string        // data bits, parity, stop bits; "" = "8N1"
	ASCII   bool          // Modbus ASCII frames instead of RTU
	Chunk   int           // characters that the receiver's FIFO gathers before it hands them over; 0 = 12
	Latency time.Duration // USB adapter: characters are handed over at multiples of this; 0 = by Chunk
}

func (l Line) withDefaults() Line {
	if l.Baud == 0 {
		l.Baud = 9600
	}
	if l.Format == "" {
		l.Format = "8N1"
	}
	if l.Chunk == 0 {
		l.Chunk = 12
	}
	return l
}

// Bits is the number of bits of one character with start, parity and stop bits.
func (l Line) Bits() int {
	l = l.withDefaults()
	bits := 1 + int(l.Format[0]-'0') + int(l.Format[2]-'0')
	if l.Format[1] != 'N' {
		bits++
	}
	return bits
}

// Char is the time that one character takes.
func (l Line) Char() time.Duration {
	l = l.withDefaults()
	return time.Duration(l.Bits()) * time.Second / time.Duration(l.Baud)
}

// Silence is t3.5, which ends an RTU frame. Modbus over Serial Line v1.02, 2.5.1.1.
func (l Line) Silence() time.Duration {
	l = l.withDefaults()
	if l.Baud > 19200 {
		return 1750 * time.Microsecond
	}
	return l.Char() * 35 / 10
}

// String is how data sheets print it: "9600 8N1".
func (l Line) String() string {
	l = l.withDefaults()
	return fmt.Sprintf("%d %s", l.Baud, l.Format)
}

// CRC16 is the check of Modbus RTU: polynomial 0xA001 reflected, start 0xFFFF.
// Over a frame that ends in its own check it is 0.
func CRC16(p []byte) uint16 {
	c := uint16(0xFFFF)
	for _, b := range p {
		c ^= uint16(b)
		for range 8 {
			if c&1 != 0 {
				c = c>>1 ^ 0xA001
			} else {
				c >>= 1
			}
		}
	}
	return c
}

// Seal makes a frame of the line's kind from a unit and a PDU.
func (l Line) Seal(unit byte, pdu []byte) []byte {
	adu := append([]byte{unit}, pdu...)
	if !l.ASCII {
		c := CRC16(adu)
		return append(adu, byte(c), byte(c>>8))
	}
	var sum byte
	out := []byte{':'}
	for _, b := range adu {
		sum += b
		out = fmt.Appendf(out, "%02X", b)
	}
	return fmt.Appendf(out, "%02X\r\n", -sum)
}

// open checks a frame of the line's kind and takes the wrapping off.
func (l Line) open(frame []byte) (unit byte, pdu []byte, ok bool) {
	if !l.ASCII {
		if len(frame) < 4 || CRC16(frame) != 0 {
			return 0, nil, false
		}
		return frame[0], frame[1 : len(frame)-2], true
	}
	n := len(frame)
	if n < 9 || n%2 == 0 || frame[0] != ':' || frame[n-2] != '\r' || frame[n-1] != '\n' {
		return 0, nil, false
	}
	var raw []byte
	var sum byte
	for i := 1; i < n-2; i += 2 {
		hi, lo := hexDigit(frame[i]), hexDigit(frame[i+1])
		if hi > 15 || lo > 15 {
			return 0, nil, false
		}
		raw = append(raw, hi<<4|lo)
		sum += hi<<4 | lo
	}
	if sum != 0 {
		return 0, nil, false
	}
	return raw[0], raw[1 : len(raw)-1], true
}

func hexDigit(c byte) byte {
	switch {
	case c >= '0' && c <= '9':
		return c - '0'
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10
	}
	return 0xFF
}
