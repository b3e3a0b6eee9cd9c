package uart

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"busgate/config"
)

// newCheck makes the test of a whole frame. The bytes of start and end are not
// covered by a check, those of header are: so the MH-Z19 has start = "FF", the
// PMS5003 header = "42 4D". The check itself stands right before end.
func newCheck(f *config.Frame) (func(frame []byte) bool, error) {
	switch f.Kind {
	case "nmea":
		must := f.Check == "xor"
		return func(b []byte) bool { return nmeaCheck(b, must) }, nil
	case "p1":
		must := f.Check == "crc16-arc"
		return func(b []byte) bool { return p1Check(b, must) }, nil
	case "sml":
		return smlCheck, nil
	}
	test, size, err := checksum(f.Check)
	if err != nil {
		return nil, err
	}
	text := f.Kind == "line" || f.Kind == "delimited"
	return func(b []byte) bool {
		if f.Kind == "line" {
			b = trimLine(b, lineEnd(f))
		} else if len(b) < len(f.End) || !bytes.HasSuffix(b, f.End) {
			return false
		} else {
			b = b[:len(b)-len(f.End)]
		}
		switch {
		case text && f.Check == "xor":
			return starCheck(b[min(len(f.Start), len(b)):])
		case text && f.Check == "lrc":
			return hexCheck(b[min(len(f.Start), len(b)):])
		case len(b) < len(f.Start)+size:
			return false
		}
		return test(b[len(f.Start):len(b)-size], b[len(b)-size:])
	}, nil
}

// bare says that a good frame came without a check: it has none, or its kind may
// leave it out, as meters of DSMR 2 and 3 do and some NMEA sentences.
func bare(f *config.Frame, b []byte) bool {
	switch f.Kind {
	case "nmea":
		return bytes.IndexByte(b, '*') < 0
	case "p1":
		return p1Digits(b) == ""
	case "sml":
		return false
	}
	return f.Check == "" || f.Check == "none"
}

// checksum is a test of bytes against the size bytes behind them.
func checksum(name string) (test func(b, want []byte) bool, size int, err error) {
	sum := func(b []byte) (n uint16) {
		for _, c := range b {
			n += uint16(c)
		}
		return n
	}
	little := func(c uint16, want []byte) bool { return c == binary.LittleEndian.Uint16(want) }
	switch name {
	case "", "none":
		return func(_, _ []byte) bool { return true }, 0, nil
	case "xor":
		return func(b, want []byte) bool { return xor(b) == want[0] }, 1, nil
	case "sum8":
		return func(b, want []byte) bool { return byte(sum(b)) == want[0] }, 1, nil
	case "neg-sum8", "lrc": // the same sum; in lines of text the LRC is written in hex
		return func(b, want []byte) bool { return -byte(sum(b)) == want[0] }, 1, nil
	case "sum16":
		return func(b, want []byte) bool { return sum(b) == binary.BigEndian.Uint16(want) }, 2, nil
	case "crc16-modbus":
		return func(b, want []byte) bool { return little(crc16(b, 0xFFFF, 0xA001), want) }, 2, nil
	case "crc16-arc":
		return func(b, want []byte) bool { return little(crc16(b, 0, 0xA001), want) }, 2, nil
	case "crc16-x25":
		return func(b, want []byte) bool { return little(crcX25(b), want) }, 2, nil
	case "crc8-maxim":
		return func(b, want []byte) bool { return crc8(b) == want[0] }, 1, nil
	}
	return nil, 0, fmt.Errorf("check %q is not known", name)
}

func xor(b []byte) (x byte) {
	for _, c := range b {
		x ^= c
	}
	return x
}

// crc16 shifts to the right; poly is written in reverse.
func crc16(b []byte, start, poly uint16) uint16 {
	c := start
	for _, x := range b {
		c ^= uint16(x)
		for range 8 {
			if c&1 != 0 {
				c = c>>1 ^ poly
			} else {
				c >>= 1
			}
		}
	}
	return c
}

// crcX25 is CRC-16/X-25 (ISO/IEC 13239).
func crcX25(b []byte) uint16 { return ^crc16(b, 0xFFFF, 0x8408) }

// crc8 is CRC-8/MAXIM-DOW of the 1-Wire bus (Maxim application note 27).
func crc8(b []byte) (c byte) {
	for _, x := range b {
		c ^= x
		for range 8 {
			if c&1 != 0 {
				c = c>>1 ^ 0x8C
			} else {
				c >>= 1
			}
		}
	}
	return c
}

// starCheck is the check of NMEA 0183 in any line: *hh is the XOR of all bytes
// before it, without a leading $ or !.
func starCheck(b []byte) bool {
	i := len(b) - 3
	if i < 0 || b[i] != '*' {
		return false
	}
	var want [1]byte
	if _, err := hex.Decode(want[:], b[i+1:]); err != nil {
		return false
	}
	b = b[:i]
	if len(b) > 0 && (b[0] == '$' || b[0] == '!') {
		b = b[1:]
	}
	return xor(b) == want[0]
}

// hexCheck is the LRC of Modbus over Serial Line v1.02, 2.5.2.2: pairs of hex
// digits whose sum, the last pair included, is 0. A leading colon is skipped.
func hexCheck(b []byte) bool {
	b = bytes.TrimPrefix(b, []byte(":"))
	raw := make([]byte, hex.DecodedLen(len(b)))
	if n, err := hex.Decode(raw, b); err != nil || n < 2 {
		return false
	}
	var sum byte
	for _, c := range raw {
		sum += c
	}
	return sum == 0
}

// lineEnd is what ends a line.
func lineEnd(f *config.Frame) []byte {
	if len(f.End) == 0 {
		return []byte("\n")
	}
	return f.End
}

// trimLine takes the line end off, and a CR before it.
func trimLine(b, end []byte) []byte {
	return bytes.TrimSuffix(bytes.TrimSuffix(b, end), []byte("\r"))
}
