package uart

import (
	"bytes"
	"errors"
	"fmt"

	"busgate/config"
	"busgate/devices"
)

// Limits of what one telegram may hold.
const (
	maxDepth   = 8
	maxEntries = 512
)

var (
	smlEscape = []byte{0x1B, 0x1B, 0x1B, 0x1B}
	smlStart  = []byte{0x1B, 0x1B, 0x1B, 0x1B, 1, 1, 1, 1}
)

// smlFramer takes files of the SML transport protocol, version 1: from escape
// and 01010101 to escape and 1A, padding, CRC. BSI TR-03109-1, annex IV, 8.
type smlFramer struct{ most int }

func (s *smlFramer) again() bool { return true }

func (s *smlFramer) find(b []byte, _ bool) (from, to, long int) {
next:
	for {
		i, whole := seek(b, from, smlStart)
		if from = i; !whole {
			return from, 0, long
		}
		for at := from + len(smlStart); at+8 <= len(b) && at-from+8 <= s.most; {
			k := bytes.Index(b[at:], smlEscape)
			if k < 0 {
				break
			}
			at += k
			if at+8 > len(b) {
				break
			}
			switch b[at+4] {
			case 0x1A:
				return from, at + 8, long
			case 1:
				from = at // a new file began before this one ended
				continue next
			}
			at += 8 // an escape that stands for itself
		}
		if len(b)-from < s.most {
			return from, 0, long
		}
		from++
		long++
	}
}

// smlCheck tests CRC-16/X-25 over all but itself, low byte first.
func smlCheck(b []byte) bool {
	n := len(b)
	return n >= 16 && b[n-3] <= 3 && crcX25(b[:n-2]) == uint16(b[n-2])|uint16(b[n-1])<<8
}

// smlBody is the messages of a file, without the escapes and the padding.
func smlBody(b []byte) []byte {
	pad := int(b[len(b)-3])
	body := b[len(smlStart) : len(b)-8]
	body = body[:max(0, len(body)-pad)]
	return bytes.ReplaceAll(body, bytes.Repeat(smlEscape, 2), smlEscape)
}

// smlEntry is one value of a list.
type smlEntry struct {
	scaler int
	kind   byte // 0 octets, 4 bool, 5 int, 6 uint
	raw    []byte
}

// value applies the scaler of the meter, then scale, offset and limits of the point.
func (e smlEntry) value(p *config.Point) (devices.Value, devices.Quality, error) {
	var mag uint64
	for _, c := range e.raw {
		mag = mag<<8 | uint64(c)
	}
	switch {
	case e.kind == 0:
		if p.Type == "string" {
			return devices.Decode(p, e.raw)
		}
		return devices.TextValue(fmt.Sprintf("%X", e.raw)), devices.Good, nil
	case e.kind == 4:
		return devices.BoolValue(mag != 0), devices.Good, nil
	case e.kind == 5 && e.raw[0]&0x80 != 0:
		mag |= ^uint64(0) << (8 * len(e.raw)) // sign; a shift by 64 is 0
		return devices.DecodeInteger(p, true, -mag, e.scaler)
	}
	return devices.DecodeInteger(p, false, mag, e.scaler)
}

var errSML = errors.New("damaged SML")

// smlItem is one element: octets, a number, or a list.
type smlItem struct {
	kind byte // 7 = list
	raw  []byte
	list []smlItem
}

// smlParser reads elements one after another. TL bytes: bit 7 says that another
// length byte follows, bits 4 to 6 are the type, the low nibble is the length
// with the TL bytes, for a list the number of elements.
type smlParser struct {
	b     []byte
	items int
}

func (s *smlParser) item(depth int) (smlItem, error) {
	if len(s.b) == 0 || depth > maxDepth {
		return smlItem{}, errSML
	}
	tl := s.b[0]
	kind, n, used := tl>>4&7, int(tl&15), 1
	for tl&0x80 != 0 {
		if used >= len(s.b) || used > 3 {
			return smlItem{}, errSML
		}
		tl = s.b[used]
		n = n<<4 | int(tl&15)
		used++
	}
	s.b = s.b[used:]
	if kind == 7 {
		it := smlItem{kind: 7}
		for range n {
			if s.items++; s.items > 16*maxEntries {
				return smlItem{}, errSML
			}
			sub, err := s.item(depth + 1)
			if err != nil {
				return smlItem{}, err
			}
			it.list = append(it.list, sub)
		}
		return it, nil
	}
	if n == 0 && used == 1 && kind == 0 { // 00: the end of a message
		return smlItem{}, nil
	}
	if n -= used; n < 0 || n > len(s.b) || kind != 0 && n > 8 {
		return smlItem{}, errSML
	}
	it := smlItem{kind: kind, raw: s.b[:n]}
	s.b = s.b[n:]
	return it, nil
}

// smlValues reads the entries of all GetListResponses (0x0701) of a file. Each
// has 7 elements: name, status, time, unit, scaler, value, signature. What comes
// before damage counts: the whole file has passed its check.
func smlValues(b []byte) map[string]smlEntry {
	out := map[string]smlEntry{}
	s := &smlParser{b: smlBody(b)}
	for len(s.b) > 0 {
		if s.b[0] == 0 { // filling between messages
			s.b = s.b[1:]
			continue
		}
		m, err := s.item(0)
		if err != nil {
			return out
		}
		// transaction, group, abort on error, body {kind, message}, check, end
		if len(m.list) != 6 || len(m.list[3].list) != 2 || !bytes.Equal(m.list[3].list[0].raw, []byte{7, 1}) {
			continue
		}
		body := m.list[3].list[1].list
		if len(body) < 5 {
			continue
		}
		for _, e := range body[4].list {
			if len(e.list) != 7 || len(e.list[0].raw) != 6 || len(e.list[5].raw) == 0 || len(out) >= maxEntries {
				continue
			}
			entry := smlEntry{kind: e.list[5].kind, raw: e.list[5].raw}
			if sc := e.list[4].raw; len(sc) == 1 {
				entry.scaler = int(int8(sc[0]))
			}
			if name := obisName(e.list[0].raw); name != "" {
				out[name] = entry
			}
		}
	}
	return out
}

// obisName writes six bytes as A-B:C.D.E; F is left out when it is 255. IEC 62056-61.
func obisName(b []byte) string {
	s := fmt.Sprintf("%d-%d:%d.%d.%d", b[0], b[1], b[2], b[3], b[4])
	if b[5] != 255 {
		s += fmt.Sprintf("*%d", b[5])
	}
	return s
}
