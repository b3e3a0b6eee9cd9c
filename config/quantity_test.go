package config

import (
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestDurations(t *testing.T) {
	for s, want := range map[string]time.Duration{
		"500ms": 500 * time.Millisecond, "10s": 10 * time.Second, "5m": 5 * time.Minute, "36h": 36 * time.Hour, "30d": 720 * time.Hour,
		"1h30m": 90 * time.Minute, "1.5s": 1500 * time.Millisecond, "0s": 0, "1d12h": 36 * time.Hour, "250us": 250 * time.Microsecond,
		"100000d": 2400000 * time.Hour,
	} {
		if got, err := parseDuration(s); err != nil || got != want {
			t.Errorf("%q: %v, %v", s, got, err)
		}
		if got, err := parseDuration(formatDuration(want)); err != nil || got != want {
			t.Errorf("%v is printed %q", want, formatDuration(want))
		}
	}
	for _, s := range []string{"", "10", "s", "10 s", "-1s", "+1s", "1s1s", "10S", "1w", ".5s", "1.s", "1e3s", "200000d", "1,5s", "1h 30m", "0.1us", "1ms1", "0x10s"} {
		if got, err := parseDuration(s); err == nil {
			t.Errorf("%q is taken as %v", s, got)
		}
	}
}

func TestSizes(t *testing.T) {
	for s, want := range map[string]int64{
		"64kB": 64000, "100MB": 100e6, "2GB": 2e9, "256KiB": 256 << 10, "1MiB": 1 << 20, "1GiB": 1 << 30, "1.5MB": 1500000, "0kB": 0, "5 MB": 5e6, "0.001kB": 1,
	} {
		if got, err := parseSize(s); err != nil || got != want {
			t.Errorf("%q: %v, %v", s, got, err)
		}
		if got, err := parseSize(formatSize(want)); err != nil || got != want {
			t.Errorf("%v is printed %q", want, formatSize(want))
		}
	}
	for _, s := range []string{"", "100", "kB", "1KB", "1mb", "-1kB", "1B", "0.0001kB", "99999999999GB", "1  kB"} {
		if got, err := parseSize(s); err == nil {
			t.Errorf("%q is taken as %v", s, got)
		}
	}
}

func TestDecimalsKeepEveryDigit(t *testing.T) {
	for s, want := range map[string]Decimal{
		"0.1": {1, -1}, "0.10": {10, -2}, "1": {1, 0}, "-0.5": {-5, -1}, "1e3": {1, 3}, "1.5e3": {15, 2}, "1E-6": {1, -6}, "+2.0": {20, -1},
		"1_000": {1000, 0}, "0.0": {0, -1}, "123456789012345678": {123456789012345678, 0},
	} {
		got, err := parseDecimal(s)
		if err != nil || got != want {
			t.Errorf("%q: %v, %v", s, got, err)
		}
		if again, err := parseDecimal(decimalText(got)); err != nil || again != got {
			t.Errorf("%v is printed %q", got, decimalText(got))
		}
	}
	for _, s := range []string{"", "x", "nan", "inf", "1e99", "0.1234567890123456789", "1e", "0x10", "1.2.3", "--1"} {
		if got, err := parseDecimal(s); err == nil {
			t.Errorf("%q is taken as %v", s, got)
		}
	}
	if f := (Decimal{1, -1}).Float(); f != 0.1 {
		t.Errorf("0.1 is %v", f)
	}
}

func TestQuantitiesSurvivePrinting(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 20000 {
		d := time.Duration(rng.Int64N(int64(1000*24*time.Hour))) / time.Microsecond * time.Microsecond
		if got, err := parseDuration(formatDuration(d)); err != nil || got != d {
			t.Fatalf("%d: %q", d, formatDuration(d))
		}
		n := rng.Int64N(math.MaxInt64>>rng.IntN(63)&(1<<50-1) + 1)
		if got, err := parseSize(formatSize(n)); err != nil || got != n {
			t.Fatalf("%d: %q", n, formatSize(n))
		}
		dec := Decimal{rng.Int64N(2e17) - 1e17, rng.IntN(2*maxExponent+1) - maxExponent}
		if got, err := parseDecimal(decimalText(dec)); err != nil || got != dec {
			t.Fatalf("%v: %q gives %v, %v", dec, decimalText(dec), got, err)
		}
	}
}

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"a", "", 1}, {"baud", "buad", 1}, {"write", "wirte", 1}, {"unit_id", "unitid", 1}, {"ca", "abc", 3}, {"größe", "grösse", 2}, {"interval", "intervall", 1}} {
		if got := distance(c.a, c.b); got != c.want {
			t.Errorf("%s %s: %d", c.a, c.b, got)
		}
		if got := distance(c.b, c.a); got != c.want {
			t.Errorf("%s %s: %d", c.b, c.a, got)
		}
	}
	words := []string{"baud", "format", "timeout", "qos"}
	for word, want := range map[string]string{"Baud": "baud", "BAUD": "baud", "badu": "baud", "fromat": "format", "x": "", "q": "", "qso": "qos", "tmot": "", "time_out": "timeout"} {
		if got := nearest(word, words); got != want {
			t.Errorf("%s: %q, want %q", word, got, want)
		}
	}
}

