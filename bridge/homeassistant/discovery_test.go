package homeassistant

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"busgate/config"
)

var release = Origin{Version: "1.0.0", URL: "https://example.org/busgate"}

func ptr(f float64) *float64 { return &f }

func testConfig() *config.Config {
	return &config.Config{
		Gateway:       config.Gateway{Name: "plant-a", Topic: "busgate"},
		HomeAssistant: config.HomeAssistant{Discovery: true, Prefix: "homeassistant"},
		Web:           config.Web{Listen: ":8080"},
		Uplinks:       map[string]*config.Uplink{"cloud": {Name: "cloud"}},
		Devices: map[string]*config.Device{
			"grid": {Name: "grid", Label: "Grid meter", Maker: "Eastron", Model: "SDM630", Interval: 2 * time.Second, Publish: "always", Points: []config.Point{
				{Name: "voltage_l1", Type: "float32", Unit: "V", Digits: 1, Kind: "measurement", Class: "voltage", Bit: -1},
				{Name: "import", Type: "float32", Unit: "kWh", Digits: -1, Kind: "total_increasing", Class: "energy", Bit: -1},
			}},
		},
	}
}

func TestGoldenDevice(t *testing.T) {
	all := All(testConfig(), release)
	if len(all) != 2 || all[1].Topic != "homeassistant/device/busgate_plant-a_grid/config" {
		t.Fatalf("announced %+v", all)
	}
	want := `{"dev":{"ids":["busgate_plant-a_grid"],"name":"Grid meter","mf":"Eastron","mdl":"SDM630","via_device":"busgate_plant-a_gateway","cu":"http://plant-a.local:8080/#/device/grid"},` +
		`"o":{"name":"busgate","sw":"1.0.0","url":"https://example.org/busgate"},` +
		`"avty":[{"t":"busgate/plant-a/gateway/status"},{"t":"busgate/plant-a/grid/status"}],"avty_mode":"all",` +
		`"stat_t":"busgate/plant-a/grid/state","qos":1,"cmps":{` +
		`"voltage_l1":{"p":"sensor","uniq_id":"busgate_plant-a_grid_voltage_l1","name":"Voltage L1","dev_cla":"voltage","stat_cla":"measurement","unit_of_meas":"V","val_tpl":"{{ value_json.voltage_l1 }}","suggested_display_precision":1,"exp_aft":6},` +
		`"import":{"p":"sensor","uniq_id":"busgate_plant-a_grid_import","name":"Import","dev_cla":"energy","stat_cla":"total_increasing","unit_of_meas":"kWh","val_tpl":"{{ value_json.import }}","exp_aft":6}}}`
	if got := string(all[1].Payload); got != want {
		t.Errorf("payload\n%s\nwant\n%s", got, want)
	}
}

func TestGoldenGateway(t *testing.T) {
	all := All(testConfig(), release)
	want := `{"dev":{"ids":["busgate_plant-a_gateway"],"name":"busgate plant-a","mf":"busgate","sw":"1.0.0","cu":"http://plant-a.local:8080/#/"},` +
		`"o":{"name":"busgate","sw":"1.0.0","url":"https://example.org/busgate"},"avty":[{"t":"busgate/plant-a/gateway/status"}],"avty_mode":"all",` +
		`"stat_t":"busgate/plant-a/gateway/state","qos":1,"cmps":{` +
		`"uplink_cloud":{"p":"binary_sensor","uniq_id":"busgate_plant-a_gateway_uplink_cloud","name":"Uplink cloud","dev_cla":"connectivity","stat_t":"busgate/plant-a/gateway/uplink/cloud","val_tpl":"{{ 'OFF' if value == 'offline' else 'ON' }}","ent_cat":"diagnostic"},` +
		`"queue":{"p":"sensor","uniq_id":"busgate_plant-a_gateway_queue","name":"Queue","stat_cla":"measurement","val_tpl":"{{ value_json.queue }}","exp_aft":180,"ent_cat":"diagnostic"},` +
		`"queue_oldest":{"p":"sensor","uniq_id":"busgate_plant-a_gateway_queue_oldest","name":"Oldest in the queue","dev_cla":"duration","stat_cla":"measurement","unit_of_meas":"s","val_tpl":"{{ value_json.queue_oldest }}","exp_aft":180,"ent_cat":"diagnostic"},` +
		`"online":{"p":"sensor","uniq_id":"busgate_plant-a_gateway_online","name":"Devices online","stat_cla":"measurement","val_tpl":"{{ value_json.online }}","exp_aft":180,"ent_cat":"diagnostic"},` +
		`"bus_errors_1h":{"p":"sensor","uniq_id":"busgate_plant-a_gateway_bus_errors_1h","name":"Bus errors in an hour","stat_cla":"measurement","val_tpl":"{{ value_json.bus_errors_1h }}","exp_aft":180,"ent_cat":"diagnostic"}}}`
	if got := string(all[0].Payload); got != want {
		t.Errorf("payload\n%s\nwant\n%s", got, want)
	}
}

