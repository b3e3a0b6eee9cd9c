package metricstest

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Sample is one line.
type Sample struct {
	Name   string // with _bucket, _sum and _count where they belong
	Labels map[string]string
	Value  float64
}

// Series is the name with its labels in the order of their names; unique.
func (s *Sample) Series() string {
	var b strings.Builder
	b.WriteString(s.Name)
	for _, k := range slices.Sorted(maps.Keys(s.Labels)) {
		fmt.Fprintf(&b, " %s=%q", k, s.Labels[k])
	}
	return b.String()
}

// Family is what stands below one pair of HELP and TYPE.
type Family struct {
	Name, Kind, Help string
	Samples          []Sample
}

// Text is a whole answer.
type Text struct {
	Families []*Family
	Lines    int
}

// Family is the one of that name; nil when it is missing.
func (t *Text) Family(name string) *Family {
	for _, f := range t.Families {
		if f.Name == name {
			return f
		}
	}
	return nil
}

// Value is the value of a series; labels are pairs of name and value.
func (t *Text) Value(name string, labels ...string) (float64, bool) {
	want := Sample{Name: name, Labels: map[string]string{}}
	for i := 0; i+1 < len(labels); i += 2 {
		want.Labels[labels[i]] = labels[i+1]
	}
	for _, f := range t.Families {
		for i := range f.Samples {
			if s := &f.Samples[i]; s.Name == name && s.Series() == want.Series() {
				return s.Value, true
			}
		}
	}
	return 0, false
}

var (
	nameForm  = regexp.MustCompile(`^[a-zA-Z_:][a-zA-Z0-9_:]*$`)
	labelForm = regexp.MustCompile(`^[a-zA-Z_][a-zA-Z0-9_]*$`)
	kinds     = []string{"counter", "gauge", "histogram", "summary"}
)

// Read reads an answer, or says in which line it is wrong.
func Read(text []byte) (*Text, error) {
	t := &Text{}
	if !utf8.Valid(text) {
		return nil, errors.New("not UTF-8")
	}
	if len(text) == 0 || text[len(text)-1] != '\n' {
		return nil, errors.New("the last line does not end")
	}
	seen := map[string]bool{} // series and families
	for line := range strings.Lines(string(text)) {
		t.Lines++
		if err := t.line(strings.TrimSuffix(line, "\n"), seen); err != nil {
			return nil, fmt.Errorf("line %d, %q: %w", t.Lines, line, err)
		}
	}
	for _, f := range t.Families {
		if err := f.check(); err != nil {
			return nil, fmt.Errorf("%s: %w", f.Name, err)
		}
	}
	return t, nil
}

