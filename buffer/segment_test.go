package buffer

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unique"
)

func build(sets []string, rs ...Record) *builder {
	b := &builder{}
	for i := range rs {
		at, _ := b.place([]byte(sets[i]), 0)
		b.put(nil, &rs[i], []byte(sets[i]), at)
	}
	return b
}

// records decodes all of a segment.
func records(t testing.TB, raw []byte, first uint64) (rs []Record, sets []int) {
	t.Helper()
	cur := newCursor(raw, first)
	k := collector{}
	for {
		var v view
		err := cur.next(&v)
		if err == io.EOF {
			return k.rs, sets
		}
		if err != nil {
			t.Fatal(err)
		}
		k.take(&v)
		sets = append(sets, v.set)
	}
}

func TestSegmentBytes(t *testing.T) {
	at := time.UnixMilli(1_700_000_000_000).UTC()
	for _, c := range []struct {
		fact  string
		sets  []string
		rs    []Record
		bytes string
	}{
		{"the smallest record", []string{"\x01"}, []Record{{Seq: 7}}, "06" + "00" + "00" + "0000" + "00" + "00"},
		{"topic, payload and time of boot", []string{"\x01"},
			[]Record{{Seq: 7, Topic: "a/b", Payload: []byte("21"), QoS: 1, Mono: 3 * time.Millisecond}},
			"0b" + "00" + "00" + "0100" + "06" + "03612f62" + "3231"},
		{"the second counts from the first", []string{"\x01", "\x03"},
			[]Record{{Seq: 7, Mono: 5 * time.Millisecond, At: at, Clock: Clocked}, {Seq: 9, Mono: 6 * time.Millisecond, At: at.Add(time.Millisecond), Clock: Clocked, Kind: 2, Retain: true}},
			"0c" + "00" + "00" + "1000" + "0a" + "80a0abfef962" + "00" + "08" + "02" + "02" + "5400" + "01" + "02" + "02" + "00"},
		{"everything at once", []string{"\x01"},
			[]Record{{Seq: 1, QoS: 2, Retain: true, Thinnable: true, Kind: 9, Level: 3, Topic: "t", Payload: []byte("p"), Props: []byte("xy"),
				Expires: time.UnixMilli(300).UTC(), Numbers: []Number{{1, 5}, {2, 300}}}},
			"14" + "00" + "09" + "ae03" + "00" + "ac02" + "03" + "02" + "0105" + "02ac02" + "0174" + "027879" + "70"},
	} {
		b := build(c.sets, c.rs...)
		if got := hex.EncodeToString(b.raw); got != c.bytes {
			t.Errorf("%s:\n got %s\nwant %s", c.fact, got, c.bytes)
		}
		raw, _ := hex.DecodeString(c.bytes)
		got, _ := records(t, raw, c.rs[0].Seq)
		if !reflect.DeepEqual(got, c.rs) {
			t.Errorf("%s:\n got %+v\nwant %+v", c.fact, got, c.rs)
		}
		if err := verify(raw, b.first, b.last, b.n, len(b.needs)); err != nil {
			t.Errorf("%s: %v", c.fact, err)
		}
	}
}

func TestSegmentIsRefused(t *testing.T) {
	good := build([]string{"\x01", "\x01"}, Record{Seq: 5, Topic: "a"}, Record{Seq: 6, Topic: "b"})
	raw := func(edit func(b []byte) []byte) []byte { return edit(bytes.Clone(good.raw)) }
	for _, c := range []struct {
		fact string
		raw  []byte
		n    int
	}{
		{"a length runs past the end", raw(func(b []byte) []byte { b[0] = 200; return b }), 2},
		{"the last record is cut", raw(func(b []byte) []byte { return b[:len(b)-1] }), 2},
		{"a sequence number repeats", raw(func(b []byte) []byte { b[8+1] = 0; return b }), 2},
		{"the first number is not the row's", raw(func(b []byte) []byte { b[1] = 1; return b }), 2},
		{"an unknown flag", raw(func(b []byte) []byte { b[4] = 0x80; return b }), 2},
		{"a set that does not exist", raw(func(b []byte) []byte { b[3] = flagSet; b[5] = 7; return b }), 2},
		{"fewer records than the row says", good.raw, 3},
		{"more records than the row says", good.raw, 1},
		{"nothing", nil, 2},
	} {
		if err := verify(c.raw, good.first, good.last, c.n, 1); !errors.Is(err, errSegment) {
			t.Errorf("%s: %v", c.fact, err)
		}
	}
	if err := verify(good.raw, 5, 6, 2, 1); err != nil {
		t.Error(err)
	}
}