// TestSynonymsLeadToOurKeys: each foreign name leads to a key that some table
// has, and in no table where it could be meant does it hide a key of ours.
func TestSynonymsLeadToOurKeys(t *testing.T) {
	tables := map[string]*schema{"bus": busSchema, "device": deviceSchema, "point": pointSchema, "frame": frameSchema,
		"uplink": uplinkSchema, "root": rootSchema, "broker": rootSchema.fields["broker"].sub, "buffer": rootSchema.fields["buffer"].sub}
	for foreign, list := range synonyms {
		if foreign != strings.ToLower(foreign) {
			t.Errorf("%s is not in small letters", foreign)
		}
		for _, our := range list {
			found := false
			for _, s := range tables {
				if s.fields[our] == nil {
					continue
				}
				found = true
				if s.fields[foreign] == nil && ours(foreign, s.known) == "" {
					t.Errorf("%s leads nowhere", foreign)
				}
			}
			if !found {
				t.Errorf("%s leads to %s, which no table has", foreign, our)
			}
		}
	}
	// Section 9, row by row, in the table where people write it.
	for _, row := range []struct{ table, foreign, ours string }{
		{"device", "slave slave_id id unit address slave_address", "unit_id"},
		{"bus", "baudrate baud_rate speed", "baud"},
		{"bus", "parity stop_bits stopbits data_bits bytesize comset", "format"},
		{"bus", "path device port", "serial"},
		{"bus", "host uri server url address", "tcp"},
		{"uplink", "host uri server url address", "addresses"},
		{"point", "byte_order word_order swap endian endianness", "order"},
		{"device", "refresh scan_interval poll poll_interval read_period_ms", "interval"},
		{"point", "data_type decode", "type"},
		{"point", "multiplier factor", "scale"},
		{"point", "unit_of_measurement", "unit"},
		{"uplink", "username", "user"},
		{"uplink", "password_path", "password_file"},
		{"uplink", "cafile", "ca"}, {"uplink", "certfile", "cert"}, {"uplink", "keyfile", "key"},
		{"uplink", "prefix", "remote_prefix"}, {"uplink", "rate", "rate_msgs"}, {"uplink", "server_name", "sni"},
		{"buffer", "max_size", "max_bytes"}, {"buffer", "min_free", "min_free_disk"},
		{"root", "queue store", "buffer"},
		{"device", "channels registers fields tags", "points"},
		{"device", "template device_type model", "profile"},
		{"bus", "max_reg_hole optimization_max_register_fill", "max_hole"},
		{"device", "name", "label"}, {"point", "name", "label"},
	} {
		for foreign := range strings.FieldsSeq(row.foreign) {
			if got := ours(foreign, tables[row.table].known); got != row.ours {
				t.Errorf("%s in a %s: %q, want %q", foreign, row.table, got, row.ours)
			}
		}
	}
}

