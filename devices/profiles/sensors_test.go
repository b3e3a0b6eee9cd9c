package profiles

import (
	"bytes"
	"cmp"
	"context"
	"encoding/csv"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"busgate/config"
	"busgate/devices"
	"busgate/devices/sim"
	"busgate/devices/uart"
)

// lines are the rows of a file below their heading.
func lines(t *testing.T, file string) [][]string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	all, err := csv.NewReader(f).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	return all[1:]
}

// placeOf says where a value of a UART sensor stands, as testdata/sensors.csv does.
func placeOf(p config.Point) (kind, place string) {
	switch {
	case p.At >= 0:
		return "at", strconv.Itoa(p.At)
	case p.OBIS != "":
		return "obis", p.OBIS
	case p.Regex != "":
		return "regex", p.Regex
	}
	return cmp.Or(p.Sentence, "column"), strconv.Itoa(p.Column)
}

func TestSensorsMatchTheirRows(t *testing.T) {
	all := map[string]map[string][]string{}
	for _, l := range lines(t, "testdata/sensors.csv") {
		if all[l[0]] == nil {
			all[l[0]] = map[string][]string{}
		}
		if all[l[0]][l[7]] != nil || l[8] == "" {
			t.Errorf("%s %s has two rows, or no source", l[0], l[7])
		}
		all[l[0]][l[7]] = l
	}
	for _, name := range sensors {
		t.Run(name, func(t *testing.T) {
			rows := all[name]
			profile, cut := parse(t, name), cuts[name]
			cut.Size, cut.Max, cut.Check, cut.Endian = cmp.Or(cut.Size, 1), cmp.Or(cut.Max, 1024), cmp.Or(cut.Check, "none"), "big"
			if got := *profile.Frame; fmt.Sprint(got) != fmt.Sprint(cut) {
				t.Errorf("its frame is\n%+v, want\n%+v", got, cut)
			}
			for _, p := range profile.Points {
				r := rows[p.Name]
				if r == nil {
					t.Errorf("%s is in no row", p.Name)
					continue
				}
				delete(rows, p.Name)
				kind, place := placeOf(p)
				got := []string{name, kind, place, p.Type, p.Order, text(p.Scale), p.Unit, p.Name, r[8]}
				if !reflect.DeepEqual(got, r) {
					t.Errorf("%s is %q, the row says %q", p.Name, got[1:8], r[1:8])
				}
				fix := p.Name == "fix"
				if (len(p.Enum) > 0) != fix || fix && fmt.Sprint(p.Enum) != "[{0 none} {1 gps} {2 dgps} {4 rtk} {5 rtk-float} {6 estimated}]" {
					t.Errorf("%s has the words %v", p.Name, p.Enum)
				}
				p.Enum, p.At, p.Column, p.OBIS, p.Regex, p.Sentence = nil, -1, -1, "", "", ""
				nothingElse(t, p)
			}
			for n := range rows {
				t.Errorf("%s is missing", n)
			}
		})
	}
}

// cuts are how the frames of the sensors are found, as their makers describe them,
// with room for the longest.
var cuts = map[string]config.Frame{
	"plantower-pms5003": {Kind: "length", Header: []byte{0x42, 0x4D}, At: 2, Size: 2, Add: 4, Max: 64, Check: "sum16"},
	"nova-sds011":       {Kind: "fixed", Start: []byte{0xAA, 0xC0}, End: []byte{0xAB}, Length: 10, Check: "sum8"},
	"winsen-mh-z19":     {Kind: "fixed", Start: []byte{0xFF}, Header: []byte{0x86}, Length: 9, Check: "neg-sum8", Request: []byte{0xFF, 1, 0x86, 0, 0, 0, 0, 0, 0x79}},
	"nmea-gps":          {Kind: "nmea"},
	"dsmr-p1":           {Kind: "p1", Max: 4096},
	"sml-meter":         {Kind: "sml", Max: 16384},
	"dini-argeo-scale":  {Kind: "line", End: []byte{'\n'}, Max: 128},
}

func text(d config.Decimal) string { return strconv.FormatFloat(factor(d), 'g', -1, 64) }

// telegram is a P1 telegram with a value of its own in each row, with the check
// of DSMR 5.0.2, 5.2: CRC16 of the polynomial x^16+x^15+x^2+1 from / to !.
func telegram(t *testing.T) (frame []byte, want string) {
	t.Helper()
	var b bytes.Buffer
	var values []string
	b.WriteString("/ISk5\\2MT382-1000\r\n\r\n1-3:0.2.8(50)\r\n0-0:1.0.0(101209113020W)\r\n")
	for i, l := range lines(t, "testdata/sensors.csv") {
		if l[0] != "dsmr-p1" {
			continue
		}
		v := fmt.Sprintf("%d.%03d", 100+i, i)
		switch l[7] {
		case "tariff":
			v = "2"
			fmt.Fprintf(&b, "%s(0002)\r\n", l[2])
		case "gas":
			fmt.Fprintf(&b, "%s(101209112500W)(%09s*m3)\r\n", l[2], v)
		default:
			fmt.Fprintf(&b, "%s(%010s*%s)\r\n", l[2], v, l[6])
		}
		values = append(values, l[7]+"="+v)
	}
	b.WriteByte('!')
	c := uint16(0)
	for _, x := range b.Bytes() {
		c ^= uint16(x)
		for range 8 {
			odd := c&1 != 0
			if c >>= 1; odd {
				c ^= 0xA001
			}
		}
	}
	return fmt.Appendf(b.Bytes(), "%04X\r\n", c), strings.Join(values, " ")
}

