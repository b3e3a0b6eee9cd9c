package config

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
)

const diffBase = `
[gateway]
name = "plant-a"
[bus.b]
serial = "/dev/ttyX0"
[device.d]
bus = "b"
label = "D"
points.v = { holding = 0, unit = "V", scale = 0.1 }
points.w = { holding = 1 }
[device.own]
serial = "/dev/ttyX1"
profile = "xy-md02"
[broker]
max_clients = 10
[broker.acl]
x = ["read a"]
[uplink.u]
addresses = ["mqtts://host"]
[buffer]
max_bytes = "1GB"
[web]
hosts = ["a"]
`

// TestDiff is the table of section 11: what a change of the file does.
func TestDiff(t *testing.T) {
	for _, c := range []struct{ name, old, new, want string }{
		{"nothing", "", "", ""},
		{"a comment", "[gateway]", "# hello\n[gateway]", ""},
		{"label", `label = "D"`, `label = "E"`, "Devices d announce label"},
		{"unit, with what follows from it", `unit = "V"`, `unit = "A"`, "Devices d announce points.v.class points.v.unit"},
		{"scale", `scale = 0.1`, `scale = 0.01`, "Devices d replan points.v.digits points.v.scale"},
		{"address", `holding = 1`, `holding = 2`, "Devices d replan points.w.holding"},
		{"register kind", `holding = 1`, `input = 1`, "Devices d replan points.w.input"},
		{"a point more", `[device.own]`, "points.z = { holding = 5 }\n[device.own]", "Devices d replan points.z"},
		{"a point less", "points.w = { holding = 1 }\n", "", "Devices d replan points.w"},
		{"interval", `label = "D"`, "label = \"D\"\ninterval = \"1s\"", "Devices d replan interval points.v.interval points.w.interval"},
		{"publish", `label = "D"`, "label = \"D\"\npublish = \"change\"", "Devices d replan publish"},
		{"unit_id", `label = "D"`, "label = \"D\"\nunit_id = 9", "Devices d restart unit_id"},
		{"profile", `profile = "xy-md02"`, `points.temperature = { input = 1, type = "int16", scale = 0.1, unit = "°C", interval = "10s" }`,
			"Devices own restart points.humidity profile"},
		{"baud", `serial = "/dev/ttyX0"`, "serial = \"/dev/ttyX0\"\nbaud = 19200", "Buses b reopen baud"},
		{"format", `serial = "/dev/ttyX0"`, "serial = \"/dev/ttyX0\"\nformat = \"8E1\"", "Buses b reopen format"},
		{"timeout, gap, rs485", `serial = "/dev/ttyX0"`, "serial = \"/dev/ttyX0\"\ntimeout = \"1s\"\ngap = \"5ms\"\nrs485 = \"off\"", "Buses b reopen gap rs485 timeout"},
		{"max_hole", `serial = "/dev/ttyX0"`, "serial = \"/dev/ttyX0\"\nmax_hole = 3", "Buses b replan max_hole"},
		{"wire of its own", `serial = "/dev/ttyX1"`, `serial = "/dev/ttyX2"`, "Buses own reopen serial"},
		{"device removed", diffBase[strings.Index(diffBase, "[device.own]"):strings.Index(diffBase, "[broker]")], "", "Buses own removed; Devices own removed"},
		{"device renamed", `[device.d]`, `[device.e]`, "Devices d removed; Devices e added"},
		{"max_clients", `max_clients = 10`, `max_clients = 11`, "Broker max_clients"},
		{"acl", `"read a"`, `"read b"`, "Broker acl"},
		{"another listener", `max_clients = 10`, "max_clients = 10\nlisten = \"127.0.0.1:1884\"\nwebsocket.listen = \"127.0.0.1:9001\"", "Listen listen websocket.listen"},
		{"uplink key", `addresses = ["mqtts://host"]`, "addresses = [\"mqtts://host\"]\nqos = 0\nroute = [{ filter = \"x\" }]", "Uplinks u restart qos route"},
		{"uplink renamed", `[uplink.u]`, `[uplink.w]`, "Uplinks u removed; Uplinks w added"},
		{"buffer", `max_bytes = "1GB"`, `max_bytes = "2GB"`, "Buffer max_bytes"},
		{"log", `name = "plant-a"`, "name = \"plant-a\"\nlog = \"debug\"", "Gateway log"},
		{"web", `hosts = ["a"]`, `hosts = ["b"]`, "Web hosts"},
		{"homeassistant", "[web]", "[homeassistant]\ndiscovery = true\n[web]", "HomeAssistant discovery"},
		{"name, which is refused", `name = "plant-a"`, "name = \"plant-b\"\ndata_dir = \"/x\"\ntopic = \"y\"",
			"Refused data_dir name topic; Uplinks u restart client_id send"},
	} {
		if !strings.Contains(diffBase, c.old) {
			t.Errorf("%s: the base does not hold %q", c.name, c.old)
		}
		changes := Diff(mustParse(t, diffBase), mustParse(t, strings.Replace(diffBase, c.old, c.new, 1)))
		if got := summary(changes); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.want)
		}
		if changes.Empty() != (c.want == "") {
			t.Errorf("%s: Empty is %v", c.name, changes.Empty())
		}
	}
}

