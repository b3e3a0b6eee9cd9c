package config

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Dump is the effective configuration as TOML: defaults filled in, profiles laid
// under their devices, placeholders replaced. Read again with the same profiles
// it gives an equal Config. It holds no secrets, because a Config holds none:
// passwords stand in files, of which it names the path.
func Dump(c *Config) string {
	d := &dumper{}
	d.table("gateway", rootSchema.fields["gateway"].sub, reflect.ValueOf(c.Gateway))
	for _, name := range slices.Sorted(maps.Keys(c.Buses)) {
		if b := c.Buses[name]; !b.Own {
			d.head("bus." + name)
			d.bus(b, nil)
		}
	}
	for _, dev := range sortedDevices(c.Devices) {
		d.device(c, dev)
	}
	broker := rootSchema.fields["broker"].sub
	d.table("broker", broker, reflect.ValueOf(brokerTable{Broker: c.Broker}))
	d.table("broker.tls", broker.fields["tls"].sub, reflect.ValueOf(c.Broker.TLS))
	d.table("broker.websocket", broker.fields["websocket"].sub, reflect.ValueOf(c.Broker.WebSocket))
	if c.Broker.ACL != nil {
		d.head("broker.acl")
		for _, name := range slices.Sorted(maps.Keys(c.Broker.ACL)) {
			rules := []string{}
			for _, r := range c.Broker.ACL[name] {
				rules = append(rules, r.Verb+" "+r.Filter)
			}
			d.line(quote(name), texts(rules))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Uplinks)) {
		u := c.Uplinks[name]
		d.table("uplink."+name, uplinkSchema, reflect.ValueOf(uplinkTable{Uplink: *u}))
		d.routes(u.Routes)
	}
	d.table("buffer", rootSchema.fields["buffer"].sub, reflect.ValueOf(c.Buffer))
	d.table("web", rootSchema.fields["web"].sub, reflect.ValueOf(c.Web))
	d.table("homeassistant", rootSchema.fields["homeassistant"].sub, reflect.ValueOf(c.HomeAssistant))
	return strings.TrimPrefix(d.b.String(), "\n")
}

type dumper struct{ b strings.Builder }

func (d *dumper) head(path string) { fmt.Fprintf(&d.b, "\n[%s]\n", path) }

func (d *dumper) line(key, value string) { fmt.Fprintf(&d.b, "%s = %s\n", key, value) }

// table prints the keys that have a default or a value.
func (d *dumper) table(path string, s *schema, v reflect.Value) {
	sub := &dumper{}
	sub.keys(s, v, nil)
	if sub.b.Len() > 0 {
		d.head(path)
		d.b.WriteString(sub.b.String())
	}
}

func (d *dumper) keys(s *schema, v reflect.Value, skip func(f *field, v reflect.Value) bool) {
	for _, f := range s.order {
		x := v.FieldByIndex(f.index)
		if f.kind == isTable || f.kind == isNode || f.def == "" && f.kind != isSize && f.kind != isHex && x.IsZero() {
			continue
		}
		if skip == nil || !skip(f, x) {
			d.line(f.key, f.format(x))
		}
	}
}

// bus prints the keys of a bus; those of other stand already in the same table.
func (d *dumper) bus(b *Bus, other *schema) {
	t := busTable{Bus: *b, FormatText: b.Format()}
	tcpOnly := []string{"tls", "pipeline"}
	serialOnly := []string{"baud", "format", "rs485", "exclusive"}
	d.keys(busSchema, reflect.ValueOf(t), func(f *field, v reflect.Value) bool {
		isDefault := v.Equal(busSchema.proto.FieldByIndex(f.index)) || f.key == "format" && v.String() == f.def
		return other != nil && other.fields[f.key] != nil && f.key != "serial" && f.key != "tcp" ||
			b.TCP == "" && slices.Contains(tcpOnly, f.key) ||
			b.TCP != "" && slices.Contains(serialOnly, f.key) && isDefault
	})
}

func (d *dumper) device(c *Config, dev *Device) {
	d.head("device." + dev.Name)
	own := c.Buses[dev.Bus] != nil && c.Buses[dev.Bus].Own
	if own {
		d.bus(c.Buses[dev.Bus], deviceSchema)
	}
	d.keys(deviceSchema, reflect.ValueOf(deviceTable{Device: *dev}), func(f *field, _ reflect.Value) bool {
		return own && f.key == "bus" || f.key == "order" || f.key == "address_base"
	})
	d.line("address_base", "0")
	if dev.Frame != nil {
		d.head("device." + dev.Name + ".frame")
		d.keys(frameSchema, reflect.ValueOf(*dev.Frame), nil)
		if dev.Frame.Kind == "length" && dev.Frame.At == 0 {
			d.line("at", "0")
		}
	}
	d.head("device." + dev.Name + ".points")
	under := map[string]*Point{}
	if dev.profile != nil {
		for i := range dev.profile.Points {
			under[dev.profile.Points[i].Name] = &dev.profile.Points[i]
		}
	}
	for i := range dev.Points {
		p := &dev.Points[i]
		d.line(p.Name, pointText(p, dev.Interval, under[p.Name]))
		delete(under, p.Name)
	}
	for _, name := range slices.Sorted(maps.Keys(under)) {
		d.line(name, "{ enabled = false }")
	}
}

