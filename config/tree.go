package config

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/BurntSushi/toml"
)

// source is one file.
type source struct {
	name    string // as problems show it
	text    string // without a byte order mark
	profile bool
	lines   []string
}

// maxLine is the longest line that is shown with a problem, in bytes.
const maxLine = 2000

// line is line n (from 1), fit to be shown; "" when it is too long for that.
func (s *source) line(n int) string {
	if s.lines == nil {
		s.lines = strings.SplitAfter(s.text, "\n")
	}
	if n < 1 || n > len(s.lines) || len(s.lines[n-1]) > maxLine {
		return ""
	}
	return excerpt(s.lines[n-1])
}

// node is a key with its value and its place. Exactly one of value, table and
// list is set.
type node struct {
	src   *source
	path  string // "device.grid.points.power"
	span  Span
	value any // bool, int64, float64, string or a date
	table map[string]*node
	list  []*node
	array bool // list of [[tables]]
	bad   bool // something is wrong with it: checks that need it are skipped
}

// bound limits of a file: what is beyond is no configuration.
const (
	maxFile  = 4 << 20
	maxDepth = 100 // of brackets, and of the dots of a key
)

// read turns a text into a tree; nil when it cannot be read, with the problem noted.
func (f *findings) read(src *source) *node {
	if len(src.text) > maxFile {
		f.add(Problem{File: src.name, Pos: Pos{1, 1}, Msg: "this file is larger than 4 MB, which is no configuration"})
		return nil
	}
	if at := invalidUTF8(src.text); at >= 0 {
		pos, _ := posAt(src.text, at)
		f.add(Problem{File: src.name, Pos: pos, Msg: "this is not UTF-8 text", src: src.line(pos.Line)})
		return nil
	}
	src.text = strings.TrimPrefix(src.text, "\ufeff")
	if at := tooDeep(src.text); at >= 0 {
		pos, _ := posAt(src.text, at)
		f.add(Problem{File: src.name, Pos: pos, Msg: fmt.Sprintf("this is nested more than %d deep", maxDepth), src: src.line(pos.Line)})
		return nil
	}
	m, err := decodeTOML(src.text)
	if err != nil {
		f.add(syntaxProblem(src, err))
		return nil
	}
	idx, again := indexText(src.text)
	for _, s := range again {
		f.add(Problem{File: src.name, Pos: s.Key, Len: width(s.KeyRaw), Msg: textAgain, src: src.line(s.Key.Line)})
	}
	return tree(src, m, "", idx)
}

// decodeTOML is toml.Decode, for which a panic of the library is an error like any other.
func decodeTOML(text string) (m map[string]any, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = errors.New("the TOML reader gave up: " + fmt.Sprint(r))
		}
	}()
	_, err = toml.Decode(text, &m)
	return m, err
}

func invalidUTF8(text string) int {
	if utf8.ValidString(text) {
		return -1
	}
	for i, r := range text {
		if r == utf8.RuneError {
			if _, n := utf8.DecodeRuneInString(text[i:]); n == 1 {
				return i
			}
		}
	}
	return -1
}

// tooDeep finds brackets or dots that pile up: the TOML reader recurses and
// copies the path at each level. Texts and comments are counted too, which no
// real file notices.
func tooDeep(text string) int {
	depth, dots := 0, 0
	for i := range len(text) {
		switch text[i] {
		case '[', '{':
			depth++
		case ']', '}':
			depth, dots = max(depth-1, 0), 0
		case '.':
			dots++
		case '\n', '=', ',', '#', ' ':
			if text[i] != ' ' {
				dots = 0
			}
		}
		if depth > maxDepth || dots > maxDepth && !commented(text, i) {
			return i
		}
	}
	return -1
}

// commented tells whether the line holds a # before byte i.
func commented(text string, i int) bool {
	return strings.Contains(text[strings.LastIndexByte(text[:i], '\n')+1:i], "#")
}

// posAt is the place of byte at, and where its line begins.
func posAt(text string, at int) (Pos, int) {
	at = min(max(at, 0), len(text))
	begin := strings.LastIndexByte(text[:at], '\n') + 1
	return Pos{strings.Count(text[:at], "\n") + 1, utf8.RuneCountInString(text[begin:at]) + 1}, begin
}

