package uart

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"busgate/config"
)

var epoch = time.Date(2026, 11, 21, 6, 0, 0, 0, time.UTC)

func TestCheckValues(t *testing.T) {
	// the check of "123456789" in the catalogue of CRC algorithms (reveng)
	b := []byte("123456789")
	for _, c := range []struct {
		name string
		want []byte
	}{
		{"crc16-modbus", []byte{0x37, 0x4B}},
		{"crc16-arc", []byte{0x3D, 0xBB}},
		{"crc16-x25", []byte{0x6E, 0x90}},
		{"crc8-maxim", []byte{0xA1}},
		{"xor", []byte{0x31}},
		{"sum8", []byte{0xDD}},
		{"neg-sum8", []byte{0x23}},
		{"lrc", []byte{0x23}},
		{"sum16", []byte{0x01, 0xDD}},
		{"none", nil},
	} {
		test, size, err := checksum(c.name)
		if err != nil || size != len(c.want) {
			t.Fatalf("%s: size %d, %v", c.name, size, err)
		}
		if !test(b, c.want) {
			t.Errorf("%s refuses %x", c.name, c.want)
		}
		if size > 0 {
			wrong := bytes.Clone(c.want)
			wrong[0] ^= 1
			if test(b, wrong) {
				t.Errorf("%s takes %x", c.name, wrong)
			}
		}
	}
	if _, _, err := checksum("md5"); err == nil {
		t.Error("an unknown check was taken")
	}
}

