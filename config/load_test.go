package config

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"
)

// example copies an example with its files into a folder of its own.
func example(t *testing.T, name string) (path string) {
	t.Helper()
	dir := t.TempDir()
	b, err := os.ReadFile("testdata/examples/" + name + ".toml")
	if err != nil {
		t.Fatal(err)
	}
	key, keyPEM := newKey(t)
	cert := newCert(t, key, today.AddDate(-1, 0, 0), today.AddDate(1, 0, 0))
	for _, f := range []string{"tls/plant-a.crt", "tls/plant-a-client.crt", "tls/cloud-ca.crt"} {
		write(t, filepath.Join(dir, f), cert, 0o600)
	}
	for _, f := range []string{"tls/plant-a.key", "tls/plant-a-client.key"} {
		write(t, filepath.Join(dir, f), keyPEM, 0o600)
	}
	write(t, filepath.Join(dir, "passwd"), []byte("homeassistant:$7$x\ngrafana:$7$x\r\nnodered:$7$x\n"), 0o600)
	path = filepath.Join(dir, "busgate.toml")
	write(t, path, []byte(strings.ReplaceAll(string(b), "/etc/busgate", dir)), 0o600)
	return path
}

func TestExamplesLoad(t *testing.T) {
	for _, name := range []string{"minimal", "realistic", "full"} {
		path := example(t, name)
		l := newLoader(testEnv("plant-a"), os.DirFS("../devices/profiles"))
		c, problems := l.load(path)
		if c == nil {
			t.Errorf("%s: %v", name, problems)
			continue
		}
		for _, p := range problems { // the relays of the example were set to another speed than they are delivered with
			if !strings.Contains(p.Msg, "is delivered with") {
				t.Errorf("%s: %v", name, p)
			}
		}
		again, problems := newLoader(testEnv("plant-a"), os.DirFS("../devices/profiles")).parse(path, Dump(c))
		if again == nil || !same(c, again) {
			t.Errorf("%s: the dump reads differently: %v", name, problems)
		}
	}
}

func TestRealisticExample(t *testing.T) {
	c, problems := newLoader(testEnv("host"), os.DirFS("../devices/profiles")).load(example(t, "realistic"))
	if c == nil {
		t.Fatal(problems)
	}
	if c.Gateway.Base() != "busgate/plant-a" || len(c.Buses) != 5 || len(c.Devices) != 6 {
		t.Errorf("%s, %d buses, %d devices", c.Gateway.Base(), len(c.Buses), len(c.Devices))
	}
	relays := c.Buses["relays"]
	if relays.Format() != "8E1" || relays.Protocol != "modbus-rtu" || relays.Timeout != 500*time.Millisecond || relays.Own {
		t.Errorf("%+v", relays)
	}
	if roof := c.Buses["roof"]; roof.TCP != "192.168.10.40:502" || roof.Protocol != "modbus-tcp" || roof.Timeout != 2*time.Second {
		t.Errorf("%+v", roof)
	}
	if truck := c.Buses["truck"]; !truck.Own || truck.Protocol != "uart" || c.Devices["truck"].Bus != "truck" || c.Devices["truck"].Frame.Kind != "nmea" {
		t.Errorf("%+v", truck)
	}
	if grid := c.Devices["grid"]; grid.Interval != 2*time.Second || grid.Points[0].Interval != 2*time.Second || grid.Maker != "Eastron" {
		t.Errorf("%+v", grid)
	}
	pumps := c.Devices["pumps"].Points
	if pumps[0].Label != "Well pump" || !pumps[0].Write || pumps[1].Write || pumps[0].Type != "bool" {
		t.Errorf("%+v", pumps[:2])
	}
	inverter := c.Devices["inverter"].Points
	names := []string{}
	for _, p := range inverter {
		names = append(names, p.Name)
	}
	if !slices.Equal(names, []string{"power", "energy", "state", "limit"}) {
		t.Errorf("not in the order of the file: %v", names)
	}
	if p := inverter[1]; p.Order != "CDAB" || p.Scale != (Decimal{1, -1}) || p.Digits != 1 || p.Class != "energy" || p.Kind != "total_increasing" {
		t.Errorf("%+v", p)
	}
	if p := inverter[0]; p.Kind != "measurement" || p.Class != "power" || p.Digits != 0 || p.Bit != -1 || p.ScaleReg != -1 || p.At != -1 || p.Column != -1 {
		t.Errorf("%+v", p)
	}
	if p := inverter[3]; *p.Min != 0 || *p.Max != 100 || p.Table != "holding" || p.Addr != 5007 {
		t.Errorf("%+v", p)
	}
	up := c.Uplinks["cloud"]
	if up.ClientID != "busgate-plant-a" || up.Send[0] != "busgate/plant-a/#" || up.Addresses[0] != "mqtts://iot.example.com:8883" || up.Compress != "none" {
		t.Errorf("%+v", up)
	}
	if acl := c.Broker.ACL["nodered"]; len(acl) != 2 || acl[1] != (Rule{"write", "busgate/plant-a/pumps/set/#"}) {
		t.Errorf("%+v", acl)
	}
	if c.Web.Users != c.Broker.Users || c.Buffer.MaxBytes != 2e9 {
		t.Errorf("%+v %+v", c.Web, c.Buffer)
	}
}

