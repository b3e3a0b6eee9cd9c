package config

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

// same tells whether two configurations are equal but for where they stand.
func same(a, b *Config) bool {
	x, y := *a, *b
	x.index, y.index, x.Path, y.Path = nil, nil, "", ""
	return reflect.DeepEqual(x, y)
}

// checkDump: decode(dump(c)) == c.
func checkDump(t *testing.T, c *Config) {
	t.Helper()
	text := Dump(c)
	again, problems := newLoader(testEnv("plant-a"), testProfiles).parse("busgate.toml", text)
	if again == nil {
		t.Fatalf("the dump has errors: %v\n%s", problems, text)
	}
	if !same(c, again) {
		t.Fatalf("the dump reads differently: %v\n%s\nthen\n%s", Diff(c, again), text, Dump(again))
	}
}

func TestDumpOfOverriddenProfile(t *testing.T) {
	c := mustParse(t, `
[device.a]
serial = "/dev/ttyX0"
profile = "xy-md02"
order = "CDAB"
[device.a.points]
humidity = { enabled = false }
temperature = { unit = "", holding = 5, write = true, safe = 21.5, label = "" }
extra = { input = 40001, type = "string", length = 4, interval = "1m" }
[device.b]
tcp = "host"
profile = "xy-md02"
points.temperature = { scale = 0.25, digits = 0, min = -1e6, invalid = ["0xFFFFFFFFFFFFFFFF"], type = "uint64" }
`)
	checkDump(t, c)
	counted := fstest.MapFS{"one.toml": {Data: []byte("[profile]\nname = \"one\"\ndefaults = { address_base = 1, order = \"CDAB\" }\n[points]\na = { input = 1, unit = \"V\" }\n")}}
	text := "[device.d]\nserial = \"/dev/ttyX0\"\nprofile = \"one\"\npoints.b = { input = 9 }\n"
	one, _ := newLoader(testEnv("x"), counted).parse("x.toml", text)
	again, problems := newLoader(testEnv("x"), counted).parse("x.toml", Dump(one))
	if again == nil || !same(one, again) {
		t.Errorf("addresses that count from 1: %v\n%s", problems, Dump(one))
	}
	p := c.Devices["a"].Points
	if len(p) != 2 || p[0].Name != "temperature" || p[0].Table != "holding" || p[0].Unit != "" || p[0].Safe != 21.5 || p[1].Order != "CDAB" {
		t.Errorf("got %+v", p)
	}
	if q := c.Devices["b"].Points[0]; q.Invalid[0] != -1 || q.Digits != 0 || q.Scale != (Decimal{25, -2}) {
		t.Errorf("got %+v", q)
	}
}

func mustParse(t *testing.T, text string) *Config {
	t.Helper()
	c, problems := newLoader(testEnv("plant-a"), testProfiles).parse("busgate.toml", text)
	if c == nil {
		t.Fatal(problems)
	}
	return c
}

// generate makes a random valid value of a key; "" when it is better left out.
func generate(rng *rand.Rand, f *field) string {
	pick := func(list ...string) string { return list[rng.IntN(len(list))] }
	between := func() int64 {
		if f.hiText == "" {
			return rng.Int64N(100)
		}
		return f.lo + rng.Int64N(f.hi-f.lo+1)
	}
	switch f.kind {
	case isText:
		if f.oneof != nil {
			return quote(pick(f.oneof...))
		}
		return quote(pick("x", "Größe \"1\" \\", "a b", ""))
	case isBool:
		return pick("true", "false")
	case isWhole:
		return fmt.Sprint(between())
	case isFloat, isDecimal:
		return pick("1", "0.1", "-2.50", "1e3", "1e-3", "0x10", "7")
	case isDuration:
		return quote(formatDuration(f.duration(between())))
	case isSize:
		return quote(formatSize(between()))
	case isHex:
		return quote(pick("", "42 4D", "0a"))
	case isTexts:
		return pick("[]", `["a"]`, `["a", "b/c"]`)
	case isPatterns:
		return pick("[]", "[0x8000, -1]", `["0xFFFFFFFFFFFFFFFF"]`)
	case isInts:
		return pick("[0, 3]", "[4, 7]")
	case isWords:
		return pick("{}", `{ 0 = "off", 1 = "on" }`, `{ 0x3 = "x" }`)
	case isScalar:
		return pick("true", "1", "0.5", `"on"`)
	}
	return ""
}

