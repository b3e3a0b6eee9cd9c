package config

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

// Pos is a place in a text; Line and Col count from 1, Col in characters.
type Pos struct{ Line, Col int }

// Span is a key and its value. For a table header Key and Val are the place of
// its bracket, KeyRaw is the whole header and Raw is empty; for an entry of a
// list both are the entry.
type Span struct {
	Key, Val Pos
	KeyRaw   string // the key as written
	Raw      string // the value as written
}

// Index maps a path such as `device.meter.points[2].addr` to its place. Keys
// that hold a dot, bracket, quote or blank are quoted in the path. The text must
// be one that the toml package has accepted; of any other text Index gives what
// it understood until it was lost.
func Index(text string) map[string]Span {
	idx, _ := indexText(text)
	return idx
}

// indexText is Index, and also gives the keys that are written a second time:
// the toml package overlooks some of those (`a.b = 1` and then `a = 2`).
func indexText(text string) (idx map[string]Span, again []Span) {
	s := &scan{in: text, line: 1, col: 1, idx: make(map[string]Span, len(text)/20), n: map[string]int{}}
	defer func() { // a position is never worth a crash
		if recover() != nil {
			idx, again = s.idx, s.again
		}
	}()
	s.i = bomLen(text)
	s.document()
	return s.idx, s.again
}

// bomLen is the length of a byte order mark at the beginning of a text.
func bomLen(text string) int {
	for _, bom := range []string{"\xef\xbb\xbf", "\xff\xfe", "\xfe\xff"} {
		if strings.HasPrefix(text, bom) {
			return len(bom)
		}
	}
	return 0
}

type scan struct {
	in        string
	i         int // next byte
	line, col int // of the next character
	idx       map[string]Span
	again     []Span
	n         map[string]int // entries seen of each [[array]]
}

func (s *scan) peek() byte {
	if s.i < len(s.in) {
		return s.in[s.i]
	}
	return 0
}

// next steps over one byte; beyond the end it panics, which ends the index.
func (s *scan) next() {
	c := s.in[s.i]
	s.i++
	switch {
	case c == '\n':
		s.line++
		s.col = 1
	case utf8.RuneStart(c):
		s.col++
	}
}

func (s *scan) pos() Pos { return Pos{s.line, s.col} }

// space skips blanks, newlines and comments.
func (s *scan) space() {
	for s.i < len(s.in) {
		switch s.peek() {
		case ' ', '\t', '\r', '\n':
			s.next()
		case '#':
			for s.i < len(s.in) && s.peek() != '\n' {
				s.next()
			}
		default:
			return
		}
	}
}

func (s *scan) blank() {
	for s.peek() == ' ' || s.peek() == '\t' {
		s.next()
	}
}

func (s *scan) document() {
	table := ""
	for s.space(); s.i < len(s.in); s.space() {
		if s.peek() == '[' {
			table = s.header()
		} else {
			s.pair(table)
		}
	}
}

// header reads [a.b] or [[a.b]] and returns the path of the table it opens.
func (s *scan) header() string {
	at, from := s.pos(), s.i
	s.next()
	array := s.peek() == '['
	if array {
		s.next()
	}
	s.blank()
	key := s.key()
	s.blank()
	s.next() // ]
	if array {
		s.blank()
		s.next()
	}
	here := Span{Key: at, Val: at, KeyRaw: s.in[from:s.i]}
	table := ""
	for i, k := range key {
		table = join(table, k.name)
		if i == len(key)-1 && array {
			s.n[table]++
		}
		if n := s.n[table]; n > 0 {
			s.first(table, here)
			table += "[" + strconv.Itoa(n-1) + "]"
		}
		s.first(table, here)
	}
	return table
}

func (s *scan) first(path string, at Span) {
	if _, ok := s.idx[path]; !ok {
		s.idx[path] = at
	}
}

// pair reads `key = value` of a table.
func (s *scan) pair(table string) {
	key := s.key()
	here := Span{}
	for i, k := range key {
		table = join(table, k.name)
		here = Span{Key: k.at, Val: k.at, KeyRaw: k.raw}
		if _, ok := s.idx[table]; !ok {
			s.idx[table] = here
		} else if i == len(key)-1 {
			s.again = append(s.again, here)
		}
	}
	s.blank()
	s.next() // =
	s.blank()
	from := s.i
	here.Val = s.pos()
	s.value(table)
	here.Raw = s.in[from:s.i]
	s.idx[table] = here
}

