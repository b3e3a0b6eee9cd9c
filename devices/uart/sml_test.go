package uart

import (
	"encoding/csv"
	"encoding/hex"
	"os"
	"testing"

	"busgate/config"
)

// Telegrams of real meters.
func TestSMLVectors(t *testing.T) {
	f, err := os.Open("testdata/sml.csv")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rows, err := csv.NewReader(f).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	dev := profiled(t, "sml-meter")
	for _, r := range rows[1:] {
		t.Run(r[0], func(t *testing.T) {
			raw, err := hex.DecodeString(r[1])
			if err != nil {
				t.Fatal(err)
			}
			st, err := newStation(dev)
			if err != nil {
				t.Fatal(err)
			}
			st.feed(raw[100:], false, epoch) // the line was opened in the middle of one
			st.feed(raw, false, epoch)
			if got := values(st); got != r[2] || st.stream.good != 1 || st.stream.bad != 0 {
				t.Errorf("got  %s (%d good, %d bad)\nwant %s", got, st.stream.good, st.stream.bad, r[2])
			}
			for bit := range len(raw) * 8 {
				b := append([]byte{}, raw...)
				b[bit/8] ^= 1 << (bit % 8)
				s, err := newStation(dev)
				if err != nil {
					t.Fatal(err)
				}
				if s.feed(b, true, epoch); s.stream.good != 0 {
					t.Fatalf("bit %d of byte %d turned is taken", bit%8, bit/8)
				}
			}
		})
	}
}

// A real meter's numbers: signed power, a scaler, an unsigned counter.
func TestSMLNumbers(t *testing.T) {
	p := point("v", func(p *config.Point) { p.Type = "int64" })
	for _, c := range []struct {
		entry smlEntry
		want  string
	}{
		{smlEntry{scaler: -1, kind: 5, raw: []byte{0xFF, 0x38}}, "-20.0"},
		{smlEntry{scaler: 0, kind: 5, raw: []byte{0x80, 0, 0, 0, 0, 0, 0, 0}}, "-9223372036854775808"},
		{smlEntry{scaler: -1, kind: 6, raw: []byte{0, 0, 0, 1, 0, 0, 0, 5}}, "429496730.1"},
		{smlEntry{scaler: 3, kind: 6, raw: []byte{12}}, "12000"},
		{smlEntry{kind: 4, raw: []byte{1}}, "true"},
		{smlEntry{kind: 0, raw: []byte{0x0A, 0x01}}, `"0A01"`},
	} {
		v, _, err := c.entry.value(&p)
		if got := string(v.AppendJSON(nil, -1)); err != nil || got != c.want {
			t.Errorf("%+v: %s, %v; want %s", c.entry, got, err, c.want)
		}
	}
}

func TestDeepSMLEnds(t *testing.T) {
	raw := append([]byte{}, smlStart...)
	for range 1000 {
		raw = append(raw, 0x71)
	}
	raw = append(raw, 0x1B, 0x1B, 0x1B, 0x1B, 0x1A, 0, 0, 0)
	if got := smlValues(raw); len(got) != 0 {
		t.Errorf("%d values", len(got))
	}
}

// Four bytes 1B inside a file are sent twice (SML transport protocol, version 1).
func TestSMLDoubledEscape(t *testing.T) {
	raw := append([]byte{}, smlStart...)
	raw = append(raw, 0x76, 1, 1, 1, 0x72, 0x63, 7, 1, 0x75, 1, 1, 1, 1, 0x71,
		0x77, 7, 1, 0, 1, 8, 0, 255, 1, 1, 0x62, 30, 0x52, 0, 0x65, 0x1B, 0x1B, 0x1B, 0x1B, 0x1B, 0x1B, 0x1B, 0x1B, 1,
		1, 0)
	raw = append(raw, 0x1B, 0x1B, 0x1B, 0x1B, 0x1A, 0)
	c := crcX25(raw)
	raw = append(raw, byte(c), byte(c>>8))
	st, err := newStation(profiled(t, "sml-meter"))
	if err != nil {
		t.Fatal(err)
	}
	st.feed(raw, false, epoch)
	if got, want := values(st), "import=454761.243"; got != want { // 0x1B1B1B1B Wh
		t.Errorf("got %s, want %s", got, want)
	}
}