// TestFullExampleHoldsTheDefaults: what full.toml writes is what is taken without it.
func TestFullExampleHoldsTheDefaults(t *testing.T) {
	full, problems := newLoader(testEnv("plant-a"), os.DirFS("../devices/profiles")).load(example(t, "full"))
	if full == nil {
		t.Fatal(problems)
	}
	bare, problems := newLoader(testEnv("plant-a"), os.DirFS("../devices/profiles")).parse("busgate.toml", `
[bus.example]
serial = "/dev/ttyUSB0"
[device.example]
bus = "example"
profile = "eastron-sdm630"
[uplink.example]
addresses = ["mqtts://host:8883"]`)
	if bare == nil {
		t.Fatal(problems)
	}
	if !same(full, bare) {
		t.Errorf("%+v\n%s\n%s", Diff(full, bare), Dump(full), Dump(bare))
	}
}

func TestImplicitBusTakesWhatTheMakerDelivers(t *testing.T) {
	profiles := fstest.MapFS{"p.toml": {Data: []byte(`[profile]
name = "p"
maker = "M"
answer_time = "20ms"
defaults = { baud = 2400, format = "8E1", timeout = "1s", gap = "10ms", max_hole = 0, max_read = 60, pipeline = 4, unit_id = 7, interval = "30s", order = "DCBA", address_base = 1, publish = "change", heartbeat = "1m", offline_after = 5, write_fc = 16 }
[points]
a = { holding = 1, type = "uint32" }
`)}}
	c, problems := newLoader(testEnv("x"), profiles).parse("busgate.toml", `
[device.own]
serial = "/dev/ttyX0"
profile = "p"
baud = 4800
[device.own.points]
b = { holding = 1, bit = 3 }
a = { label = "A" }
[device.net]
tcp = "host"
profile = "p"
address_base = 0
points.b = { holding = 1, bit = 3 }
[bus.b]
serial = "/dev/ttyX1"
baud = 2400
format = "8E1"
max_read = 30
[device.shared]
bus = "b"
profile = "p"
unit_id = 1
interval = "5s"
order = "HGFEDCBA"`)
	if c == nil || len(problems) > 0 {
		t.Fatal(problems)
	}
	b, d := c.Buses["own"], c.Devices["own"]
	if b.Baud != 4800 || b.Format() != "8E1" || b.Timeout != time.Second || b.Gap != 10*time.Millisecond || b.MaxHole != 0 || b.MaxRead != 60 || b.Pipeline != 1 {
		t.Errorf("%+v", b)
	}
	if d.UnitID != 7 || d.Interval != 30*time.Second || d.Publish != "change" || d.Heartbeat != time.Minute || d.OfflineAfter != 5 || d.WriteFC != 16 || d.MaxRead != 60 || d.AnswerTime != 20*time.Millisecond {
		t.Errorf("%+v", d)
	}
	if d.Points[0].Name != "a" || d.Points[0].Addr != 0 || d.Points[0].Order != "DCBA" || d.Points[1].Addr != 0 {
		t.Errorf("the addresses count from 1: %+v", d.Points)
	}
	if n := c.Devices["net"].Points; n[0].Addr != 0 || n[1].Addr != 1 || c.Buses["net"].Pipeline != 4 {
		t.Errorf("address_base of the device is for its own points: %+v", n)
	}
	s := c.Devices["shared"]
	if s.MaxRead != 30 || s.UnitID != 1 || s.Interval != 5*time.Second || s.Points[0].Order != "DCBA" || c.Buses["b"].Timeout != 500*time.Millisecond {
		t.Errorf("%+v", s)
	}
}