func TestComponentOfAPoint(t *testing.T) {
	words := []config.Word{{N: 0, Text: "off"}, {N: 1, Text: "run"}}
	for name, c := range map[string]struct {
		p    config.Point
		want string
	}{
		"a bool is a binary sensor": {config.Point{Name: "door", Type: "bool", Digits: -1, Bit: -1},
			`"p":"binary_sensor","uniq_id":"busgate_plant-a_grid_door","name":"Door","val_tpl":"{{ 'ON' if value_json.door is true else 'OFF' if value_json.door is false else 'None' }}"`},
		"a bit is a binary sensor": {config.Point{Name: "door", Type: "uint16", Digits: -1, Bit: 3},
			`"p":"binary_sensor","uniq_id":"busgate_plant-a_grid_door","name":"Door","val_tpl":"{{ 'ON' if value_json.door is true else 'OFF' if value_json.door is false else 'None' }}"`},
		"a bool to write is a switch": {config.Point{Name: "relay1", Type: "bool", Digits: -1, Bit: -1, Write: true},
			`"p":"switch","uniq_id":"busgate_plant-a_grid_relay1","name":"Relay1","val_tpl":"{{ 'true' if value_json.relay1 is true else 'false' if value_json.relay1 is false else 'None' }}","cmd_t":"busgate/plant-a/grid/set/relay1","pl_on":"true","pl_off":"false"`},
		"a number to write is a number": {config.Point{Name: "limit", Type: "uint16", Digits: -1, Bit: -1, Write: true, Unit: "%", Min: ptr(0), Max: ptr(100)},
			`"p":"number","uniq_id":"busgate_plant-a_grid_limit","name":"Limit","unit_of_meas":"%","val_tpl":"{{ value_json.limit }}","cmd_t":"busgate/plant-a/grid/set/limit","min":0,"max":100,"step":1`},
		"its step comes from digits": {config.Point{Name: "limit", Type: "float32", Digits: 2, Bit: -1, Write: true, Min: ptr(-1), Max: ptr(1)},
			`"p":"number","uniq_id":"busgate_plant-a_grid_limit","name":"Limit","val_tpl":"{{ value_json.limit }}","cmd_t":"busgate/plant-a/grid/set/limit","min":-1,"max":1,"step":0.01`},
		"or from the scale": {config.Point{Name: "limit", Type: "uint16", Digits: -1, Bit: -1, Scale: config.Decimal{M: 5, E: -1}, Write: true, Min: ptr(0), Max: ptr(1)},
			`"p":"number","uniq_id":"busgate_plant-a_grid_limit","name":"Limit","val_tpl":"{{ value_json.limit }}","cmd_t":"busgate/plant-a/grid/set/limit","min":0,"max":1,"step":0.1`},
		"a number without limits is a sensor": {config.Point{Name: "limit", Type: "uint16", Digits: -1, Bit: -1, Write: true},
			`"p":"sensor","uniq_id":"busgate_plant-a_grid_limit","name":"Limit","val_tpl":"{{ value_json.limit }}","exp_aft":6`},
		"words to write are a select": {config.Point{Name: "mode", Type: "uint16", Digits: -1, Bit: -1, Write: true, Enum: words},
			`"p":"select","uniq_id":"busgate_plant-a_grid_mode","name":"Mode","val_tpl":"{{ value_json.mode }}","cmd_t":"busgate/plant-a/grid/set/mode","ops":["off","run"]`},
		"words are a sensor without a kind": {config.Point{Name: "mode", Type: "uint16", Digits: -1, Bit: -1, Enum: words, Kind: "measurement", Unit: "x"},
			`"p":"sensor","uniq_id":"busgate_plant-a_grid_mode","name":"Mode","val_tpl":"{{ value_json.mode }}","exp_aft":6`},
		"flags are joined": {config.Point{Name: "faults", Type: "uint16", Digits: -1, Bit: -1, Flags: words},
			`"p":"sensor","uniq_id":"busgate_plant-a_grid_faults","name":"Faults","val_tpl":"{{ value_json.faults | join(', ') }}","exp_aft":6`},
		"a name that is no identifier": {config.Point{Name: "a-b", Type: "uint16", Digits: -1, Bit: -1, Label: "A <b>"},
			`"p":"sensor","uniq_id":"busgate_plant-a_grid_a-b","name":"A <b>","val_tpl":"{{ value_json['a-b'] }}","exp_aft":6`},
		"a name that is a method": {config.Point{Name: "values", Type: "uint16", Digits: -1, Bit: -1, Interval: 30 * time.Second},
			`"p":"sensor","uniq_id":"busgate_plant-a_grid_values","name":"Values","val_tpl":"{{ value_json['values'] }}","exp_aft":90`},
		"a name of signs": {config.Point{Name: "-_", Type: "string", Digits: -1, Bit: -1, Unit: "x"},
			`"p":"sensor","uniq_id":"busgate_plant-a_grid_-_","name":"-_","val_tpl":"{{ value_json['-_'] }}","exp_aft":6`},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig()
			cfg.Devices["grid"].Points = []config.Point{c.p}
			_, got, _ := strings.Cut(string(All(cfg, release)[1].Payload), `"`+c.p.Name+`":{`)
			if got = strings.TrimSuffix(got, "}}}"); got != c.want {
				t.Errorf("component\n%s\nwant\n%s", got, c.want)
			}
		})
	}
}

