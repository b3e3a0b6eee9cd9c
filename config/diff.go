package config

import (
	"maps"
	"reflect"
	"slices"
	"strings"
)

// Effect is what a change does to something that runs. A later one includes those before it.
type Effect int

const (
	Unchanged Effect = iota
	Announce         // label, unit, class, kind: info and discovery are published again
	Replan           // points, interval, order, publish: the plan is rebuilt after the exchange in flight
	Restart          // unit_id, profile: a device goes offline and starts anew; an uplink reconnects
	Reopen           // baud, format, timeout, gap: a bus closes and opens
	Added
	Removed
)

var effectNames = [...]string{"unchanged", "announce", "replan", "restart", "reopen", "added", "removed"}

// String is the effect in one word.
func (e Effect) String() string { return effectNames[e] }

// Change is what happens to one bus, device or uplink.
type Change struct {
	Name   string
	Effect Effect
	Keys   []string // what changed, sorted: "baud", "points.voltage.scale"; nil when it was added or removed
}

// Changes is the difference of two configurations. Each list is sorted by name;
// what is not in a list goes on undisturbed.
type Changes struct {
	Refused       []string // keys of [gateway] that need a restart of the service: name, topic, data_dir
	Gateway       []string // other keys of [gateway]: live
	Buses         []Change // also the wire that a device has of its own, under the device's name
	Devices       []Change
	Uplinks       []Change // a removed one leaves its backlog
	Listen        []string // keys of [broker] that need another listener: listen, socket, tls.listen ...
	Broker        []string // other keys of [broker]: live
	Buffer        []string // all live
	Web           []string
	HomeAssistant []string
}

// Empty tells that nothing changed.
func (c *Changes) Empty() bool { return reflect.ValueOf(*c).IsZero() }

// Refusals says why the configuration cannot be taken live; nil when it can.
func (c *Changes) Refusals() []string {
	var out []string
	for _, key := range c.Refused {
		out = append(out, "`"+key+"` needs a restart: systemctl restart busgate")
	}
	return out
}

// Diff compares two configurations. It does not look into files that they name.
func Diff(old, new *Config) Changes {
	var c Changes
	for _, key := range changed(rootSchema.fields["gateway"].sub, old.Gateway, new.Gateway) {
		if slices.Contains([]string{"name", "topic", "data_dir"}, key) {
			c.Refused = append(c.Refused, key)
		} else {
			c.Gateway = append(c.Gateway, key)
		}
	}
	c.Buses = compare(old.Buses, new.Buses, diffBus)
	c.Devices = compare(old.Devices, new.Devices, diffDevice)
	c.Uplinks = compare(old.Uplinks, new.Uplinks, diffUplink)
	keys := changed(rootSchema.fields["broker"].sub, brokerTable{Broker: old.Broker}, brokerTable{Broker: new.Broker})
	if !reflect.DeepEqual(old.Broker.ACL, new.Broker.ACL) {
		keys = append(keys, "acl")
	}
	for _, key := range keys {
		if slices.Contains([]string{"enabled", "listen", "socket", "websocket.origins"}, key) || strings.HasSuffix(key, ".listen") {
			c.Listen = append(c.Listen, key)
		} else {
			c.Broker = append(c.Broker, key)
		}
	}
	slices.Sort(c.Broker)
	c.Buffer = changed(rootSchema.fields["buffer"].sub, old.Buffer, new.Buffer)
	c.Web = changed(rootSchema.fields["web"].sub, old.Web, new.Web)
	c.HomeAssistant = changed(rootSchema.fields["homeassistant"].sub, old.HomeAssistant, new.HomeAssistant)
	return c
}

// compare walks two maps in the order of their names.
func compare[T any](old, new map[string]*T, diff func(a, b *T) (Effect, []string)) []Change {
	var out []Change
	names := slices.Sorted(maps.Keys(old))
	for name := range new {
		if old[name] == nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		switch a, b := old[name], new[name]; {
		case a == nil:
			out = append(out, Change{Name: name, Effect: Added})
		case b == nil:
			out = append(out, Change{Name: name, Effect: Removed})
		default:
			if effect, keys := diff(a, b); effect != Unchanged {
				slices.Sort(keys)
				out = append(out, Change{name, effect, keys})
			}
		}
	}
	return out
}