func TestWhere(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "busgate.toml"), []byte("[device.m]\nserial = \"/dev/ttyX0\"\nprofile = \"xy-md02\"\n\n[device.m.points]\nv = { input = 7 }\n"), 0o600)
	write(t, filepath.Join(dir, "conf.d/up.toml"), []byte("[uplink.u]\naddresses = [\"mqtts://a\",\n \"mqtts://b\"]\n"), 0o600)
	c, problems := newLoader(testEnv("x"), testProfiles).load(filepath.Join(dir, "busgate.toml"))
	if c == nil {
		t.Fatal(problems)
	}
	for path, want := range map[string]string{
		"device.m.serial":                  "busgate.toml:2:1",
		"device.m":                         "busgate.toml:1:1",
		"device.m.interval":                "busgate.toml:1:1", // not written: its table
		"bus.m.baud":                       "busgate.toml:1:1", // the wire stands with the device
		"device.m.points.v.input":          "busgate.toml:6:7",
		"device.m.points.temperature.unit": "xy-md02.toml:8:57",
		"uplink.u.addresses[1]":            "conf.d/up.toml:3:2",
		"gateway.name":                     "",
		"device.n":                         "",
		"uplink.u.addresses[7]":            "",
		"uplink.u.addresses[x]":            "",
		"nonsense..x[":                     "",
	} {
		file, pos, ok := c.Where(path)
		got := ""
		if ok {
			got = fmt.Sprintf("%s:%d:%d", strings.TrimPrefix(file, dir+"/"), pos.Line, pos.Col)
		}
		if got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
	if _, _, ok := (&Config{}).Where("gateway"); ok {
		t.Error("a Config built in code has no places")
	}
}

func TestFilesThatCannotBeRead(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "busgate.toml")
	c, problems := Load(path, nil)
	if want := "no configuration at " + path + ": no such file or directory"; c != nil || len(problems) != 1 || problems[0].String() != want {
		t.Errorf("%v", problems)
	}
	write(t, path, bytes.Repeat([]byte("# much\n"), maxFile/7+1), 0o600)
	if c, problems := Load(path, nil); c != nil || !strings.Contains(problems[0].Msg, "larger than 4 MB") {
		t.Errorf("%v", problems)
	}
	write(t, path, nil, 0o600)
	write(t, filepath.Join(dir, "profiles"), nil, 0o600) // a file where a folder is expected
	if c, problems := newLoader(testEnv("x"), nil).load(path); c == nil || !strings.Contains(problems[0].Msg, "cannot read the profiles in") {
		t.Errorf("an unreadable folder of profiles is a warning: %v", problems)
	}
	write(t, filepath.Join(dir, "conf.d"), nil, 0o600)
	if c, problems := newLoader(testEnv("x"), nil).load(path); c != nil || !strings.Contains(fmt.Sprint(problems), "conf.d: not a directory") {
		t.Errorf("an unreadable conf.d is an error: %v", problems)
	}
}

func TestSymbolicLinksAreOneWire(t *testing.T) {
	dir := t.TempDir()
	port, link := filepath.Join(dir, "ttyUSB0"), filepath.Join(dir, "by-id")
	write(t, port, nil, 0o600)
	if err := os.Symlink("ttyUSB0", link); err != nil {
		t.Fatal(err)
	}
	_, problems := newLoader(testEnv("x"), nil).parse("x.toml", fmt.Sprintf("[bus.a]\nserial = %q\n[bus.b]\nserial = %q\n", port, link))
	want := "x.toml:4:10: " + link + " is already the wire of bus `a` (line 2); put the devices of one wire on one bus"
	if len(problems) != 1 || problems[0].String() != want {
		t.Errorf("got %v, want %s", problems, want)
	}
}

func TestOneProblemForEachPlace(t *testing.T) {
	var f findings
	at := func(msg string, warn bool) { f.add(Problem{File: "x", Pos: Pos{1, 1}, Msg: msg, Warn: warn}) }
	at("a warning", true)
	at("another warning", true)
	at("the first error", false)
	at("the second error", false)
	f.add(Problem{File: "x", Msg: "no place"})
	f.add(Problem{File: "x", Msg: "no place either"})
	f.add(Problem{File: "x", Pos: Pos{1, 1}, Msg: "a late warning", Warn: true})
	if got := fmt.Sprint(f.sorted()); got != "[no place no place either x:1:1: the first error]" {
		t.Error(got)
	}
}

