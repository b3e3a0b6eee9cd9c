package devices

import (
	"bytes"
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"busgate/config"
)

// point is a holding register with what set changes.
func point(typ string, set ...func(*config.Point)) *config.Point {
	p := &config.Point{Name: "level", Table: "holding", Type: typ, Bit: -1, ScaleReg: -1, At: -1, Column: -1, Digits: -1, Order: "ABCD", Length: 2}
	for _, s := range set {
		s(p)
	}
	return p
}

func order(o string) func(*config.Point)   { return func(p *config.Point) { p.Order = o } }
func inByte(b string) func(*config.Point)  { return func(p *config.Point) { p.Byte = b } }
func invalid(n int64) func(*config.Point)  { return func(p *config.Point) { p.Invalid = []int64{n} } }
func inTable(s string) func(*config.Point) { return func(p *config.Point) { p.Table = s } }
func scale(m int64, e int) func(*config.Point) {
	return func(p *config.Point) { p.Scale = config.Decimal{M: m, E: e} }
}
func offset(m int64, e int) func(*config.Point) {
	return func(p *config.Point) { p.Offset = config.Decimal{M: m, E: e} }
}
func enum(words ...config.Word) func(*config.Point) { return func(p *config.Point) { p.Enum = words } }
func limits(lo, hi float64) func(*config.Point) {
	return func(p *config.Point) { p.Min, p.Max, p.Unit = &lo, &hi, "cm" }
}

var onOff = enum(config.Word{N: 0, Text: "off"}, config.Word{N: 1, Text: "on"})

