package config

import (
	"cmp"
	"slices"
	"strings"
)

// Limits of what one process serves.
const (
	maxBuses   = 64
	maxDevices = 1000
	maxState   = 256 << 10 // bytes of one state message
)

// buses reads all [bus.NAME].
func (l *loader) buses(n *node) {
	l.named("bus", n, func(name string, c *node) {
		l.busNode[name] = c
		l.cfg.Buses[name] = l.bus(name, c, false, nil, false)
	})
}

// devices reads all [device.NAME]; buses is [bus].
func (l *loader) devices(n, buses *node) {
	l.named("device", n, func(name string, c *node) {
		if name == "gateway" {
			l.atKey(c, "`%s` is taken by the program itself; choose another name", name)
			return
		}
		l.deviceNode[name] = c
		l.cfg.Devices[name] = l.device(name, c)
	})
	if len(l.cfg.Devices) > maxDevices {
		l.atKey(n, "there are %d devices; at most %d are possible", len(l.cfg.Devices), maxDevices)
	}
	if len(l.cfg.Buses) > maxBuses { // counting the wires that devices have of their own
		l.atKey(cmp.Or(buses, n), "there are %d buses; at most %d are possible", len(l.cfg.Buses), maxBuses)
	}
}

func (l *loader) device(name string, n *node) *Device {
	var t deviceTable
	l.decode(n, deviceSchema, &t, busSchema)
	d := &t.Device
	d.Name = name
	d.Label = cmp.Or(d.Label, name)
	file := l.profileOf(n, d)
	var p *Profile
	if file != nil {
		p = file.p
		l.layDevice(&t, n, p)
	}
	d.Interval = cmp.Or(d.Interval, l.cfg.Gateway.Interval)
	l.writeFC(n, d.WriteFC)
	var profileFrame *node
	if file != nil {
		profileFrame = file.root.get("frame")
	}
	frame := overlay(profileFrame, t.FrameNode, 1)
	if profileFrame != nil {
		n.table["frame"] = frame // for Where
	}
	d.Frame = l.frame(frame)
	l.wire(name, n, &t, p)
	l.devicePoints(n, &t, file)
	return d
}

// profileOf finds the profile of a device; nil when it has none or a wrong one.
func (l *loader) profileOf(n *node, d *Device) *profileFile {
	c := n.get("profile")
	if c == nil || c.bad {
		return nil
	}
	file := l.profile(d.Profile)
	if file == nil {
		l.atVal(c, "there is no profile %q%s; list them: busgate profiles", d.Profile, meant(d.Profile, l.profileNames()))
		return nil
	}
	if file.failed { // told where it stands
		c.bad = true
		return nil
	}
	d.profile = file.p
	d.Maker, d.Model, d.AnswerTime = file.p.Maker, file.p.Model, file.p.AnswerTime
	return file
}

// layDevice puts the defaults of the profile under what is written.
func (l *loader) layDevice(t *deviceTable, n *node, p *Profile) {
	d := &p.Defaults
	if d.UnitID != 0 && n.get("unit_id") == nil {
		t.UnitID = uint8(d.UnitID)
	}
	if d.Order != "" && n.get("order") == nil {
		t.Order = d.Order
	}
	if d.AddressBase != 0 && n.get("address_base") == nil {
		t.AddressBase = d.AddressBase
	}
	if d.Publish != "" && n.get("publish") == nil {
		t.Publish = d.Publish
	}
	if d.Heartbeat != 0 && n.get("heartbeat") == nil {
		t.Heartbeat = d.Heartbeat
	}
	if d.OfflineAfter != 0 && n.get("offline_after") == nil {
		t.OfflineAfter = d.OfflineAfter
	}
	if d.WriteFC != 0 && n.get("write_fc") == nil {
		t.WriteFC = d.WriteFC
	}
	t.MaxRead = cmp.Or(t.MaxRead, d.MaxRead)
	t.Interval = cmp.Or(t.Interval, d.Interval)
}

func (f *findings) writeFC(n *node, fc int) {
	if n.has("write_fc") && fc != 0 && fc != 16 {
		f.atVal(n.get("write_fc"), "`write_fc` cannot be %d; allowed: 0 (by size), 16", fc)
	}
}

// wire finds the bus of a device, or makes one when it has a wire of its own.
func (l *loader) wire(name string, n *node, t *deviceTable, p *Profile) {
	d := &t.Device
	var given []string
	for _, k := range []string{"bus", "serial", "tcp"} {
		if n.get(k) != nil {
			given = append(given, k)
		}
	}
	switch {
	case len(given) == 0:
		l.atKey(n, "device `%s` has no wire: give `bus`, `serial` or `tcp`", name)
	case len(given) > 1:
		l.atKey(n.get(given[1]), "device `%s` has both `%s` (line %d) and `%s`: a device has one wire",
			name, given[0], n.get(given[0]).span.Key.Line, given[1])
		n.get(given[0]).bad = true
	case given[0] == "bus":
		l.sharedWire(n, t, p)
	default:
		b := l.bus(name, n, true, p, d.Frame != nil)
		if other := l.busNode[name]; other != nil {
			l.atKey(n, "device `%s` has a wire of its own, and bus `%s` (%s) has the same name; rename one of them", name, name, n.ref(other))
			return
		}
		d.Bus = name
		d.MaxRead = b.MaxRead
		l.cfg.Buses[name] = b
	}
}