func summary(c Changes) string {
	var out []string
	v := reflect.ValueOf(c)
	for i := range v.NumField() {
		name := v.Type().Field(i).Name
		switch list := v.Field(i).Interface().(type) {
		case []Change:
			for _, ch := range list {
				out = append(out, strings.Join(append([]string{name, ch.Name, ch.Effect.String()}, ch.Keys...), " "))
			}
		case []string:
			if len(list) > 0 {
				out = append(out, name+" "+strings.Join(list, " "))
			}
		default:
			out = append(out, fmt.Sprint(list))
		}
	}
	order := []string{}
	for _, prefix := range []string{"Refused", "Gateway", "Buses", "Devices", "Uplinks", "Listen", "Broker", "Buffer", "Web", "Home"} {
		for _, s := range out {
			if strings.HasPrefix(s, prefix) {
				order = append(order, s)
			}
		}
	}
	return strings.Join(order, "; ")
}

func TestRefusals(t *testing.T) {
	c := Diff(mustParse(t, diffBase), mustParse(t, strings.Replace(diffBase, "plant-a", "plant-b", 1)))
	if got := c.Refusals(); len(got) != 1 || got[0] != "`name` needs a restart: systemctl restart busgate" {
		t.Errorf("%q", got)
	}
}

// TestDiffSeesEveryKey: no key of a schema can change unnoticed.
func TestDiffSeesEveryKey(t *testing.T) {
	for name, s := range map[string]*schema{"gateway": rootSchema.fields["gateway"].sub, "bus": busSchema, "device": deviceSchema, "point": pointSchema,
		"broker": rootSchema.fields["broker"].sub, "uplink": uplinkSchema, "buffer": rootSchema.fields["buffer"].sub} {
		for _, f := range s.order {
			if f.kind == isTable || f.kind == isNode {
				continue
			}
			a, b := reflect.New(s.proto.Type()).Elem(), reflect.New(s.proto.Type()).Elem()
			x := b.FieldByIndex(f.index)
			switch x.Kind() {
			case reflect.Pointer:
				x.Set(reflect.New(x.Type().Elem()))
			case reflect.Slice:
				x.Set(reflect.MakeSlice(x.Type(), 1, 1))
			case reflect.Interface:
				x.Set(reflect.ValueOf(1))
			case reflect.String:
				x.SetString("x")
			case reflect.Bool:
				x.SetBool(true)
			case reflect.Float64:
				x.SetFloat(1)
			case reflect.Struct:
				x.Set(reflect.ValueOf(Decimal{1, 1}))
			case reflect.Uint8:
				x.SetUint(1)
			default:
				x.SetInt(1)
			}
			if got := changed(s, a.Interface(), b.Interface()); len(got) != 1 || got[0] != f.key {
				t.Errorf("%s.%s: %v", name, f.key, got)
			}
		}
	}
}
