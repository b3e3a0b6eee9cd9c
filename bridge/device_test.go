package bridge

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"busgate/config"
	"busgate/devices"
	"busgate/embeddedbroker"
)

// feed is a bridge whose clock the test moves.
type feed struct {
	*Bridge
	t    *testing.T
	f    *fakeBroker
	mono time.Duration
}

func newFeed(t *testing.T, cfg *config.Config) *feed {
	x := &feed{t: t, f: newFakeBroker(), mono: time.Hour}
	o := fixed()
	o.Mono = func() time.Duration { return x.mono }
	o.Clock = func() (time.Time, bool) { return time.Unix(0, 0).Add(x.mono), true }
	x.Bridge = mustNew(t, cfg, x.f, o)
	return x
}

// take takes a round and returns what was published, without ts.
func (x *feed) take(r devices.Round) []string {
	x.t.Helper()
	mustTake(x.t, x.Bridge, r)
	lines := x.f.take()
	for i, l := range lines {
		if a, b, ok := strings.Cut(l, `{"ts":"`); ok {
			_, b, _ = strings.Cut(b, `"`)
			lines[i] = a + "{" + strings.TrimPrefix(b, ",")
		}
	}
	return lines
}

func TestSlowPointsAreRepeatedForTwoIntervals(t *testing.T) {
	x := newFeed(t, testConfig())
	wantLines(t, x.take(x.round("grid", "energy", 17)), `grid/state {"energy":17}`)
	x.mono += time.Second
	wantLines(t, x.take(x.round("grid", "power", 1.0)), `grid/state {"power":1.0,"energy":17}`)
	x.mono += 118 * time.Second
	wantLines(t, x.take(x.round("grid", "power", 2.0)), `grid/state {"power":2.0,"energy":17}`)
	x.mono += time.Second
	wantLines(t, x.take(x.round("grid", "power", 3.0)), `grid/state {"power":3.0}`)
	wantLines(t, x.take(x.round("grid", "energy", 18)), `grid/state {"power":3.0,"energy":18}`)
	x.mono += 4 * time.Second
	wantLines(t, x.take(x.round("grid", "energy", 19)), `grid/state {"energy":19}`)
}

func TestAFailedPointIsMissing(t *testing.T) {
	x := newFeed(t, testConfig())
	x.take(x.round("grid", "power", 1.0, "energy", 17))
	r := x.round("grid", "power", 2.0)
	r.Errors = []devices.PointError{{Point: "energy", Code: "exception"}}
	wantLines(t, x.take(r), `grid/state {"power":2.0}`)
	wantLines(t, x.take(x.round("grid", "power", 3.0)), `grid/state {"power":3.0}`)

	r = x.round("grid")
	r.Errors = []devices.PointError{{Point: "power", Code: "exception"}}
	wantLines(t, x.take(r))
	wantLines(t, x.take(x.round("grid", "relay1", true)), `grid/state {"relay1":true}`)
}

func TestANotAvailablePointIsNull(t *testing.T) {
	x := newFeed(t, testConfig())
	r := x.round("grid", "power", 2.0, "voltage_l1", math.NaN(), "energy", 3)
	r.Values[0].Quality = devices.NotAvailable
	wantLines(t, x.take(r), `grid/state {"voltage_l1":null,"power":null,"energy":3}`)
}

func TestReadingsOfAnotherPlanAreLeftOut(t *testing.T) {
	x := newFeed(t, testConfig())
	wantLines(t, x.take(x.round("grid", "old", 1, "energy", 3, "power", 1.0)), `grid/state {"power":1.0,"energy":3}`)
	wantLines(t, x.take(x.round("gone", "old", 1)))
	if n := x.Stats().Orphans; n != 1 {
		t.Errorf("orphans %d, want 1", n)
	}
}

func TestScalarsGoBeforeTheState(t *testing.T) {
	cfg := testConfig()
	cfg.Gateway.Payload = "value"
	x := newFeed(t, cfg)
	r := x.round("grid", "voltage_l1", 230.1, "power", 1.0, "state", `r"un`, "relay1", true)
	r.Values[1].Quality = devices.NotAvailable
	wantLines(t, x.take(r), `grid/state/voltage_l1 230.1`, `grid/state/power null`, `grid/state/state r"un`, `grid/state/relay1 true`,
		`grid/state {"voltage_l1":230.1,"power":null,"state":"r\"un","relay1":true}`)
	wantLines(t, x.take(x.round("grid", "power", 2.0)), `grid/state/power 2.0`,
		`grid/state {"voltage_l1":230.1,"power":2.0,"state":"r\"un","relay1":true}`)
}

