package config

import (
	"slices"
	"strings"
	"unicode/utf8"
)

// filterFault finds what is wrong with a topic filter: the byte, and the text;
// at < 0 when it is right. MQTT 5.0, 4.7.1.
func filterFault(f string) (at int, msg string) {
	if f == "" {
		return 0, "a topic filter must not be empty"
	}
	if len(f) > 65535 || strings.ContainsRune(f, 0) {
		return 0, "a topic filter has at most 65535 bytes and no NUL"
	}
	for i := range len(f) {
		alone := (i == 0 || f[i-1] == '/') && (i == len(f)-1 || f[i+1] == '/')
		switch {
		case f[i] == '#' && (!alone || i < len(f)-1):
			return i, "`#` stands only at the end, after a `/`"
		case f[i] == '+' && !alone:
			return i, "`+` stands alone between two `/`"
		}
	}
	return -1, ""
}

// filter checks a topic filter that is written at c, and points at the character.
// skip is how much of the written text stands before the filter.
func (f *findings) filter(c *node, filter string, skip int) bool {
	at, msg := filterFault(filter)
	if at < 0 {
		return true
	}
	c.bad = true
	pos, length := c.span.Val, c.valWidth()
	if raw := c.span.Raw; len(raw) > 2 && strings.HasPrefix(raw[1:], c.value.(string)) && filter != "" {
		pos.Col += 1 + skip + utf8.RuneCountInString(filter[:at])
		length = 1
	}
	f.add(c.problem(pos, length, false, "%q: %s", []any{filter, msg}))
	return false
}

// overlap tells whether some topic matches both filters.
func overlap(a, b string) bool {
	x, y := strings.Split(a, "/"), strings.Split(b, "/")
	if len(x) > 0 && len(y) > 0 && dollar(x[0], y[0]) {
		return false
	}
	for i := 0; ; i++ {
		switch {
		case i < len(x) && x[i] == "#", i < len(y) && y[i] == "#":
			return true
		case i == len(x) && i == len(y):
			return true
		case i == len(x): // a/# matches a as well
			return y[i] == "#"
		case i == len(y):
			return x[i] == "#"
		case x[i] != y[i] && x[i] != "+" && y[i] != "+":
			return false
		}
	}
}

// dollar: wildcards at the beginning do not match topics that begin with $ [MQTT-4.7.2-1].
func dollar(x, y string) bool {
	wild := func(s string) bool { return s == "#" || s == "+" }
	return wild(x) && strings.HasPrefix(y, "$") || wild(y) && strings.HasPrefix(x, "$")
}

// covers tells whether every topic that matches b matches a.
func covers(a, b string) bool {
	x, y := strings.Split(a, "/"), strings.Split(b, "/")
	if dollar(x[0], y[0]) && !strings.HasPrefix(x[0], "$") {
		return false
	}
	for i := 0; ; i++ {
		switch {
		case i < len(x) && x[i] == "#":
			return true
		case i == len(x) && i == len(y):
			return true
		case i == len(x) || i == len(y):
			return false
		case y[i] == "#":
			return false
		case x[i] != y[i] && (x[i] != "+"):
			return false
		}
	}
}

// levelIs tells whether one of the levels of a filter is one of the words.
func levelIs(filter string, words ...string) bool {
	return slices.ContainsFunc(strings.Split(filter, "/"), func(l string) bool { return slices.Contains(words, l) })
}
