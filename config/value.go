package config

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// shape checks type and the keys that depend on it, and fills in their defaults.
func (f *findings) shape(n *node, p *Point, in pointContext) {
	bits := p.Table == "coil" || p.Table == "discrete"
	switch {
	case p.Type == "" && bits:
		p.Type = "bool"
	case p.Type == "" && !in.uart:
		p.Type = "uint16"
	case bits && p.Type != "bool":
		f.atVal(n.get("type"), "`type` cannot be %q; a %s is always bool", p.Type, p.Table)
		return
	}
	dt, text := dataTypes[p.Type], p.Type == "string" || p.Type == "hex"
	f.byteOf(n, p, dt)
	counted := text && (!in.uart || p.At >= 0)
	switch c := n.get("length"); {
	case counted && c == nil:
		f.atKey(n, "point `%s` needs `length`: a %s has no length of its own", p.Name, p.Type)
	case !counted && c != nil && !c.bad:
		f.atKey(c, "`length` is for string and hex only")
	}
	f.partOf(n, p, dt)
	w := Words(p.Type, p.Length)
	if p.Table != "" && int(p.Addr)+w > 65536 {
		f.atKey(n, "%s at %d needs %d registers and would end beyond 65535", p.Type, p.Addr, w)
	}
}

func (f *findings) byteOf(n *node, p *Point, dt dataType) {
	c := n.get("byte")
	switch {
	case c == nil && p.Type == "string":
		p.Byte = "both"
	case c == nil && dt.only8:
		p.Byte = "low"
	case c == nil || c.bad:
	case !dt.only8 && p.Type != "string":
		f.atKey(c, "`byte` is for 8-bit types and string only")
	case p.Byte == "both" && p.Type != "string":
		f.notOneOf("byte", p.Byte, c, []string{"low", "high"})
	}
}

// partOf checks bit, bits and flags: at most one, inside the type.
func (f *findings) partOf(n *node, p *Point, dt dataType) {
	var given []string
	for _, k := range []string{"bit", "bits", "flags", "enum"} {
		if n.get(k) != nil && !(k == "enum" && n.get("flags") == nil) {
			given = append(given, k)
		}
	}
	if len(given) > 1 {
		f.atKey(n.get(given[1]), "`%s` and `%s` cannot stand together", given[0], given[1])
		return
	}
	if len(given) == 0 {
		return
	}
	c := n.get(given[0])
	width := 8 * dt.bytes
	switch {
	case c.bad:
	case !dt.integer:
		f.atKey(c, "`%s` needs a type that is a whole number, as uint16", given[0])
	case p.Bit >= width:
		f.atVal(c, "`bit` must be from 0 to %d", width-1)
	case given[0] == "bits" && (len(p.Bits) != 2 || p.Bits[0] < 0 || p.Bits[0] > p.Bits[1] || p.Bits[1] >= width):
		f.atVal(c, "`bits` must be the first and the last bit, from 0 to %d, as in [4, 7]", width-1)
	}
	for _, w := range p.Flags {
		if w.N < 0 || w.N >= int64(width) {
			f.atVal(c, "`flags` has bit %d; a %s has the bits 0 to %d", w.N, p.Type, width-1)
		}
	}
}

// scaling checks what turns raw values into readings.
func (f *findings) scaling(n *node, p *Point, in pointContext) {
	if n.has("scale") && p.Scale.M == 0 {
		f.atVal(n.get("scale"), "`scale` must not be 0")
	}
	if p.Deadband < 0 {
		f.atVal(n.get("deadband"), "`deadband` must not be negative")
	}
	if n.has("scale_register") && p.Table != "" {
		lo, hi := min(int(p.Addr), p.ScaleReg), max(int(p.Addr)+Words(p.Type, p.Length), p.ScaleReg+1)
		if hi-lo > 125 {
			f.atVal(n.get("scale_register"), "`scale_register` is too far from the value: both must fit into one request of 125 registers")
		}
	}
	if p.Min != nil && p.Max != nil && *p.Min > *p.Max {
		f.atVal(n.get("min"), "`min` %s is above `max` %s", number(*p.Min), number(*p.Max))
	}
	if n.get("digits") == nil && dataTypes[p.Type].integer && p.ScaleReg < 0 && p.Bit < 0 && len(p.Flags) == 0 {
		p.Digits = min(9, max(0, -p.Scale.E, -p.Offset.E))
	}
	if p.Enum != nil && !n.broken("enum", "min", "max") {
		for _, w := range p.Enum {
			if !inside(float64(w.N), p) {
				f.atVal(n.get("enum"), "`enum` %d is outside %s", w.N, limits(p))
				break
			}
		}
	}
}

func number(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }

func inside(v float64, p *Point) bool {
	return (p.Min == nil || v >= *p.Min) && (p.Max == nil || v <= *p.Max)
}

func limits(p *Point) string {
	lo, hi := "", ""
	if p.Min != nil {
		lo = number(*p.Min)
	}
	if p.Max != nil {
		hi = number(*p.Max)
	}
	return lo + ".." + hi
}