func TestPackChoosesTheSmaller(t *testing.T) {
	var c codec
	for _, raw := range [][]byte{{}, []byte("x"), bytes.Repeat([]byte("abc"), 5000), random(3000)} {
		data := c.pack(raw)
		if len(data) > segPrefix+len(raw) {
			t.Errorf("%d raw bytes became %d", len(raw), len(data))
		}
		got, err := c.unpack(data)
		if err != nil || !bytes.Equal(got, raw) {
			t.Errorf("%d bytes: %v", len(raw), err)
		}
	}
	if n := len(c.pack(bytes.Repeat([]byte("abc"), 5000))); n > 500 {
		t.Errorf("not deflated: %d bytes", n)
	}
}

func TestUnpackRefuses(t *testing.T) {
	var c codec
	good := c.pack(bytes.Repeat([]byte("abc"), 500))
	edit := func(i int, b byte) []byte { d := bytes.Clone(good); d[i] = b; return d }
	for fact, data := range map[string][]byte{
		"empty": nil, "short": good[:9], "magic": edit(0, 'X'), "version": edit(4, 2), "codec": edit(5, 7),
		"size above 2 MiB": edit(9, 0xff), "more than stated": edit(6, 10), "less than stated": edit(7, 0xff),
		"cut": good[:len(good)-2], "raw of wrong length": edit(5, codecRaw),
	} {
		if _, err := c.unpack(data); !errors.Is(err, errSegment) {
			t.Errorf("%s: %v", fact, err)
		}
	}
}

func TestNeedsTable(t *testing.T) {
	all := strings.Repeat("\xff", 128)
	for _, c := range []struct {
		fact  string
		needs []need
		bytes string
	}{
		{"one consumer", []need{{unique.Make("\x01"), 3, 300}}, "01" + "03" + "ac02" + "0301"},
		{"slot 1023 alone is written as a difference", []need{{unique.Make(strings.Repeat("\x00", 127) + "\x80"), 1, 1}}, "01" + "0101" + "02ff07"},
		{"all slots are written as a bitmap", []need{{unique.Make(all), 1, 1}}, "01" + "0101" + "8102" + strings.Repeat("ff", 128)},
		{"two sets", []need{{unique.Make("\x03"), 1, 9}, {unique.Make("\x00\x01"), 2, 8}}, "02" + "0109" + "0303" + "0208" + "0208"},
	} {
		if got := hex.EncodeToString(appendNeeds(nil, c.needs)); got != c.bytes {
			t.Errorf("%s: %s", c.fact, got)
		}
		b, _ := hex.DecodeString(c.bytes)
		got, err := parseNeeds(b)
		if err != nil || !slices.Equal(got, c.needs) {
			t.Errorf("%s: %v %v", c.fact, got, err)
		}
	}
	for fact, b := range map[string]string{
		"no set": "00", "too many": "11", "cut": "0103", "slot 1024": "01010102ff08", "trailing zero": "010101050100", "more bytes": "0101010301ff",
	} {
		raw, _ := hex.DecodeString(b)
		if _, err := parseNeeds(raw); err == nil {
			t.Errorf("%s: accepted", fact)
		}
	}
}

// random is n bytes that do not compress, others at each call.
func random(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return b
}

// FuzzSegment: no bytes panic the decoder or make it allocate beyond bounds.
func FuzzSegment(f *testing.F) {
	var c codec
	b := build([]string{"\x01", "\x03"}, Record{Seq: 5, Topic: "a", Numbers: []Number{{1, 2}}}, Record{Seq: 6, At: time.UnixMilli(5), Payload: random(30)})
	f.Add(c.pack(b.raw))
	f.Add(c.pack(bytes.Repeat(b.raw, 20)))
	f.Fuzz(func(t *testing.T, data []byte) {
		var c codec
		raw, err := c.unpack(data)
		if err != nil {
			return
		}
		if len(raw) > maxRaw {
			t.Fatal(len(raw))
		}
		cur := newCursor(raw, 1)
		var v view
		n, size := 0, 0
		for cur.next(&v) == nil {
			n++
			size += v.size
			v.list()
			v.number(1)
			if v.size > len(raw) {
				t.Fatal("record larger than its segment")
			}
		}
		if size > len(raw) {
			t.Fatal("records overlap")
		}
	})
}

