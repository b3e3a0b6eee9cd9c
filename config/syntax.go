package config

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/BurntSushi/toml"
)

const textAgain = "this is here for the second time; give it another name, or put both together"

// keyValue is a line that begins like `key = value`.
var keyValue = regexp.MustCompile(`^(\s*)([A-Za-z0-9_.-]+)(\s*=[ \t]*)(.*)$`)

var (
	commaNumber = regexp.MustCompile(`^([0-9]+),([0-9]+)\s*(#.*)?$`)
	bareWord    = regexp.MustCompile(`^[^\s,\]}#"']+`)
)

// fault is a syntax error: where it is in the text, how many bytes, and what to say.
type fault struct {
	at, n int
	msg   string
}

// syntaxProblem says an error of the TOML library in the words of whoever wrote the file.
// Of its positions only Start is right (v1.6.0).
func syntaxProblem(src *source, err error) Problem {
	pe, ok := errors.AsType[toml.ParseError](err)
	if !ok {
		return Problem{File: src.name, Pos: Pos{1, 1}, Len: 1, Msg: err.Error(), src: src.line(1)}
	}
	text := src.text
	at := min(max(pe.Position.Start, 0), len(text))
	_, begin := posAt(text, at)
	line, _, _ := strings.Cut(text[begin:], "\n")
	line = strings.TrimRight(line, "\r")
	f := fault{at, max(pe.Position.Len, 1), pe.Message}
	for _, rule := range []func(string, string, int, int, toml.ParseError) (fault, bool){
		openQuote, openTable, twice, zeroes, missingValue, unquoted,
	} {
		if g, ok := rule(text, line, begin, at, pe); ok {
			f = g
			break
		}
	}
	pos, _ := posAt(text, f.at)
	marked := text[f.at:min(f.at+f.n, len(text))]
	return Problem{File: src.name, Pos: pos, Len: max(width(marked), 1), Msg: f.msg, src: src.line(pos.Line)}
}

// openQuote: a text without its closing quote.
func openQuote(text, line string, begin, at int, pe toml.ParseError) (fault, bool) {
	q := ""
	switch {
	case strings.Contains(pe.Message, `expected '"'`):
		q = `"`
	case strings.Contains(pe.Message, `expected "'"`):
		q = `'`
	case strings.Contains(pe.Message, `expected '"""'`):
		q = `"""`
	case strings.Contains(pe.Message, `expected "'''"`):
		q = `'''`
	case !strings.Contains(pe.Message, "strings cannot contain newlines"):
		return fault{}, false
	}
	if len(q) == 3 {
		open := max(strings.LastIndex(text, q), 0)
		return fault{open, 3, "this text has no closing quote (" + q + ")"}, true
	}
	open, quote := openIn(line)
	return fault{begin + open, len(line) - open, "this text has no closing quote (" + quote + ")"}, true
}

// openIn finds the quote of a line that is not closed.
func openIn(line string) (at int, quote string) {
	in := byte(0)
	for i := 0; i < len(line); i++ {
		c := line[i]
		switch {
		case in == 0 && (c == '"' || c == '\''):
			in, at = c, i
		case in == '"' && c == '\\':
			i++
		case c == in:
			in = 0
		}
	}
	if in == 0 {
		return 0, `"`
	}
	return at, string(in)
}

// openTable: [bus.a without its bracket, or a name that needs other letters.
func openTable(text, line string, begin, at int, pe toml.ParseError) (fault, bool) {
	if !strings.Contains(pe.Message, "to end table name") && !strings.Contains(pe.Message, "table array name delimiter") {
		return fault{}, false
	}
	open := strings.IndexByte(line, '[')
	if open < 0 {
		return fault{}, false
	}
	shut := strings.IndexByte(line, ']')
	if shut < 0 || strings.HasPrefix(line[open:], "[[") && !strings.Contains(line, "]]") {
		return fault{begin + open, len(strings.TrimRight(line, " \t")) - open, "the table name has no closing ]"}, true
	}
	names := strings.Split(strings.Trim(line[open:shut], "[]"), ".")
	for _, name := range names {
		if name = strings.TrimSpace(name); !nameOK(name) {
			return fault{begin + strings.Index(line, name), len(name), badName(name)}, true
		}
	}
	return fault{}, false
}