func TestUserProfilesWin(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "busgate.toml"), []byte("[device.m]\nserial = \"/dev/ttyX0\"\nprofile = \"xy-md02\"\n"), 0o600)
	write(t, filepath.Join(dir, "profiles/xy-md02.toml"), []byte("[profile]\nname = \"xy-md02\"\nmaker = \"Mine\"\n[points]\na = { input = 0 }\n[probe]\nwords = { 0x10 = 5, 2 = 0x5375 }\n"), 0o600)
	c, problems := newLoader(testEnv("x"), testProfiles).load(filepath.Join(dir, "busgate.toml"))
	if c == nil || c.Devices["m"].Maker != "Mine" || len(c.Devices["m"].Points) != 1 {
		t.Fatal(problems)
	}
	list, problems := Profiles(filepath.Join(dir, "profiles"), testProfiles)
	if len(list) != 1 || len(problems) != 0 || !slices.Equal(list[0].Probe.Words, []ProbeWord{{2, 0x5375}, {16, 5}}) || list[0].Probe.Table != "holding" {
		t.Errorf("%+v %v", list, problems)
	}
}

func TestCloudProfilesAreOverridable(t *testing.T) {
	c := mustParse(t, `
[uplink.a]
addresses = ["tls://x", "tcp://y:1"]
profile = "aws"
window = 7
rate_bytes = "0kB"
[uplink.b]
addresses = ["mqtts://x"]
profile = "azure-iothub"
retain = true
encode = "json-batch"
[uplink.c]
addresses = ["mqtts://x"]
qos = 2
route = [{ filter = "{base}/x" }, { filter = "a/{name}", direction = "in", qos = 0, remote_prefix = "r/" }]
remote_prefix = "{hostname}/"`)
	if a := c.Uplinks["a"]; a.Window != 7 || a.RateMsgs != 90 || a.RateBytes != 0 || a.MaxPacket != 128000 || !slices.Equal(a.Addresses, []string{"mqtts://x:8883", "mqtt://y:1"}) {
		t.Errorf("%+v", a)
	}
	if b := c.Uplinks["b"]; b.Will || !b.Retain || b.Window != 16 || b.Compress != "deflate" {
		t.Errorf("%+v", b)
	}
	want := []Route{{"busgate/plant-a/x", "out", 2, "", "plant-a/"}, {"a/plant-a", "in", 0, "", "r/"}}
	if u := c.Uplinks["c"]; !slices.Equal(u.Routes, want) {
		t.Errorf("%+v", u.Routes)
	}
	checkDump(t, c)
}

func TestATemplateBesideBatchesIsTold(t *testing.T) {
	for template, want := range map[string]string{
		"plants/{device}":         "`topic_template` changes nothing while `encode` is \"json-batch\": the readings of all devices go in batches to busgate/plant-a/gateway/history",
		"plants/{device}/{point}": "`encode` = \"json-batch\" does nothing beside a `topic_template` with {point}: each value goes on a topic of its own",
	} {
		c, problems := newLoader(testEnv("plant-a"), nil).parse("x.toml", fmt.Sprintf("[uplink.a]\naddresses = [\"mqtts://x\"]\nencode = \"json-batch\"\ntopic_template = %q\n", template))
		i := slices.IndexFunc(problems, func(p Problem) bool { return p.Pos.Line == 4 })
		if c == nil || i < 0 || !problems[i].Warn || problems[i].Msg != want {
			t.Errorf("%s: %v", template, problems)
		}
	}
}

func TestPrintJSON(t *testing.T) {
	var b bytes.Buffer
	err := PrintJSON(&b, []Problem{{File: "a<b.toml", Pos: Pos{1, 2}, Len: 3, Msg: "`x`"}, {Warn: true, Len: 1, Msg: "w"}})
	want := `[
  {
    "file": "a<b.toml",
    "line": 1,
    "col": 2,
    "len": 3,
    "severity": "error",
    "text": "` + "`x`" + `"
  },
  {
    "file": "",
    "line": 0,
    "col": 0,
    "len": 1,
    "severity": "warning",
    "text": "w"
  }
]
`
	if err != nil || b.String() != want {
		t.Errorf("%v %s", err, b.String())
	}
	b.Reset()
	if err := PrintJSON(&b, nil); err != nil || b.String() != "[]\n" {
		t.Errorf("%v %q", err, b.String())
	}
}

func TestExcerptHidesSecretsAndControls(t *testing.T) {
	for in, want := range map[string]string{
		"\tpassword = \"x\"":                       " password = ***",
		`mqtt_password_file="/x", y = 1`:           `mqtt_password_file=***`,
		`addresses = ["mqtt://u:p@h", "mqtt://h"]`: `addresses = ["mqtt://***@h", "mqtt://h"]`,
		"a = \x1b[31m\u0085\u2028":                 "a =  [31m  ",
	} {
		if got := excerpt(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