func TestPublishOnChange(t *testing.T) {
	cfg := testConfig()
	g := cfg.Devices["grid"]
	g.Publish, g.Points[1].Deadband = "change", 0.5
	cfg.Gateway.Payload = "value"
	x := newFeed(t, cfg)
	all := func(v, p float64) []string { return x.take(x.round("grid", "voltage_l1", v, "power", p)) }

	wantLines(t, all(230, 10), "grid/state/voltage_l1 230.0", "grid/state/power 10.0", `grid/state {"voltage_l1":230.0,"power":10.0}`)
	wantLines(t, all(230, 10))
	wantLines(t, all(230.04, 10.4)) // below what is printed, below the deadband
	wantLines(t, all(230, 10.5), "grid/state/power 10.5", `grid/state {"voltage_l1":230.0,"power":10.5}`)
	wantLines(t, all(230.1, 10.5), "grid/state/voltage_l1 230.1", `grid/state {"voltage_l1":230.1,"power":10.5}`)
	wantLines(t, all(230.1, 10.1)) // against what was published last, not read last
	wantLines(t, all(230.1, 10.0), "grid/state/power 10.0", `grid/state {"voltage_l1":230.1,"power":10.0}`)

	// A round that does not read a slow point does not repeat it.
	wantLines(t, x.take(x.round("grid", "energy", 7)), "grid/state/energy 7", `grid/state {"energy":7}`)
	wantLines(t, all(230.2, 10), "grid/state/voltage_l1 230.2", `grid/state {"voltage_l1":230.2,"power":10.0}`)

	r := x.round("grid", "voltage_l1", 230.2, "power", 10.0)
	r.Values[1].Quality = devices.NotAvailable
	wantLines(t, x.take(r), "grid/state/power null", `grid/state {"voltage_l1":230.2,"power":null}`)
	r = x.round("grid", "voltage_l1", 230.2)
	r.Errors = []devices.PointError{{Point: "power"}}
	wantLines(t, x.take(r), `grid/state {"voltage_l1":230.2}`) // it begins to fail
	wantLines(t, x.take(r))
	wantLines(t, all(230.2, 10), "grid/state/power 10.0", `grid/state {"voltage_l1":230.2,"power":10.0}`)

	x.mono += 5*time.Minute - time.Second
	wantLines(t, all(230.2, 10))
	x.mono += time.Second
	wantLines(t, all(230.2, 10), "grid/state/voltage_l1 230.2", "grid/state/power 10.0", `grid/state {"voltage_l1":230.2,"power":10.0}`)
}

func TestTakeReturnsTheErrorOfTheBroker(t *testing.T) {
	cfg := testConfig()
	cfg.Devices["grid"].Publish = "change"
	x := newFeed(t, cfg)
	var tapped int
	x.tap = func(devices.Round, *embeddedbroker.Message) { tapped++ }
	x.f.refuse = func(*embeddedbroker.Message, bool) error { return embeddedbroker.ErrFull }
	if err := x.Take(t.Context(), x.round("grid", "power", 1.0)); !errors.Is(err, embeddedbroker.ErrFull) {
		t.Errorf("error %v, want that of the broker", err)
	}
	if tapped != 0 || x.device("grid").last.state != nil {
		t.Error("a refused round counts as published")
	}
	x.f.refuse = nil
	wantLines(t, x.take(x.round("grid", "power", 1.0)), `grid/state {"power":1.0}`) // not published before, so it is a change
	if tapped != 1 {
		t.Errorf("%d rounds tapped, want 1", tapped)
	}
}

func TestStateMessage(t *testing.T) {
	x := newFeed(t, testConfig())
	r := x.round("grid", "power", 1.0)
	mustTake(t, x.Bridge, r)
	m := x.f.log[0]
	if m.QoS != 1 || !m.Retain || m.Kind != embeddedbroker.KindReading || m.From != "" || m.Mono != r.At.Mono || !m.Wall.Equal(r.At.Wall) {
		t.Errorf("message %+v", m)
	}
}