func badName(name string) string {
	switch {
	case name == "":
		return "a name must not be empty"
	case len(name) > 64 && nameRunes(name) == name:
		return "a name has at most 64 characters"
	}
	return fmt.Sprintf("the name `%s` may hold only a-z, 0-9, _ and - (as in `%s`)", name, suggestName(name))
}

// twice: a key or table that is there already.
func twice(text, line string, begin, at int, pe toml.ParseError) (fault, bool) {
	if !strings.HasPrefix(pe.Message, "Key '") {
		return fault{}, false
	}
	if open := strings.IndexByte(line, '['); open >= 0 && strings.TrimSpace(line[:open]) == "" {
		if shut := strings.LastIndexByte(line, ']'); shut > open {
			return fault{begin + open, shut + 1 - open, textAgain}, true
		}
	}
	n := strings.IndexAny(text[at:]+"=", " \t=")
	return fault{at, max(n, 1), textAgain}, true
}

// zeroes: 0123.
func zeroes(text, line string, begin, at int, pe toml.ParseError) (fault, bool) {
	if !strings.Contains(pe.Message, "leading zero") {
		return fault{}, false
	}
	return fault{at, pe.Position.Len, pe.Message + "; write it without the zeroes, or 0x.. for hexadecimal"}, true
}

// missingValue: `key =` and nothing.
func missingValue(text, line string, begin, at int, pe toml.ParseError) (fault, bool) {
	m := keyValue.FindStringSubmatch(line)
	if m == nil || m[4] != "" && m[4][0] != '#' || !strings.Contains(pe.Message, "expected value") {
		return fault{}, false
	}
	return fault{begin + len(m[1]), len(m[2]), "`" + m[2] + "` has no value"}, true
}

// unquoted: serial = /dev/ttyUSB0, interval = 10s, write = True, scale = 0,1.
func unquoted(text, line string, begin, at int, pe toml.ParseError) (fault, bool) {
	m := keyValue.FindStringSubmatch(line)
	if m != nil && strings.IndexAny(m[4], "\"'[{") != 0 {
		start := begin + len(m[1]) + len(m[2]) + len(m[3])
		if at < start {
			return fault{}, false
		}
		if c := commaNumber.FindStringSubmatch(m[4]); c != nil {
			return fault{start, len(c[1]) + 1 + len(c[2]), fmt.Sprintf("numbers have a point: write %s.%s", c[1], c[2])}, true
		}
		value, _, _ := strings.Cut(m[4], " #")
		return wordFault(start, strings.TrimRight(value, " \t"), m[2], pe)
	}
	if m == nil && pe.LastKey == "" || !strings.HasPrefix(pe.Message, "expected value but found") {
		return fault{}, false
	}
	_, key := splitPath(pe.LastKey)
	f, ok := wordFault(at, bareWord.FindString(text[at:]), key, pe)
	if m != nil && m[4][0] == '[' {
		f.msg = strings.Replace(f.msg, `"..."`, `["..."]`, 1)
	}
	return f, ok
}

// wordFault says that a bare word needs quotes, when it has letters at all.
func wordFault(at int, word, key string, pe toml.ParseError) (fault, bool) {
	hasLetter := strings.ContainsFunc(word, func(r rune) bool {
		return r == '/' || r == ':' || r >= utf8.RuneSelf || r|0x20 >= 'a' && r|0x20 <= 'z'
	})
	if strings.Count(word, ".") > 1 { // 192.168.1.40
		hasLetter = true
	}
	ends := strings.HasPrefix(pe.Message, "expected") || strings.HasPrefix(pe.Message, "Invalid") || strings.HasPrefix(pe.Message, "invalid")
	if !hasLetter || !ends {
		return fault{}, false
	}
	switch word {
	case "True", "TRUE", "yes", "Yes":
		return fault{at, len(word), "write " + key + " = true"}, true
	case "False", "FALSE", "no", "No":
		return fault{at, len(word), "write " + key + " = false"}, true
	}
	return fault{at, len(word), "text needs quotes: write " + key + ` = "..."`}, true
}