// random makes the tables of a configuration that may be right or wrong, each as its lines.
func random(rng *rand.Rand) [][]string {
	var tables [][]string
	some := func(head string, s *schema, skip ...string) []string {
		lines := []string{head}
		for _, f := range s.order {
			if f.kind == isTable || f.kind == isNode || slices.Contains(skip, f.key) || rng.IntN(4) != 0 {
				continue
			}
			lines = append(lines, f.key+" = "+generate(rng, f))
		}
		return lines
	}
	for _, name := range []string{"gateway", "broker", "buffer", "web", "homeassistant"} {
		tables = append(tables, some("["+name+"]", rootSchema.fields[name].sub, "name", "topic", "data_dir", "users", "listen", "prefix", "hosts"))
	}
	bus := some("[bus.b]", busSchema, "serial", "tcp", "format", "ca", "cert", "key", "tls", "protocol", "pipeline")
	tables = append(tables, append(bus, `serial = "/dev/ttyB"`, `format = "8E1"`))
	places := slices.Concat(modbusPlaces, uartPlaces, []string{"sentence", "scale_register", "sunspec", "atomic", "length", "byte", "bit", "bits", "flags", "safe", "safe_after", "pulse", "write", "kind"})
	for i := range 3 {
		d := some(fmt.Sprintf("[device.d%d]", i), deviceSchema, "bus", "unit_id", "profile", "write_fc", "max_read")
		d = slices.DeleteFunc(d, func(s string) bool { return strings.HasPrefix(s, "serial =") || strings.HasPrefix(s, "tcp =") })
		d = append(d, fmt.Sprintf("unit_id = %d", i+1))
		if i == 0 {
			d = append(d, fmt.Sprintf("serial = %q", "/dev/ttyD"))
		} else {
			d = append(d, `bus = "b"`)
		}
		if rng.IntN(2) == 0 {
			d = append(d, `profile = "xy-md02"`)
		}
		tables = append(tables, d)
		points := []string{fmt.Sprintf("[device.d%d.points]", i)}
		for j := range 1 + rng.IntN(3) {
			keys := some(fmt.Sprintf("holding = %d", 100*j), pointSchema, places...)
			if rng.IntN(4) == 0 {
				keys = append(keys, "write = true")
			}
			points = append(points, fmt.Sprintf("p%d = { %s }", j, strings.Join(keys, ", ")))
		}
		tables = append(tables, points)
	}
	up := some("[uplink.u]", uplinkSchema, "addresses", "ca", "cert", "key", "password_file", "topic_template", "encode", "accept", "local_prefix", "remote_prefix", "client_id")
	return append(tables, append(up, `addresses = ["mqtts://host"]`))
}

func TestDumpOfRandomConfigurations(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 1))
	good := 0
	for range 600 {
		var text strings.Builder
		for _, table := range random(rng) {
			text.WriteString(strings.Join(table, "\n") + "\n")
		}
		c, _ := newLoader(testEnv("plant-a"), testProfiles).parse("busgate.toml", text.String())
		if c == nil {
			continue
		}
		good++
		checkDump(t, c)
		if t.Failed() {
			t.Fatalf("seed %d:\n%s", seed, text.String())
		}
	}
	if good < 60 {
		t.Errorf("seed %d: only %d of 600 were right", seed, good)
	}
}

// TestMergeIsIndependentOfTheFiles: tables may be spread over conf.d in any way.
func TestMergeIsIndependentOfTheFiles(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 2))
	good := 0
	for range 150 {
		tables := random(rng)
		files := map[string]string{"busgate.toml": "", "conf.d/a.toml": "", "conf.d/b.toml": ""}
		names := []string{"busgate.toml", "conf.d/a.toml", "conf.d/b.toml"}
		whole, where := "", ""
		for _, table := range tables {
			text := strings.Join(table, "\n") + "\n"
			whole += text
			if !strings.HasSuffix(table[0], ".points]") { // they go with their device
				where = names[rng.IntN(3)]
			}
			if single := !strings.Contains(table[0], "."); single && len(table) > 2 { // may be parted
				cut := 1 + rng.IntN(len(table)-1)
				files[names[rng.IntN(3)]] += strings.Join(append([]string{"# part", table[0]}, table[cut:]...), "\n") + "\n"
				text = strings.Join(table[:cut], "\n") + "\n"
			}
			if !strings.Contains(files[where], table[0]+"\n") {
				files[where] += text
				continue
			}
			files[where] = strings.Replace(files[where], table[0]+"\n", text, 1)
		}
		dir := t.TempDir()
		for name, text := range files {
			write(t, filepath.Join(dir, name), []byte(text), 0o600)
		}
		one, _ := newLoader(testEnv("plant-a"), testProfiles).parse(filepath.Join(dir, "busgate.toml"), whole)
		many, problems := newLoader(testEnv("plant-a"), testProfiles).load(filepath.Join(dir, "busgate.toml"))
		if (one == nil) != (many == nil) || one != nil && !same(one, many) {
			t.Fatalf("seed %d: %v\none file:\n%s\nfiles: %v", seed, problems, whole, files)
		}
		if one != nil {
			good++
		}
	}
	if good < 15 {
		t.Errorf("seed %d: only %d were right", seed, good)
	}
}

// TestEveryEmbeddedProfile: they load without a problem, alone and under a device, and survive Dump.
func TestEveryEmbeddedProfile(t *testing.T) {
	files, err := filepath.Glob("../devices/profiles/*.toml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no profiles: %v", err)
	}
	embedded := os.DirFS("../devices/profiles")
	list, problems := Profiles("", embedded)
	if len(problems) > 0 || len(list) != len(files) {
		t.Errorf("%d of %d profiles: %v", len(list), len(files), problems)
	}
	for _, p := range list {
		text := "[device.x]\nserial = \"/dev/ttyX0\"\nprofile = \"" + p.Name + "\"\n"
		c, problems := newLoader(testEnv("plant-a"), embedded).parse("busgate.toml", text)
		if c == nil || len(problems) > 0 {
			t.Errorf("%s: %v", p.Name, problems)
			continue
		}
		again, problems := newLoader(testEnv("plant-a"), embedded).parse("busgate.toml", Dump(c))
		if again == nil || !same(c, again) {
			t.Errorf("%s: the dump reads differently: %v", p.Name, problems)
		}
		alone, problems := ParseProfile(p.Name, []byte(p.Text))
		if alone == nil || !reflect.DeepEqual(alone, p) {
			t.Errorf("%s: alone it is another: %v", p.Name, problems)
		}
	}
}
