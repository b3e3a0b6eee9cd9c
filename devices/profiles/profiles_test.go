package profiles

import (
	"cmp"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"testing"

	"busgate/config"
)

// row is a line of testdata/devices.csv.
type row struct {
	fc, addr, words                      int
	typ, order, scale, unit, point, note string
}

// models says which rows a profile was made of, and which of them it leaves out.
var models = map[string]struct {
	device string
	out    func(row) string // why a row is no point; "" = it is one
}{
	"eastron-sdm630":    {device: "Eastron SDM630"},
	"eastron-sdm120":    {device: "Eastron SDM120"},
	"eastron-sdm230":    {device: "Eastron SDM230"},
	"eastron-sdm72-v2":  {device: "Eastron SDM72 V2"},
	"gavazzi-em24":      {device: "Carlo Gavazzi EM24"},
	"gavazzi-em340":     {device: "Carlo Gavazzi EM340"},
	"schneider-iem3000": {device: "Schneider iEM3000"},
	"abb-b-series":      {device: "ABB A/B series"},
	"chint-dtsu666":     {device: "Chint DTSU666"},
	"xy-md02":           {device: "XY-MD02"},
	"growatt-tlx":       {device: "Growatt TL-X class", out: toBeVerified},
	"pzem-016":          {device: "PZEM-016", out: toBeVerified},
	"relay-4ch":         {device: "Waveshare Modbus RTU Relay", out: relaysAbove(4)},
	"relay-8ch":         {device: "Waveshare Modbus RTU Relay", out: relaysAbove(8)},
}

// sensors are the profiles of UART devices, which have no registers.
var sensors = []string{"plantower-pms5003", "nova-sds011", "winsen-mh-z19", "nmea-gps", "dsmr-p1", "sml-meter", "dini-argeo-scale"}

func toBeVerified(r row) string {
	if strings.Contains(r.note, "to be verified") {
		return r.note
	}
	return ""
}

func relaysAbove(n int) func(row) string {
	return func(r row) string {
		switch {
		case r.fc == 5:
			return "it can be written but not read"
		case r.addr >= n:
			return "there is no such relay on this board"
		}
		return ""
	}
}

func rows(t *testing.T) map[string][]row {
	t.Helper()
	out := map[string][]row{}
	for _, l := range lines(t, "testdata/devices.csv") {
		n := func(i int) int {
			v, err := strconv.Atoi(l[i])
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
		out[l[0]] = append(out[l[0]], row{n(1), n(2), n(3), l[4], l[5], l[6], l[7], l[8], l[9]})
	}
	return out
}

func parse(t *testing.T, name string) *config.Profile {
	t.Helper()
	text, err := FS.ReadFile(name + ".toml")
	if err != nil {
		t.Fatal(err)
	}
	p, problems := config.ParseProfile(name+".toml", text)
	for _, pr := range problems {
		t.Errorf("%s.toml:%d:%d: %s", name, pr.Pos.Line, pr.Pos.Col, pr.Msg)
	}
	if p == nil {
		t.FailNow()
	}
	return p
}

func names(t *testing.T) (out []string) {
	t.Helper()
	files, err := fs.Glob(FS, "*")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		name, ok := strings.CutSuffix(f, ".toml")
		if !ok {
			t.Errorf("%s is no profile", f)
		}
		out = append(out, name)
	}
	return out
}

func TestEveryProfileIsAccepted(t *testing.T) {
	for _, name := range names(t) {
		t.Run(name, func(t *testing.T) {
			p := parse(t, name)
			if p.Name != name {
				t.Errorf("name is %q", p.Name)
			}
			if strings.TrimSpace(p.Verified) == "" {
				t.Error("it does not say where the map was checked")
			}
			if p.Maker == "" || p.Model == "" {
				t.Error("maker or model is missing")
			}
			_, modbus := models[name]
			if modbus = modbus || sunspec[name] != nil; modbus == (p.Frame != nil) || !modbus && !slices.Contains(sensors, name) {
				t.Error("it is compared with nothing: add it to models or sensors")
			}
			if p.Probe == nil != strings.HasPrefix(name, "relay-") { // a coil proves nothing
				t.Error("nothing proves the model")
			}
			for _, pt := range p.Points {
				if pt.Label == pt.Name || pt.Label == "" {
					t.Errorf("%s has no label", pt.Name)
				}
				if (pt.Unit == "kWh" || pt.Unit == "kvarh") && pt.Kind != "total_increasing" {
					t.Errorf("%s counts up but its kind is %q", pt.Name, pt.Kind)
				}
			}
		})
	}
}

func TestProfilesMatchTheMapsRowByRow(t *testing.T) {
	all := rows(t)
	for name, m := range models {
		t.Run(name, func(t *testing.T) {
			p := parse(t, name)
			left := map[string]config.Point{}
			for _, pt := range p.Points {
				left[pt.Name] = pt
			}
			if len(all[m.device]) == 0 {
				t.Fatalf("no rows of %q", m.device)
			}
			for _, r := range all[m.device] {
				pt, ok := left[r.point]
				delete(left, r.point)
				if why := ""; m.out != nil {
					if why = m.out(r); why != "" {
						if ok {
							t.Errorf("%s must not be there: %s", r.point, why)
						}
						continue
					}
				}
				if !ok {
					t.Errorf("%s is missing", r.point)
					continue
				}
				compare(t, r, pt)
			}
			for n := range left {
				t.Errorf("%s is in no row", n)
			}
		})
	}
}

func compare(t *testing.T, r row, p config.Point) {
	t.Helper()
	table := map[int]string{1: "coil", 2: "discrete", 3: "holding", 4: "input"}[r.fc]
	if p.Table != table || int(p.Addr) != r.addr {
		t.Errorf("%s stands at %s %d, the row says %s %d", p.Name, p.Table, p.Addr, table, r.addr)
	}
	if p.Type != r.typ || r.typ != "bool" && config.Words(p.Type, p.Length) != r.words {
		t.Errorf("%s is %s of %d words, the row says %s of %d", p.Name, p.Type, config.Words(p.Type, p.Length), r.typ, r.words)
	}
	order := map[string]string{"ABCDEFGH": "ABCD"}[r.order]
	order = cmp.Or(order, r.order)
	whole := order == "" && r.words == 1 && (p.Order == "ABCD" || p.Order == "CDAB") // neither turns the bytes of a word
	if p.Order != order && !whole {
		t.Errorf("%s has order %s, the row says %s", p.Name, p.Order, order)
	}
	if want, err := strconv.ParseFloat(r.scale, 64); err != nil || factor(p.Scale) != want {
		t.Errorf("%s has scale %v, the row says %s", p.Name, factor(p.Scale), r.scale)
	}
	if p.Unit != r.unit {
		t.Errorf("%s has unit %q, the row says %q", p.Name, p.Unit, r.unit)
	}
	if !slices.Equal(p.Invalid, sentinel(t, r)) {
		t.Errorf("%s has the sentinels %v, the row says: %s", p.Name, p.Invalid, r.note)
	}
	if p.Write != strings.HasPrefix(r.note, "write ") {
		t.Errorf("%s can be written: %v, the row says: %s", p.Name, p.Write, r.note)
	}
	nothingElse(t, p)
}
