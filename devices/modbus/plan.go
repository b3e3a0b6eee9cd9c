package modbus

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"busgate/config"
	"busgate/devices"
)

// span is registers or bits that must come in one request: the words of a
// value, and its scale register with it.
type span struct {
	table    string
	from, to int // [from, to)
}

func (s span) width() int { return s.to - s.from }

// request is one read.
type request struct {
	span
	parts []span // what is wanted of it, rising; the rest are gaps
}

// plan is the requests of one poll group.
type plan struct {
	version  int
	requests []request
	first    int // request that a round begins with
}

// limits bound the requests of a planner.
type limits struct {
	maxRead   int                                   // registers; bits 16 times as many, at most 2000
	maxHole   int                                   // unwanted registers in a row
	forbidden func(table string, from, to int) bool // a block over an illegal gap; nil: none
	time      func(table string, n int) time.Duration
}

// isBits says that a table is read bit by bit.
func isBits(table string) bool { return table == "coil" || table == "discrete" }

// tables is the order of requests: what is most often asked first.
var tables = [...]string{"input", "holding", "discrete", "coil"}

// capOf is how many registers or bits of a table one request may have.
func (l limits) capOf(table string) int {
	if isBits(table) {
		return min(16*l.maxRead, 2000)
	}
	return min(l.maxRead, 125)
}

func (l limits) holeOf(table string) int {
	if isBits(table) {
		return 16 * l.maxHole
	}
	return l.maxHole
}

// readTime is T(N): how long a read of n registers or bits takes the bus.
func (t timing) readTime(table string, n int, ta time.Duration) time.Duration {
	bytes := 2 * n
	if isBits(table) {
		bytes = (n + 7) / 8
	}
	if t.char == 0 { // TCP: the request costs, its length hardly does
		return max(ta, time.Millisecond) + time.Duration(bytes)*time.Microsecond
	}
	return t.frame(8) + t.frame(5+bytes) + 2*t.gap + ta + t.latency
}

// spans lists what the points of a group and more need, sorted, without
// overlaps; those of one atomic group are one span, which no plan divides. A point without a table stands nowhere.
func spans(list []config.Point, points []int, more []span, l limits) []span {
	all := slices.Clone(more)
	whole := map[string]span{} // atomic groups: the gaps in them are read, too
	for _, i := range points {
		p := &list[i]
		switch {
		case p.Table == "":
		case p.Atomic != "":
			s, known := whole[p.Atomic]
			if !known {
				s = valueSpan(p)
			}
			for _, part := range spansOf(p, l) {
				s.from, s.to = min(s.from, part.from), max(s.to, part.to)
			}
			whole[p.Atomic] = s
		default:
			all = append(all, spansOf(p, l)...)
		}
	}
	all = slices.AppendSeq(all, maps.Values(whole))
	slices.SortFunc(all, func(a, b span) int {
		return cmp.Or(cmp.Compare(a.table, b.table), cmp.Compare(a.from, b.from), cmp.Compare(a.to, b.to))
	})
	var out []span
	for _, s := range all {
		if n := len(out) - 1; n >= 0 && out[n].table == s.table && s.from < out[n].to && max(out[n].to, s.to)-out[n].from <= l.capOf(s.table) {
			out[n].to = max(out[n].to, s.to)
			continue
		}
		out = append(out, s)
	}
	return slices.Compact(out)
}

// spansOf is the one span of a point, or two when its scale register is too far away.
func spansOf(p *config.Point, l limits) []span {
	s := valueSpan(p)
	if p.ScaleReg < 0 || isBits(p.Table) {
		return []span{s}
	}
	sf := scaleSpan(p)
	both := span{p.Table, min(s.from, sf.from), max(s.to, sf.to)}
	if both.width() > l.capOf(p.Table) || both.width()-s.width()-1 > l.holeOf(p.Table) || l.forbidden != nil && l.forbidden(p.Table, both.from, both.to) {
		return []span{s, sf}
	}
	return []span{both}
}

func valueSpan(p *config.Point) span {
	n := 1
	if !isBits(p.Table) {
		n = devices.Words(p)
	}
	return span{p.Table, int(p.Addr), int(p.Addr) + n}
}

func scaleSpan(p *config.Point) span { return span{p.Table, p.ScaleReg, p.ScaleReg + 1} }

// makePlan covers all spans with the requests that take the least time. It is a
// dynamic programme over the sorted spans: the best way to read the first i is
// the best over all last blocks j..i; a block never has more than 125 registers,
// so that the inner loop is bounded. Overlapping spans that do not fit one
// request are read twice.
func makePlan(all []span, l limits) []request {
	var out []request
	for _, table := range tables {
		var in []span
		for _, s := range all {
			if s.table == table {
				in = append(in, s)
			}
		}
		out = append(out, planTable(table, in, l)...)
	}
	return out
}

func planTable(table string, in []span, l limits) []request {
	best := make([]time.Duration, len(in)+1)
	first := make([]int, len(in)+1)
	for i := 1; i <= len(in); i++ {
		end := 0
		for j := i; j >= 1; j-- {
			s := in[j-1]
			if j < i && in[j].from-s.to > l.holeOf(table) {
				break
			}
			end = max(end, s.to)
			width := end - s.from
			if j < i && (width > l.capOf(table) || l.forbidden != nil && l.forbidden(table, s.from, end)) {
				break
			}
			if t := best[j-1] + l.time(table, width); j == i || t < best[i] {
				best[i], first[i] = t, j
			}
		}
	}
	var out []request
	for i := len(in); i > 0; i = first[i] - 1 {
		parts := in[first[i]-1 : i]
		r := request{span{table, parts[0].from, parts[0].to}, parts}
		for _, s := range parts {
			r.to = max(r.to, s.to)
		}
		out = append(out, r)
	}
	slices.Reverse(out)
	return out
}

// gaps are the unwanted registers inside a request.
func (r request) gaps() []gap {
	var out []gap
	end := r.from
	for _, s := range r.parts {
		if s.from > end {
			out = append(out, gap{r.table, end, s.from})
		}
		end = max(end, s.to)
	}
	return out
}

// splitAt cuts the request in two before part i.
func (r request) splitAt(i int) (request, request) {
	cut := func(parts []span) request {
		q := request{span{r.table, parts[0].from, parts[0].to}, parts}
		for _, s := range parts {
			q.to = max(q.to, s.to)
		}
		return q
	}
	return cut(r.parts[:i]), cut(r.parts[i:])
}

// writeWindow is how long a command may have to wait for a block that is being
// read, on a bus that has commands.
const writeWindow = 100 * time.Millisecond

// blockCap is the longest read, in registers, that leaves writeWindow for a write.
func blockCap(t timing, ta time.Duration) int {
	if t.char == 0 {
		return 125
	}
	room := int((writeWindow - 2*t.gap - ta) / t.char)
	if t.ascii {
		return max(10, (room-28)/4)
	}
	return max(10, (room-13)/2)
}