// decodings are computed by hand. Those with a raw text of bytes that Encode
// must give back have back set.
var decodings = []struct {
	name string
	p    *config.Point
	raw  string
	want string
	back bool
}{
	{"uint16", point("uint16"), "FFFE", "65534", true},
	{"uint16 swapped bytes", point("uint16", order("BADC")), "0102", "513", true},
	{"uint16 DCBA swaps, too", point("uint16", order("DCBA")), "0102", "513", true},
	{"uint16 CDAB does not", point("uint16", order("CDAB")), "0102", "258", true},
	{"int16", point("int16"), "FFFE", "-2", true},
	{"int16 smallest", point("int16"), "8000", "-32768", true},
	{"int8 low byte", point("int8", inByte("low")), "01FE", "-2", false},
	{"int8 high byte", point("int8", inByte("high")), "01FE", "1", false},
	{"uint8 low byte", point("uint8", inByte("low")), "01FE", "254", false},
	{"uint24 is the low bytes of 32", point("uint24"), "00123456", "1193046", true},
	{"int24 negative", point("int24"), "FFFFFFFE", "-2", true},
	{"int24 CDAB", point("int24", order("CDAB")), "345600 12", "1193046", true},
	{"uint24 of a sensor has three bytes", point("uint24", inTable("")), "123456", "1193046", false},
	{"uint24 of a sensor turned around", point("uint24", inTable(""), order("DCBA")), "563412", "1193046", false},
	{"uint32 ABCD", point("uint32"), "01020304", "16909060", true},
	{"uint32 CDAB", point("uint32", order("CDAB")), "03040102", "16909060", true},
	{"uint32 BADC", point("uint32", order("BADC")), "02010403", "16909060", true},
	{"uint32 DCBA", point("uint32", order("DCBA")), "04030201", "16909060", true},
	{"int32", point("int32"), "FFFFFFFF", "-1", true},
	{"uint48", point("uint48"), "010203040506", "1108152157446", true},
	{"uint48 words turned around", point("uint48", order("CDAB")), "050603040102", "1108152157446", true},
	{"int48", point("int48"), "FFFFFFFFFFFE", "-2", true},
	{"uint64 ABCDEFGH", point("uint64"), "0102030405060708", "72623859790382856", true},
	{"uint64 GHEFCDAB", point("uint64", order("CDAB")), "0708050603040102", "72623859790382856", true},
	{"uint64 BADCFEHG", point("uint64", order("BADC")), "0201040306050807", "72623859790382856", true},
	{"uint64 HGFEDCBA", point("uint64", order("DCBA")), "0807060504030201", "72623859790382856", true},
	{"uint64 largest", point("uint64"), "FFFFFFFFFFFFFFFF", "18446744073709551615", true},
	{"int64 smallest", point("int64"), "8000000000000000", "-9223372036854775808", true},
	{"int64 above 2^53", point("int64"), "0020000000000001", "9007199254740993", true},
	{"sm16 positive", point("sm16"), "0005", "5", true},
	{"sm16 negative", point("sm16"), "8005", "-5", true},
	{"sm32 negative", point("sm32"), "80010000", "-65536", true},
	{"float16 one", point("float16"), "3C00", "1", false},
	{"float16 negative", point("float16"), "C248", "-3.140625", false},
	{"float16 subnormal", point("float16"), "0001", "5.9604645e-08", false},
	{"float16 infinity", point("float16"), "7C00", "n/a", false},
	{"float32 ABCD", point("float32"), "4366199A", "230.1", true},
	{"float32 CDAB", point("float32", order("CDAB")), "199A4366", "230.1", true},
	{"float32 BADC", point("float32", order("BADC")), "66439A19", "230.1", true},
	{"float32 DCBA", point("float32", order("DCBA")), "9A196643", "230.1", true},
	{"float32 NaN", point("float32"), "7FC00000", "n/a", false},
	{"float32 infinity", point("float32"), "FF800000", "n/a", false},
	{"float32 scaled has 7 digits", point("float32", scale(1, -3)), "4366199A", "0.2301", false},
	{"float32 sentinel as a number", point("float32", invalid(-9999)), "C61C3C00", "n/a", false},
	{"float64", point("float64"), "400921FB54442D18", "3.141592653589793", true},
	{"float64 DCBA", point("float64", order("DCBA")), "182D4454FB210940", "3.141592653589793", true},
	{"bcd8", point("bcd8"), "0042", "42", false},
	{"bcd16", point("bcd16"), "1234", "1234", true},
	{"bcd24", point("bcd24"), "00123456", "123456", true},
	{"bcd32", point("bcd32"), "12345678", "12345678", true},
	{"bcd32 CDAB", point("bcd32", order("CDAB")), "56781234", "12345678", true},
	{"mod10k32", point("mod10k32"), "000C1E61", "127777", true},
	{"mod10k48", point("mod10k48"), "000100020003", "100020003", true},
	{"mod10k64", point("mod10k64"), "270F270F270F270F", "9999999999999999", true},
	{"sunssf", point("sunssf"), "FFFE", "-2", true},
	{"sunssf not there", point("sunssf"), "8000", "n/a", false},
	{"bool of a register", point("bool"), "0001", "true", true},
	{"coil", point("bool", inTable("coil")), "01", "true", true},
	{"coil off", point("bool", inTable("coil")), "00", "false", true},
	{"coil with words", point("bool", inTable("coil"), onOff), "01", "on", true},
	{"bit", point("uint16", func(p *config.Point) { p.Bit = 9 }), "0200", "true", true},
	{"bit clear", point("uint16", func(p *config.Point) { p.Bit = 8 }), "0200", "false", false},
	{"bits 4 to 7", point("uint16", func(p *config.Point) { p.Bits = []int{4, 7} }), "00A0", "10", true},
	{"bits with words", point("uint16", onOff, func(p *config.Point) { p.Bits = []int{0, 0} }), "0001", "on", true},
	{"flags", point("uint16", func(p *config.Point) {
		p.Flags = []config.Word{{N: 0, Text: "overheat"}, {N: 3, Text: "fan"}, {N: 15, Text: "door"}}
	}), "8001", "overheat, door", false},
	{"scale 0.1", point("int16", scale(1, -1)), "FFB5", "-7.5", true},
	{"scale -0.5", point("int16", scale(-5, -1)), "0003", "-1.5", true},
	{"scale 1000", point("uint16", scale(1000, 0)), "0007", "7000", true},
	{"offset", point("uint16", scale(1, -1), offset(-40, 0)), "0190", "0.0", true},
	{"offset finer than the scale", point("uint16", offset(25, -2)), "0001", "1.25", true},
	{"offset turns the sign", point("int16", offset(-10, 0)), "0003", "-7", true},
	{"scale beyond 64 bit is a float", point("uint64", scale(1000, 0)), "FFFFFFFFFFFFFFFF", "1.8446744073709552e+22", false},
	{"unsigned scaled above int64", point("uint64", scale(1, -3)), "FFFFFFFFFFFFFFFF", "18446744073709551.615", true},
	{"sentinel as a pattern", point("int16", invalid(0x8000)), "8000", "n/a", false},
	{"sentinel as a number", point("int16", invalid(-32768)), "8000", "n/a", false},
	{"sentinel of 64 bit", point("uint64", invalid(-1)), "FFFFFFFFFFFFFFFF", "n/a", false},
	{"sentinel is raw, before the scale", point("uint16", invalid(65535), scale(1, -1)), "FFFF", "n/a", false},
	{"enum", point("uint16", onOff), "0001", "on", true},
	{"enum without a word is the number", point("uint16", onOff), "0007", "7", false},
	{"string", point("string"), "41424300", "ABC", true},
	{"string trims blanks", point("string"), "20414220", "AB", false},
	{"string of swapped bytes", point("string", order("BADC")), "42410043", "ABC", true},
	{"string in high bytes", point("string", inByte("high")), "41FF42FF", "AB", false},
	{"string in low bytes", point("string", inByte("low")), "FF41FF42", "AB", false},
	{"string that is no UTF-8 is Latin-1", point("string"), "B0430000", "°C", false},
	{"string in UTF-8", point("string"), "C2B04300", "°C", true},
	{"hex", point("hex"), "00FFA501", "00FFA501", true},
	{"unix32", point("unix32"), "65920080", "2024-01-01T00:00:00Z", true},
	{"unix64", point("unix64"), "0000000065920080", "2024-01-01T00:00:00Z", true},
	{"unix32 never set", point("unix32"), "00000000", "n/a", false},
	{"inside min and max", point("uint16", limits(0, 300)), "012C", "300", true},
}

