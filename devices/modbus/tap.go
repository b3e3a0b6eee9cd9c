package modbus

import (
	"time"

	"busgate/devices"
)

// show lets those who watch see a frame that came in.
func (l *Line) show(f []byte, rtt time.Duration, mark devices.Mark) {
	if l.tap == nil {
		return
	}
	now := time.Now()
	gap := max(0, now.Sub(l.shown)-l.timing.frame(len(f)))
	if rtt > 0 {
		gap = rtt
	}
	l.shown = now
	l.tap.Note(devices.Frame{At: now, Data: f, Gap: gap, RTT: rtt, Mark: mark})
}

// showRequest lets those who watch see what was sent; the wire was quiet for gap.
func (l *Line) showRequest(req []byte, start time.Time) {
	if l.tap == nil {
		return
	}
	gap := time.Duration(0)
	if !l.shown.IsZero() {
		gap = max(0, start.Sub(l.shown))
	}
	l.shown = l.last.sent
	l.tap.Note(devices.Frame{At: l.last.sent, Out: true, Data: req, Gap: gap, Mark: devices.MarkOK})
}

// stranger notes a whole, undamaged frame that is no answer to us.
func (l *Line) stranger(f []byte) {
	l.others = time.Now()
	l.counts.Foreign++
	if string(f) == string(l.asking) {
		l.show(f, 0, devices.MarkEcho)
		return
	}
	l.show(f, 0, devices.MarkForeign)
	request, peer := isRequest(f), l.owes.peers[f[0]]
	switch {
	case peer == nil:
	case !request:
		return // an answer of ours so late that nobody knows it any more, or one that came twice
	case !l.noOwed: // its answer will look like one of ours
		l.owes.sent(f)
		peer.owe(f, l.others, l.others, l.others)
	}
	l.counts.Intruders++
	if request || !l.counts.Intruder.Request { // a request says more than its answer
		l.counts.Intruder = devices.Intruder{Unit: f[0], Request: request}
	}
}

// overheard is the length of a whole frame at the start of f that came while
// nothing was asked and pays no debt; 0: none. Everything in it must fit: among
// bytes that are noise the check alone fits too often.
func overheard(f []byte) int {
	if len(f) < minFrame {
		return 0
	}
	if isRequest(f) {
		return requestLen(f)
	}
	n := 0
	switch fn := f[1]; {
	case fn == 1 || fn == 2:
		n = 5 + int(f[2])
	case fn == 3 || fn == 4:
		if f[2]%2 == 0 {
			n = 5 + int(f[2])
		}
	case fn == 5 || fn == 6 || fn == 15 || fn == 16:
		n = 8
	case fn == 0x81 || fn == 0x82 || fn == 0x83 || fn == 0x84 || fn == 0x85 || fn == 0x86 || fn == 0x8F || fn == 0x90:
		if f[2] >= 1 && f[2] <= 11 {
			n = minFrame
		}
	}
	if n <= minFrame && f[1] < 0x80 || n < minFrame || n > len(f) || crc(f[:n]) != 0 {
		return 0
	}
	return n
}

// isRequest says that f begins with a whole request which cannot be an answer:
// a read, or a write of several.
func isRequest(f []byte) bool {
	n := requestLen(f)
	return n > 0 && n <= len(f) && crc(f[:n]) == 0
}

// requestLen is the length of the read, or of the write of several, that f
// begins with; 0 when it cannot be one.
func requestLen(f []byte) int {
	if len(f) < 8 {
		return 0
	}
	count := int(f[4])<<8 | int(f[5])
	switch f[1] {
	case 1, 2:
		if count >= 1 && count <= 2000 && f[2] != 3 { // 3: the answer of 24 bits has this length, too
			return 8
		}
	case 3, 4:
		if count >= 1 && count <= 125 {
			return 8
		}
	case 15, 16:
		bytes := 2 * count
		if f[1] == 15 {
			bytes = (count + 7) / 8
		}
		if count >= 1 && int(f[6]) == bytes {
			return 9 + bytes
		}
	}
	return 0
}
