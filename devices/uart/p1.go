package uart

import (
	"bytes"
	"strconv"
	"strings"

	"busgate/config"
	"busgate/devices"
)

// p1Framer takes telegrams from / to the line of the exclamation mark. DSMR 5.0.2, 5.2.
type p1Framer struct{ most int }

func (p *p1Framer) again() bool { return true }

func (p *p1Framer) find(b []byte, _ bool) (from, to, long int) {
	for {
		i := bytes.IndexByte(b[from:], '/')
		if i < 0 {
			return len(b), 0, long
		}
		from += i
		rest := b[from:]
		mark := bytes.IndexByte(rest, '!')
		if mark < 0 && len(rest) < p.most {
			return from, 0, long
		}
		if mark >= 0 && mark < p.most {
			// at most four digits and CRLF
			tail := rest[mark+1 : min(len(rest), mark+7)]
			if k := bytes.IndexByte(tail, '\n'); k >= 0 {
				return from, from + mark + 2 + k, long
			} else if len(tail) < 6 {
				return from, 0, long
			}
		}
		from++
		long++
	}
}

// p1Check tests CRC16/ARC over all from / to !. Some meters do not pad the hex
// digits; those of DSMR 2 and 3 send none, which passes unless must is set.
func p1Check(b []byte, must bool) bool {
	mark := bytes.IndexByte(b, '!')
	if mark < 0 {
		return false
	}
	digits := p1Digits(b)
	if digits == "" {
		return !must
	}
	want, err := strconv.ParseUint(digits, 16, 16)
	return err == nil && len(digits) <= 4 && crc16(b[:mark+1], 0, 0xA001) == uint16(want)
}

// p1Digits is the check of a telegram in hex, as it was sent.
func p1Digits(b []byte) string {
	_, digits, _ := bytes.Cut(b, []byte("!"))
	return strings.TrimRight(string(digits), "\r\n")
}

// p1Lines finds the values of a telegram: the text in the last pair of brackets
// of each line, under its OBIS code. The last one is also that of an M-Bus
// meter, whose first one is a time. Meters of DSMR 2 and 3 write its value on a
// line of its own behind the code (DSMR 3.0, 6.6).
func p1Lines(b []byte) map[string]string {
	out := map[string]string{}
	code := ""
	for line := range strings.Lines(string(b)) {
		line = strings.TrimRight(line, "\r\n")
		open, last := strings.IndexByte(line, '('), strings.LastIndexByte(line, '(')
		if open < 0 || !strings.HasSuffix(line, ")") || len(out) >= maxEntries {
			code = ""
			continue
		}
		if open > 0 {
			code = line[:open]
		}
		if code != "" {
			out[code] = line[last+1 : len(line)-1]
		}
	}
	return out
}

// obisPick takes the value of an OBIS code, of P1 or SML.
func obisPick(p *config.Point) pick {
	return func(f *frame) (devices.Value, devices.Quality, bool, error) {
		if f.kind == "sml" {
			e, ok := f.smlEntries()[strings.TrimSuffix(p.OBIS, "*255")]
			if !ok {
				return devices.Value{}, 0, false, nil
			}
			v, q, err := e.value(p)
			return v, q, true, err
		}
		s, ok := f.telegram()[p.OBIS]
		if !ok {
			return devices.Value{}, 0, false, nil
		}
		number, _, _ := strings.Cut(s, "*")
		if number == "" {
			return devices.Value{}, devices.NotAvailable, true, nil
		}
		v, q, err := textValue(p, number)
		return v, q, true, err
	}
}