func TestTooLargeADeviceIsRefused(t *testing.T) {
	cfg := testConfig()
	g := cfg.Devices["grid"]
	g.Points = nil
	for i := range 200 {
		g.Points = append(g.Points, config.Point{Name: "text_" + strconv.Itoa(i), Type: "string", Length: 125})
	}
	_, err := New(cfg, newFakeBroker(), fixed())
	want := "device grid: a state of its 200 points may need 295 kB, 256 kB is the limit; split it into two devices"
	if err == nil || err.Error() != want {
		t.Errorf("error %v\nwant  %s", err, want)
	}
	g.Points = []config.Point{{Name: "a", Type: "string"}}
	b := mustNew(t, cfg, newFakeBroker(), fixed())
	if err := b.Take(t.Context(), b.round("grid", "a", strings.Repeat("x", maxState))); err == nil {
		t.Error("a state of more than 256 kB is published")
	}
}

// TestEncodeDecode takes random rounds and reads the JSON back: every value
// comes back, in the order of the file, nothing else is there.
func TestEncodeDecode(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	names := []string{"a", "a-b", "-", "_", "0", "x-y_z-9", "voltage_l1", "long-" + strings.Repeat("n", 59)}
	cfg := testConfig()
	g := cfg.Devices["grid"]
	g.Points = nil
	for _, n := range names {
		g.Points = append(g.Points, config.Point{Name: n, Digits: -1, Type: "float64"})
	}
	f := newFakeBroker()
	b := mustNew(t, cfg, f, fixed())
	for range 3000 {
		r := devices.Round{Device: "grid", At: b.now()}
		want := map[string]devices.Value{}
		for _, i := range rnd.Perm(len(names)) {
			v := randomValue(rnd)
			r.Values = append(r.Values, devices.Reading{Point: names[i], Value: v})
			want[names[i]] = v
		}
		mustTake(t, b, r)
		payload := f.log[len(f.log)-1].Payload
		checkState(t, payload, names, want)
		mustTake(t, b, r)
		if again := f.log[len(f.log)-1].Payload; !bytes.Equal(payload, again) {
			t.Fatalf("the same readings give\n%s\n%s", payload, again)
		}
		f.log = nil
	}
}

func randomValue(rnd *rand.Rand) devices.Value {
	edge := []float64{0, math.Copysign(0, -1), 1e-6, 9.99e-7, 1e15, 999999999999999, 0.1, -273.15, math.MaxFloat64, math.SmallestNonzeroFloat64}
	switch rnd.IntN(9) {
	case 0:
		return devices.IntValue(math.MinInt64, 0)
	case 1:
		return devices.UintValue(math.MaxUint64, 0)
	case 2:
		return devices.IntValue(rnd.Int64()-rnd.Int64(), -rnd.IntN(4))
	case 3:
		return devices.Float64Value([]float64{math.NaN(), math.Inf(1), math.Inf(-1)}[rnd.IntN(3)])
	case 4:
		return devices.Float64Value(edge[rnd.IntN(len(edge))])
	case 5:
		return devices.Float64Value(math.Float64frombits(rnd.Uint64()))
	case 6:
		return devices.Float32Value(math.Float32frombits(rnd.Uint32()))
	case 7:
		return devices.BoolValue(rnd.IntN(2) == 0)
	}
	raw := make([]byte, rnd.IntN(12))
	for i := range raw {
		raw[i] = byte(rnd.Uint32())
	}
	return devices.TextValue(string(raw) + "\u2028<&>\"\\ü\x00")
}

func checkState(t *testing.T, payload []byte, names []string, want map[string]devices.Value) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(payload))
	d.UseNumber()
	next := func() json.Token {
		tok, err := d.Token()
		if err != nil {
			t.Fatalf("%v in %q", err, payload)
		}
		return tok
	}
	next()
	if k, v := next(), next(); k != "ts" || v != "2026-11-21T06:01:02.123Z" {
		t.Fatalf("begins with %v %v: %s", k, v, payload)
	}
	for _, name := range names {
		if k := next(); k != name {
			t.Fatalf("key %v where %s belongs: %s", k, name, payload)
		}
		v := next()
		w := want[name]
		switch w.Kind() {
		case devices.Null:
			if v != nil {
				t.Fatalf("%s is %v, want null", name, v)
			}
		case devices.Bool:
			if v != w.Bool() {
				t.Fatalf("%s is %v, want %v", name, v, w.Bool())
			}
		case devices.Text:
			if v != string([]rune(w.String())) { // a byte that is not UTF-8 is U+FFFD
				t.Fatalf("%s is %q, want %q", name, v, w.String())
			}
		case devices.Float32, devices.Float64:
			got, err := strconv.ParseFloat(string(v.(json.Number)), 64)
			if w.Kind() == devices.Float32 {
				got = float64(float32(got))
			}
			if err != nil || got != w.Float() {
				t.Fatalf("%s is %v, want %v", name, v, w.Float())
			}
		default:
			if string(v.(json.Number)) != w.String() {
				t.Fatalf("%s is %v, want %v", name, v, w)
			}
		}
	}
	if tok := next(); tok != json.Delim('}') || d.More() {
		t.Fatalf("%v where the end belongs: %s", tok, payload)
	}
	if !json.Valid(payload) {
		t.Fatalf("no JSON: %q", payload)
	}
}

