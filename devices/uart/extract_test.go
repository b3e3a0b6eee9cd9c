package uart

import (
	"strings"
	"testing"

	"busgate/config"
	"busgate/devices"
)

func numeric(f func(*config.Point)) config.Point {
	return point("v", func(p *config.Point) { p.Type = "float64"; f(p) })
}

func set(f func(*config.Point)) config.Point { return point("v", f) }

var extractions = []struct {
	name, kind, frame string
	point             config.Point
	want              string // "-" = not there, "null" = not available, "!" = no usable value
}{
	{"column of a line", "line", "1,2.50,3\r\n", column("v", 1, "float64"), "2.50"},
	{"column behind the end", "line", "1,2\n", column("v", 2, "float64"), "-"},
	{"empty column", "line", "1,,3\n", column("v", 1, "float64"), "null"},
	{"semicolons leave the comma to the decimals", "line", "1,5;2,5\n", column("v", 1, "float64"), "2.5"},
	{"blanks part columns", "line", "ST  +  12.50 kg\n", column("v", 2, "float64"), "12.50"},
	{"a unit may follow", "line", "12.5 kg,x\n", column("v", 0, "float64"), "12.5"},
	{"text is no number", "line", "abc,x\n", column("v", 0, "float64"), "!"},
	{"hexadecimal is no number", "line", "0x1F,x\n", column("v", 0, "float64"), "!"},
	{"without a type a number is a number", "line", "007.10,x\n", column("v", 0, ""), "7.10"},
	{"without a type text is text", "line", "01ST,x\n", column("v", 0, ""), `"01ST"`},
	{"minus apart from its digits", "line", "-   1.5,x\n", column("v", 0, "float64"), "-1.5"},
	{"nan is not available", "line", "nan,x\n", column("v", 0, "float32"), "null"},
	{"an exponent", "line", "1.5e3,x\n", column("v", 0, "float64"), "1500"},
	{"20 digits do not fit 64 bits", "line", "99999999999999999999,x\n", column("v", 0, "float64"), "1e+20"},
	{"bool", "line", "on,x\n", column("v", 0, "bool"), "true"},
	{"bool is not anything", "line", "maybe,x\n", column("v", 0, "bool"), "!"},
	{"key", "line", "H=40;T=23.5C\n", set(func(p *config.Point) { p.Key, p.Type = "T", "float64" }), "23.5"},
	{"key is the whole word", "line", "XT=1;T=2\n", set(func(p *config.Point) { p.Key, p.Type = "T", "float64" }), "2"},
	{"key with a colon", "line", "T:21.0 H:40\n", set(func(p *config.Point) { p.Key, p.Type = "H", "float64" }), "40"},
	{"key that is not there", "line", "H=40\n", set(func(p *config.Point) { p.Key = "T" }), "-"},
	{"regex", "line", "Temp 23.5 C\n", numeric(func(p *config.Point) { p.Regex = `Temp (?P<t>[-0-9.]+)` }), "23.5"},
	{"regex that does not match", "line", "Hum 1\n", numeric(func(p *config.Point) { p.Regex = `Temp (?P<t>[-0-9.]+)` }), "-"},
	{"json path", "line", `{"a":{"b":[1,{"c":2.50}]}}` + "\n", numeric(func(p *config.Point) { p.JSON = "a.b.1.c" }), "2.50"},
	{"json null", "line", `{"a":null}` + "\n", numeric(func(p *config.Point) { p.JSON = "a" }), "null"},
	{"json bool", "line", `{"a":true}` + "\n", set(func(p *config.Point) { p.JSON, p.Type = "a", "bool" }), "true"},
	{"json text holding a number", "line", `{"a":"12.0"}` + "\n", numeric(func(p *config.Point) { p.JSON = "a" }), "12.0"},
	{"json object is no value", "line", `{"a":{}}` + "\n", numeric(func(p *config.Point) { p.JSON = "a" }), "!"},
	{"damaged json", "line", `{"a":1` + "\n", numeric(func(p *config.Point) { p.JSON = "a" }), "-"},
	{"two json values on a line", "line", `{"a":1}{"a":2}` + "\n", numeric(func(p *config.Point) { p.JSON = "a" }), "-"},
	{"scale and offset", "line", "100,x\n", numeric(func(p *config.Point) {
		p.Column, p.Scale, p.Offset = 0, config.Decimal{M: 1, E: -1}, config.Decimal{M: -40}
	}), "-30.0"},
	{"sentinel", "line", "9999,x\n", numeric(func(p *config.Point) { p.Column, p.Invalid = 0, []int64{9999} }), "null"},
	{"outside the limits", "line", "300,x\n", numeric(func(p *config.Point) { hi := 100.0; p.Column, p.Max = 0, &hi }), "!"},
	{"word of an enum", "line", "1,x\n", numeric(func(p *config.Point) { p.Column, p.Enum = 0, []config.Word{{N: 1, Text: "run"}} }), `"run"`},
	{"bytes", "fixed", "ab\x01\x02\x03\x04", at("v", 2, "uint32"), "16909060"},
	{"24 bits", "fixed", "ab\x01\x02\x03", at("v", 2, "uint24"), "66051"},
	{"one byte as bool", "fixed", "ab\x01", at("v", 2, "bool"), "true"},
	{"bytes behind the end", "fixed", "ab", at("v", 1, "uint16"), "-"},
	{"south and west are negative", "nmea", "$GPGLL,3356.4650,S,07059.9999,W,120000,A*00\r\n", set(func(p *config.Point) { p.Sentence, p.Column, p.Type, p.Digits = "GLL", 3, "float64", 6 }), "-70.999998"},
	{"a talker may be named", "nmea", "$GNGGA,1,5230.0000,N,01330.0,E,1,08,1.0,34.0,M,,M,,*00\r\n", gga("v", 2, 4), "52.5000"},
	{"another sentence", "nmea", "$GPRMC,1,A*00\r\n", gga("v", 2, 4), "-"},
	{"no fix has no position", "nmea", "$GPGGA,1,5230.0000,N,01330.0,E,0,00,,,M,,M,,*00\r\n", gga("v", 2, 4), "null"},
	{"no fix still counts satellites", "nmea", "$GPGGA,1,,,,,0,03,,,M,,M,,*00\r\n", gga("v", 7, -1), "3"},
	{"void RMC has no speed", "nmea", "$GPRMC,1,V,,,,,1.0,2.0,210126,,*00\r\n", set(func(p *config.Point) { p.Sentence, p.Column, p.Type = "RMC", 7, "float64" }), "null"},
	{"empty field", "nmea", "$GPGGA,1,,N,,E,1,03,,,M,,M,,*00\r\n", gga("v", 2, 4), "null"},
	{"minutes of 60 are no position", "nmea", "$GPGGA,1,5260.0000,N,01330.0,E,1,08,1.0,34.0,M,,M,,*00\r\n", gga("v", 2, 4), "!"},
	{"magnetic variation is no longitude", "nmea", "$GPRMC,1,A,5230.0,N,01330.0,E,1.0,2.0,210126,4.6,W*00\r\n", set(func(p *config.Point) { p.Sentence, p.Column, p.Type = "RMC", 10, "float64" }), "4.6"},
	{"P1 value", "p1", "/X\r\n1-0:1.7.0(02.027*kW)\r\n!\r\n", set(func(p *config.Point) { p.OBIS, p.Type = "1-0:1.7.0", "float64" }), "2.027"},
	{"P1 gas: the last group", "p1", "/X\r\n0-1:24.2.1(101209112500W)(12785.123*m3)\r\n!\r\n", set(func(p *config.Point) { p.OBIS, p.Type = "0-1:24.2.1", "float64" }), "12785.123"},
	{"P1 empty value", "p1", "/X\r\n0-0:96.13.1()\r\n!\r\n", set(func(p *config.Point) { p.OBIS = "0-0:96.13.1" }), "null"},
	{"P1 code that is not there", "p1", "/X\r\n!\r\n", set(func(p *config.Point) { p.OBIS = "1-0:1.7.0" }), "-"},
}

