package console

import (
	"bytes"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"busgate/cmd/busgate/console/metricstest"
)

func read(t *testing.T, m *Metrics) *metricstest.Text {
	t.Helper()
	text, err := metricstest.Read(m.text())
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// fill adds one sample of each family.
func fill(m *Metrics) {
	for _, f := range table {
		labels := slices.Repeat([]string{"x"}, len(f.labels))
		switch f.kind {
		case histogram:
			m.Histogram(f.name, []time.Duration{time.Second}, []uint64{1, 2}, 7*time.Second, labels...)
		case summary:
			m.Summary(f.name, 3, 1.5, labels...)
		default:
			if f.name != "busgate_metrics_truncated" { // the text adds it
				m.Gauge(f.name, 1, labels...)
			}
		}
	}
}

func TestTable(t *testing.T) {
	form := regexp.MustCompile(`^busgate_[a-z0-9_]+$`)
	for _, f := range table {
		if !form.MatchString(f.name) || strings.Contains(f.help, `\`) || strings.Contains(f.help, "\n") || !strings.HasSuffix(f.help, ".") {
			t.Errorf("%s: %s", f.name, f.help)
		}
		if f.device && !slices.Contains(f.labels, "device") || !f.device && slices.Contains(f.labels, "device") {
			t.Errorf("%s: by device or not?", f.name)
		}
	}
	var m Metrics
	fill(&m)
	text := read(t, &m)
	var names []string
	for _, f := range text.Families {
		names = append(names, f.Name)
	}
	slices.Sort(names)
	if !slices.Equal(names, Names()) || len(slices.Compact(names)) != len(table) {
		t.Errorf("%d names, %d in the table", len(names), len(table))
	}
}

func TestNamesOutsideTheTable(t *testing.T) {
	for fact, fn := range map[string]func(*Metrics){
		"an unknown name":  func(m *Metrics) { m.Gauge("busgate_other", 1) },
		"a label too few":  func(m *Metrics) { m.Gauge("busgate_point", 1, "grid") },
		"a label too many": func(m *Metrics) { m.Gauge("busgate_uptime_seconds", 1, "x") },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s was taken", fact)
				}
			}()
			fn(&Metrics{})
		}()
	}
}

func TestNumbers(t *testing.T) {
	for _, v := range []float64{0, 1, -1, 0.1, -230.5, 1e15, 1e15 - 1, math.MaxUint32, math.MaxUint64, 5e-324, math.MaxFloat64, 1 << 53} {
		var m Metrics
		m.Gauge("busgate_uptime_seconds", v)
		if got, ok := read(t, &m).Value("busgate_uptime_seconds"); !ok || got != v {
			t.Errorf("%v became %v", v, got)
		}
	}
	if got := string(appendNumber(nil, 123456789012)); got != "123456789012" {
		t.Error(got)
	}
}

func TestHistogram(t *testing.T) {
	var m Metrics
	bounds := []time.Duration{5 * time.Millisecond, time.Second}
	m.Histogram("busgate_read_seconds", bounds, []uint64{1, 2, 4}, 9*time.Second, "meters")
	m.Histogram("busgate_read_seconds", bounds, nil, 0, "relays")
	const want = `busgate_read_seconds_bucket{bus="meters",le="0.005"} 1
busgate_read_seconds_bucket{bus="meters",le="1"} 3
busgate_read_seconds_bucket{bus="meters",le="+Inf"} 7
busgate_read_seconds_sum{bus="meters"} 9
busgate_read_seconds_count{bus="meters"} 7
busgate_read_seconds_bucket{bus="relays",le="0.005"} 0
`
	if text := m.text(); !bytes.Contains(text, []byte(want)) {
		t.Errorf("%s", text)
	}
	read(t, &m)
}

// TestTooManyLines: series of devices go first, and the text says so.
func TestTooManyLines(t *testing.T) {
	for _, x := range []struct {
		points, lines int
		cut           float64
	}{{100, 0, 0}, {maxLines - 3 - 2, maxLines, 0}, {maxLines - 3 - 1, maxLines, 1}, {3 * maxLines, maxLines, 1}} {
		var m Metrics
		for i := range x.points {
			m.Gauge("busgate_point", float64(i), "d", fmt.Sprint(i))
		}
		text := read(t, &m)
		if cut, ok := text.Value("busgate_metrics_truncated"); !ok || cut != x.cut || x.lines != 0 && text.Lines != x.lines {
			t.Errorf("%d points: %d lines, truncated %v", x.points, text.Lines, cut)
		}
	}
	var m Metrics
	fill(&m)
	for _, name := range []string{"busgate_device_up", "busgate_device_age_seconds"} {
		for i := range 7000 {
			m.Gauge(name, 1, fmt.Sprint(i))
		}
	}
	text := read(t, &m)
	if text.Lines > maxLines || text.Lines < maxLines-2 {
		t.Errorf("%d lines", text.Lines)
	}
	for _, f := range table {
		if !f.device && text.Family(f.name) == nil {
			t.Errorf("%s was cut", f.name)
		}
	}
}

func FuzzLabels(f *testing.F) {
	f.Add("a\\b\"c\nd", "{}, =")
	f.Add("\xff\xfe", "\x00\r\t")
	f.Add("", "é🙂\u2028")
	f.Fuzz(func(t *testing.T, a, b string) {
		var m Metrics
		m.Gauge("busgate_point", 1, a, b)
		text := read(t, &m)
		s := text.Family("busgate_point").Samples[0]
		for label, want := range map[string]string{"device": a, "point": b} {
			if utf8.ValidString(want) && s.Labels[label] != want {
				t.Errorf("%q became %q", want, s.Labels[label])
			}
		}
	})
}
