package bridge

import (
	"strconv"
	"time"
	"unicode/utf8"

	"busgate/devices"
)

// object is a JSON object that is being written. Keys are names of ours and
// need no escapes; values of type string may hold anything.
type object []byte

func (o *object) key(k string) {
	if len(*o) == 0 {
		*o = append(*o, '{')
	} else {
		*o = append(*o, ',')
	}
	*o = append(*o, '"')
	*o = append(*o, k...)
	*o = append(*o, '"', ':')
}

func (o *object) str(k, v string) {
	o.key(k)
	*o = appendQuoted(*o, v)
}

func (o *object) int(k string, v int64) {
	o.key(k)
	*o = strconv.AppendInt(*o, v, 10)
}

func (o *object) uint(k string, v uint64) {
	o.key(k)
	*o = strconv.AppendUint(*o, v, 10)
}

func (o *object) float(k string, v float64) {
	o.key(k)
	*o = devices.Float64Value(v).AppendJSON(*o, -1)
}

func (o *object) bool(k string, v bool) {
	o.key(k)
	*o = strconv.AppendBool(*o, v)
}

// object writes an inner object; fill adds its keys.
func (o *object) object(k string, fill func(*object)) {
	o.key(k)
	var in object
	fill(&in)
	*o = append(*o, in.close()...)
}

// close ends the object and returns its bytes.
func (o object) close() []byte {
	if len(o) == 0 {
		o = append(o, '{')
	}
	return append(o, '}')
}

const hexDigits = "0123456789abcdef"

// appendQuoted appends s as a JSON string (RFC 8259, 7). Bytes that are not
// UTF-8 become U+FFFD.
func appendQuoted(dst []byte, s string) []byte {
	dst = append(dst, '"')
	from := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= utf8.RuneSelf {
			r, n := utf8.DecodeRuneInString(s[i:])
			if r == utf8.RuneError && n == 1 {
				dst = append(append(dst, s[from:i]...), "\uFFFD"...)
				from = i + 1
			}
			i += n
			continue
		}
		if c >= 0x20 && c != '"' && c != '\\' {
			i++
			continue
		}
		dst = append(dst, s[from:i]...)
		switch c {
		case '"', '\\':
			dst = append(dst, '\\', c)
		case '\n':
			dst = append(dst, '\\', 'n')
		case '\r':
			dst = append(dst, '\\', 'r')
		case '\t':
			dst = append(dst, '\\', 't')
		default:
			dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		}
		i++
		from = i
	}
	return append(append(dst, s[from:]...), '"')
}

// layout is the form of a time; every 0 is a digit.
const layout = `"0000-00-00T00:00:00.000Z"`

// appendTime appends t in UTC with milliseconds, cut, not rounded: RFC 3339 in
// quotes, or milliseconds since 1970 as a number.
func appendTime(dst []byte, t time.Time, unixMS bool) []byte {
	if unixMS {
		return strconv.AppendInt(dst, t.UnixMilli(), 10)
	}
	t = t.UTC()
	year, month, day := t.Date()
	hour, minute, second := t.Clock()
	text := [len(layout)]byte([]byte(layout))
	put := func(at, n int) { text[at], text[at+1] = '0'+byte(n/10), '0'+byte(n%10) }
	ms := t.Nanosecond() / 1e6
	put(1, year/100%100)
	put(3, year%100)
	put(6, int(month))
	put(9, day)
	put(12, hour)
	put(15, minute)
	put(18, second)
	put(21, ms/10)
	text[23] = '0' + byte(ms%10)
	return append(dst, text[:]...)
}

// appendPadded appends n with as many digits as unit (a power of ten) has.
func appendPadded(dst []byte, n, unit int) []byte {
	for ; unit > 0; unit /= 10 {
		dst = append(dst, '0'+byte(n/unit%10))
	}
	return dst
}

// appendSeconds appends d in seconds with three decimals.
func appendSeconds(dst []byte, d time.Duration) []byte {
	ms := int64(max(d, 0) / time.Millisecond)
	dst = strconv.AppendInt(dst, ms/1000, 10)
	dst = append(dst, '.')
	return appendPadded(dst, int(ms%1000), 100)
}

// header writes the moment of a payload: "ts", or "uptime" and "boot" while the
// clock is not known.
func (b *Bridge) header(o *object, at devices.Instant) {
	if at.Wall.IsZero() {
		o.key("uptime")
		*o = appendSeconds(*o, at.Mono)
		o.str("boot", b.boot)
		return
	}
	o.key("ts")
	*o = appendTime(*o, at.Wall, b.unixMS.Load())
}

// moment writes a moment of the past, measured by the monotonic clock that t
// carries, so that a step of the clock moves it along. Nothing is written while
// the clock is not known, or when t is zero.
func (b *Bridge) moment(o *object, k string, t time.Time, now devices.Instant) {
	if t.IsZero() || now.Wall.IsZero() {
		return
	}
	o.key(k)
	*o = appendTime(*o, now.Wall.Add(-time.Since(t)), b.unixMS.Load())
}
