package console

import (
	"bytes"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxLines bounds the text. When there is more, series of devices are left out.
const maxLines = 10_000

// family is one name of the table.
type family struct {
	name   string
	kind   string // counter, gauge, summary or histogram
	labels []string
	device bool // one series or more a device: the first to go when there are too many
	help   string
}

// byName finds a family in the table.
var byName = func() map[string]int {
	m := make(map[string]int, len(table))
	for i, f := range table {
		m[f.name] = i
	}
	return m
}()

// Metrics gathers samples for one text. Each name must stand in the table, with
// as many labels; a sample is added once. The zero value is empty. Not safe for
// concurrent use.
type Metrics struct {
	parts [len(table)]part
}

// part is the lines of one family.
type part struct {
	text  []byte
	lines int
}

// Gauge adds a value.
func (m *Metrics) Gauge(name string, v float64, labels ...string) {
	m.line(m.find(name, labels), "", v, "", labels)
}

// Count adds a number that only rises.
func (m *Metrics) Count(name string, n uint64, labels ...string) {
	m.line(m.find(name, labels), "", float64(n), "", labels)
}

// Flag adds 1 or 0.
func (m *Metrics) Flag(name string, on bool, labels ...string) {
	v := 0.0
	if on {
		v = 1
	}
	m.Gauge(name, v, labels...)
}

// Summary adds how many there were, and their sum.
func (m *Metrics) Summary(name string, count uint64, sum float64, labels ...string) {
	i := m.find(name, labels)
	m.line(i, "_sum", sum, "", labels)
	m.line(i, "_count", float64(count), "", labels)
}

// Histogram adds durations by classes: counts[i] are those up to bounds[i], and
// above the class before; the last of counts, one more than bounds, are longer than
// all. No counts stand for none.
func (m *Metrics) Histogram(name string, bounds []time.Duration, counts []uint64, sum time.Duration, labels ...string) {
	i := m.find(name, labels)
	total := uint64(0)
	for k := range len(bounds) + 1 {
		if k < len(counts) {
			total += counts[k]
		}
		le := "+Inf"
		if k < len(bounds) {
			le = string(appendNumber(nil, bounds[k].Seconds()))
		}
		m.line(i, "_bucket", float64(total), le, labels)
	}
	m.line(i, "_sum", sum.Seconds(), "", labels)
	m.line(i, "_count", float64(total), "", labels)
}

// find is the family of that name. Another name or number of labels is a fault in
// the program.
func (m *Metrics) find(name string, labels []string) int {
	i, ok := byName[name]
	if !ok || len(labels) != len(table[i].labels) {
		panic("console: " + name + " with " + strconv.Itoa(len(labels)) + " labels is not in the table of metrics")
	}
	return i
}

var escaper = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

// line adds one sample. le is the bound of a bucket, "" for other lines.
func (m *Metrics) line(i int, suffix string, v float64, le string, labels []string) {
	p := &m.parts[i]
	if p.lines >= maxLines {
		p.lines++ // counted, so that the text knows
		return
	}
	b := append(append(p.text, table[i].name...), suffix...)
	sep := byte('{')
	label := func(name, value string) {
		b = append(append(append(b, sep), name...), `="`...)
		b = append(append(b, escaper.Replace(strings.ToValidUTF8(value, "\uFFFD"))...), '"')
		sep = ','
	}
	for k, value := range labels {
		label(table[i].labels[k], value)
	}
	if le != "" {
		label("le", le)
	}
	if sep == ',' {
		b = append(b, '}')
	}
	p.text = append(appendNumber(append(b, ' '), v), '\n')
	p.lines++
}

// appendNumber writes whole numbers without an exponent.
func appendNumber(b []byte, v float64) []byte {
	if math.Trunc(v) == v && math.Abs(v) < 1e15 {
		return strconv.AppendFloat(b, v, 'f', 0, 64)
	}
	return strconv.AppendFloat(b, v, 'g', -1, 64)
}

// text is the whole in Prometheus' text format 0.0.4.
func (m *Metrics) text() []byte {
	const truncated = "busgate_metrics_truncated"
	const head = 2 // lines of HELP and TYPE
	left := maxLines - head - 1
	for i, p := range m.parts {
		if p.lines > 0 && !table[i].device {
			left -= head + p.lines
		}
	}
	cut := false
	var out []byte
	for i, p := range m.parts {
		if p.lines == 0 {
			continue
		}
		if table[i].device {
			if p.lines > left-head {
				cut = true
				p = p.first(max(0, left-head))
			}
			if p.lines == 0 {
				continue
			}
			left -= head + p.lines
		}
		out = append(table[i].header(out), p.text...)
	}
	var last Metrics
	last.Flag(truncated, cut)
	i := byName[truncated]
	return append(table[i].header(out), last.parts[i].text...)
}

// first are the first lines of a part.
func (p part) first(n int) part {
	end := 0
	for range n {
		end += bytes.IndexByte(p.text[end:], '\n') + 1
	}
	return part{p.text[:end], n}
}

func (f *family) header(b []byte) []byte {
	b = append(b, "# HELP "+f.name+" "+f.help+"\n"...)
	return append(b, "# TYPE "+f.name+" "+f.kind+"\n"...)
}

// Names are the names that /metrics may carry, sorted.
func Names() []string {
	var names []string
	for _, f := range table {
		names = append(names, f.name)
	}
	slices.Sort(names)
	return names
}
