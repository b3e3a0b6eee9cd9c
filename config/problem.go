package config

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// Problem is one mistake or warning, with the place that the owner has to look
// at. Pos is zero for what has no place, such as a missing file.
type Problem struct {
	File string
	Pos  Pos
	Len  int // characters to mark, at least 1
	Msg  string
	Warn bool

	src string // the line at Pos, secrets masked
}

// String is the problem in one line: file:line:col: text.
func (p Problem) String() string {
	kind := ""
	if p.Warn {
		kind = "warning: "
	}
	if p.Pos == (Pos{}) {
		return kind + p.Msg
	}
	return fmt.Sprintf("%s:%d:%d: %s%s", p.File, p.Pos.Line, p.Pos.Col, kind, p.Msg)
}

// HasErrors tells whether one of the problems is more than a warning.
func HasErrors(problems []Problem) bool {
	return slices.ContainsFunc(problems, func(p Problem) bool { return !p.Warn })
}

// Print writes each problem with its line of the file and a row of ^ under what is meant:
//
//	busgate.toml:9:1: unknown key `slave_id` in [device.grid]: it is called `unit_id` here
//	    9 | slave_id = 1
//	      | ^^^^^^^^
func Print(w io.Writer, problems []Problem) error {
	b := bufio.NewWriter(w)
	for _, p := range problems {
		fmt.Fprintln(b, p)
		if p.Pos == (Pos{}) || p.src == "" {
			continue
		}
		fmt.Fprintf(b, "%5d | %s\n", p.Pos.Line, p.src)
		room := utf8.RuneCountInString(p.src) - p.Pos.Col + 1
		fmt.Fprintf(b, "      | %s%s\n", strings.Repeat(" ", p.Pos.Col-1), strings.Repeat("^", max(1, min(p.Len, room))))
	}
	return b.Flush()
}

// PrintJSON writes a list of {file, line, col, len, severity, text}; severity is error or warning.
func PrintJSON(w io.Writer, problems []Problem) error {
	type item struct {
		File     string `json:"file"`
		Line     int    `json:"line"`
		Col      int    `json:"col"`
		Len      int    `json:"len"`
		Severity string `json:"severity"`
		Text     string `json:"text"`
	}
	list := make([]item, 0, len(problems))
	for _, p := range problems {
		it := item{p.File, p.Pos.Line, p.Pos.Col, p.Len, "error", p.Msg}
		if p.Warn {
			it.Severity = "warning"
		}
		list = append(list, it)
	}
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(list)
}

// maxProblems bounds the list; a file with more is better told in pieces.
const maxProblems = 1000

// findings collects problems, one for each place: the first says most, an error
// more than a warning.
type findings struct {
	list []Problem
	at   map[place]int
	more int // left out
}

type place struct {
	file string
	pos  Pos
}

func (f *findings) add(p Problem) {
	if f.at == nil {
		f.at = map[place]int{}
	}
	p.Len, p.Msg = max(p.Len, 1), printable(p.Msg)
	k := place{p.File, p.Pos}
	if i, ok := f.at[k]; ok && p.Pos != (Pos{}) {
		if f.list[i].Warn && !p.Warn {
			f.list[i] = p
		}
		return
	}
	if len(f.list) >= maxProblems && p.Warn {
		f.more++
		return
	}
	if len(f.list) >= 2*maxProblems {
		f.more++
		return
	}
	f.at[k] = len(f.list)
	f.list = append(f.list, p)
}

func (f *findings) failed() bool { return HasErrors(f.list) }

// sorted gives the problems by file and position.
func (f *findings) sorted() []Problem {
	slices.SortStableFunc(f.list, func(a, b Problem) int {
		return cmp.Or(strings.Compare(a.File, b.File), cmp.Compare(a.Pos.Line, b.Pos.Line),
			cmp.Compare(a.Pos.Col, b.Pos.Col), strings.Compare(a.Msg, b.Msg))
	})
	if f.more > 0 {
		f.list = append(f.list, Problem{Len: 1, Warn: true, Msg: fmt.Sprintf("%d more are not shown", f.more)})
	}
	return f.list
}

var (
	secretKey = regexp.MustCompile(`(?i)([A-Za-z0-9_-]*password[A-Za-z0-9_-]*"?\s*=\s*)(.*)$`)
	secretURL = regexp.MustCompile(`([/"'])[^/\s"']*:[^/\s"']*@`)
)

// excerpt makes a line of a file fit to be shown: tabs and other control
// characters become one blank, what follows a key with "password" becomes ***.
func excerpt(line string) string {
	line = printable(strings.TrimRight(line, "\r\n"))
	line = secretKey.ReplaceAllString(line, "${1}***")
	return secretURL.ReplaceAllString(line, "${1}***@")
}

// printable puts blanks for control characters: what stands in a file cannot
// steer a terminal or forge a second line.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f || r >= 0x80 && r < 0xa0 || r == 0x2028 || r == 0x2029 {
			return ' '
		}
		return r
	}, s)
}
