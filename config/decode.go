package config

import (
	"cmp"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// decode reads table n into *dst, a struct of schema s: defaults first, then
// what is written. It never stops at a mistake. Keys of other, a second schema
// that the same table is read by, are passed over; nil for none.
func (f *findings) decode(n *node, s *schema, dst any, other *schema) {
	d := reflect.ValueOf(dst).Elem()
	d.Set(s.proto)
	if n != nil {
		f.fill(n, s, d, other)
	}
}

func (f *findings) fill(n *node, s *schema, d reflect.Value, other *schema) {
	for _, key := range n.names() {
		c, fd := n.table[key], s.fields[key]
		switch {
		case fd != nil:
			f.set(fd, key, c, d.FieldByIndex(fd.index))
		case other == nil:
			f.unknown(n, key, c, s.known)
		case other.fields[key] == nil:
			f.unknown(n, key, c, slices.Sorted(slices.Values(slices.Concat(s.known, other.known))))
		}
	}
}

// unknown says that the table has no such key, and which one was meant.
func (f *findings) unknown(n *node, key string, c *node, known []string) {
	in := "in [" + n.path + "]"
	if n.path == "" {
		in = "at the top of the file"
	}
	known = slices.Compact(known)
	our := ours(key, known)
	switch {
	case (key == "password" || key == "pass") && slices.Contains(known, "password_file"):
		f.atKey(c, `put the password in a file of its own and write `+"`password_file = \"...\"`")
	case our != "":
		f.atKey(c, "unknown key `%s` %s: it is called `%s` here", key, in, our)
	case nearest(key, known) != "":
		f.atKey(c, "unknown key `%s` %s%s", key, in, meant(key, known))
	default:
		f.atKey(c, "unknown key `%s` %s; known keys: %s", key, in, strings.Join(known, ", "))
	}
}

// set reads one value.
func (f *findings) set(fd *field, key string, n *node, dst reflect.Value) {
	switch fd.kind {
	case isText:
		f.setText(fd, key, n, dst)
	case isBool:
		if b, ok := n.value.(bool); ok {
			dst.SetBool(b)
			return
		}
		f.mustBe(key, n, "true or false")
	case isWhole:
		f.setWhole(fd, key, n, dst)
	case isFloat, isDecimal:
		f.setNumber(key, n, dst)
	case isDuration:
		f.setDuration(fd, key, n, dst)
	case isSize:
		f.setSize(fd, key, n, dst)
	case isHex:
		f.setHex(key, n, dst)
	case isTexts, isInts, isPatterns:
		f.setList(fd, key, n, dst)
	case isWords:
		f.setWords(key, n, dst)
	case isScalar:
		f.setScalar(key, n, dst)
	case isTable:
		if f.isTable(key, n) {
			f.fill(n, fd.sub, dst, nil)
		}
	case isNode:
		if fd.form == "list" && n.list == nil {
			f.mustBe(key, n, "a list, as in [ ... ]")
		} else if fd.form == "list" || f.isTable(key, n) {
			dst.Set(reflect.ValueOf(n))
		}
	}
}

func (f *findings) mustBe(key string, n *node, what string) {
	f.atVal(n, "`%s` must be %s", key, what)
}

// isTable notes it when n is none.
func (f *findings) isTable(key string, n *node) bool {
	switch {
	case n.table != nil:
		return true
	case n.array && slices.Contains([]string{"bus", "device", "uplink"}, n.path):
		f.atKey(n, "write [%s.NAME], with a name of your own, instead of [[%s]]", n.path, n.path)
	case n.array:
		f.atKey(n, "write [%s] instead of [[%s]]", n.path, n.path)
	default:
		f.mustBe(key, n, "a table")
	}
	return false
}

func (f *findings) setText(fd *field, key string, n *node, dst reflect.Value) {
	s, ok := n.value.(string)
	switch {
	case !ok:
		f.mustBe(key, n, `text in quotes, as in "..."`)
	case fd.oneof != nil && !slices.Contains(fd.oneof, s):
		f.notOneOf(key, s, n, fd.oneof)
	case strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f }):
		f.atVal(n, "`%s` holds a control character", key)
	default:
		dst.SetString(s)
	}
}

