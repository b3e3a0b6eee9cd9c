package uart

import (
	"strings"
	"testing"

	"busgate/config"
)

// Telegrams as their meters send them, from the examples of dsmr_parser
// (test/example_telegrams.py): a Kaifa of DSMR 4.2, an Iskra of DSMR 5, and one
// of DSMR 3, which has no check.
const (
	kaifa = "/KFM5KAIFA-METER\r\n\r\n1-3:0.2.8(42)\r\n0-0:1.0.0(161113205757W)\r\n0-0:96.1.1(3960221976967177082151037881335713)\r\n" +
		"1-0:1.8.1(001581.123*kWh)\r\n1-0:1.8.2(001435.706*kWh)\r\n1-0:2.8.1(000000.000*kWh)\r\n1-0:2.8.2(000000.000*kWh)\r\n0-0:96.14.0(0002)\r\n" +
		"1-0:1.7.0(02.027*kW)\r\n1-0:2.7.0(00.000*kW)\r\n0-0:96.7.21(00015)\r\n0-0:96.7.9(00007)\r\n" +
		"1-0:99.97.0(3)(0-0:96.7.19)(000104180320W)(0000237126*s)(000101000001W)(2147583646*s)(000102000003W)(2317482647*s)\r\n" +
		"1-0:32.32.0(00000)\r\n1-0:52.32.0(00000)\r\n1-0:72.32.0(00000)\r\n1-0:32.36.0(00000)\r\n1-0:52.36.0(00000)\r\n1-0:72.36.0(00000)\r\n" +
		"0-0:96.13.1()\r\n0-0:96.13.0()\r\n1-0:31.7.0(000*A)\r\n1-0:51.7.0(006*A)\r\n1-0:71.7.0(002*A)\r\n" +
		"1-0:21.7.0(00.170*kW)\r\n1-0:22.7.0(00.000*kW)\r\n1-0:41.7.0(01.247*kW)\r\n1-0:42.7.0(00.000*kW)\r\n1-0:61.7.0(00.209*kW)\r\n1-0:62.7.0(00.000*kW)\r\n" +
		"0-1:24.1.0(003)\r\n0-1:96.1.0(4819243993373755377509728609491464)\r\n0-1:24.2.1(161129200000W)(00981.443*m3)\r\n!6796\r\n"
	iskra = "/ISk5\\2MT382-1000\r\n\r\n1-3:0.2.8(50)\r\n0-0:1.0.0(170102192002W)\r\n0-0:96.1.1(4B384547303034303436333935353037)\r\n" +
		"1-0:1.8.1(000004.426*kWh)\r\n1-0:1.8.2(000002.399*kWh)\r\n1-0:2.8.1(000002.444*kWh)\r\n1-0:2.8.2(000000.000*kWh)\r\n0-0:96.14.0(0002)\r\n" +
		"1-0:1.7.0(00.244*kW)\r\n1-0:2.7.0(00.000*kW)\r\n0-0:96.7.21(00013)\r\n0-0:96.7.9(00000)\r\n1-0:99.97.0(0)(0-0:96.7.19)\r\n" +
		"1-0:32.32.0(00000)\r\n1-0:52.32.0(00000)\r\n1-0:72.32.0(00000)\r\n1-0:32.36.0(00000)\r\n1-0:52.36.0(00000)\r\n1-0:72.36.0(00000)\r\n0-0:96.13.0()\r\n" +
		"1-0:32.7.0(0230.0*V)\r\n1-0:52.7.0(0230.0*V)\r\n1-0:72.7.0(0229.0*V)\r\n1-0:31.7.0(0.48*A)\r\n1-0:51.7.0(0.44*A)\r\n1-0:71.7.0(0.86*A)\r\n" +
		"1-0:21.7.0(00.070*kW)\r\n1-0:41.7.0(00.032*kW)\r\n1-0:61.7.0(00.142*kW)\r\n1-0:22.7.0(00.000*kW)\r\n1-0:42.7.0(00.000*kW)\r\n1-0:62.7.0(00.000*kW)\r\n" +
		"0-1:24.1.0(003)\r\n0-1:96.1.0(3232323241424344313233343536373839)\r\n0-1:24.2.1(170102161005W)(00000.107*m3)\r\n0-2:24.1.0(003)\r\n0-2:96.1.0()\r\n!6EEE\r\n"
	oldIskra = "/ISk5\\2MT382-1000\r\n\r\n0-0:96.1.1(4B384547303034303436333935353037)\r\n1-0:1.8.1(12345.678*kWh)\r\n1-0:1.8.2(12345.678*kWh)\r\n" +
		"1-0:2.8.1(12345.678*kWh)\r\n1-0:2.8.2(12345.678*kWh)\r\n0-0:96.14.0(0002)\r\n1-0:1.7.0(001.19*kW)\r\n1-0:2.7.0(000.00*kW)\r\n0-0:17.0.0(016*A)\r\n0-0:96.3.10(1)\r\n" +
		"0-1:24.1.0(03)\r\n0-1:24.3.0(090212160000)(00)(60)(1)(0-1:24.2.1)(m3)\r\n(00001.001)\r\n0-1:24.4.0(1)\r\n!\r\n"
)

