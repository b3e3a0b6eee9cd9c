package homeassistant

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"busgate/config"
)

// What Home Assistant documents, as of 2024.12, when device-based discovery came.
//
//	https://www.home-assistant.io/integrations/mqtt/#device-discovery-payload
//	https://www.home-assistant.io/integrations/mqtt/#using-abbreviations-and-base-topic
//	https://www.home-assistant.io/integrations/mqtt/#using-availability-topics
//
// The abbreviations are those of homeassistant/components/mqtt/abbreviations.py.
var abbreviations = map[string]string{
	"avty": "availability", "avty_mode": "availability_mode", "cmd_t": "command_topic", "cmps": "components", "dev": "device",
	"dev_cla": "device_class", "ent_cat": "entity_category", "exp_aft": "expire_after", "o": "origin", "ops": "options", "p": "platform",
	"pl_off": "payload_off", "pl_on": "payload_on", "stat_cla": "state_class", "stat_t": "state_topic", "t": "topic",
	"uniq_id": "unique_id", "unit_of_meas": "unit_of_measurement", "val_tpl": "value_template",
}

// long is a key as it is documented.
func long(k string) string {
	if l, ok := abbreviations[k]; ok {
		return l
	}
	return k
}

var (
	deviceKeys = map[string]string{"ids": "identifiers", "cns": "connections", "name": "name", "mf": "manufacturer", "mdl": "model", "mdl_id": "model_id",
		"hw": "hw_version", "sw": "sw_version", "sa": "suggested_area", "sn": "serial_number", "cu": "configuration_url", "via_device": "via_device"}
	originKeys = map[string]string{"name": "name", "sw": "sw_version", "url": "support_url"}

	// "Supported shared options are ... ; device and origin are mandatory".
	rootMust = strings.Fields("device origin components")
	rootMay  = strings.Fields("availability availability_mode command_topic state_topic qos encoding")

	common = strings.Fields("platform unique_id name device_class entity_category state_topic value_template qos icon enabled_by_default encoding default_entity_id")
	// https://www.home-assistant.io/integrations/sensor.mqtt/ and so on.
	platforms = map[string][]string{
		"sensor":        strings.Fields("expire_after force_update last_reset_value_template options state_class suggested_display_precision unit_of_measurement"),
		"binary_sensor": strings.Fields("expire_after force_update off_delay payload_on payload_off"),
		"switch":        strings.Fields("command_topic command_template optimistic payload_on payload_off retain state_on state_off"),
		"number":        strings.Fields("command_topic command_template max min mode optimistic payload_reset retain step unit_of_measurement"),
		"select":        strings.Fields("command_topic command_template optimistic options retain"),
	}
	needs = map[string][]string{
		"sensor": {"state_topic"}, "binary_sensor": {"state_topic"}, "switch": {"command_topic"}, "number": {"command_topic"}, "select": {"command_topic", "options"},
	}

	// https://www.home-assistant.io/integrations/sensor/#device-class with the
	// units of each class, of those that units of ours lead to.
	classUnits = map[string]string{
		"voltage": "V", "current": "A", "power": "W kW", "energy": "Wh kWh", "frequency": "Hz", "temperature": "°C", "humidity": "%",
		"pressure": "hPa", "illuminance": "lx", "duration": "s", "pm25": "µg/m³", "carbon_dioxide": "ppm",
	}
	// https://developers.home-assistant.io/docs/core/entity/sensor/#available-state-classes
	stateClasses = strings.Fields("measurement total total_increasing")
	// "energy" takes no state class measurement: https://developers.home-assistant.io/docs/core/entity/sensor/#long-term-statistics
)

// everyKind is a device with a point of every kind.
func everyKind() *config.Device {
	words := []config.Word{{N: 0, Text: "off"}, {N: 1, Text: "run"}}
	d := &config.Device{Name: "kinds", Label: "Kinds", Interval: time.Second, Publish: "always"}
	for _, p := range []config.Point{
		{Name: "volt", Type: "float32", Unit: "V", Digits: 1, Kind: "measurement", Class: "voltage"}, {Name: "door", Type: "bool"},
		{Name: "relay", Type: "bool", Write: true}, {Name: "limit", Type: "uint16", Write: true, Min: ptr(0), Max: ptr(100), Unit: "%"},
		{Name: "mode", Type: "uint16", Write: true, Enum: words}, {Name: "state", Type: "uint16", Enum: words}, {Name: "flags", Type: "uint16", Flags: words},
		{Name: "serial", Type: "string"}, {Name: "since", Type: "unix32"},
	} {
		p.Bit = -1
		if p.Digits == 0 {
			p.Digits = -1
		}
		d.Points = append(d.Points, p)
	}
	return d
}

