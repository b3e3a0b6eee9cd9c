package sim

import (
	"encoding/binary"
	"time"
)

// Modbus Application Protocol v1.1b3, 7.
const (
	illegalFunction = 1
	illegalAddress  = 2
	illegalValue    = 3
)

// Serve answers one PDU, the function code first and no check at the end. at is
// the moment at which the registers are read. nil is no answer.
func (u *Unit) Serve(pdu []byte, at time.Time) []byte {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.muteLocked(pdu) {
		return nil
	}
	u.served++
	fn := pdu[0]
	if u.without[fn] {
		return exception(fn, illegalFunction)
	}
	body := pdu[1:]
	var out []byte
	var code byte
	switch fn {
	case 1:
		out, code = u.readBitsLocked(Coil, body, at)
	case 2:
		out, code = u.readBitsLocked(Discrete, body, at)
	case 3:
		out, code = u.readWordsLocked(Holding, body, at)
	case 4:
		out, code = u.readWordsLocked(Input, body, at)
	case 5:
		out, code = u.writeCoilLocked(body)
	case 6:
		out, code = u.writeWordLocked(body)
	case 15:
		out, code = u.writeCoilsLocked(body)
	case 16:
		out, code = u.writeWordsLocked(body)
	case 22:
		out, code = u.maskLocked(body)
	case 23:
		out, code = u.readWriteLocked(body, at)
	case 0x2B:
		out, code = u.identifyLocked(body)
	default:
		code = illegalFunction
	}
	if code != 0 {
		return exception(fn, code)
	}
	return append([]byte{fn}, out...)
}

func exception(fn, code byte) []byte { return []byte{fn | 0x80, code} }

// span reads address and quantity and checks them against the limit of the function.
func span(body []byte, most int) (addr, n int, code byte) {
	if len(body) < 4 {
		return 0, 0, illegalValue
	}
	addr, n = int(binary.BigEndian.Uint16(body)), int(binary.BigEndian.Uint16(body[2:]))
	if n < 1 || n > most {
		return 0, 0, illegalValue
	}
	if addr+n > 65536 {
		return 0, 0, illegalAddress
	}
	return addr, n, 0
}

// checkLocked looks for a refusal and, when the addresses must exist, for holes.
func (u *Unit) checkLocked(t Table, addr, n int) byte {
	for _, r := range u.refuse {
		if r.table == t && addr <= int(r.to) && addr+n > int(r.from) {
			return r.code
		}
	}
	for a := addr; a < addr+n; a++ {
		if u.live[t][uint16(a)] != nil {
			continue
		}
		if _, ok := u.wordLocked(t, uint16(a), 0, nil); !ok {
			return illegalAddress
		}
	}
	return 0
}

func (u *Unit) readWordsLocked(t Table, body []byte, at time.Time) ([]byte, byte) {
	addr, n, code := span(body, u.maxRead)
	if code == 0 {
		code = u.checkLocked(t, addr, n)
	}
	if code != 0 {
		return nil, code
	}
	seen := map[*live][]uint16{}
	out := []byte{byte(2 * n)}
	for a := addr; a < addr+n; a++ {
		w, _ := u.wordLocked(t, uint16(a), at.Sub(u.start), seen)
		out = binary.BigEndian.AppendUint16(out, w)
	}
	return out, 0
}

func (u *Unit) readBitsLocked(t Table, body []byte, at time.Time) ([]byte, byte) {
	addr, n, code := span(body, min(2000, 16*u.maxRead))
	if code == 0 {
		code = u.checkLocked(t, addr, n)
	}
	if code != 0 {
		return nil, code
	}
	out := make([]byte, 1+(n+7)/8)
	out[0] = byte((n + 7) / 8)
	for i := range n {
		if w, _ := u.wordLocked(t, uint16(addr+i), at.Sub(u.start), nil); w != 0 {
			out[1+i/8] |= 1 << (i % 8)
		}
	}
	return out, 0
}

func (u *Unit) writeCoilLocked(body []byte) ([]byte, byte) {
	if len(body) != 4 {
		return nil, illegalValue
	}
	addr, v := int(binary.BigEndian.Uint16(body)), binary.BigEndian.Uint16(body[2:])
	if v != 0 && v != 0xFF00 {
		return nil, illegalValue
	}
	if code := u.checkLocked(Coil, addr, 1); code != 0 {
		return nil, code
	}
	u.storeLocked(Coil, uint16(addr), v&1|v>>15)
	return body, 0
}

