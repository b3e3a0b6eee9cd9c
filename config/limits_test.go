package config

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestNestingIsBounded(t *testing.T) {
	for _, text := range []string{"a=" + strings.Repeat("[", 1e6), "a=" + strings.Repeat("{a=", 1e6), strings.Repeat("a.", 1e6) + "a=1", "[" + strings.Repeat("a.", 1e6) + "a]"} {
		if c, problems := Parse("x.toml", text, nil); c != nil || !strings.Contains(problems[0].Msg, "nested more than") {
			t.Errorf("%.10s: %v", text, problems)
		}
	}
}

// TestLimits: each bound is told where it is exceeded.
func TestLimits(t *testing.T) {
	var buses, devices, points, large strings.Builder
	for i := range 65 {
		fmt.Fprintf(&buses, "[bus.b%d]\nserial = \"/dev/tty%d\"\n", i, i)
	}
	devices.WriteString("[bus.b]\ntcp = \"host\"\n")
	for i := range 1001 {
		fmt.Fprintf(&devices, "[device.d%d]\nbus = \"b\"\nenabled = false\npoints.v = { input = 0 }\n", i)
	}
	points.WriteString("[device.d]\nserial = \"/dev/ttyX0\"\n[device.d.points]\n")
	large.WriteString(points.String())
	for i := range 2001 {
		fmt.Fprintf(&points, "p%d = { input = %d }\n", i, i)
	}
	for i := range 500 {
		fmt.Fprintf(&large, "p%d = { input = %d, type = \"string\", length = 125 }\n", i, 125*i)
	}
	for _, c := range []struct{ text, want string }{
		{buses.String(), "busgate.toml:1:1: there are 65 buses; at most 64 are possible"},
		{devices.String(), "busgate.toml:3:1: there are 1001 devices; at most 1000 are possible"},
		{points.String(), "busgate.toml:3:1: there are 2001 points; a device can have at most 2000"},
		{large.String(), "busgate.toml:1:1: the state of device `d` would take about 257 kB, at most 256 kB are possible; make two devices of it"},
	} {
		conf, problems := newLoader(testEnv("x"), nil).parse("busgate.toml", c.text)
		problems = slices.DeleteFunc(problems, func(p Problem) bool { return p.Warn })
		if conf != nil || len(problems) != 1 || problems[0].String() != c.want {
			t.Errorf("got %.300s, want %s", fmt.Sprint(problems), c.want)
		}
	}
}

func TestProblemsAreBounded(t *testing.T) {
	text := "[gateway]\n" + strings.Repeat("a", 3000) + " = 1\n"
	for i := range 3000 {
		text += fmt.Sprintf("k%d = 1\n", i)
	}
	_, problems := newLoader(testEnv("x"), nil).parse("busgate.toml", text)
	if len(problems) != 2*maxProblems+1 || !strings.HasSuffix(problems[len(problems)-1].Msg, "are not shown") {
		t.Errorf("%d problems, last %v", len(problems), problems[len(problems)-1])
	}
	var b bytes.Buffer
	if err := Print(&b, problems[:1]); err != nil || strings.Contains(b.String(), "|") {
		t.Errorf("a line that is too long is not shown: %v %s", err, b.String())
	}
}

// bigText is a configuration of n devices with m points each.
func bigText(n, m int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "[device.d%d]\ntcp = \"host%d\"\ninterval = \"10s\"\n[device.d%d.points]\n", i, i, i)
		for j := range m {
			fmt.Fprintf(&b, "p%d = { holding = %d, type = \"uint32\", scale = 0.1, unit = \"V\", order = \"CDAB\" }\n", j, 2*j)
		}
	}
	return b.String()
}

// BenchmarkLoad reports the time of the whole loader over that of the TOML
// library alone; the target is 4 for 500 devices with 20 points.
func BenchmarkLoad(b *testing.B) {
	text := bigText(500, 20)
	var lib, all time.Duration
	b.ReportAllocs()
	for b.Loop() {
		start := time.Now()
		if _, err := decodeTOML(text); err != nil {
			b.Fatal(err)
		}
		mid := time.Now()
		l := newLoader(testEnv("x"), nil)
		if c, problems := l.parse("x.toml", text); c == nil {
			b.Fatal(problems)
		}
		lib += mid.Sub(start)
		all += time.Since(mid)
	}
	b.ReportMetric(float64(all)/float64(lib), "x-library")
}