// tree joins what the library decoded with where it stands.
func tree(src *source, v any, path string, idx map[string]Span) *node {
	n := &node{src: src, path: path, span: idx[path]}
	if n.span.Key == (Pos{}) {
		n.span.Key, n.span.Val = Pos{1, 1}, Pos{1, 1}
	}
	switch v := v.(type) {
	case map[string]any:
		n.table = make(map[string]*node, len(v))
		for k, e := range v {
			n.table[k] = tree(src, e, join(path, k), idx)
		}
	case []map[string]any:
		n.array = true
		n.list = make([]*node, len(v))
		for i, e := range v {
			n.list[i] = tree(src, e, fmt.Sprintf("%s[%d]", path, i), idx)
		}
	case []any:
		n.list = make([]*node, len(v))
		for i, e := range v {
			n.list[i] = tree(src, e, fmt.Sprintf("%s[%d]", path, i), idx)
		}
	default:
		n.value = v
	}
	return n
}

// get is the entry of a key, nil when it is not written. A nil node has none.
func (n *node) get(key string) *node {
	if n == nil {
		return nil
	}
	return n.table[key]
}

// has tells whether the key is written and nothing is wrong with it.
func (n *node) has(key string) bool {
	c := n.get(key)
	return c != nil && !c.bad
}

// broken tells whether one of the keys is written and wrong.
func (n *node) broken(keys ...string) bool {
	return slices.ContainsFunc(keys, func(k string) bool { c := n.get(k); return c != nil && c.bad })
}

// names are the keys in the order of the alphabet.
func (n *node) names() []string {
	if n == nil {
		return nil
	}
	return slices.Sorted(maps.Keys(n.table))
}

// inOrder are the keys in the order of the file.
func (n *node) inOrder() []string {
	names := n.names()
	slices.SortStableFunc(names, func(a, b string) int {
		p, q := n.table[a].span.Key, n.table[b].span.Key
		return cmp.Or(cmp.Compare(p.Line, q.Line), cmp.Compare(p.Col, q.Col))
	})
	return names
}

// key is the last name of the path.
func (n *node) key() string {
	_, key := splitPath(n.path)
	return key
}

// splitPath parts "device.grid.baud" into its table and its key.
func splitPath(path string) (table, key string) {
	if strings.HasSuffix(path, `"`) { // a quoted key may hold dots
		for i := len(path) - 2; i >= 0; i-- {
			if path[i] == '"' && (i == 0 || path[i-1] == '.') {
				return strings.TrimSuffix(path[:i], "."), path[i:]
			}
		}
	}
	i := strings.LastIndexByte(path, '.')
	return path[:max(i, 0)], path[i+1:]
}

// overlay lays over above under: keys of over win, tables are merged as deep as depth.
func overlay(under, over *node, depth int) *node {
	if under == nil || over == nil || under.table == nil || over.table == nil || depth == 0 {
		if over != nil {
			return over
		}
		return under
	}
	n := *over
	n.table = make(map[string]*node, len(under.table)+len(over.table))
	maps.Copy(n.table, under.table)
	for k, c := range over.table {
		n.table[k] = overlay(under.table[k], c, depth-1)
	}
	return &n
}

// width is the number of characters of the first line of a text.
func width(s string) int {
	s, _, _ = strings.Cut(s, "\n")
	return utf8.RuneCountInString(strings.TrimRight(s, "\r"))
}

// atKey notes an error at the key of n.
func (f *findings) atKey(n *node, format string, args ...any) {
	n.bad = true
	f.add(n.problem(n.span.Key, width(n.span.KeyRaw), false, format, args))
}

// atVal notes an error at the value of n.
func (f *findings) atVal(n *node, format string, args ...any) {
	n.bad = true
	f.add(n.problem(n.span.Val, n.valWidth(), false, format, args))
}

// warnKey notes a warning at the key of n.
func (f *findings) warnKey(n *node, format string, args ...any) {
	f.add(n.problem(n.span.Key, width(n.span.KeyRaw), true, format, args))
}

// warnVal notes a warning at the value of n.
func (f *findings) warnVal(n *node, format string, args ...any) {
	f.add(n.problem(n.span.Val, n.valWidth(), true, format, args))
}

func (n *node) valWidth() int {
	if n.span.Raw == "" {
		return width(n.span.KeyRaw)
	}
	return width(n.span.Raw)
}

func (n *node) problem(pos Pos, length int, warn bool, format string, args []any) Problem {
	return Problem{File: n.src.name, Pos: pos, Len: length, Warn: warn, Msg: fmt.Sprintf(format, args...), src: n.src.line(pos.Line)}
}

// ref names the place of o as seen from n: "line 12", or "conf.d/a.toml:12" in another file.
func (n *node) ref(o *node) string {
	if n.src == o.src {
		return fmt.Sprintf("line %d", o.span.Key.Line)
	}
	return fmt.Sprintf("%s:%d", o.src.name, o.span.Key.Line)
}