// TestPayloadKeepsToTheDocumentation: what Home Assistant's schemas refuse would
// be dropped with a line in its log, and the device would be missing.
func TestPayloadKeepsToTheDocumentation(t *testing.T) {
	cfg := testConfig()
	cfg.Devices["kinds"] = everyKind()
	all := All(cfg, release)
	if len(all) != 3 {
		t.Fatalf("%d announcements", len(all))
	}
	ids := map[string]bool{}
	for _, a := range all {
		// <discovery_prefix>/device/<object_id>/config; object_id of [a-zA-Z0-9_-].
		levels := strings.Split(a.Topic, "/")
		if len(levels) != 4 || levels[0] != "homeassistant" || levels[1] != "device" || levels[3] != "config" ||
			strings.Trim(levels[2], "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") != "" {
			t.Errorf("topic %s", a.Topic)
		}
		var root map[string]json.RawMessage
		unmarshal(t, a.Payload, &root)
		names := map[string]json.RawMessage{}
		for k, v := range root {
			if names[long(k)] = v; !slices.Contains(rootMust, long(k)) && !slices.Contains(rootMay, long(k)) {
				t.Errorf("%s: %s is no shared option", a.Topic, k)
			}
		}
		for _, k := range rootMust {
			if names[k] == nil {
				t.Errorf("%s: %s is mandatory", a.Topic, k)
			}
		}
		checkKeys(t, a.Topic+" device", names["device"], deviceKeys, "identifiers")
		checkKeys(t, a.Topic+" origin", names["origin"], originKeys, "name")
		var avail []map[string]string
		unmarshal(t, names["availability"], &avail)
		for _, x := range avail { // payload_available is online by default
			if len(x) != 1 || x["t"] == "" {
				t.Errorf("%s: availability %v", a.Topic, x)
			}
		}
		if string(names["availability_mode"]) != `"all"` {
			t.Errorf("%s: availability_mode %s", a.Topic, names["availability_mode"])
		}
		var comps map[string]map[string]any
		unmarshal(t, names["components"], &comps)
		for key, c := range comps {
			checkComponent(t, a.Topic+" "+key, c, names["state_topic"] != nil)
			id, _ := c["uniq_id"].(string)
			if ids[id] {
				t.Errorf("%s: unique_id %s is there twice", key, id)
			}
			ids[id] = true
		}
	}
}

func unmarshal(t *testing.T, b []byte, v any) {
	t.Helper()
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatalf("%s: %v", b, err)
	}
}

func checkKeys(t *testing.T, where string, raw json.RawMessage, known map[string]string, must string) {
	t.Helper()
	var m map[string]any
	unmarshal(t, raw, &m)
	has := false
	for k := range m {
		if known[k] == "" {
			t.Errorf("%s: key %s", where, k)
		}
		has = has || known[k] == must
	}
	if !has {
		t.Errorf("%s: no %s", where, must)
	}
}

func checkComponent(t *testing.T, where string, c map[string]any, shared bool) {
	t.Helper()
	kind, _ := c["p"].(string)
	allowed := platforms[kind]
	if allowed == nil || c["uniq_id"] == nil {
		t.Errorf("%s: platform %q, unique_id %v: both are required", where, kind, c["uniq_id"])
	}
	has := map[string]any{}
	for k, v := range c {
		if has[long(k)] = v; !slices.Contains(common, long(k)) && !slices.Contains(allowed, long(k)) {
			t.Errorf("%s: a %s has no option %s", where, kind, long(k))
		}
	}
	for _, k := range needs[kind] {
		if has[k] == nil && !(k == "state_topic" && shared) {
			t.Errorf("%s: a %s needs %s", where, kind, k)
		}
	}
	class, _ := has["device_class"].(string)
	unit, _ := has["unit_of_measurement"].(string)
	if units, known := classUnits[class]; known && kind == "sensor" && !slices.Contains(strings.Fields(units), unit) {
		t.Errorf("%s: device_class %s with the unit %q, want one of %s", where, class, unit, units)
	}
	if sc, ok := has["state_class"].(string); ok {
		if !slices.Contains(stateClasses, sc) || class == "energy" && sc == "measurement" {
			t.Errorf("%s: state_class %s of device_class %s", where, sc, class)
		}
	}
	if n, ok := has["suggested_display_precision"].(float64); ok && (n != float64(int(n)) || n < 0) {
		t.Errorf("%s: precision %v", where, n)
	}
	if kind == "number" { // vol.Range(min=1e-3) of the step, min < max
		if s, _ := has["step"].(float64); s < 1e-3 {
			t.Errorf("%s: step %v", where, s)
		}
		lo, _ := has["min"].(float64)
		if hi, _ := has["max"].(float64); lo >= hi {
			t.Errorf("%s: min %v, max %v", where, lo, hi)
		}
	}
}