// sensed is what the sensor of a profile gives of bytes that come each second,
// or that answer its request.
func sensed(t *testing.T, p *config.Profile, frame []byte, request []byte) string {
	t.Helper()
	got := ""
	synctest.Test(t, func(t *testing.T) {
		line := sim.Line{Baud: p.Defaults.Baud}
		wire := sim.NewTalker(line, 1, time.Second, func(uint64, time.Duration) []byte { return frame })
		if request != nil {
			wire = sim.NewPolled(line, 1, func(asked []byte, _ time.Duration) []byte {
				if !bytes.Equal(asked, request) {
					return nil
				}
				return frame
			})
		}
		d := &uart.Driver{OpenPort: func(context.Context, devices.Wire) (uart.Port, error) { return wire.Open() }}
		bus := &config.Bus{Name: "sensor", Serial: "/dev/null", Baud: p.Defaults.Baud, DataBits: 8, Parity: 'N', StopBits: 1, Timeout: 500 * time.Millisecond, Retries: 1}
		dev := &config.Device{Name: "sensor", Bus: "sensor", Interval: 10 * time.Second, Frame: p.Frame, Points: p.Points}
		f, err := d.Open(t.Context(), devices.Wire{Bus: bus, Devices: []*config.Device{dev}, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		g := &devices.Group{Device: dev, Interval: dev.Interval}
		for i := range p.Points {
			g.Points = append(g.Points, i)
		}
		a, err := f.Poll(t.Context(), g, func(ctx context.Context) error { return ctx.Err() })
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, r := range a.Values {
			out = append(out, r.Point+"="+r.Value.String())
		}
		got = strings.Join(out, " ")
	})
	return got
}

// Frames of real sensors, from the files of the room that reads them, and a
// telegram with every line of its rows, give what they say; one wrong bit of a
// frame that has a check gives nothing.
func TestSensorsReadRealFrames(t *testing.T) {
	frames := map[string][]byte{}
	for _, l := range lines(t, "../uart/testdata/vectors.csv") {
		frames[l[0]] = []byte(strings.NewReplacer(`\r`, "\r", `\n`, "\n").Replace(l[3]))
		if l[2] == "hex" {
			frames[l[0]] = unhex(t, l[3])
		}
	}
	for _, l := range lines(t, "../uart/testdata/sml.csv") {
		frames[l[0]] = unhex(t, l[1])
	}
	p1, meter := telegram(t)
	gps := append(frames["nmea-gga"], "\r\n$GPRMC,220516,A,5133.82,N,00042.24,W,173.8,231.8,130694,004.2,W*70\r\n"...)
	ask := unhex(t, "FF0186000000000079")
	for _, c := range []struct {
		profile        string
		frame, request []byte
		want           string
		bit            int // of which byte one is turned; -1: there is no check
	}{
		{"plantower-pms5003", frames["pms5003-1"], nil, "pm1=23 pm2_5=32 pm10=32", 5},
		{"nova-sds011", frames["sds011"], nil, "pm2_5=14.0 pm10=14.8", 3},
		{"winsen-mh-z19", frames["mh-z19"], ask, "co2=449", 3},
		{"winsen-mh-z19", append(bytes.Clone(ask), frames["mh-z19"]...), ask, "co2=449", 12}, // a wire that echoes
		{"nmea-gps", gps, nil, "lat=-33.9410833 lon=151.4092783 fix=gps satellites=3 hdop=9.7 altitude=-25.0 speed=321.8776 course=231.8", -1},
		{"dsmr-p1", p1, nil, meter, 100},
		{"sml-meter", frames["dzg-dvs7420-negative"], nil, "import=13.2329 export=1500.3213 power=-105.50", 150},
		{"dini-argeo-scale", frames["dini-argeo"], nil, "status=ST mode=GS weight=0.0", -1},
	} {
		t.Run(c.profile, func(t *testing.T) {
			p := parse(t, c.profile)
			if len(c.frame) == 0 {
				t.Fatal("no frame")
			}
			if got := sensed(t, p, c.frame, c.request); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
			if c.bit < 0 {
				return
			}
			broken := bytes.Clone(c.frame)
			broken[c.bit] ^= 1
			if got := sensed(t, p, broken, c.request); got != "" {
				t.Errorf("one wrong bit gives %s", got)
			}
		})
	}
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