func TestDecode(t *testing.T) {
	for _, tt := range decodings {
		t.Run(tt.name, func(t *testing.T) {
			raw := unhex(t, tt.raw)
			keep := bytes.Clone(raw)
			v, q, err := Decode(tt.p, raw)
			if err != nil {
				t.Fatal(err)
			}
			got := v.String()
			if q == NotAvailable {
				if !v.IsNull() {
					t.Errorf("not available, but %v", v)
				}
				got = "n/a"
			}
			if got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
			if !bytes.Equal(raw, keep) {
				t.Errorf("raw was changed to %X", raw)
			}
			if !tt.back {
				return
			}
			back, mask, err := Encode(tt.p, got, 0)
			if err != nil {
				t.Fatalf("encode %s: %v", got, err)
			}
			if mask == nil && !bytes.Equal(back, raw) || mask != nil && !equalMasked(back, raw, mask) {
				t.Errorf("encode %s gives %X (mask %X), want %X", got, back, mask, raw)
			}
		})
	}
}

// What 64 bits cannot hold is a float, and says so.
func TestRoundedValuesSaySo(t *testing.T) {
	for _, tt := range []struct {
		name string
		p    *config.Point
		raw  string
		want bool
	}{
		{"64 bits that fit", point("uint64"), "FFFFFFFFFFFFFFFF", false},
		{"scaled beyond", point("uint64", scale(1000, 0)), "FFFFFFFFFFFFFFFF", true},
		{"an offset beyond", point("uint64", offset(1, 0)), "FFFFFFFFFFFFFFFF", true},
		{"a float is what it is", point("float64"), "4415AF1D78B58C40", false},
		{"a scaled float, too", point("float64", scale(1, -1)), "4415AF1D78B58C40", false},
	} {
		v, q, err := Decode(tt.p, unhex(t, tt.raw))
		if err != nil || q != Good || v.Rounded() != tt.want {
			t.Errorf("%s: %v %v %v, rounded %v", tt.name, v, q, err, v.Rounded())
		}
	}
	v, _, _ := Decode(point("uint64", scale(1000, 0)), unhex(t, "FFFFFFFFFFFFFFFF"))
	if !v.Equal(Float64Value(v.Float())) || string(v.AppendJSON(nil, -1)) != "1.8446744073709552e+22" {
		t.Errorf("a rounded value is a number like others: %v", v)
	}
	if v, q, err := Decode(point("uint64", scale(10, 307)), unhex(t, "FFFFFFFFFFFFFFFF")); !v.IsNull() || q != NotAvailable || err != nil {
		t.Errorf("beyond any float: %v %v %v", v, q, err)
	}
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestDecodeRefuses(t *testing.T) {
	low, high := 5.0, 300.0
	tests := []struct {
		name string
		p    *config.Point
		raw  string
		want string
	}{
		{"above max", point("uint16", limits(0, 300), scale(1, -1)), "FFFF", "level 6 553.5 cm is outside 0 to 300 cm; not published"},
		{"below min only", point("uint16", func(p *config.Point) { p.Min = &low }), "0001", "level 1 is below 5; not published"},
		{"above max only", point("uint16", func(p *config.Point) { p.Max, p.Unit = &high, "°C" }), "0400", "level 1 024 °C is above 300 °C; not published"},
		{"a BCD digit above 9", point("bcd16"), "1A34", "level 0x1A34 is no BCD number; not published"},
		{"a word above 9999", point("mod10k32"), "27100000", "level has a word of 10000, more than 9999; not published"},
		{"a time after year 9999", point("unix64"), "7FFFFFFFFFFFFFFF", "level 9223372036854775807 is no time; not published"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v, _, err := Decode(tt.p, unhex(t, tt.raw))
			if _, ok := errors.AsType[*RangeError](err); !ok || strings.ReplaceAll(err.Error(), "\u2009", " ") != tt.want {
				t.Errorf("got %v, %v, want %s", v, err, tt.want)
			}
		})
	}
	t.Run("a sentinel that is no BCD is not available", func(t *testing.T) {
		if _, q, err := Decode(point("bcd16", invalid(0xFFFF)), unhex(t, "FFFF")); q != NotAvailable || err != nil {
			t.Errorf("%v %v", q, err)
		}
	})
	t.Run("too few bytes", func(t *testing.T) {
		if _, _, err := Decode(point("uint32"), []byte{1, 2}); err == nil {
			t.Error("no error")
		}
	})
}