func TestFraming(t *testing.T) {
	for _, c := range []struct {
		name  string
		frame config.Frame
		in    []string // as they came; "~" is a silence
		want  []string
		bad   uint64
	}{
		{"lines, the first may be a rest", config.Frame{Kind: "line"}, []string{"4,5\r\n1,", "2\r\n3,4\n"}, []string{"1,2\r\n", "3,4\n"}, 0},
		{"a line with a header may stand behind noise", config.Frame{Kind: "line", Header: []byte("T=")}, []string{"\x00\xFFT=1\n"}, []string{"T=1\n"}, 0},
		{"a line without its header goes", config.Frame{Kind: "line", Header: []byte("T=")}, []string{"H=1\nT=2\n"}, []string{"T=2\n"}, 0},
		{"a line too long goes whole", config.Frame{Kind: "line", Max: 8}, []string{"\n", strings.Repeat("x", 20), "yy\nok\n"}, []string{"ok\n"}, 0},
		{"a line with a wrong xor goes", config.Frame{Kind: "line", Check: "xor"}, []string{"\nA*41\nB*41\nB*42\n"}, []string{"A*41\n", "B*42\n"}, 1},
		{"hex lines with an LRC", config.Frame{Kind: "line", Start: []byte(":"), Check: "lrc"}, []string{":0103FC\r\n:0103FD\r\n"}, []string{":0103FC\r\n"}, 1},
		{"between start and end", config.Frame{Kind: "delimited", Start: []byte{2}, End: []byte{3}}, []string{"x\x02a", "b\x03y\x02\x03"}, []string{"\x02ab\x03", "\x02\x03"}, 0},
		{"a start without an end is given up", config.Frame{Kind: "delimited", Start: []byte{2}, End: []byte{3}, Max: 6}, []string{"\x02aaaaaaaa\x02b\x03"}, []string{"\x02b\x03"}, 0},
		{"the next header inside a bad line", config.Frame{Kind: "line", Header: []byte("T="), Check: "xor"}, []string{"T=9T=1*58\n"}, []string{"T=1*58\n"}, 1},
		{"the next start inside a bad one", config.Frame{Kind: "delimited", Start: []byte{2}, End: []byte{3}, Check: "xor"}, []string{"\x02a\x02b*62\x03\x02c*63\x03"}, []string{"\x02b*62\x03", "\x02c*63\x03"}, 1},
		{"fixed, end bytes count", config.Frame{Kind: "fixed", Start: []byte{0xAA}, End: []byte{0xAB}, Length: 4}, []string{"\xAA12\xAC\xAA34\xAB"}, []string{"\xAA34\xAB"}, 1},
		{"the next header inside a bad frame", config.Frame{Kind: "fixed", Header: []byte{'H'}, Length: 4, Check: "sum8"}, []string{"H1H12\xAB"}, []string{"H12\xAB"}, 1},
		{"length, little endian", config.Frame{Kind: "length", Header: []byte{'L'}, At: 1, Size: 2, Endian: "little", Add: 3}, []string{"L\x02\x00abL\x00\x00"}, []string{"L\x02\x00ab", "L\x00\x00"}, 0},
		{"a length that cannot be is no frame", config.Frame{Kind: "length", Header: []byte{'L'}, At: 1, Size: 1, Add: 2, Max: 10}, []string{"L\xF0L\x01a"}, []string{"L\x01a"}, 0},
		{"silence ends a frame", config.Frame{Kind: "idle"}, []string{"rest", "~", "ab", "c", "~", "~", "d", "~"}, []string{"abc", "d"}, 0},
		{"a sentence cut by the next one", config.Frame{Kind: "nmea"}, []string{"$GPR$GPAAM,A,A,0.10,N,WPTNME*32\r\n"}, []string{"$GPAAM,A,A,0.10,N,WPTNME*32\r\n"}, 0},
		{"a sentence without a star has no check", config.Frame{Kind: "nmea"}, []string{"$PXYZ,1\r\n"}, []string{"$PXYZ,1\r\n"}, 0},
		{"unless it is asked for", config.Frame{Kind: "nmea", Check: "xor"}, []string{"$PXYZ,1\r\n"}, nil, 1},
		{"a telegram of DSMR 3 has no check", config.Frame{Kind: "p1"}, []string{"/X\r\n\r\n1-0:1.8.1(1*kWh)\r\n!\r\n"}, []string{"/X\r\n\r\n1-0:1.8.1(1*kWh)\r\n!\r\n"}, 0},
		{"a telegram cut by the next one", config.Frame{Kind: "p1"}, []string{"/X\r\n1-0:1./Y\r\n!", "2190\r", "\n/"}, []string{"/Y\r\n!2190\r\n"}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			fr, err := newFramer(&c.frame, true)
			if err != nil {
				t.Fatal(err)
			}
			check, err := newCheck(&c.frame)
			if err != nil {
				t.Fatal(err)
			}
			s := &stream{framer: fr, check: check}
			var got []string
			for _, in := range c.in {
				if in == "~" {
					s.feed(nil, true, func(b []byte) { got = append(got, string(b)) })
				} else {
					s.feed([]byte(in), false, func(b []byte) { got = append(got, string(b)) })
				}
			}
			if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", c.want) {
				t.Errorf("got  %q\nwant %q", got, c.want)
			}
			if s.bad != c.bad {
				t.Errorf("bad %d, want %d", s.bad, c.bad)
			}
		})
	}
}

// Who watches sees every byte once: good frames, damaged ones as a whole, and the
// pieces between them.
func TestEveryByteIsShownOnce(t *testing.T) {
	four := config.Frame{Kind: "fixed", Header: []byte{'H'}, Length: 4, Check: "sum8"}
	for _, c := range []struct {
		name  string
		frame config.Frame
		in    []string
		want  []string
	}{
		{"a damaged frame, then the next one inside it", four, []string{"H1H12\xAB"}, []string{"damaged H1H1", "good H12\xAB"}},
		{"a damaged frame and what follows", four, []string{"H123", "zz"}, []string{"damaged H123", "stray zz"}},
		{"stray bytes between good frames", four, []string{"xxH12\xABy", "H12\xAB"}, []string{"stray xx", "good H12\xAB", "stray y", "good H12\xAB"}},
		{"two damaged frames in one", four, []string{"HH12", "3", "45"}, []string{"damaged HH12", "damaged H123", "stray 45"}},
		{"damaged, good, damaged", four, []string{"H1H12\xABH123", "q"}, []string{"damaged H1H1", "good H12\xAB", "damaged H123", "stray q"}},
		{"lines are not searched again", config.Frame{Kind: "line", Check: "xor"}, []string{"\n", "a*00\n", "b\n"}, []string{"stray \n", "damaged a*00\n", "damaged b\n"}},
		{"what is left when a sensor is asked again", four, []string{"H1", "!"}, []string{"stray H1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			fr, err := newFramer(&c.frame, true)
			if err != nil {
				t.Fatal(err)
			}
			check, err := newCheck(&c.frame)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			s := &stream{framer: fr, check: check, lost: func(b []byte, damaged bool) {
				word := "stray "
				if damaged {
					word = "damaged "
				}
				got = append(got, word+string(b))
			}}
			for _, in := range c.in {
				if in == "!" {
					s.reset()
					continue
				}
				s.feed([]byte(in), false, func(b []byte) { got = append(got, "good "+string(b)) })
			}
			if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", c.want) {
				t.Errorf("got  %q\nwant %q", got, c.want)
			}
		})
	}
}

