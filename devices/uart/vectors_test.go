package uart

import (
	"encoding/csv"
	"encoding/hex"
	"os"
	"strings"
	"testing"

	"busgate/config"
	"busgate/devices"
)

// vector is a row of testdata/vectors.csv.
type vector struct {
	id, protocol, expected string
	frame                  []byte
	valid                  bool
}

func vectors(t *testing.T) []vector {
	t.Helper()
	f, err := os.Open("testdata/vectors.csv")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rows, err := csv.NewReader(f).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	var out []vector
	for _, r := range rows[1:] {
		v := vector{id: r[0], protocol: r[1], valid: r[5] == "yes", expected: r[6]}
		if r[2] == "hex" {
			if v.frame, err = hex.DecodeString(r[3]); err != nil {
				t.Fatal(err)
			}
		} else {
			v.frame = []byte(strings.NewReplacer(`\r`, "\r", `\n`, "\n").Replace(r[3]))
		}
		out = append(out, v)
	}
	return out
}

// point is a Point with nothing set.
func point(name string, set func(*config.Point)) config.Point {
	p := config.Point{Name: name, Bit: -1, ScaleReg: -1, At: -1, Column: -1, Digits: -1, Order: "ABCD", Scale: config.Decimal{M: 1}}
	set(&p)
	return p
}

func at(name string, offset int, typ string) config.Point {
	return point(name, func(p *config.Point) { p.At, p.Type = offset, typ })
}

func column(name string, n int, typ string) config.Point {
	return point(name, func(p *config.Point) { p.Column, p.Type = n, typ })
}

func gga(name string, n int, digits int) config.Point {
	return point(name, func(p *config.Point) { p.Sentence, p.Column, p.Type, p.Digits = "GGA", n, "float64", digits })
}

func obis(code string) config.Point {
	return point(code, func(p *config.Point) { p.OBIS, p.Type = code, "float64" })
}

// sensors describes each protocol of the vectors as a configuration would.
var sensors = map[string]*config.Device{
	"pms5003": {
		Frame:  &config.Frame{Kind: "length", Header: []byte{0x42, 0x4D}, At: 2, Size: 2, Add: 4, Max: 64, Check: "sum16"},
		Points: []config.Point{at("pm1", 4, "uint16"), at("pm2_5", 6, "uint16"), at("pm10", 8, "uint16")},
	},
	"sds011": {
		Frame: &config.Frame{Kind: "fixed", Start: []byte{0xAA, 0xC0}, End: []byte{0xAB}, Length: 10, Check: "sum8"},
		Points: []config.Point{
			point("pm2_5", func(p *config.Point) {
				p.At, p.Type, p.Order, p.Scale = 2, "uint16", "DCBA", config.Decimal{M: 1, E: -1}
			}),
			point("pm10", func(p *config.Point) {
				p.At, p.Type, p.Order, p.Scale = 4, "uint16", "DCBA", config.Decimal{M: 1, E: -1}
			}),
		},
	},
	"mh-z19": {
		Frame:  &config.Frame{Kind: "fixed", Start: []byte{0xFF}, Length: 9, Check: "neg-sum8"},
		Points: []config.Point{at("co2", 2, "uint16")},
	},
	"pm1003a": {
		Frame:  &config.Frame{Kind: "fixed", Header: []byte{0x16, 0x11, 0x0B}, Length: 20, Check: "neg-sum8"},
		Points: []config.Point{at("first", 0, "uint8")},
	},
	"nmea": {
		Frame:  &config.Frame{Kind: "nmea"},
		Points: []config.Point{gga("lat", 2, 6), gga("lon", 4, 6), gga("sats", 7, -1)},
	},
	"line": {
		Frame: &config.Frame{Kind: "line", End: []byte("\n"), Check: "none"},
		Points: []config.Point{
			point("status", func(p *config.Point) { p.Regex, p.Type = `^\d*(?P<s>[A-Z]{2}),`, "string" }),
			column("mode", 1, "string"), column("weight", 2, "float64"), column("unit", 3, ""),
		},
	},
	"dsmr-p1": {
		Frame:  &config.Frame{Kind: "p1", Check: "crc16-arc"},
		Points: []config.Point{obis("1-0:1.8.1"), obis("1-0:1.7.0"), obis("1-3:0.2.8")},
	},
}