func TestScaleRegister(t *testing.T) {
	p := point("int16")
	for power, want := range map[int]string{-2: "-0.02", 0: "-2", 3: "-2000"} {
		if v, _, err := DecodeScaled(p, []byte{0xFF, 0xFE}, power); err != nil || v.String() != want {
			t.Errorf("10^%d: %v %v, want %s", power, v, err, want)
		}
	}
	for _, raw := range [][]byte{{0x80, 0}, {0, 11}, {0xFF, 0xF5}, {1}} {
		if v, q, err := DecodeScaled(p, []byte{0, 1}, Power(raw)); q != NotAvailable || err != nil || !v.IsNull() {
			t.Errorf("scale % X: %v %v %v", raw, v, q, err)
		}
	}
	if n := Power([]byte{0xFF, 0xF6}); n != -10 {
		t.Errorf("power %d", n)
	}
}

func TestEncodeRefuses(t *testing.T) {
	percent := func(p *config.Point) { lo, hi := 0.0, 100.0; p.Min, p.Max, p.Unit, p.Name = &lo, &hi, "%", "limit" }
	named := func(p *config.Point) { p.Name = "limit" }
	tests := []struct {
		name string
		p    *config.Point
		text string
		want string
	}{
		{"a word for a number", point("uint16", percent), "fast", `limit cannot be "fast"; allowed: 0 to 100 %`},
		{"above max", point("uint16", percent), "120", "limit must be 0 to 100 %"},
		{"below min", point("int16", percent), "-1", "limit must be 0 to 100 %"},
		{"not a number", point("float32", percent), "NaN", `limit cannot be "NaN"; allowed: 0 to 100 %`},
		{"infinity", point("float32", named), "inf", `limit cannot be "inf"; allowed: a number`},
		{"a fraction", point("uint16", named), "1/3", `limit cannot be "1/3"; allowed: a number`},
		{"an endless exponent", point("uint16", named), "1e999999999", `limit cannot be "1e999999999"; allowed: a number`},
		{"type range", point("uint16", named, scale(1, -1)), "6554", "limit must be 0 to 6 553.5"},
		{"type range of a signed", point("int16", named), "-32769", "limit must be -32 768 to 32 767"},
		{"not exact after the scale", point("uint16", named, scale(5, -1), func(p *config.Point) { p.Unit = "A" }), "1.2", "limit must be in steps of 0.5 A"},
		{"unknown word", point("uint16", named, onOff), "auto", `limit cannot be "auto"; allowed: off, on`},
		{"a word for a coil", point("bool", named, inTable("coil")), "fast", `limit cannot be "fast"; allowed: on, off`},
		{"BCD too large", point("bcd16", named), "10000", "limit must be 0 to 9 999"},
		{"text too long", point("string", named), "abcde", "limit must be at most 4 bytes long"},
		{"float32 too large", point("float32", named), "1e39", "limit does not fit float32"},
		{"bits too large", point("uint16", named, func(p *config.Point) { p.Bits = []int{4, 6} }), "8", "limit must be 0 to 7"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			raw, _, err := Encode(tt.p, tt.text, 0)
			r, ok := errors.AsType[*Refusal](err)
			if !ok || r.Code != "out-of-range" || strings.ReplaceAll(r.Text, "\u2009", " ") != tt.want {
				t.Errorf("got %X, %v, want %s", raw, err, tt.want)
			}
		})
	}
}

