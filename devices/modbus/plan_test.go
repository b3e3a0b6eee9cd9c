package modbus

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"busgate/config"
	"busgate/devices/sim"
)

// sdm630 is where the values of a real meter stand, two registers each.
var sdm630 = []uint16{0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32, 34, 0x34, 0x38, 0x3C, 0x3E, 0x42, 0x46, 0x48, 0x4A, 0x4C, 0x4E,
	0xEA, 0xEC, 0xEE, 0xF8, 0x156, 0x158, 0x15A, 0x15C, 0x15E, 0x160, 0x162, 0x164, 0x166, 0x168, 0x16A, 0x16C, 0x16E, 0x170, 0x172, 0x174, 0x176, 0x178, 0x17A, 0x17C}

func limitsFor(baud int, ta time.Duration, maxRead, maxHole int, illegal ...gap) limits {
	t := timingOf(testBus(sim.Line{Baud: baud, Format: "8E1"}))
	return limits{maxRead: maxRead, maxHole: maxHole,
		time: func(table string, n int) time.Duration { return t.readTime(table, n, ta) },
		forbidden: func(table string, from, to int) bool {
			return slices.ContainsFunc(illegal, func(g gap) bool { return g.table == table && from <= g.from && to >= g.to })
		}}
}

func total(rs []request, l limits) (d time.Duration) {
	for _, r := range rs {
		d += l.time(r.table, r.width())
	}
	return d
}

// greedy bridges every gap up to g.
func greedy(in []span, g int, l limits) (out []request) {
	for _, s := range in {
		if n := len(out) - 1; n >= 0 && out[n].table == s.table && s.from-out[n].to <= min(g, l.holeOf(s.table)) &&
			max(s.to, out[n].to)-out[n].from <= l.capOf(s.table) && !l.forbidden(s.table, out[n].from, max(s.to, out[n].to)) {
			out[n].to = max(out[n].to, s.to)
			continue
		}
		out = append(out, request{span: s})
	}
	return out
}

func TestPlanIsNeverWorseThanGreedyAndKeepsItsLimits(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 1))
	for range 400 {
		var in []span
		var illegal []gap
		for _, table := range tables {
			at := rng.IntN(50)
			for range rng.IntN(40) {
				s := span{table, at, at + 1 + rng.IntN(4)}
				in = append(in, s)
				at = s.to + rng.IntN(30)*rng.IntN(3)
				if at > s.to && rng.IntN(4) == 0 {
					illegal = append(illegal, gap{table, s.to, at})
				}
			}
		}
		l := limitsFor([]int{1200, 9600, 115200}[rng.IntN(3)], time.Duration(rng.IntN(60))*time.Millisecond, 4+rng.IntN(122), []int{0, 5, 124}[rng.IntN(3)], illegal...)
		got := makePlan(in, l)
		for _, s := range in {
			if !slices.ContainsFunc(got, func(r request) bool { return r.table == s.table && r.from <= s.from && r.to >= s.to }) {
				t.Fatalf("seed %d: %v is not read", seed, s)
			}
		}
		for _, r := range got {
			if r.width() > l.capOf(r.table) {
				t.Fatalf("seed %d: %v is longer than %d", seed, r.span, l.capOf(r.table))
			}
			for _, g := range r.gaps() {
				if g.to-g.from > l.holeOf(r.table) || l.forbidden(r.table, g.from, g.to) {
					t.Fatalf("seed %d: %v reads over %v", seed, r.span, g)
				}
			}
		}
		sorted := slices.Clone(in)
		for g := range 130 {
			var other time.Duration
			for _, table := range tables {
				other += total(greedy(slices.DeleteFunc(slices.Clone(sorted), func(s span) bool { return s.table != table }), g, l), l)
			}
			if mine := total(got, l); mine > other {
				t.Fatalf("seed %d: %v, but bridging all gaps up to %d takes %v", seed, mine, g, other)
			}
		}
	}
}