// changed lists the keys of a schema whose values differ, sorted; keys of sub-tables as "tls.cert".
func changed(s *schema, a, b any) []string {
	var keys []string
	x, y := reflect.ValueOf(a), reflect.ValueOf(b)
	for _, f := range s.order {
		p, q := x.FieldByIndex(f.index).Interface(), y.FieldByIndex(f.index).Interface()
		if f.kind == isTable {
			for _, k := range changed(f.sub, p, q) {
				keys = append(keys, f.key+"."+k)
			}
		} else if !reflect.DeepEqual(p, q) {
			keys = append(keys, f.key)
		}
	}
	slices.Sort(keys)
	return keys
}

func diffBus(a, b *Bus) (Effect, []string) {
	keys := changed(busSchema, busTable{*a, a.Format()}, busTable{*b, b.Format()})
	effect := Unchanged
	for _, k := range keys {
		if slices.Contains([]string{"retries", "max_read", "max_hole"}, k) {
			effect = max(effect, Replan)
		} else {
			effect = max(effect, Reopen)
		}
	}
	return effect, keys
}

func diffUplink(a, b *Uplink) (Effect, []string) {
	keys := changed(uplinkSchema, uplinkTable{Uplink: *a}, uplinkTable{Uplink: *b})
	if !reflect.DeepEqual(a.Routes, b.Routes) {
		keys = append(keys, "route")
	}
	if len(keys) == 0 {
		return Unchanged, nil
	}
	return Restart, keys
}

// announced are the keys of devices and points that only change what is told about them.
var announced = []string{"label", "unit", "class", "kind"}

func diffDevice(a, b *Device) (Effect, []string) {
	keys := changed(deviceSchema, deviceTable{Device: *a}, deviceTable{Device: *b})
	effect := Unchanged
	for _, k := range keys {
		switch {
		case slices.Contains(announced, k):
			effect = max(effect, Announce)
		case slices.Contains([]string{"bus", "unit_id", "profile", "enabled"}, k):
			effect = max(effect, Restart)
		default:
			effect = max(effect, Replan)
		}
	}
	if a.Maker != b.Maker || a.Model != b.Model {
		effect = max(effect, Announce)
	}
	if a.AnswerTime != b.AnswerTime {
		effect = max(effect, Replan)
	}
	if !reflect.DeepEqual(a.Frame, b.Frame) {
		effect, keys = max(effect, Restart), append(keys, "frame")
	}
	pointEffect, pointKeys := diffPoints(a.Points, b.Points)
	return max(effect, pointEffect), append(keys, pointKeys...)
}

func diffPoints(a, b []Point) (Effect, []string) {
	effect := Unchanged
	var keys []string
	old, sameOrder := map[string]*Point{}, len(a) == len(b)
	for i := range a {
		old[a[i].Name] = &a[i]
		sameOrder = sameOrder && a[i].Name == b[i].Name
	}
	if !sameOrder {
		effect = Replan
	}
	for i := range b {
		p := old[b[i].Name]
		delete(old, b[i].Name)
		if p == nil {
			keys = append(keys, "points."+b[i].Name)
			continue
		}
		ks := changed(pointSchema, pointTable{Point: *p}, pointTable{Point: b[i]})
		if p.Table != b[i].Table || p.Addr != b[i].Addr {
			ks = append(ks, b[i].Table)
		}
		for _, k := range ks {
			keys = append(keys, "points."+b[i].Name+"."+k)
			if slices.Contains(announced, k) {
				effect = max(effect, Announce)
			} else {
				effect = Replan
			}
		}
	}
	for name := range old {
		keys = append(keys, "points."+name)
	}
	if !sameOrder && len(keys) == 0 {
		keys = []string{"points"}
	}
	return effect, keys
}