func TestTelegramsOfRealMeters(t *testing.T) {
	for _, c := range []struct {
		name, telegram string
		unchecked      uint64
		want           string // of import 1 and 2, export 1, power, L1 V, gas of DSMR 4 and 5, gas of DSMR 3
	}{
		{"DSMR 4.2", kaifa, 0, "1-0:1.8.1=1581.123 1-0:1.8.2=1435.706 1-0:2.8.1=0.000 1-0:1.7.0=2.027 0-1:24.2.1=981.443"},
		{"DSMR 5", iskra, 0, "1-0:1.8.1=4.426 1-0:1.8.2=2.399 1-0:2.8.1=2.444 1-0:1.7.0=0.244 1-0:32.7.0=230.0 0-1:24.2.1=0.107"},
		{"DSMR 3", oldIskra, 1, "1-0:1.8.1=12345.678 1-0:1.8.2=12345.678 1-0:2.8.1=12345.678 1-0:1.7.0=1.19 0-1:24.3.0=1.001"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dev := &config.Device{Frame: &config.Frame{Kind: "p1"}, Points: []config.Point{obis("1-0:1.8.1"), obis("1-0:1.8.2"), obis("1-0:2.8.1"),
				obis("1-0:1.7.0"), obis("1-0:32.7.0"), obis("0-1:24.2.1"), obis("0-1:24.3.0")}}
			st, err := newStation(dev)
			if err != nil {
				t.Fatal(err)
			}
			st.feed([]byte(c.telegram[50:]), false, epoch) // the line was opened in the middle of one
			st.feed([]byte(c.telegram), false, epoch)
			if got := values(st); got != c.want || st.stream.good != 1 || st.unchecked != c.unchecked {
				t.Errorf("got  %s (%d good, %d unchecked)\nwant %s", got, st.stream.good, st.unchecked, c.want)
			}
			if c.unchecked > 0 {
				return
			}
			for i := range len(c.telegram) - 2 {
				b := []byte(c.telegram)
				b[i] ^= 1
				s, err := newStation(dev)
				if err != nil {
					t.Fatal(err)
				}
				s.feed(append(b, "\r\n"...), true, epoch)
				if s.stream.good != 0 && !strings.EqualFold(string(b), c.telegram) {
					t.Errorf("byte %d turned from %q to %q is taken", i, c.telegram[i], b[i])
				}
				if s.stream.good == 0 && s.stream.bad == 0 && s.stream.stale == 0 && len(s.stream.buf) == 0 {
					t.Errorf("byte %d: nothing was counted", i)
				}
			}
		})
	}
}

// A wrong check is refused and counted, and the next telegram is found.
func TestTelegramWithAWrongCheckIsCounted(t *testing.T) {
	dev := &config.Device{Frame: &config.Frame{Kind: "p1"}, Points: []config.Point{obis("1-0:1.8.1")}}
	st, err := newStation(dev)
	if err != nil {
		t.Fatal(err)
	}
	st.feed([]byte(strings.Replace(kaifa, "!6796", "!6797", 1)), false, epoch)
	if st.stream.bad != 1 || st.stream.good != 0 || values(st) != "" {
		t.Errorf("%d bad, %d good, %s", st.stream.bad, st.stream.good, values(st))
	}
	st.feed([]byte(iskra), false, epoch)
	if got := values(st); got != "1-0:1.8.1=4.426" || st.stream.good != 1 {
		t.Errorf("after it: %s, %d good", got, st.stream.good)
	}
}

// What 64 bits cannot hold is counted by whoever counts: the value says so.
func TestLongNumbersAreRounded(t *testing.T) {
	for text, want := range map[string]bool{"18446744073709551615": false, "99999999999999999999": true, "1.5e3": false, "12345678901234567890.1": true, "nan": false} {
		p := numeric(func(p *config.Point) { p.Column = 0 })
		v, _, err := textValue(&p, text)
		if err != nil || v.Rounded() != want {
			t.Errorf("%s: %v, %v, rounded %v", text, v, err, v.Rounded())
		}
	}
}