func TestGapIsBridgedWhenThatIsCheaper(t *testing.T) {
	// g < 6.5 + (2*t3.5 + Ta)/(2*tc), at most 124 with one register before it and one behind within 125
	for _, tt := range []struct {
		baud int
		ta   time.Duration
		most int
	}{
		{9600, 0, 9}, {9600, 5 * time.Millisecond, 12}, {9600, 30 * time.Millisecond, 23},
		{19200, 0, 9}, {19200, 5 * time.Millisecond, 14}, {19200, 30 * time.Millisecond, 36},
		{115200, 0, 24}, {115200, 5 * time.Millisecond, 51}, {115200, 30 * time.Millisecond, 123},
	} {
		t.Run(fmt.Sprintf("%d baud %v", tt.baud, tt.ta), func(t *testing.T) {
			l := limitsFor(tt.baud, tt.ta, 125, 124)
			most := 0
			for g := range 124 {
				if len(makePlan([]span{{"input", 0, 1}, {"input", 1 + g, 2 + g}}, l)) == 1 {
					most = g
				}
			}
			if d := most - tt.most; d < -1 || d > 1 {
				t.Errorf("gaps up to %d are bridged, want %d", most, tt.most)
			}
		})
	}
}

func TestPlanOfAMeterAgainstOneByOne(t *testing.T) {
	for _, tt := range []struct {
		baud  int
		ta    time.Duration
		ratio float64
	}{{9600, 0, 3.9}, {19200, 30 * time.Millisecond, 8}} {
		l := limitsFor(tt.baud, tt.ta, 125, 124)
		var in []span
		for _, a := range sdm630 {
			in = append(in, span{"input", int(a), int(a) + 2})
		}
		one := time.Duration(len(in)) * l.time("input", 2)
		planned := makePlan(in, l)
		ratio := float64(one) / float64(total(planned, l))
		t.Logf("%d baud, %v: %d requests, x%.1f", tt.baud, tt.ta, len(planned), ratio)
		if ratio < tt.ratio-.05 { // the target has one decimal
			t.Errorf("%d baud, %v: one by one / planned = %.2f, want %.1f", tt.baud, tt.ta, ratio, tt.ratio)
		}
	}
}

func TestSpans(t *testing.T) {
	dev := testDevice(1)
	add := func(p config.Point) { dev.Points = append(dev.Points, p) }
	wide := point("holding", 10, "uint32")
	inside := point("holding", 11, "uint16")
	text := point("holding", 20, "string")
	text.Length = 8
	scaled := point("holding", 30, "int16")
	scaled.ScaleReg = 35
	far := point("holding", 100, "int16")
	far.ScaleReg = 300
	add(wide)
	add(inside)
	add(text)
	add(scaled)
	add(far)
	add(point("coil", 7, "bool"))
	got := fmt.Sprint(spans(dev.Points, []int{0, 1, 2, 3, 4, 5}, nil, limitsFor(9600, 0, 125, 124)))
	want := "[coil 7 holding 10..11 holding 20..27 holding 30..35 holding 100 holding 300]"
	if got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestWritableBusHasShortBlocks(t *testing.T) {
	timing := timingOf(testBus(sim.Line{Baud: 9600, Format: "8E1"}))
	if n := blockCap(timing, 5*time.Millisecond); n != 31 {
		t.Errorf("block of %d registers, want 31", n)
	}
	if n := blockCap(timingOf(testBus(sim.Line{Baud: 300, Format: "8E1"})), 0); n != 10 {
		t.Errorf("at 300 baud a block of %d registers, want 10", n)
	}
}

// Points of one atomic group come in one request, whatever a gap costs; others
// are planned as ever.
func TestAtomicGroupsAreNotDivided(t *testing.T) {
	at := func(name string, addr uint16, group string) config.Point {
		return config.Point{Name: name, Table: "holding", Addr: addr, Type: "uint16", Bit: -1, ScaleReg: -1, Atomic: group}
	}
	list := []config.Point{at("a", 0, "x"), at("b", 90, "x"), at("c", 45, ""), at("d", 100, ""), at("e", 300, "y"), at("f", 310, "y")}
	for _, c := range []struct {
		name string
		l    limits
	}{
		{"gaps are dear", limits{maxRead: 125, maxHole: 0}},
		{"and forbidden", limits{maxRead: 125, maxHole: 124, forbidden: func(string, int, int) bool { return true }}},
		{"and blocks short, for commands", limits{maxRead: 31, maxHole: 0}},
	} {
		c.l.time = func(_ string, n int) time.Duration { return time.Duration(20+n) * time.Millisecond }
		var got []string
		for _, r := range makePlan(spans(list, []int{0, 1, 2, 3, 4, 5}, nil, c.l), c.l) {
			got = append(got, fmt.Sprintf("%d+%d", r.from, r.width()))
		}
		want := []string{"0+91", "100+1", "300+11"}
		if c.l.maxRead < 91 {
			want = []string{"0+91", "45+1", "100+1", "300+11"} // what lies inside does not lengthen a block that is too long already
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", c.name, got, want)
		}
	}
}
