package modbus

import (
	"encoding/binary"
	"fmt"
	"strings"

	"busgate/config"
	"busgate/config/report"
	"busgate/devices"
)

// Explainer puts frames into words. It is given them in order, for an answer is
// read with the request before it. The zero Explainer is for serial lines.
type Explainer struct {
	TCP  bool // frames have no check
	last []byte
}

// Explained is what a frame says.
type Explained struct {
	Unit     byte
	Function byte   // without the bit of an exception
	Kind     string // request, answer, exception, bytes (no frame) or silence
	Table    string // of a read or write
	Addr, N  int    // of the registers or bits
	Data     []byte // values of registers, two bytes each, big-endian; of bits one byte, 0 or 1, each
	Text     string // what it says, without unit and function
}

// Explain reads one frame.
func (x *Explainer) Explain(f devices.Frame) Explained {
	if f.Mark == devices.MarkSilence {
		e := Explained{Kind: "silence", Text: "no answer"}
		if len(x.last) >= 2 {
			e.Unit, e.Function = x.last[0], x.last[1]
		}
		return e
	}
	p := f.Data
	if !x.TCP && len(p) >= 2 {
		p = p[:len(p)-2]
	}
	if f.Mark == devices.MarkCRC || f.Mark == devices.MarkStray || len(p) < 2 {
		return Explained{Kind: "bytes", Text: fmt.Sprintf("% X", f.Data)}
	}
	answer := !f.Out && f.Mark != devices.MarkEcho && x.answers(p)
	e := Explained{Unit: p[0], Function: p[1] & 0x7F, Kind: "request"}
	switch {
	case p[1]&0x80 != 0:
		e.Kind, e.Text = "exception", "exception"
		if len(p) > 2 {
			e.Text = exceptionText(p[2])
		}
	case answer:
		e.Kind = "answer"
		x.answer(&e, p)
	default:
		asks(&e, p)
	}
	if e.Kind == "request" {
		x.last = append(x.last[:0], p...)
	}
	return e
}

// answers says that p, without its check, is no request: it fits the request
// before it, or cannot be one.
func (x *Explainer) answers(p []byte) bool {
	if len(x.last) >= 6 && answerLen(x.last, p) == len(p)+2 {
		return true
	}
	if len(x.last) >= 2 && x.last[0] == p[0] && x.last[1] == p[1] && tableOfFunction[p[1]] == "" {
		return string(x.last) != string(p)
	}
	return len(p) >= 3 && p[1] >= 1 && p[1] <= 4 && (len(p) != 6 || requestLen(append(append([]byte(nil), p...), 0, 0)) == 0)
}

var tableOfFunction = map[byte]string{1: "coil", 2: "discrete", 3: "holding", 4: "input", 5: "coil", 6: "holding", 15: "coil", 16: "holding", 22: "holding", 23: "holding"}

// place reads table, address and number of a request.
func place(e *Explained, p []byte) {
	e.Table = tableOfFunction[e.Function]
	if e.Table == "" || len(p) < 6 {
		return
	}
	e.Addr, e.N = int(binary.BigEndian.Uint16(p[2:])), int(binary.BigEndian.Uint16(p[4:]))
	if e.Function == 5 || e.Function == 6 || e.Function == 22 {
		e.N = 1
	}
}

func asks(e *Explained, p []byte) {
	place(e, p)
	where := span{e.Table, e.Addr, e.Addr + max(e.N, 1)}.String()
	switch {
	case e.Function == 0x2B:
		e.Text = "asks who it is"
	case e.Table == "" || len(p) < 6:
		e.Text = fmt.Sprintf("asks % X", p[2:])
	case e.Function <= 4:
		e.Text = "reads " + where
	case e.Function == 5 || e.Function == 6:
		e.Data = value(e.Function, p[4:6])
		e.Text = "writes " + where + " = " + plain(e)
	case (e.Function == 15 || e.Function == 16) && len(p) > 7:
		e.Data = values(e.Function, p[7:], e.N)
		e.Text = "writes " + where + " = " + plain(e)
	default:
		e.Text = fmt.Sprintf("writes %s (% X)", where, p[4:])
	}
}

func (x *Explainer) answer(e *Explained, p []byte) {
	known := len(x.last) >= 6 && answerLen(x.last, p) == len(p)+2
	if known {
		place(e, x.last)
	} else {
		e.Table = tableOfFunction[e.Function]
	}
	switch {
	case (e.Function >= 1 && e.Function <= 4 || e.Function == 23) && len(p) >= 3:
		if !known {
			e.N = len(p[3:]) / 2
			if e.Function <= 2 {
				e.N = 8 * len(p[3:])
			}
		}
		e.Data = values(e.Function, p[3:], e.N)
		e.Text = plain(e)
		if known {
			e.Text = span{e.Table, e.Addr, e.Addr + e.N}.String() + " = " + e.Text
		}
	case (e.Function == 5 || e.Function == 6) && len(p) >= 6:
		e.Data = value(e.Function, p[4:6])
		e.Text = "has written " + span{e.Table, e.Addr, e.Addr + 1}.String() + " = " + plain(e)
	case e.Function == 15 || e.Function == 16:
		e.Text = "has written " + span{e.Table, e.Addr, e.Addr + max(e.N, 1)}.String()
	case e.Function == 0x2B:
		e.Text = "is " + identity(p)
	default:
		e.Text = fmt.Sprintf("% X", p[2:])
	}
}

// identity is the texts of a device identification, p without its check.
func identity(p []byte) string {
	var list []string
	for at := 8; at+2 <= len(p) && at+2+int(p[at+1]) <= len(p); at += 2 + int(p[at+1]) {
		list = append(list, strings.ToValidUTF8(string(p[at+2:at+2+int(p[at+1])]), "?"))
	}
	return report.Name(strings.Join(list, " "))
}

// value is what function 5 or 6 writes.
func value(function byte, raw []byte) []byte {
	if function == 5 {
		return bitBytes[raw[0]&1]
	}
	return raw
}

// values are registers as they are, and bits one byte each.
func values(function byte, raw []byte, n int) []byte {
	if function != 1 && function != 2 && function != 15 {
		return raw
	}
	n = min(n, 8*len(raw))
	bits := make([]byte, n)
	for i := range bits {
		bits[i] = raw[i/8] >> (i % 8) & 1
	}
	return bits
}

// mostValues are printed of one frame.
const mostValues = 8

// plain is registers as numbers, and bits as on and off.
func plain(e *Explained) string {
	var words []string
	if isBits(e.Table) {
		for _, b := range e.Data {
			words = append(words, [...]string{"off", "on"}[b&1])
		}
	} else {
		for _, w := range Words16(e.Data) {
			words = append(words, fmt.Sprint(w))
		}
	}
	if n := len(words) - mostValues; n > 1 {
		words = append(words[:mostValues], fmt.Sprintf("and %d more", n))
	}
	return strings.Join(words, " ")
}

// Holds gives the raw value of a point that stands whole in what the frame says.
func (e *Explained) Holds(p *config.Point) (raw []byte, ok bool) {
	s := valueSpan(p)
	if e.Kind != "answer" || e.Data == nil || s.table != e.Table || s.from < e.Addr || s.to > e.Addr+e.N {
		return nil, false
	}
	size := 2
	if isBits(s.table) {
		size = 1
	}
	from, to := size*(s.from-e.Addr), size*(s.to-e.Addr)
	if to > len(e.Data) {
		return nil, false
	}
	return e.Data[from:to], true
}
