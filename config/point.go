package config

import (
	"cmp"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
)

// pointContext is what the points of one device or profile have in common.
type pointContext struct {
	uart        bool
	order       string
	interval    time.Duration
	profileBase int // what addresses written in a profile count from
	base        int // ... and in any other file
	known       []string
	maxRead     int // registers in one request
}

func (in pointContext) baseOf(n *node) int {
	if n.src.profile {
		return in.profileBase
	}
	return in.base
}

// reserved are keys of our messages, which no point can be called.
var reserved = []string{"ts", "gw", "boot", "n", "h", "uptime", "id", "expires", "ttl_s"}

var (
	modbusPlaces = []string{"input", "holding", "coil", "discrete"}
	uartPlaces   = []string{"at", "column", "key", "json", "regex", "obis"} // sentence stands with column
)

// maxPoints bounds the points of a device.
const maxPoints = 2000

// points reads the tables below n in the order of the file.
func (f *findings) points(n *node, in pointContext) []Point {
	return f.pointsIn(n, n.inOrder(), in)
}

func (f *findings) pointsIn(n *node, order []string, in pointContext) []Point {
	var out []Point
	for _, name := range order {
		c := n.table[name]
		switch {
		case !f.isTable(name, c):
		case !nameOK(name):
			f.atKey(c, "%s", badName(name))
		case slices.Contains(reserved, name):
			f.atKey(c, "`%s` is taken by the program itself; choose another name", name)
		default:
			if p, ok := f.point(c, name, in); ok {
				out = append(out, p)
			}
		}
	}
	if len(out) > maxPoints {
		f.atKey(n, "there are %d points; a device can have at most %d", len(out), maxPoints)
	}
	f.overlaps(n, out)
	f.atomics(n, out, in)
	return out
}

// layPoints lays the points of a device over those of its profile, key by key.
// A place given by the device replaces that of the profile. It returns the
// merged table and the order: the profile's first.
func layPoints(under, over *node) (*node, []string) {
	if under == nil || under.table == nil {
		return over, over.inOrder()
	}
	order := under.inOrder()
	if over == nil || over.table == nil {
		return under, order
	}
	n := *over
	n.table = maps.Clone(under.table)
	for _, name := range over.inOrder() {
		c, p := over.table[name], under.table[name]
		if p == nil {
			order = append(order, name)
		}
		if p != nil && p.table != nil && c.table != nil {
			q := *p
			q.table = maps.Clone(p.table)
			dropPlaces(q.table, c)
			p = &q
		}
		n.table[name] = overlay(p, c, 1)
	}
	return &n, order
}

// dropPlaces removes where the profile finds a value when the device says it itself.
func dropPlaces(table map[string]*node, own *node) {
	for _, places := range [][]string{modbusPlaces, uartPlaces} {
		for _, k := range places {
			if own.get(k) != nil {
				for _, old := range places {
					delete(table, old)
				}
			}
		}
	}
}

// point reads one point; false when it is switched off.
func (f *findings) point(n *node, name string, in pointContext) (Point, bool) {
	var t pointTable
	f.decode(n, pointSchema, &t, nil)
	if !t.Enabled {
		return Point{}, false
	}
	p := &t.Point
	p.Name = name
	p.Label = cmp.Or(p.Label, name)
	p.Interval = cmp.Or(p.Interval, in.interval)
	p.Order = cmp.Or(foldOrder(p.Order), in.order)
	if in.uart {
		f.uartPlace(n, p)
	} else {
		f.modbusPlace(n, &t, in)
	}
	if !n.broken("type") {
		f.shape(n, p, in)
	}
	f.scaling(n, p, in)
	f.commands(n, p)
	q := quantities[p.Unit]
	p.Class = cmp.Or(p.Class, q.class)
	p.Kind = cmp.Or(p.Kind, q.kind)
	return *p, true
}