func TestAppendTimeIsRFC3339(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 1000 {
		at := time.Unix(rnd.Int64N(1<<35), rnd.Int64N(1e9))
		want := at.UTC().Format(`"2006-01-02T15:04:05.000Z"`)
		if got := string(appendTime(nil, at, false)); got != want {
			t.Fatalf("%s, want %s", got, want)
		}
	}
}

func TestAppendQuoted(t *testing.T) {
	for in, want := range map[string]string{
		"":                     `""`,
		"plain":                `"plain"`,
		"a\"b\\c":              `"a\"b\\c"`,
		"\n\r\t\x00\x1f":       `"\n\r\t\u0000\u001f"`,
		"ü€😀":                  `"ü€😀"`,
		"\xff\xc3":             "\"\uFFFD\uFFFD\"",
		"ok\xffok":             "\"ok\uFFFDok\"",
		"<script>&\u2028\x7f ": "\"<script>&\u2028\x7f \"",
	} {
		got := appendQuoted(nil, in)
		if string(got) != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
		var back string
		if err := json.Unmarshal(got, &back); err != nil || back != strings.ToValidUTF8(in, "\uFFFD") && in != "\xff\xc3" {
			t.Errorf("%q comes back as %q (%v)", in, back, err)
		}
	}
}

// fourteen is the state that the benchmarks encode.
func fourteen(b *testing.B) (*Bridge, devices.Round, map[string]any) {
	cfg := testConfig()
	g := cfg.Devices["grid"]
	g.Points = nil
	m := map[string]any{"ts": "2026-11-21T06:01:02.123Z"}
	var values []devices.Reading
	for i := range 14 {
		name := "voltage_l" + strconv.Itoa(i)
		g.Points = append(g.Points, config.Point{Name: name, Digits: 1, Type: "float32"})
		f := float32(230.1) + float32(i)*1.3
		values = append(values, devices.Reading{Point: name, Value: devices.Float32Value(f)})
		m[name] = math.Round(float64(f)*10) / 10
	}
	br := mustNew(b, cfg, nullBroker{}, fixed())
	return br, devices.Round{Device: "grid", At: br.now(), Values: values}, m
}

type nullBroker struct{}

func (nullBroker) Publish(*embeddedbroker.Message, embeddedbroker.Completion) error { return nil }
func (nullBroker) Subscribe(string, byte, func(*embeddedbroker.Message)) func() {
	return func() {}
}

// BenchmarkState14 takes a round of 14 points to the broker, against
// encoding/json on a map of the same values. ratio is ours by theirs, the median
// of blocks that take turns; the target is at most 0.25.
func BenchmarkState14(b *testing.B) {
	br, r, m := fourteen(b)
	const block = 50
	var ratios, ours []float64
	for b.Loop() {
		start := time.Now()
		for range block {
			if err := br.Take(b.Context(), r); err != nil {
				b.Fatal(err)
			}
		}
		mid := time.Now()
		for range block {
			if _, err := json.Marshal(m); err != nil {
				b.Fatal(err)
			}
		}
		took := mid.Sub(start)
		ratios = append(ratios, float64(took)/float64(time.Since(mid)))
		ours = append(ours, float64(took)/block)
	}
	slices.Sort(ratios)
	slices.Sort(ours)
	b.ReportMetric(ratios[len(ratios)/2], "ratio")
	b.ReportMetric(ours[len(ours)/2], "ns/state")
}

// TestStateAllocatesTheMessageOnly counts: the message and its payload.
func TestStateAllocatesTheMessageOnly(t *testing.T) {
	cfg := testConfig()
	b := mustNew(t, cfg, nullBroker{}, fixed())
	r := b.round("grid", "voltage_l1", float32(230.1), "power", float32(871.1), "state", "run", "relay1", true, "energy", 1<<40)
	if n := testing.AllocsPerRun(100, func() { mustTake(t, b, r) }); n > 2 {
		t.Errorf("%v allocations a state, want 2", n)
	}
}