// TestKeys holds the keys that Home Assistant knows, and those it demands.
func TestKeys(t *testing.T) {
	root := strings.Fields("dev o avty avty_mode stat_t qos cmps")
	comp := strings.Fields("p uniq_id name dev_cla stat_cla unit_of_meas stat_t val_tpl cmd_t pl_on pl_off min max step ops suggested_display_precision exp_aft ent_cat")
	cfg := testConfig()
	cfg.Devices["empty"] = &config.Device{Name: "empty", Label: "Empty"}
	for _, a := range All(cfg, release) {
		var m map[string]json.RawMessage
		if err := json.Unmarshal(a.Payload, &m); err != nil {
			t.Fatalf("%s: %v", a.Topic, err)
		}
		for k := range m {
			if !slices.Contains(root, k) {
				t.Errorf("%s: key %s", a.Topic, k)
			}
		}
		for _, k := range root {
			if m[k] == nil {
				t.Errorf("%s: no %s", a.Topic, k)
			}
		}
		var cs map[string]map[string]any
		if err := json.Unmarshal(m["cmps"], &cs); err != nil {
			t.Fatalf("%s: %v", a.Topic, err)
		}
		for name, c := range cs {
			for k := range c {
				if !slices.Contains(comp, k) {
					t.Errorf("%s: %s has the key %s", a.Topic, name, k)
				}
			}
			if c["p"] == nil || c["uniq_id"] == nil {
				t.Errorf("%s: %s lacks p or uniq_id", a.Topic, name)
			}
		}
	}
}

func TestConsoleURL(t *testing.T) {
	for listen, want := range map[string]string{
		"":                  "",
		"127.0.0.1:8080":    "",
		"[::1]:8080":        "",
		"localhost:8080":    "",
		":8080":             "http://plant-a.local:8080/#/device/grid",
		"0.0.0.0:80":        "http://plant-a.local:80/#/device/grid",
		"192.168.1.5:8080":  "http://192.168.1.5:8080/#/device/grid",
		"[fd00::5]:8080":    "http://[fd00::5]:8080/#/device/grid",
		"gw.example.org:80": "http://gw.example.org:80/#/device/grid",
	} {
		cfg := testConfig()
		cfg.Web.Listen = listen
		s := site{cfg: cfg}
		if got := s.console("grid"); got != want {
			t.Errorf("console on %q is %q, want %q", listen, got, want)
		}
	}
}

func TestExpiryOfWhatIsPublishedOnChange(t *testing.T) {
	d := &config.Device{Interval: 1500 * time.Millisecond, Publish: "change", Heartbeat: 5 * time.Minute}
	if n := expire(d, &config.Point{}); n != 900 {
		t.Errorf("%d s, want three heartbeats", n)
	}
	d.Publish = "always"
	if n := expire(d, &config.Point{}); n != 5 {
		t.Errorf("%d s, want 5", n)
	}
}

func TestNothingWhileItIsOff(t *testing.T) {
	cfg := testConfig()
	cfg.HomeAssistant.Discovery = false
	if all := All(cfg, release); all != nil {
		t.Errorf("announced %+v", all)
	}
}