func TestEncodeTakesManyWordsForOn(t *testing.T) {
	for text, want := range map[string]byte{"on": 1, "ON": 1, "true": 1, "1": 1, "off": 0, "false": 0, "0": 0, " on ": 1} {
		if raw, _, err := Encode(point("bool", inTable("coil")), text, 0); err != nil || raw[0] != want {
			t.Errorf("%q: %v %v", text, raw, err)
		}
	}
}

func TestEncodeOwnsOnlyItsBits(t *testing.T) {
	for _, tt := range []struct {
		p         *config.Point
		text      string
		raw, mask string
	}{
		{point("uint16", func(p *config.Point) { p.Bit = 9 }), "on", "0200", "0200"},
		{point("uint16", func(p *config.Point) { p.Bit = 9 }), "off", "0000", "0200"},
		{point("uint16", order("BADC"), func(p *config.Point) { p.Bit = 9 }), "on", "0002", "0002"},
		{point("uint16", func(p *config.Point) { p.Bits = []int{4, 7} }), "10", "00A0", "00F0"},
		{point("uint8", inByte("high")), "255", "FF00", "FF00"},
		{point("int8", inByte("low")), "-2", "00FE", "00FF"},
	} {
		raw, mask, err := Encode(tt.p, tt.text, 0)
		if err != nil || !bytes.Equal(raw, unhex(t, tt.raw)) || !bytes.Equal(mask, unhex(t, tt.mask)) {
			t.Errorf("%s: %X mask %X, %v", tt.text, raw, mask, err)
		}
	}
}

// FuzzDecode: no panic, nothing invented, and a number that decodes encodes to the same bytes.
func FuzzDecode(f *testing.F) {
	types := []string{"bool", "int8", "uint8", "int16", "uint16", "int24", "uint24", "int32", "uint32", "int48", "uint48", "int64", "uint64",
		"sm16", "sm32", "float16", "float32", "float64", "bcd8", "bcd16", "bcd24", "bcd32", "mod10k32", "mod10k48", "mod10k64", "sunssf", "unix32", "unix64", "string", "hex"}
	orders := []string{"ABCD", "CDAB", "BADC", "DCBA"}
	for i := range types {
		f.Add(uint8(i), uint8(i), int64(1), int8(0), []byte{1, 2, 3, 4, 5, 6, 7, 8})
	}
	f.Fuzz(func(t *testing.T, typ, ord uint8, m int64, e int8, raw []byte) {
		p := point(types[int(typ)%len(types)], order(orders[ord%4]), scale(m, int(e%10)))
		v, q, err := Decode(p, raw)
		if len(raw) < Size(p) && p.Type != "string" && p.Type != "hex" {
			if err == nil && !(width(p.Type) == 1 && len(raw) == 1) {
				t.Fatalf("%s from %d bytes", p.Type, len(raw))
			}
			return
		}
		if (err != nil || q == NotAvailable) && !v.IsNull() {
			if _, ok := errors.AsType[*RangeError](err); !ok {
				t.Fatalf("%v with %v", v, err)
			}
		}
		k := v.Kind()
		exact := k == Int || k == Uint
		if err != nil || !exact || p.Type == "sm16" || p.Type == "sm32" || p.Type == "int24" || p.Type == "uint24" || p.Type == "bcd24" || width(p.Type) == 1 {
			return // -0, or bytes beside the number
		}
		back, mask, err := Encode(p, v.String(), 0)
		if err != nil {
			if len(v.String()) > 40 || strings.Contains(v.String(), "e") {
				return
			}
			t.Fatalf("%s %v: %v", p.Type, v, err)
		}
		if mask == nil && !bytes.Equal(back, raw[:Size(p)]) {
			t.Fatalf("%s %X decodes to %v, which encodes to %X", p.Type, raw[:Size(p)], v, back)
		}
	})
}

func TestDecodeOfNumbersDoesNotAllocate(t *testing.T) {
	for _, p := range []*config.Point{point("uint16", scale(1, -1), limits(0, 1e9)), point("int64", offset(5, 0)), point("float32"), point("float32", scale(1, -3)), point("bcd32", order("CDAB"))} {
		raw := []byte{0x12, 0x34, 0x56, 0x78, 0, 0, 0, 1}
		if n := testing.AllocsPerRun(100, func() {
			if _, _, err := Decode(p, raw); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", p.Type, n)
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	p := point("float32", order("CDAB"), scale(1, -1))
	raw := []byte{0x19, 0x9A, 0x43, 0x66}
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := Decode(p, raw); err != nil {
			b.Fatal(err)
		}
	}
}