// pointText is a point as an inline table: what differs from the defaults, or
// from under, the point of the profile.
func pointText(p *Point, interval time.Duration, under *Point) string {
	var keys []string
	add := func(key, value string) { keys = append(keys, key+" = "+value) }
	if p.Table != "" {
		add(p.Table, address(int64(p.Addr)))
	}
	v := reflect.ValueOf(pointTable{Point: *p})
	var w reflect.Value
	if under != nil {
		w = reflect.ValueOf(pointTable{Point: *under})
	}
	for _, f := range pointSchema.order {
		if slices.Contains(modbusPlaces, f.key) || f.key == "enabled" {
			continue
		}
		x := v.FieldByIndex(f.index)
		differs := under != nil && !reflect.DeepEqual(x.Interface(), w.FieldByIndex(f.index).Interface())
		say := differs || !reflect.DeepEqual(x.Interface(), pointSchema.proto.FieldByIndex(f.index).Interface())
		switch f.key {
		case "interval":
			say = p.Interval != interval || under != nil && under.Interval != 0
		case "label":
			say = p.Label != p.Name || differs
		case "order":
			say = true
		}
		if say && f.sayable(x) {
			add(f.key, f.format(x))
		}
	}
	return "{ " + strings.Join(keys, ", ") + " }"
}

// sayable tells whether a value can be written: nil, -1 and the like mean that the key is not there.
func (f *field) sayable(v reflect.Value) bool {
	switch {
	case f.absent != "":
		return v.Int() >= 0
	case f.kind == isFloat, f.kind == isScalar:
		return v.Kind() == reflect.Float64 || !v.IsNil()
	case f.hiText != "" && f.def == "":
		return !v.IsZero()
	case f.oneof != nil && f.oneof[0] != "":
		return !v.IsZero()
	case f.kind == isInts:
		return v.Len() > 0
	}
	return true
}

func (d *dumper) routes(routes []Route) {
	if len(routes) == 0 {
		return
	}
	d.b.WriteString("route = [\n")
	for _, r := range routes {
		var keys []string
		for _, f := range routeSchema.order {
			keys = append(keys, f.key+" = "+f.format(reflect.ValueOf(r).FieldByIndex(f.index)))
		}
		d.b.WriteString("  { " + strings.Join(keys, ", ") + " },\n")
	}
	d.b.WriteString("]\n")
}

// format is a value as TOML.
func (f *field) format(v reflect.Value) string {
	switch f.kind {
	case isText:
		return quote(v.String())
	case isDuration:
		if v.IsZero() && f.zero != "" {
			return quote(f.zero)
		}
		return quote(formatDuration(time.Duration(v.Int())))
	case isSize:
		return quote(formatSize(v.Int()))
	case isHex:
		return quote(strings.ToUpper(fmt.Sprintf("% x", v.Bytes())))
	case isDecimal:
		return decimalText(v.Interface().(Decimal))
	case isFloat:
		return floatText(reflect.Indirect(v).Float())
	case isTexts:
		return texts(v.Interface().([]string))
	case isPatterns, isInts:
		var list []string
		for i := range v.Len() {
			list = append(list, strconv.FormatInt(v.Index(i).Int(), 10))
		}
		return "[" + strings.Join(list, ", ") + "]"
	case isWords:
		var list []string
		for _, w := range v.Interface().([]Word) {
			list = append(list, strconv.FormatInt(w.N, 10)+" = "+quote(w.Text))
		}
		return "{ " + strings.Join(list, ", ") + " }"
	case isScalar:
		switch x := v.Interface().(type) {
		case string:
			return quote(x)
		case float64:
			return floatText(x)
		default:
			return fmt.Sprint(x)
		}
	}
	if f.key == "scale_register" {
		return address(v.Int())
	}
	return fmt.Sprint(v.Interface())
}

// address prints large addresses so that they do not look like numbers of a list.
func address(n int64) string {
	if n > 10000 {
		return fmt.Sprintf("0x%X", n)
	}
	return strconv.FormatInt(n, 10)
}

// floatText is a float that TOML reads as one: 1 becomes 1.0.
func floatText(v float64) string {
	s := strconv.FormatFloat(v, 'g', -1, 64)
	if !strings.ContainsAny(s, ".e") {
		s += ".0"
	}
	return s
}

func texts(list []string) string {
	quoted := make([]string, len(list))
	for i, s := range list {
		quoted[i] = quote(s)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

// quote is a TOML basic string.
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < 0x20 || r == 0x7f:
			fmt.Fprintf(&b, "\\u%04X", r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}