// modbusPlace finds the register or bit of a point.
func (f *findings) modbusPlace(n *node, t *pointTable, in pointContext) {
	var given []string
	for _, k := range modbusPlaces {
		if n.get(k) != nil {
			given = append(given, k)
		}
	}
	for _, k := range slices.Concat(uartPlaces, []string{"sentence"}) {
		if c := n.get(k); c != nil {
			f.atKey(c, "`%s` is for UART devices, which have a [frame]", k)
			return
		}
	}
	name := t.Name
	switch len(given) {
	case 0:
		f.atKey(n, "point `%s` has no register: give `input`, `holding`, `coil` or `discrete`%s", name, meant(name, in.known))
		return
	case 1:
	default:
		f.atKey(n, "point `%s` has %s and %s: one point is one register", name, given[0], given[1])
		return
	}
	k := given[0]
	c := n.get(k)
	base := in.baseOf(c)
	addr := map[string]int64{"input": t.Input, "holding": t.Holding, "coil": t.Coil, "discrete": t.Discrete}[k]
	if c.bad {
		return
	}
	if addr < int64(base) || addr > int64(65535+base) {
		f.atVal(c, "`%s` must be from %d to %d", k, base, 65535+base)
		return
	}
	t.Point.Table, t.Point.Addr = k, uint16(addr-int64(base))
	f.sunspec(n, &t.Point)
	f.listNumber(c, k, addr, int64(base))
	if r := n.get("scale_register"); r != nil && !r.bad {
		reg := int64(t.ScaleReg)
		base := int64(in.baseOf(r))
		if reg < base || reg > 65535+base {
			f.atVal(r, "`scale_register` must be from %d to %d", base, 65535+base)
			return
		}
		t.Point.ScaleReg = int(reg - base)
	}
}

// sunspec checks the models of a point of a SunSpec device.
func (f *findings) sunspec(n *node, p *Point) {
	c := n.get("sunspec")
	if c == nil || c.bad {
		return
	}
	switch {
	case p.Table != "holding":
		f.atKey(c, "`sunspec` goes with `holding`: the models stand in holding registers")
	case len(p.SunSpec) == 0 || slices.ContainsFunc(p.SunSpec, func(id int) bool { return id < 1 || id > 65534 }):
		f.atVal(c, "`sunspec` must name models from 1 to 65534, as in [101, 102, 103]")
	}
}

// listNumber warns of numbers such as 40001, which are no addresses. SunSpec
// really stands at 40000, so it is no error; hexadecimal says that it is meant.
func (f *findings) listNumber(c *node, table string, a, base int64) {
	lo := map[string]int64{"holding": 40001, "input": 30001, "discrete": 10001}[table]
	if lo == 0 || a < lo || a > lo+9998 || strings.HasPrefix(c.span.Raw, "0x") {
		return
	}
	f.warnVal(c, "%d looks like the number of a list which counts from %d: that register is `%s = %d`; if address %d is meant, write it as 0x%X",
		a, lo, table, a-lo+base, a, a)
}

// uartPlace finds where the value stands in a frame.
func (f *findings) uartPlace(n *node, p *Point) {
	for _, k := range slices.Concat(modbusPlaces, []string{"scale_register", "sunspec", "atomic"}) {
		if c := n.get(k); c != nil {
			f.atKey(c, "`%s` is for Modbus devices; this one has a [frame]", k)
			return
		}
	}
	var given []string
	for _, k := range uartPlaces {
		if n.get(k) != nil {
			given = append(given, k)
		}
	}
	switch {
	case len(given) == 0:
		f.atKey(n, "point `%s` has no place in the frame: give `at`, `column`, `key`, `json`, `regex`, `obis`, or `sentence` and `column`", p.Name)
	case len(given) > 1:
		f.atKey(n, "point `%s` has %s and %s: one point is one place", p.Name, given[0], given[1])
	case n.get("sentence") != nil && given[0] != "column":
		f.atKey(n.get("sentence"), "`sentence` needs `column`")
	case given[0] == "at" && n.get("type") == nil:
		f.atKey(n, "point `%s` needs `type`", p.Name)
	case given[0] == "regex" && n.has("regex"):
		re, err := regexp.Compile(p.Regex)
		if err != nil {
			f.atVal(n.get("regex"), "`regex`: %s", strings.TrimPrefix(err.Error(), "error parsing regexp: "))
		} else if named := slices.DeleteFunc(re.SubexpNames(), func(s string) bool { return s == "" }); len(named) != 1 {
			f.atVal(n.get("regex"), "`regex` needs one named group, as in \"(?P<value>[0-9.]+)\"")
		}
	}
}

// foldOrder gives the four letters that mean the same as eight.
func foldOrder(s string) string {
	switch s {
	case "ABCDEFGH":
		return "ABCD"
	case "GHEFCDAB":
		return "CDAB"
	case "BADCFEHG":
		return "BADC"
	case "HGFEDCBA":
		return "DCBA"
	}
	return s
}