func TestNames(t *testing.T) {
	for s, ok := range map[string]bool{"a": true, "a-b_9": true, "": false, "A": false, "ä": false, "a.b": false, "a/b": false,
		strings.Repeat("x", 64): true, strings.Repeat("x", 65): false, "a b": false, "+": false} {
		if nameOK(s) != ok {
			t.Errorf("%q", s)
		}
		if !nameOK(suggestName(s)) {
			t.Errorf("%q: the suggestion %q is no name", s, suggestName(s))
		}
	}
}

func TestWidths(t *testing.T) {
	for typ, want := range map[string][2]int{"uint16": {1, 2}, "uint8": {1, 1}, "int24": {2, 3}, "int48": {3, 6}, "float64": {4, 8}, "mod10k48": {3, 6}, "string": {5, 10}, "what": {0, 0}} {
		if got := [2]int{Words(typ, 5), Bytes(typ, 5)}; got != want {
			t.Errorf("%s: %v", typ, got)
		}
	}
	if len(Types()) != len(dataTypes) || slices.ContainsFunc(Types(), func(s string) bool { _, ok := dataTypes[s]; return !ok }) {
		t.Error("Types and their widths differ")
	}
}

func TestFilters(t *testing.T) {
	for f, at := range map[string]int{"#": -1, "a/#": -1, "+/b": -1, "a/+": -1, "a#": 1, "#/a": 0, "a/#/b": 2, "+a": 0, "a+/b": 1, "/": -1, "": 0} {
		if got, _ := filterFault(f); got != at {
			t.Errorf("%q: %d", f, got)
		}
	}
	for _, c := range []struct {
		a, b            string
		overlap, covers bool
	}{
		{"#", "a/b", true, true}, {"a/#", "a", true, true}, {"a/+", "a/b", true, true}, {"a/b", "a/+", true, false}, {"a/+", "+/b", true, false},
		{"a/b", "a/c", false, false}, {"a/#", "b/#", false, false}, {"a/+/c", "a/b", false, false}, {"#", "$SYS/#", false, false},
		{"$SYS/#", "$SYS/x", true, true}, {"a/+", "a/#", true, false}, {"+/+", "a/+", true, true}, {"a", "a/#", true, false}, {"a/+", "a", false, false},
	} {
		if overlap(c.a, c.b) != c.overlap || overlap(c.b, c.a) != c.overlap {
			t.Errorf("overlap %q %q is not %v", c.a, c.b, c.overlap)
		}
		if covers(c.a, c.b) != c.covers {
			t.Errorf("covers %q %q is not %v", c.a, c.b, c.covers)
		}
	}
}

func TestHostPort(t *testing.T) {
	for s, want := range map[string]string{"host": "host:502", "host:1": "host:1", "10.0.0.1": "10.0.0.1:502", "::1": "[::1]:502", "[::1]": "[::1]:502", "[fe80::1]:5": "[fe80::1]:5"} {
		if got, err := hostPort(s, "502"); err != nil || got != want {
			t.Errorf("%q: %q, %v", s, got, err)
		}
	}
	for _, s := range []string{"", ":502", "a b", "host:0", "host:65536", "host:x", "a:b:c", "u@h", "h/x"} {
		if got, err := hostPort(s, "502"); err == nil {
			t.Errorf("%q is taken as %q", s, got)
		}
	}
	if _, err := hostPort("host", ""); err == nil {
		t.Error("a port is needed")
	}
}

func TestSchemasAreWhole(t *testing.T) {
	for _, s := range []*schema{rootSchema, busSchema, deviceSchema, pointSchema, frameSchema, uplinkSchema, routeSchema, profileSchema, defaultsSchema, probeSchema} {
		for _, f := range s.order {
			if f.kind != isText && f.kind != isTexts || f.def == "" || f.oneof == nil {
				continue
			}
			if !slices.Contains(f.oneof, f.def) {
				t.Errorf("the default of %s, %q, is not allowed", f.key, f.def)
			}
		}
		if s.proto.Kind() != reflect.Struct {
			t.Error("no struct")
		}
	}
}

// duration cuts a random number of nanoseconds to what can be written.
func (f *field) duration(ns int64) time.Duration {
	if f.hiText == "" {
		return time.Duration(ns) * time.Second
	}
	return max(time.Duration(ns).Truncate(time.Microsecond), time.Duration(f.lo))
}