func (s *scan) value(path string) {
	switch s.peek() {
	case '"', '\'':
		s.str()
	case '[':
		s.list(path)
	case '{':
		s.next()
		for {
			if s.space(); s.peek() == '}' {
				s.next()
				return
			}
			s.pair(path)
			if s.space(); s.peek() == ',' {
				s.next()
			}
		}
	default:
		s.word()
	}
}

func (s *scan) list(path string) {
	s.next()
	for n := 0; ; n++ {
		if s.space(); s.peek() == ']' {
			s.next()
			return
		}
		p := path + "[" + strconv.Itoa(n) + "]"
		at, from := s.pos(), s.i
		s.value(p)
		raw := s.in[from:s.i]
		s.idx[p] = Span{Key: at, Val: at, KeyRaw: raw, Raw: raw}
		if s.space(); s.peek() == ',' {
			s.next()
		} else if s.i == from {
			panic("no value") // not TOML: end the index
		}
	}
}

// word reads a number, a boolean or a date; a date may have a blank before its time.
func (s *scan) word() {
	from := s.i
	for s.i < len(s.in) && !strings.ContainsRune(",]}#\r\n\t", rune(s.peek())) {
		if s.peek() == ' ' && !(s.i-from == 10 && s.i+1 < len(s.in) && s.in[s.i+1] >= '0' && s.in[s.i+1] <= '9') {
			return
		}
		s.next()
	}
}

// part is one name of a dotted key.
type part struct {
	name, raw string
	at        Pos
}

func (s *scan) key() (key []part) {
	for {
		p := part{at: s.pos()}
		from := s.i
		if q := s.peek(); q == '"' || q == '\'' {
			p.name = s.str()
			p.raw = s.in[from:s.i]
		} else {
			for s.i < len(s.in) && !strings.ContainsRune(" \t.=]", rune(s.peek())) {
				s.next()
			}
			p.raw = s.in[from:s.i]
			p.name = p.raw
		}
		key = append(key, p)
		if s.blank(); s.peek() != '.' {
			return key
		}
		s.next()
		s.blank()
	}
}

// str reads any of the four kinds of text.
func (s *scan) str() string {
	q := s.in[s.i : s.i+1]
	end := q
	if strings.HasPrefix(s.in[s.i:], q+q+q) {
		end = q + q + q
	}
	for range end {
		s.next()
	}
	from := s.i
	for !strings.HasPrefix(s.in[s.i:], end) {
		if s.peek() == '\\' && q == `"` {
			s.next()
		}
		s.next()
	}
	to := s.i
	for range end {
		s.next()
	}
	if len(end) == 3 { // up to two quotes may stand before the closing three
		for range 2 {
			if strings.HasPrefix(s.in[s.i:], q) {
				s.next()
				to++
			}
		}
	}
	if q == `"` {
		return unescape(s.in[from:to])
	}
	return s.in[from:to]
}

// unescape undoes the escapes of a TOML 1.1 basic string; it is used on keys only.
func unescape(v string) string {
	if !strings.Contains(v, `\`) {
		return v
	}
	var b strings.Builder
	for i := 0; i < len(v); i++ {
		if v[i] != '\\' {
			b.WriteByte(v[i])
			continue
		}
		i++
		if n := strings.IndexByte("x.u...U", v[i]); n >= 0 && v[i] != '.' { // 2, 4 or 8 digits
			n += 2
			r, _ := strconv.ParseUint(v[i+1:i+1+n], 16, 32)
			b.WriteRune(rune(r))
			i += n
			continue
		}
		if n := strings.IndexByte("btnfre", v[i]); n >= 0 {
			b.WriteByte("\b\t\n\f\r\x1b"[n])
			continue
		}
		b.WriteByte(v[i])
	}
	return b.String()
}

func join(table, key string) string {
	if key == "" || strings.ContainsAny(key, ".[]\" ") {
		key = strconv.Quote(key)
	}
	if table == "" {
		return key
	}
	return table + "." + key
}