func TestFramesThatMakeNoSenseAreRefused(t *testing.T) {
	for name, f := range map[string]config.Frame{
		"unknown kind":          {Kind: "magic"},
		"unknown check":         {Kind: "line", Check: "md5"},
		"fixed without length":  {Kind: "fixed"},
		"length without header": {Kind: "length", At: 1, Size: 1},
		"delimited without end": {Kind: "delimited", Start: []byte{2}},
	} {
		if _, err := newStation(&config.Device{Frame: &f}); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	if _, err := newStation(&config.Device{}); err == nil {
		t.Error("no frame was taken")
	}
}

// fuzzed are the kinds with a frame that is good in each.
var fuzzed = []struct {
	frame config.Frame
	good  []byte
}{
	{config.Frame{Kind: "line", Max: 64}, []byte("12.5,3\r\n")},
	{config.Frame{Kind: "line", Max: 64, Header: []byte("T="), Check: "xor"}, []byte("T=1*58\n")},
	{config.Frame{Kind: "delimited", Max: 64, Start: []byte{2}, End: []byte{3, 4}}, []byte{2, 'a', 'b', 3, 4}},
	{config.Frame{Kind: "fixed", Max: 64, Start: []byte{0xAA, 0xC0}, End: []byte{0xAB}, Length: 10, Check: "sum8"}, []byte{0xAA, 0xC0, 0x8C, 0, 0x94, 0, 0xBC, 0xF9, 0xD5, 0xAB}},
	{config.Frame{Kind: "length", Max: 64, Header: []byte{0x42, 0x4D}, At: 2, Size: 2, Add: 4, Check: "sum16"}, pms},
	{config.Frame{Kind: "idle", Max: 64, Check: "crc16-modbus"}, []byte{1, 4, 0, 1, 0, 1, 0x60, 0x0A}},
	{config.Frame{Kind: "nmea", Max: 96}, []byte("$GPAAM,A,A,0.10,N,WPTNME*32\r\n")},
	{config.Frame{Kind: "p1"}, []byte("/Y\r\n!2190\r\n")},
	{config.Frame{Kind: "sml"}, append(append([]byte{}, smlStart...), 0x76, 0, 0, 0, 0x1B, 0x1B, 0x1B, 0x1B, 0x1A, 0, 0x3A, 0xED)},
}

var pms = []byte{0x42, 0x4D, 0, 0x1C, 0, 0x17, 0, 0x20, 0, 0x20, 0, 0x16, 0, 0x1F, 0, 0x20, 0x11, 0x7C, 4, 0xD3, 0, 0xAB, 0, 8, 0, 0, 0, 0, 0x97, 0, 4, 5}

// FuzzStream feeds garbage in pieces and then good frames: no panic, no byte
// goes uncounted, memory stays bounded, and the good ones are found again.
func FuzzStream(f *testing.F) {
	for i, c := range fuzzed {
		f.Add(uint8(i), uint8(7), c.good)
		f.Add(uint8(i), uint8(1), append(bytes.Clone(c.good[:len(c.good)-1]), c.good...))
		f.Add(uint8(i), uint8(200), bytes.Repeat(c.good[:len(c.good)/2], 40))
	}
	f.Fuzz(func(t *testing.T, kind, step uint8, garbage []byte) {
		c := fuzzed[int(kind)%len(fuzzed)]
		if len(garbage) > 4096 {
			garbage = garbage[:4096]
		}
		fr, err := newFramer(&c.frame, true)
		if err != nil {
			t.Fatal(err)
		}
		check, err := newCheck(&c.frame)
		if err != nil {
			t.Fatal(err)
		}
		s := &stream{framer: fr, check: check}
		var fed, taken uint64
		var last []byte
		feed := func(p []byte, quiet bool) {
			fed += uint64(len(p))
			s.feed(p, quiet, func(b []byte) { taken += uint64(len(b)); last = bytes.Clone(b) })
			if have := taken + s.stale + s.overrun + uint64(len(s.buf)); have != fed {
				t.Fatalf("%d bytes came, %d are accounted for (%d in frames, %d stale, %d too long, %d kept)", fed, have, taken, s.stale, s.overrun, len(s.buf))
			}
			if len(s.buf) > maxFrame {
				t.Fatalf("%d bytes are kept", len(s.buf))
			}
		}
		for rest := garbage; len(rest) > 0; {
			n := min(int(step)+1, len(rest))
			feed(rest[:n], false)
			rest = rest[n:]
		}
		feed(nil, true)
		// as many good ones as a false beginning can swallow, and one more
		most := max(c.frame.Max, 64)
		switch c.frame.Kind {
		case "p1":
			most = ringSize
		case "sml":
			most = maxFrame
		}
		for sent := 0; sent <= most+len(c.good); sent += len(c.good) {
			feed(c.good, c.frame.Kind == "idle")
		}
		last = nil
		feed(c.good, c.frame.Kind == "idle")
		if !bytes.Equal(last, c.good) {
			t.Fatalf("%s: a good frame was not found after garbage: last %q", c.frame.Kind, last)
		}
	})
}

// FuzzExtract gives the parsers of the content anything at all.
func FuzzExtract(f *testing.F) {
	f.Add("nmea", []byte("$GPGGA,034225.077,3356.4650,S,15124.5567,E,1,03,9.7,-25.0,M,21.0,M,,0000*51\r\n"))
	f.Add("p1", []byte("/X\r\n1-0:1.8.1(001581.123*kWh)\r\n!\r\n"))
	f.Add("line", []byte(`{"a":{"b":[1,2.5]},"T":1}`+"\r\n"))
	f.Add("line", []byte("T=1.5C;H=20%\n"))
	f.Add("sml", append(append(bytes.Clone(smlStart), 0x76, 5, 0, 0, 0, 0, 0x62, 0, 0x62, 0, 0x72, 0x63, 7, 1, 0x77), 0x1B, 0x1B, 0x1B, 0x1B, 0x1A, 0, 0, 0))
	points := []config.Point{
		gga("lat", 2, 6), obis("1-0:1.8.1"), column("c", 1, ""), column("n", 0, "float64"),
		point("k", func(p *config.Point) { p.Key, p.Type = "T", "float64" }),
		point("j", func(p *config.Point) { p.JSON, p.Type = "a.b.1", "float64" }),
		point("r", func(p *config.Point) { p.Regex, p.Type = "(?P<v>[0-9.]+)", "float32" }),
		at("a", 4, "uint32"), at("s", 3, "bool"),
	}
	f.Fuzz(func(t *testing.T, kind string, raw []byte) {
		fr := &config.Frame{Kind: kind, End: []byte("\n")}
		if kind == "sml" && (len(raw) < 16 || raw[len(raw)-3] > 3 || len(raw) > maxFrame) {
			return // the check sees to that
		}
		for i := range points {
			pk, err := newPick(fr, &points[i])
			if err != nil {
				continue
			}
			v, _, found, err := pk(newFrame(fr, raw))
			if !found && (err != nil || !v.IsNull()) {
				t.Fatalf("point %s is not there but %v, %v", points[i].Name, v, err)
			}
		}
	})
}
