package config

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

func sortedDevices(m map[string]*Device) []*Device {
	var out []*Device
	for _, name := range slices.Sorted(maps.Keys(m)) {
		out = append(out, m[name])
	}
	return out
}

// wires checks buses against each other and devices on their buses.
func (l *loader) wires() {
	l.oneWireOneBus()
	l.oneUnitOneDevice()
	for _, d := range sortedDevices(l.cfg.Devices) {
		l.fits(d)
	}
	for _, name := range slices.Sorted(maps.Keys(l.cfg.Buses)) {
		b, n := l.cfg.Buses[name], l.nodeOf(name)
		c := n.get("format")
		if c != nil && !c.bad && b.TCP == "" && b.DataBits != 8 && b.Protocol == "modbus-rtu" {
			l.atVal(c, "`format` %s has %d data bits; modbus-rtu needs 8 (modbus-ascii does with 7)", b.Format(), b.DataBits)
		}
		l.lasting(n.get("serial"), b.Serial)
	}
}

// nodeOf is the table in which a bus is written.
func (l *loader) nodeOf(bus string) *node {
	if n := l.busNode[bus]; n != nil {
		return n
	}
	return l.deviceNode[bus]
}

// oneWireOneBus: two buses on one port would talk into each other's answers.
func (l *loader) oneWireOneBus() {
	seen := map[string]*Bus{}
	names := slices.Sorted(maps.Keys(l.cfg.Buses))
	slices.SortStableFunc(names, func(a, b string) int { // declared ones first: they are told of by the others
		return own(l.cfg.Buses[a]) - own(l.cfg.Buses[b])
	})
	for _, name := range names {
		b, n := l.cfg.Buses[name], l.nodeOf(name)
		key := "serial"
		if n.get("serial") == nil {
			key = "tcp"
		}
		c := n.get(key)
		if c == nil || c.bad {
			continue
		}
		wire := strings.ToLower(b.TCP)
		if b.Serial != "" {
			wire = filepath.Clean(b.Serial)
			if real, err := filepath.EvalSymlinks(wire); err == nil {
				wire = real
			}
		}
		other := seen[wire]
		if other == nil {
			seen[wire] = b
			continue
		}
		path := b.Serial + b.TCP
		at := c.ref(l.nodeOf(other.Name).get(key))
		if other.Own && b.Own {
			l.atVal(c, "%s is already the wire of device `%s` (%s); declare [bus.NAME] and give both `bus = \"NAME\"`", path, other.Name, at)
		} else {
			l.atVal(c, "%s is already the wire of bus `%s` (%s); put the devices of one wire on one bus", path, other.Name, at)
		}
	}
}

func own(b *Bus) int {
	if b.Own {
		return 1
	}
	return 0
}

// oneUnitOneDevice: two devices that are switched on have two addresses.
func (l *loader) oneUnitOneDevice() {
	type unit struct {
		bus string
		id  uint8
	}
	seen := map[unit]*Device{}
	for _, d := range sortedDevices(l.cfg.Devices) {
		n := l.deviceNode[d.Name]
		if d.Frame != nil || !d.Enabled || d.Bus == "" || n.broken("bus", "unit_id", "enabled", "profile", "frame") {
			continue
		}
		at := n
		if c := n.get("unit_id"); c != nil {
			at = c
		}
		k := unit{d.Bus, d.UnitID}
		if other := seen[k]; other != nil {
			l.atVal(at, "unit %d of bus `%s` is already device `%s` (%s); two devices with one address answer at the same time",
				d.UnitID, d.Bus, other.Name, at.ref(l.deviceNode[other.Name]))
			continue
		}
		seen[k] = d
	}
}

// fits checks a device against the kind of its bus.
func (l *loader) fits(d *Device) {
	n, b := l.deviceNode[d.Name], l.cfg.Buses[d.Bus]
	if b == nil || n.broken("bus", "protocol", "profile", "frame") || l.nodeOf(d.Bus).broken("protocol", "serial", "tcp") {
		return
	}
	uart := b.Protocol == "uart"
	switch {
	case uart && d.Frame == nil:
		l.atKey(n, "bus `%s` is a UART, and device `%s` does not say how its frames look: give [device.%s.frame] or another profile", b.Name, d.Name, d.Name)
	case !uart && d.Frame != nil:
		l.atKey(n, "device `%s` is a UART sensor, but bus `%s` speaks %s", d.Name, b.Name, b.Protocol)
	case !uart && b.Serial != "" && (d.UnitID < 1 || d.UnitID > 247) && n.has("unit_id"): // Modbus over serial line 1.02, 2.2
		l.atVal(n.get("unit_id"), "`unit_id` must be from 1 to 247 on a serial bus")
	}
}

// lasting warns of /dev/ttyUSB0 when the same port has a name that does not depend on the socket.
func (l *loader) lasting(c *node, path string) {
	if c == nil || c.bad || filepath.Dir(path) != "/dev" {
		return
	}
	links, err := os.ReadDir(l.env.byID)
	if err != nil {
		return
	}
	for _, e := range links {
		name := filepath.Join(l.env.byID, e.Name())
		target, err := os.Readlink(name)
		if err == nil && filepath.Base(target) == filepath.Base(path) {
			l.warnVal(c, "%s can change its number; its lasting name is %s", path, name)
			return
		}
	}
}