func (l *loader) sharedWire(n *node, t *deviceTable, p *Profile) {
	c, d := n.get("bus"), &t.Device
	if c.bad {
		return
	}
	for _, k := range n.names() {
		if busSchema.fields[k] != nil && deviceSchema.fields[k] == nil {
			l.atKey(n.get(k), "`%s` is a key of the bus: write it in [bus.%s]", k, d.Bus)
		}
	}
	node := l.busNode[d.Bus]
	if node == nil {
		if !l.partial {
			l.atVal(c, "there is no bus `%s`%s", d.Bus, l.whichBus(d.Bus))
		}
		return
	}
	b := l.cfg.Buses[d.Bus]
	if node.get("protocol") == nil && d.Frame != nil {
		b.Protocol = "uart"
	}
	d.MaxRead = min(cmp.Or(d.MaxRead, b.MaxRead), b.MaxRead)
	if p == nil || b.TCP != "" || node.broken("baud", "format") {
		return
	}
	if def := p.Defaults; def.Baud != 0 && def.Baud != b.Baud || def.Format != "" && def.Format != b.Format() {
		l.warnVal(n.get("profile"), "bus `%s` runs at %d %s; %s is delivered with %d %s", d.Bus, b.Baud, b.Format(),
			p.Name, cmp.Or(def.Baud, b.Baud), cmp.Or(def.Format, b.Format()))
	}
}

// whichBus is what follows "there is no bus".
func (l *loader) whichBus(name string) string {
	var names []string
	for n := range l.busNode {
		names = append(names, n)
	}
	slices.Sort(names)
	if m := meant(name, names); m != "" || len(names) == 0 {
		return m
	}
	return "; there is " + strings.Join(names, ", ")
}

// devicePoints lays the points of the device over those of the profile.
func (l *loader) devicePoints(n *node, t *deviceTable, file *profileFile) {
	d := &t.Device
	written := n.get("points")
	if written != nil && written.bad || n.broken("profile") {
		return
	}
	in := pointContext{uart: d.Frame != nil, order: foldOrder(t.Order), interval: d.Interval, base: t.AddressBase, maxRead: d.MaxRead}
	var under *node
	if file != nil {
		under = file.root.get("points")
		in.profileBase = file.p.Defaults.AddressBase
		in.known = under.names()
	}
	points, order := layPoints(under, t.PointsNode)
	if points != nil {
		n.table["points"] = points // for Where
		d.Points = l.pointsIn(points, order, in)
	}
	if len(d.Points) == 0 && !points.wrong() {
		l.atKey(n, "device `%s` has nothing to read: give `profile` or [device.%s.points]", d.Name, d.Name)
	}
	if size := stateSize(d.Points); size > maxState {
		l.atKey(n, "the state of device `%s` would take about %d kB, at most 256 kB are possible; make two devices of it", d.Name, size>>10)
	}
}

// stateSize is an estimate of the state message in bytes.
func stateSize(points []Point) int {
	size := 100
	for i := range points {
		p := &points[i]
		size += len(p.Name) + 24
		if p.Type == "string" || p.Type == "hex" {
			size += 4 * p.Length
		}
		for _, w := range p.Flags {
			size += len(w.Text) + 3
		}
	}
	return size
}

// frame reads [device.NAME.frame] or the [frame] of a profile; nil when there is none.
func (f *findings) frame(n *node) *Frame {
	if n == nil || n.bad || n.table == nil {
		return nil
	}
	fr := &Frame{}
	f.decode(n, frameSchema, fr, nil)
	needs := map[string][]string{"fixed": {"length"}, "delimited": {"start", "end"}, "length": {"at"}}
	for _, k := range needs[fr.Kind] {
		if n.get(k) == nil && !n.broken("kind") {
			f.atKey(n, "a frame of kind %s needs `%s`", fr.Kind, k)
		}
	}
	if fr.Kind == "line" && n.get("end") == nil {
		fr.End = []byte{'\n'}
	}
	if fr.Kind == "line" && len(fr.End) == 0 && n.has("end") {
		f.atVal(n.get("end"), "`end` must not be empty")
	}
	if fr.Length > fr.Max {
		f.atVal(n.get("length"), "`length` %d is above `max` %d", fr.Length, fr.Max)
	}
	return fr
}