func (f *findings) notOneOf(key, s string, n *node, allowed []string) {
	if allowed[0] == "" {
		allowed = allowed[1:]
	}
	f.atVal(n, "`%s` cannot be %q%s; allowed: %s", key, s, meant(s, allowed), strings.Join(allowed, ", "))
}

func (f *findings) setWhole(fd *field, key string, n *node, dst reflect.Value) {
	v, ok := n.value.(int64)
	if s, text := n.value.(string); text {
		if _, err := parseNumber(s); err == nil {
			f.atVal(n, "`%s` is a number: write %s without quotes", key, s)
			return
		}
	}
	switch {
	case !ok:
		f.mustBe(key, n, "a whole number")
	case fd.hiText != "" && (v < fd.lo || v > fd.hi):
		f.outside(fd, key, n)
	case dst.CanUint():
		dst.SetUint(uint64(v))
	case dst.OverflowInt(v):
		f.mustBe(key, n, "a smaller number")
	default:
		dst.SetInt(v)
	}
}

func (f *findings) outside(fd *field, key string, n *node) {
	f.atVal(n, "`%s` must be from %s to %s", key, fd.loText, fd.hiText)
}

// setNumber reads a float64, a *float64 or a Decimal.
func (f *findings) setNumber(key string, n *node, dst reflect.Value) {
	var v float64
	switch x := n.value.(type) {
	case int64:
		v = float64(x)
	case float64:
		v = x
	case string:
		if _, err := parseDecimal(x); err == nil {
			f.atVal(n, "`%s` is a number: write %s without quotes", key, x)
			return
		}
		v = math.NaN()
	default:
		v = math.NaN()
	}
	if math.IsNaN(v) || math.IsInf(v, 0) {
		f.mustBe(key, n, "a number")
		return
	}
	switch dst.Interface().(type) {
	case float64:
		dst.SetFloat(v)
	case *float64:
		dst.Set(reflect.ValueOf(&v))
	default:
		raw := n.span.Raw
		if x, ok := n.value.(int64); ok { // also hexadecimal
			raw = strconv.FormatInt(x, 10)
		}
		d, err := parseDecimal(raw)
		if err != nil {
			f.atVal(n, "`%s` has too many digits: at most %d, and a power of ten from -%d to %d", key, maxDigits, maxExponent, maxExponent)
			return
		}
		dst.Set(reflect.ValueOf(d))
	}
}

func (f *findings) setDuration(fd *field, key string, n *node, dst reflect.Value) {
	switch x := n.value.(type) {
	case int64, float64:
		unit := "s"
		if key == "timeout" || key == "gap" {
			unit = "ms"
		}
		f.atVal(n, "`%s` needs quotes: write \"%v\" with its unit, as in \"%v%s\"", key, x, x, unit)
	case string:
		if fd.zero != "" && x == fd.zero {
			dst.SetInt(0)
			return
		}
		d, err := parseDuration(x)
		switch {
		case err != nil:
			f.atVal(n, "`%s` is no duration: %q; write a number and ms, s, m, h or d, as in \"10s\"", key, x)
		case fd.hiText != "" && (int64(d) < fd.lo || int64(d) > fd.hi):
			f.outside(fd, key, n)
		default:
			dst.SetInt(int64(d))
		}
	default:
		f.mustBe(key, n, `text in quotes, as in "10s"`)
	}
}