func TestExtractors(t *testing.T) {
	for _, c := range extractions {
		t.Run(c.name, func(t *testing.T) {
			f := &config.Frame{Kind: c.kind}
			pk, err := newPick(f, &c.point)
			if err != nil {
				t.Fatal(err)
			}
			v, q, found, err := pk(newFrame(f, []byte(c.frame)))
			got := string(v.AppendJSON(nil, c.point.Digits))
			switch {
			case !found:
				got = "-"
			case err != nil:
				got = "!"
				if !strings.HasPrefix(err.Error(), "v ") {
					t.Errorf("text %q does not begin with the name of the point", err)
				}
			case q == devices.NotAvailable:
				got = "null"
			}
			if got != c.want {
				t.Errorf("got %s (%v), want %s", got, err, c.want)
			}
		})
	}
}

func TestPointsThatDoNotFitTheFrameAreRefused(t *testing.T) {
	for name, c := range map[string]struct {
		kind  string
		point config.Point
	}{
		"obis of a line":          {"line", obis("1-0:1.8.0")},
		"column of a meter":       {"sml", column("v", 1, "")},
		"column of bytes":         {"length", column("v", 1, "")},
		"sentence of bytes":       {"fixed", gga("v", 1, 1)},
		"no place":                {"line", point("v", func(*config.Point) {})},
		"regex that is none":      {"line", point("v", func(p *config.Point) { p.Regex = "(" })},
		"regex without a name":    {"line", point("v", func(p *config.Point) { p.Regex = "(a)" })},
		"regex with two names":    {"line", point("v", func(p *config.Point) { p.Regex = "(?P<a>a)(?P<b>b)" })},
		"sentence without column": {"nmea", point("v", func(p *config.Point) { p.Sentence = "GGA" })},
	} {
		if _, err := newPick(&config.Frame{Kind: c.kind}, &c.point); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}