// wanted are the exact values of the rows that have some, in the order of the points.
var wanted = map[string]string{
	"pms5003-1":         "pm1=23 pm2_5=32 pm10=32",
	"pms5003-2":         "pm1=24 pm2_5=32 pm10=32",
	"sds011":            "pm2_5=14.0 pm10=14.8",
	"mh-z19":            "co2=449",
	"mh-z19-request":    "co2=34304", // 86 00: a request is a good frame too
	"pm1003a":           "first=22",
	"nmea-gga":          "lat=-33.941083 lon=151.409278 sats=3",
	"nmea-bec":          "",
	"nmea-aam":          "",
	"dini-argeo":        "status=ST mode=GS weight=0.0 unit=kg",
	"p1-constructed":    "1-0:1.8.1=1581.123 1-0:1.7.0=2.027 1-3:0.2.8=50",
	"p1-unpadded":       "1-0:1.8.1=1581.130 1-0:1.7.0=2.027 1-3:0.2.8=50",
	"pms5003-truncated": "",
	"p1-bad":            "",
}

func TestVectors(t *testing.T) {
	seen := 0
	for _, v := range vectors(t) {
		t.Run(v.id, func(t *testing.T) {
			seen++
			if v.protocol == "modbus-rtu" {
				if good := crc16(v.frame, 0xFFFF, 0xA001) == 0; good != v.valid {
					t.Errorf("crc good: %v, want %v", good, v.valid)
				}
				return
			}
			dev := sensors[v.protocol]
			if dev == nil {
				t.Fatalf("protocol %q has no test", v.protocol)
			}
			want, known := wanted[v.id]
			if !known {
				t.Fatalf("the row has no expectation here; it says: %s", v.expected)
			}
			st, err := newStation(dev)
			if err != nil {
				t.Fatal(err)
			}
			st.feed([]byte("\n"), false, epoch) // ends the line that was running when we came
			before := st.stream.stale
			st.feed(v.frame, false, epoch)
			if v.protocol == "nmea" {
				st.feed([]byte("\r\n"), false, epoch)
			}
			if good := st.stream.good == 1; good != v.valid {
				t.Fatalf("accepted: %v, want %v", good, v.valid)
			}
			if got := values(st); got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
			if v.id == "pms5003-truncated" && (st.stream.stale-before != 30 || string(st.stream.buf) != "BM") {
				t.Errorf("looks for the next frame at offset %d", st.stream.stale-before)
			}
		})
	}
	if seen < 24 {
		t.Errorf("only %d rows", seen)
	}
}

// values prints the cells that have been filled.
func values(st *station) string {
	var out []string
	for i, c := range st.cells {
		p := &st.dev.Points[i]
		switch {
		case c.frame == 0:
		case c.err != nil:
			out = append(out, p.Name+"!"+c.err.Error())
		case c.v.Kind() == devices.Text:
			out = append(out, p.Name+"="+c.v.String())
		default:
			out = append(out, p.Name+"="+string(c.v.AppendJSON(nil, p.Digits)))
		}
	}
	return strings.Join(out, " ")
}

// Every bit of every good frame counts: with any one turned it is refused, or,
// in text, a digit of the check changed its case.
func TestOneWrongBitIsRefused(t *testing.T) {
	for _, v := range vectors(t) {
		dev := sensors[v.protocol]
		if dev == nil || !v.valid || dev.Frame.Check == "none" {
			continue
		}
		frame := v.frame
		if v.protocol == "nmea" {
			frame = append(frame, "\r\n"...)
		}
		for i := range len(frame) * 8 {
			b := append([]byte{}, frame...)
			b[i/8] ^= 1 << (i % 8)
			if strings.EqualFold(string(b), string(frame)) && v.protocol != "sds011" {
				continue // F and f
			}
			st, err := newStation(dev)
			if err != nil {
				t.Fatal(err)
			}
			st.feed(append(b, "\r\n\r\n"...), true, epoch)
			if st.stream.good != 0 && !harmless(v, i) {
				t.Errorf("%s: bit %d of byte %d turned from %02x is taken", v.id, i%8, i/8, frame[i/8])
			}
		}
	}
}

// harmless are the bits that no check covers: those of the start and end bytes
// are compared, the line ends of text are not part of it, and a star that is
// gone takes the check of NMEA with it.
func harmless(v vector, bit int) bool {
	switch v.protocol {
	case "nmea":
		return bit/8 >= len(v.frame)-3
	case "dsmr-p1":
		return bit/8 >= len(v.frame)-2
	}
	return false
}