func (f *findings) setSize(fd *field, key string, n *node, dst reflect.Value) {
	s, ok := n.value.(string)
	if !ok {
		s = n.span.Raw
	}
	v, err := parseSize(s)
	switch {
	case err != nil || !ok:
		f.atVal(n, "`%s` is no size: %q; write a number and kB, MB or GB, as in \"100MB\"", key, s)
	case fd.hiText != "" && (v < fd.lo || v > fd.hi):
		f.outside(fd, key, n)
	default:
		dst.SetInt(v)
	}
}

func (f *findings) setHex(key string, n *node, dst reflect.Value) {
	s, ok := n.value.(string)
	b, err := parseHex(s)
	if !ok || err != nil {
		f.atVal(n, "`%s` must be bytes as hexadecimal digits in quotes, as in \"42 4D\"", key)
		return
	}
	dst.SetBytes(b)
}

// setList reads []string, []int or []int64.
func (f *findings) setList(fd *field, key string, n *node, dst reflect.Value) {
	if n.list == nil || n.array {
		f.mustBe(key, n, "a list, as in [ ... ]")
		return
	}
	dst.SetZero()
	for _, e := range n.list {
		switch x := e.value.(type) {
		case string:
			if fd.kind == isTexts {
				dst.Set(reflect.Append(dst, reflect.ValueOf(x)))
				continue
			}
			if v, err := parseNumber(x); err == nil && fd.kind == isPatterns {
				dst.Set(reflect.Append(dst, reflect.ValueOf(v)))
				continue
			}
		case int64:
			if fd.kind != isTexts {
				dst.Set(reflect.Append(dst, reflect.ValueOf(x).Convert(dst.Type().Elem())))
				continue
			}
		}
		n.bad = true
		if fd.kind == isTexts {
			f.atVal(e, "`%s` must be a list of text in quotes, as in [\"...\"]", key)
		} else {
			f.atVal(e, "`%s` must be a list of whole numbers", key)
		}
	}
}

// setWords reads { 0 = "off", 1 = "on" }.
func (f *findings) setWords(key string, n *node, dst reflect.Value) {
	if !f.isTable(key, n) {
		return
	}
	var words []Word
	for _, name := range n.names() {
		c := n.table[name]
		v, err := parseNumber(name)
		text, ok := c.value.(string)
		switch {
		case err != nil:
			f.atKey(c, "`%s` needs numbers as keys, as in { 0 = \"off\", 1 = \"on\" }", key)
		case !ok || text == "":
			f.atVal(c, "`%s` must be text in quotes, as in \"...\"", name)
		case slices.ContainsFunc(words, func(w Word) bool { return w.N == v }):
			f.atKey(c, "`%s` has the number %d twice", key, v)
		default:
			words = append(words, Word{v, text})
			continue
		}
		n.bad = true
	}
	slices.SortFunc(words, func(a, b Word) int { return cmp.Compare(a.N, b.N) })
	dst.Set(reflect.ValueOf(words))
}

func (f *findings) setScalar(key string, n *node, dst reflect.Value) {
	switch x := n.value.(type) {
	case bool, int64, string:
		dst.Set(reflect.ValueOf(x))
		return
	case float64:
		if !math.IsNaN(x) && !math.IsInf(x, 0) {
			dst.Set(reflect.ValueOf(x))
			return
		}
	}
	f.mustBe(key, n, "true, false, a number or text in quotes")
}

// named goes through the tables [kind.NAME] below n.
func (f *findings) named(kind string, n *node, each func(name string, n *node)) {
	if n == nil {
		return
	}
	for _, name := range n.names() {
		c := n.table[name]
		switch {
		case c.table == nil && c.array:
			f.atKey(c, "write [%s.%s] instead of [[%s.%s]]", kind, name, kind, name)
		case c.table == nil:
			f.atKey(c, "`%s` stands directly in [%s], which holds only named tables; write [%s.NAME] above it", name, kind, kind)
		case !nameOK(name):
			f.atKey(c, "%s", badName(name))
			each(name, c)
		default:
			each(name, c)
		}
	}
}
