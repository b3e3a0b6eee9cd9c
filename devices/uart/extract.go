package uart

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	"busgate/config"
	"busgate/devices"
)

// pick takes the value of one point out of a good frame. found is false when
// this frame does not hold the point, which is no error: a GPS sends several
// kinds of sentences. An error is a *devices.RangeError: the point is there and
// has no usable value.
type pick func(f *frame) (v devices.Value, q devices.Quality, found bool, err error)

// frame is a good frame and, made when first asked for, its parts.
type frame struct {
	kind string
	raw  []byte // with start and end
	text string // without

	columns   []string
	formatter string
	fields    []string
	obis      map[string]string
	sml       map[string]smlEntry
	tree      any
	parsed    bool // tree
}

func newFrame(f *config.Frame, raw []byte) *frame {
	b := raw
	if f.Kind == "line" {
		b = trimLine(b, lineEnd(f))
	} else {
		b = bytes.TrimSuffix(b, f.End)
	}
	return &frame{kind: f.Kind, raw: raw, text: string(bytes.TrimPrefix(b, f.Start))}
}

func (f *frame) sentence() (string, []string) {
	if f.fields == nil {
		f.formatter, f.fields = nmeaFields(f.raw)
	}
	return f.formatter, f.fields
}

func (f *frame) telegram() map[string]string {
	if f.obis == nil {
		f.obis = p1Lines(f.raw)
	}
	return f.obis
}

func (f *frame) smlEntries() map[string]smlEntry {
	if f.sml == nil {
		f.sml = smlValues(f.raw)
	}
	return f.sml
}

// split cuts a line at semicolons, else at commas, else at tabs, else at blanks.
func (f *frame) split() []string {
	if f.columns == nil {
		switch {
		case strings.Contains(f.text, ";"):
			f.columns = strings.Split(f.text, ";")
		case strings.Contains(f.text, ","):
			f.columns = strings.Split(f.text, ",")
		case strings.Contains(f.text, "\t"):
			f.columns = strings.Split(f.text, "\t")
		default:
			f.columns = strings.Fields(f.text)
		}
	}
	return f.columns
}

// newPick compiles where a point stands.
func newPick(f *config.Frame, p *config.Point) (pick, error) {
	wrong := func(what string) (pick, error) {
		return nil, fmt.Errorf("point %s: %s does not go with frame kind %q", p.Name, what, f.Kind)
	}
	binary := f.Kind == "fixed" || f.Kind == "length" || f.Kind == "idle"
	meter := f.Kind == "p1" || f.Kind == "sml"
	switch {
	case p.OBIS != "":
		if !meter {
			return wrong("obis")
		}
		return obisPick(p), nil
	case meter:
		return wrong("anything but obis")
	case p.Sentence != "":
		if f.Kind != "nmea" && f.Kind != "line" {
			return wrong("sentence")
		}
		if p.Column < 0 {
			return nil, fmt.Errorf("point %s: sentence needs column", p.Name)
		}
		return nmeaPick(p), nil
	case p.Regex != "":
		return regexPick(p)
	case p.JSON != "":
		return jsonPick(p), nil
	case p.Key != "":
		return keyPick(p), nil
	case p.Column >= 0:
		if binary && f.Kind != "idle" {
			return wrong("column")
		}
		return columnPick(p), nil
	case p.At >= 0:
		return atPick(p), nil
	}
	return nil, fmt.Errorf("point %s: give at, column, key, json, regex, obis or sentence", p.Name)
}

// atPick decodes bytes at an offset from the beginning of the frame.
func atPick(p *config.Point) pick {
	size := config.Bytes(p.Type, p.Length)
	return func(f *frame) (devices.Value, devices.Quality, bool, error) {
		if p.At+size > len(f.raw) {
			return devices.Value{}, 0, false, nil
		}
		b := f.raw[p.At : p.At+size]
		if size == 1 && p.Type == "bool" { // one byte here, a register elsewhere
			b = []byte{0, b[0]}
		}
		v, q, err := devices.Decode(p, b)
		return v, q, true, err
	}
}

func columnPick(p *config.Point) pick {
	return func(f *frame) (devices.Value, devices.Quality, bool, error) {
		c := f.split()
		if p.Column >= len(c) {
			return devices.Value{}, 0, false, nil
		}
		return found(p, c[p.Column])
	}
}

func regexPick(p *config.Point) (pick, error) {
	re, err := regexp.Compile(p.Regex)
	if err != nil {
		return nil, fmt.Errorf("point %s: regex: %w", p.Name, err)
	}
	group := 0
	for i, name := range re.SubexpNames() {
		if name != "" {
			if group != 0 {
				return nil, fmt.Errorf("point %s: regex has more than one named group", p.Name)
			}
			group = i
		}
	}
	if group == 0 {
		return nil, fmt.Errorf("point %s: regex has no named group, as in (?P<v>[0-9.]+)", p.Name)
	}
	return func(f *frame) (devices.Value, devices.Quality, bool, error) {
		m := re.FindStringSubmatchIndex(f.text)
		if m == nil || m[2*group] < 0 {
			return devices.Value{}, 0, false, nil
		}
		return found(p, f.text[m[2*group]:m[2*group+1]])
	}, nil
}

// keyPick finds key=value or key:value between commas, semicolons, ampersands,
// bars and blanks.
func keyPick(p *config.Point) pick {
	ends := func(r rune) bool { return strings.ContainsRune(",;&| \t", r) }
	return func(f *frame) (devices.Value, devices.Quality, bool, error) {
		for _, part := range strings.FieldsFunc(f.text, ends) {
			i := strings.IndexAny(part, "=:")
			if i > 0 && part[:i] == p.Key {
				return found(p, strings.Trim(part[i+1:], `"'`))
			}
		}
		return devices.Value{}, 0, false, nil
	}
}

// jsonPick follows a dotted path; a number is an index into a list.
func jsonPick(p *config.Point) pick {
	path := strings.Split(p.JSON, ".")
	return func(f *frame) (devices.Value, devices.Quality, bool, error) {
		if !f.parsed {
			f.parsed = true
			d := json.NewDecoder(strings.NewReader(f.text))
			d.UseNumber()
			if d.Decode(&f.tree) != nil {
				f.tree = nil
			} else if _, err := d.Token(); err != io.EOF {
				f.tree = nil // two values: a damaged line
			}
		}
		at := f.tree
		for _, step := range path {
			switch node := at.(type) {
			case map[string]any:
				next, ok := node[step]
				if !ok {
					return devices.Value{}, 0, false, nil
				}
				at = next
			case []any:
				i, err := strconv.Atoi(step)
				if err != nil || i < 0 || i >= len(node) {
					return devices.Value{}, 0, false, nil
				}
				at = node[i]
			default:
				return devices.Value{}, 0, false, nil
			}
		}
		switch leaf := at.(type) {
		case nil:
			return devices.Value{}, devices.NotAvailable, true, nil
		case bool:
			if p.Type == "string" {
				return devices.TextValue(strconv.FormatBool(leaf)), devices.Good, true, nil
			}
			return devices.BoolValue(leaf), devices.Good, true, nil
		case json.Number:
			return found(p, leaf.String())
		case string:
			return found(p, leaf)
		}
		return devices.Value{}, 0, true, &devices.RangeError{Text: p.Name + " is no single value in this JSON; not published"}
	}
}

func found(p *config.Point, s string) (devices.Value, devices.Quality, bool, error) {
	s = strings.TrimSpace(s)
	if s == "" {
		return devices.Value{}, devices.NotAvailable, true, nil
	}
	v, q, err := textValue(p, s)
	return v, q, true, err
}