// commands checks write and what belongs to it.
func (f *findings) commands(n *node, p *Point) {
	w := n.get("write")
	if p.Write && (p.Table == "input" || p.Table == "discrete") {
		f.atKey(w, "%s registers cannot be written; writable are `holding` and `coil`", "`"+p.Table+"`")
		return
	}
	if p.Write && p.Table == "" && n.get("input") == nil && n.get("holding") == nil && n.get("coil") == nil && n.get("discrete") == nil {
		f.atKey(w, "points of UART devices cannot be written")
		return
	}
	for _, k := range []string{"pulse", "safe", "safe_after"} {
		c := n.get(k)
		if c == nil || c.bad || p.Write || n.broken("write") {
			continue
		}
		if c.src.profile && w != nil && !w.src.profile { // the device only takes the commands away
			p.Pulse, p.Safe, p.SafeFor = false, nil, 0
			return
		}
		if k != "pulse" || p.Pulse {
			f.atKey(c, "`%s` needs `write = true`", k)
			return
		}
	}
	if n.get("safe_after") != nil && n.get("safe") == nil {
		f.atKey(n.get("safe_after"), "`safe_after` needs `safe`: the value that is written then")
	}
	if n.has("safe") && !n.broken("enum", "min", "max", "type", "bit") {
		f.safeValue(n.get("safe"), p)
	}
}

// safeValue checks that safe is a value that a command could have.
func (f *findings) safeValue(c *node, p *Point) {
	isBool := p.Type == "bool" || p.Bit >= 0
	switch v := p.Safe.(type) {
	case bool:
		if !isBool {
			f.mustBe("safe", c, "a number")
		}
	case string:
		if !slices.ContainsFunc(p.Enum, func(w Word) bool { return w.Text == v }) && (p.Type != "string" || p.Enum != nil) {
			f.atVal(c, "`safe` %q is no word of `enum`", v)
		}
	case int64:
		switch {
		case isBool && (v == 0 || v == 1):
			p.Safe = v == 1
		case isBool:
			f.mustBe("safe", c, "true or false")
		case !inside(float64(v), p):
			f.atVal(c, "`safe` %d is outside %s", v, limits(p))
		}
	case float64:
		if isBool {
			f.mustBe("safe", c, "true or false")
		} else if !inside(v, p) {
			f.atVal(c, "`safe` %s is outside %s", number(v), limits(p))
		}
	}
}

// overlaps warns of points that read one register differently, or one value twice.
func (f *findings) overlaps(n *node, points []Point) {
	byAddr := make([]*Point, 0, len(points))
	for i := range points {
		if points[i].Table != "" {
			byAddr = append(byAddr, &points[i])
		}
	}
	slices.SortStableFunc(byAddr, func(a, b *Point) int {
		return cmp.Or(strings.Compare(a.Table, b.Table), cmp.Compare(a.Addr, b.Addr))
	})
	for i, a := range byAddr {
		end := int(a.Addr) + Words(a.Type, a.Length)
		for _, b := range byAddr[i+1:] {
			if b.Table != a.Table || int(b.Addr) >= end {
				break
			}
			if slices.Equal(a.SunSpec, b.SunSpec) {
				f.overlap(n, a, b)
			}
		}
	}
}

func (f *findings) overlap(n *node, a, b *Point) {
	parts := func(p *Point) string {
		return fmt.Sprint(p.Bit, p.Bits, p.Flags, p.Byte, p.Scale, p.Offset, p.ScaleReg, p.Order, p.Enum)
	}
	at := n.table[b.Name]
	if at == nil {
		return
	}
	switch {
	case a.Addr == b.Addr && a.Type == b.Type && a.Length == b.Length && parts(a) == parts(b):
		f.warnKey(at, "points `%s` and `%s` are the same register", a.Name, b.Name)
	case a.Addr == b.Addr && a.Type == b.Type, dataTypes[a.Type].only8 && dataTypes[b.Type].only8:
	case a.Bit >= 0 || b.Bit >= 0 || a.Bits != nil || b.Bits != nil || a.Flags != nil || b.Flags != nil:
	case a.Type != b.Type || a.Addr != b.Addr:
		f.warnKey(at, "points `%s` and `%s` read the same register as %s and %s", a.Name, b.Name, a.Type, b.Type)
	}
}

// atomics checks that the points of each atomic group can be read in one request.
func (f *findings) atomics(n *node, points []Point, in pointContext) {
	first := map[string]int{}
	for i := range points {
		p := &points[i]
		if p.Atomic == "" {
			continue
		}
		if !nameOK(p.Atomic) {
			f.atVal(n.table[p.Name].get("atomic"), "%s", badName(p.Atomic))
			continue
		}
		k, known := first[p.Atomic]
		if !known {
			first[p.Atomic] = i
			continue
		}
		if why := apart(points[k:i+1], in.maxRead); why != "" {
			f.atVal(n.table[p.Name].get("atomic"), "points `%s` and `%s` cannot be read in one request (atomic = %q): %s", points[k].Name, p.Name, p.Atomic, why)
		}
	}
}

// apart says why the last of the points does not go into one request with the
// others of its atomic group, the first among them; "" when it does.
func apart(points []Point, maxRead int) string {
	a, p := &points[0], &points[len(points)-1]
	switch {
	case a.Table != p.Table:
		return a.Table + " and " + p.Table + " are two tables"
	case a.Interval != p.Interval:
		return "their intervals are " + formatDuration(a.Interval) + " and " + formatDuration(p.Interval)
	case !slices.Equal(a.SunSpec, p.SunSpec):
		return "they stand in different models"
	}
	from, to := 65536, 0
	for i := range points {
		if q := &points[i]; q.Atomic == p.Atomic && q.Table == p.Table {
			words := 1
			if q.Table == "input" || q.Table == "holding" {
				words = Words(q.Type, q.Length)
			}
			from, to = min(from, int(q.Addr)), max(to, int(q.Addr)+words)
		}
	}
	most, unit := cmp.Or(maxRead, 125), "registers"
	if p.Table == "coil" || p.Table == "discrete" {
		most, unit = min(16*most, 2000), "bits"
	}
	if to-from > most {
		return fmt.Sprintf("from %s %d on they span %d %s, at most %d are possible (max_read)", p.Table, from, to-from, unit, most)
	}
	return ""
}