func (u *Unit) writeWordLocked(body []byte) ([]byte, byte) {
	if len(body) != 4 {
		return nil, illegalValue
	}
	addr := int(binary.BigEndian.Uint16(body))
	if code := u.checkLocked(Holding, addr, 1); code != 0 {
		return nil, code
	}
	u.storeLocked(Holding, uint16(addr), binary.BigEndian.Uint16(body[2:]))
	return body, 0
}

func (u *Unit) writeCoilsLocked(body []byte) ([]byte, byte) {
	addr, n, code := span(body, 1968)
	if code == 0 && (len(body) != 5+(n+7)/8 || int(body[4]) != (n+7)/8) {
		code = illegalValue
	}
	if code == 0 {
		code = u.checkLocked(Coil, addr, n)
	}
	if code != 0 {
		return nil, code
	}
	for i := range n {
		u.storeLocked(Coil, uint16(addr+i), uint16(body[5+i/8]>>(i%8)&1))
	}
	return body[:4], 0
}

func (u *Unit) writeWordsLocked(body []byte) ([]byte, byte) {
	addr, n, code := span(body, 123)
	if code == 0 && (len(body) != 5+2*n || int(body[4]) != 2*n) {
		code = illegalValue
	}
	if code == 0 {
		code = u.checkLocked(Holding, addr, n)
	}
	if code != 0 {
		return nil, code
	}
	for i := range n {
		u.storeLocked(Holding, uint16(addr+i), binary.BigEndian.Uint16(body[5+2*i:]))
	}
	return body[:4], 0
}

// maskLocked is function 22: (register AND and) OR (or AND NOT and). AP v1.1b3, 6.16.
func (u *Unit) maskLocked(body []byte) ([]byte, byte) {
	if len(body) != 6 {
		return nil, illegalValue
	}
	addr := int(binary.BigEndian.Uint16(body))
	and, or := binary.BigEndian.Uint16(body[2:]), binary.BigEndian.Uint16(body[4:])
	if code := u.checkLocked(Holding, addr, 1); code != 0 {
		return nil, code
	}
	w, _ := u.wordLocked(Holding, uint16(addr), 0, nil)
	u.storeLocked(Holding, uint16(addr), w&and|or&^and)
	return body, 0
}

// readWriteLocked is function 23: it writes first, then reads. AP v1.1b3, 6.17.
func (u *Unit) readWriteLocked(body []byte, at time.Time) ([]byte, byte) {
	if len(body) < 9 {
		return nil, illegalValue
	}
	if _, _, code := span(body, u.maxRead); code != 0 {
		return nil, code
	}
	if _, code := u.writeWordsLocked(body[4:]); code != 0 {
		return nil, code
	}
	return u.readWordsLocked(Holding, body[:4], at)
}

// identifyLocked is function 0x2B/0x0E, basic objects in one stream. AP v1.1b3, 6.21.
func (u *Unit) identifyLocked(body []byte) ([]byte, byte) {
	if u.ident == nil || len(body) != 3 || body[0] != 0x0E {
		return nil, illegalFunction
	}
	if body[1] != 1 {
		return nil, illegalValue
	}
	out := []byte{0x0E, 1, 1, 0, 0, byte(len(u.ident))}
	for i, s := range u.ident {
		s = s[:min(len(s), 60)]
		out = append(out, byte(i), byte(len(s)))
		out = append(out, s...)
	}
	return out, 0
}

// requestLength is how many bytes the PDU of a request has that begins with p:
// 0 while that cannot be told yet, -1 for a function that is not known.
func requestLength(p []byte) int {
	if len(p) == 0 {
		return 0
	}
	switch p[0] {
	case 1, 2, 3, 4, 5, 6:
		return 5
	case 15, 16:
		if len(p) < 6 {
			return 0
		}
		return 6 + int(p[5])
	case 22:
		return 7
	case 23:
		if len(p) < 10 {
			return 0
		}
		return 10 + int(p[9])
	case 0x2B:
		return 4
	}
	return -1
}