// line reads one line: HELP, which begins a family, then TYPE, then samples.
func (t *Text) line(line string, seen map[string]bool) error {
	var f *Family
	if len(t.Families) > 0 {
		f = t.Families[len(t.Families)-1]
	}
	if rest, ok := strings.CutPrefix(line, "# HELP "); ok {
		name, help, _ := strings.Cut(rest, " ")
		if !nameForm.MatchString(name) || help == "" || strings.Contains(help, `\`) {
			return errors.New("not a HELP")
		}
		if seen[name] {
			return errors.New("a family in two pieces")
		}
		seen[name] = true
		t.Families = append(t.Families, &Family{Name: name, Help: help})
		return nil
	}
	if rest, ok := strings.CutPrefix(line, "# TYPE "); ok {
		name, kind, _ := strings.Cut(rest, " ")
		if f == nil || name != f.Name || f.Kind != "" || !slices.Contains(kinds, kind) {
			return errors.New("a TYPE that is not the line after its HELP")
		}
		f.Kind = kind
		return nil
	}
	s, err := sample(line)
	if err != nil {
		return err
	}
	if f == nil || f.Kind == "" || !f.takes(s.Name) {
		return errors.New("a sample outside its family")
	}
	if key := s.Series(); seen[key+" "] {
		return errors.New("a series twice")
	} else {
		seen[key+" "] = true
	}
	f.Samples = append(f.Samples, s)
	return nil
}

func (f *Family) takes(name string) bool {
	switch suffix, ok := strings.CutPrefix(name, f.Name); {
	case !ok:
		return false
	case f.Kind == "histogram":
		return suffix == "_bucket" || suffix == "_sum" || suffix == "_count"
	case f.Kind == "summary":
		return suffix == "_sum" || suffix == "_count" || suffix == ""
	default:
		return suffix == ""
	}
}

// sample reads name{label="value",...} number.
func sample(line string) (s Sample, err error) {
	end := strings.IndexAny(line, "{ ")
	if end < 0 || !nameForm.MatchString(line[:end]) {
		return s, errors.New("no name")
	}
	s = Sample{Name: line[:end], Labels: map[string]string{}}
	rest := line[end:]
	if rest[0] == '{' {
		if rest, err = s.labels(rest[1:]); err != nil {
			return s, err
		}
	}
	if len(rest) < 2 || rest[0] != ' ' || strings.ContainsAny(rest[1:], " \t") {
		return s, errors.New("not one blank and one number at the end")
	}
	if s.Value, err = strconv.ParseFloat(rest[1:], 64); err != nil || math.IsNaN(s.Value) {
		return s, errors.New("no number")
	}
	return s, nil
}

// labels reads up to and with the closing brace, and gives what is behind it.
func (s *Sample) labels(rest string) (string, error) {
	for {
		name, value, ok := strings.Cut(rest, `="`)
		if !ok || !labelForm.MatchString(name) {
			return "", errors.New("no label")
		}
		if _, twice := s.Labels[name]; twice {
			return "", errors.New("a label twice")
		}
		var b strings.Builder
		i := 0
		for ; i < len(value) && value[i] != '"'; i++ {
			c := value[i]
			if c == '\\' {
				i++
				at := -1
				if i < len(value) {
					at = strings.IndexByte(`\"n`, value[i])
				}
				if at < 0 {
					return "", errors.New("an unknown escape")
				}
				c = "\\\"\n"[at]
			}
			b.WriteByte(c)
		}
		if i+1 >= len(value) {
			return "", errors.New("a label without end")
		}
		s.Labels[name] = b.String()
		rest = value[i+2:]
		switch value[i+1] {
		case '}':
			return rest, nil
		case ',':
		default:
			return "", errors.New("neither , nor } behind a label")
		}
	}
}

// check is what one family must hold as a whole.
func (f *Family) check() error {
	if f.Kind == "" || len(f.Samples) == 0 {
		return errors.New("no TYPE or no sample")
	}
	labels := map[string]string{} // of each sample name
	for i := range f.Samples {
		s := &f.Samples[i]
		names := strings.Join(slices.Sorted(maps.Keys(s.Labels)), " ")
		if was, ok := labels[s.Name]; ok && was != names {
			return fmt.Errorf("labels %q and %q", was, names)
		}
		labels[s.Name] = names
		if (f.Kind == "counter" || strings.HasSuffix(s.Name, "_count")) && s.Value < 0 {
			return errors.New("a counter below 0")
		}
	}
	switch f.Kind {
	case "counter":
		if !strings.HasSuffix(f.Name, "_total") {
			return errors.New("a counter without _total")
		}
	case "histogram":
		return f.histogram()
	}
	return nil
}

// histogram checks that each has rising bounds and counts, +Inf, and a sum and a
// count that fit.
func (f *Family) histogram() error {
	type one struct {
		le, n       float64
		begun       bool
		sum, counts int
		count       float64
	}
	all := map[string]*one{}
	for i := range f.Samples {
		s := Sample{Name: f.Name, Labels: maps.Clone(f.Samples[i].Labels), Value: f.Samples[i].Value}
		bound := s.Labels["le"]
		delete(s.Labels, "le")
		h := all[s.Series()]
		if h == nil {
			h = &one{}
			all[s.Series()] = h
		}
		switch strings.TrimPrefix(f.Samples[i].Name, f.Name) {
		case "_bucket":
			le, err := strconv.ParseFloat(bound, 64)
			if err != nil || h.begun && le <= h.le || s.Value < h.n {
				return fmt.Errorf("bucket %q does not rise", bound)
			}
			h.le, h.n, h.begun = le, s.Value, true
		case "_sum":
			h.sum++
		case "_count":
			h.counts++
			h.count = s.Value
		}
	}
	for series, h := range all {
		if !math.IsInf(h.le, 1) || h.sum != 1 || h.counts != 1 || h.count != h.n {
			return fmt.Errorf("%s: no +Inf, or no sum and count that fit", series)
		}
	}
	return nil
}