// FuzzRecord: what is encoded is what is decoded.
func FuzzRecord(f *testing.F) {
	f.Add("a/b", []byte("x"), []byte("p"), int64(5), int64(7), int64(-1), uint64(1), uint16(0xffff))
	f.Fuzz(func(t *testing.T, topic string, payload, props []byte, mono, wall, expires int64, n uint64, bits uint16) {
		if len(topic) > maxTopic || n == math.MaxUint64 {
			return
		}
		ms := func(v int64) time.Time { return fromMillis(v % 1e14) }
		r := Record{Seq: 3, Topic: topic, Mono: time.Duration(mono%1e12) * time.Millisecond, At: ms(wall), Kind: uint8(bits),
			QoS: uint8(bits) & 3, Retain: bits&4 != 0, Thinnable: bits&8 != 0, Level: uint8(bits>>4) % 11}
		if expires > 0 {
			r.Expires = ms(expires)
		}
		if len(payload) > 0 {
			r.Payload = payload
		}
		if len(props) > 0 {
			r.Props = props
		}
		if bits&1024 != 0 {
			r.Numbers = []Number{{StreamID(bits), n}, {1, 1}}
		}
		if !r.At.IsZero() {
			r.Clock = Clocked
		}
		b := build([]string{"\x01", "\x03"}, r, Record{Seq: 9, Topic: "z"})
		got, sets := records(t, b.raw, 3)
		if !reflect.DeepEqual(got[0], r) || got[1].Topic != "z" || got[1].Seq != 9 || !slices.Equal(sets, []int{0, 1}) {
			t.Fatalf("got %+v\nwant %+v", got[0], r)
		}
		if v := (&view{numbers: nil}); v.number(1) != 0 {
			t.Fatal("number of nothing")
		}
	})
}

// TestLeasesOnDisk: the column open keeps numbers and states exactly and the sum
// of the sizes, in a form that was written without runs, too.
func TestLeasesOnDisk(t *testing.T) {
	window := make([]lease, maxWindow)
	for i := range window {
		window[i] = lease{ord: 70000 + uint64(i), seq: 1<<40 + uint64(i), size: uint32(100 + i%7), lane: LaneLive}
	}
	torn := slices.Clone(window) // no two make a run
	for i := range torn {
		torn[i].seq, torn[i].lane, torn[i].state = uint64(i)*1e9, uint8(i%lanes), uint8(i%2)
	}
	for _, c := range []struct {
		name string
		open []lease
		most int // bytes
	}{
		{"nothing", nil, 0},
		{"a window in one run", window, 20},
		{"a window without any run", torn, maxOpenBytes},
		{"released and sent", []lease{{5, 9, 10, 2, stateReleased}, {6, 10, 11, 2, stateReleased}, {7, 11, 13, 2, stateSent}}, 14},
		{"of two lanes", []lease{{5, 9, 10, 1, stateSent}, {6, 10, 11, 2, stateSent}}, 14},
		{"a session's marks", []lease{{900, 3, 0, 0, stateReleased}, {4, 9, 0, 0, stateDone}}, 16},
	} {
		b := appendLeases(nil, c.open)
		got, err := parseLeases(b)
		if err != nil || len(got) != len(c.open) || len(b) > c.most {
			t.Fatalf("%s: %d of %d leases in %d bytes, at most %d: %v", c.name, len(got), len(c.open), len(b), c.most, err)
		}
		left := int64(0)
		for i, want := range c.open {
			left += int64(want.size) - int64(got[i].size)
			if want.size = got[i].size; got[i] != want {
				t.Fatalf("%s: lease %d is %v, want %v", c.name, i, got[i], want)
			}
		}
		if left != 0 {
			t.Errorf("%s: the sizes differ by %d bytes", c.name, left)
		}
	}
	got, err := parseLeases([]byte("\x02\x0a\x02\x09\x02\x01\x09\x08"))
	if want := []lease{{1, 5, 9, 2, stateSent}, {2, 4, 8, 1, stateDone}}; err != nil || !slices.Equal(got, want) {
		t.Errorf("without runs: %v, want %v (%v)", got, want, err)
	}
}

// FuzzColumns: the small columns never panic and are read back as written.
func FuzzColumns(f *testing.F) {
	f.Add(appendNeeds(nil, []need{{unique.Make("\x05\x80"), 3, 4}}))
	f.Add(appendLeases(nil, []lease{{1, 5, 9, 2, stateSent}, {2, 4, 9, 1, stateDone}}))
	f.Add(appendLeases(nil, []lease{{7, 5, 9, 2, stateSent}, {8, 6, 8, 2, stateSent}, {9, 7, 9, 2, stateSent}}))
	f.Add([]byte("\x02\x0a\x02\x09\x02\x01\x09\x09")) // without runs
	f.Fuzz(func(t *testing.T, b []byte) {
		if needs, err := parseNeeds(b); err == nil {
			again, err := parseNeeds(appendNeeds(nil, needs))
			if err != nil || !slices.Equal(needs, again) {
				t.Fatal(needs, again, err)
			}
			union(needs)
		}
		if open, err := parseLeases(b); err == nil {
			again, err := parseLeases(appendLeases(nil, open))
			if err != nil || len(again) > len(open) {
				t.Fatal(open, again, err)
			}
			var sizes int64
			for i := range again {
				sizes += int64(open[i].size) - int64(again[i].size)
				open[i].size, again[i].size = 0, 0
			}
			if !slices.Equal(open[:len(again)], again) || sizes != 0 {
				t.Fatal(open, again, sizes)
			}
		}
	})
}
