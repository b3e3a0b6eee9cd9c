package modbus

import (
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"

	"busgate/devices"
	"busgate/devices/sim"
)

func TestReadRaw(t *testing.T) {
	unit := counting(2, 0x100)
	for i, on := range []bool{true, false, false, true, false, false, false, false, true, true} {
		unit.SetBit(sim.Coil, uint16(7+i), on)
	}
	bare := sim.NewUnit(3)
	for _, c := range []struct {
		name    string
		unit    uint8
		table   string
		addr, n int
		want    string
	}{
		{"registers", 2, "input", 1, 2, "01010102"},
		{"the last register", 2, "holding", 65535, 1, "00ff"},
		{"bits in the order of their addresses", 2, "coil", 7, 10, "01000001000000000101"},
		{"a refusal", 3, "input", 0, 1, "exception 2, illegal data address"},
		{"silence", 9, "input", 0, 1, "no answer"},
		{"too many registers", 2, "input", 0, 126, "read input 0, 126 of them: at most 125, and addresses end at 65535"},
		{"past the end", 2, "input", 65535, 2, "read input 65535, 2 of them: at most 125, and addresses end at 65535"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				line := sim.Line{Baud: 9600}
				bus := sim.NewBus(line, 1, unit, bare)
				d := hall{{9600, "8N1"}: bus}.driver()
				raw, err := d.ReadRaw(t.Context(), testBus(line), c.unit, c.table, c.addr, c.n, slog.New(slog.DiscardHandler))
				got := hex.EncodeToString(raw)
				if err != nil {
					got = err.Error()
				}
				if got != c.want {
					t.Errorf("got %s, want %s", got, c.want)
				}
				p, err := bus.Open()
				if err != nil {
					t.Fatal("the port was not closed")
				}
				p.Close()
			})
		})
	}
}

func TestRefusal(t *testing.T) {
	bus := testBus(sim.Line{Baud: 9600})
	for _, c := range []struct {
		err      error
		want     string
		answered bool
	}{
		{&devices.Exception{Code: 2, Text: exceptionText(2)}, "unit 7 on meters refuses: exception 2, illegal data address", true},
		{devices.ErrNoAnswer, "unit 7 on meters: no answer (2 tries of 500 ms)", false},
		{fmt.Errorf("%w: 00", devices.ErrBadFrame), "unit 7 on meters: damaged answers (2 tries)", false},
		{errors.New("write: EIO"), "write: EIO", false},
	} {
		if text, answered := Refusal(bus, 7, c.err); text != c.want || answered != c.answered {
			t.Errorf("%v: %s %v", c.err, text, answered)
		}
	}
}

func TestGuesses(t *testing.T) {
	for _, c := range []struct {
		name, raw string
		want      string // those that look like something
	}{
		{"tenths", "00B80262", "uint16 x0.1 18.4 61.0: °C %"},
		{"hundredths below zero", "FC18", "int16 x0.1 -100.0 is out; int16 x0.01 -10.00: °C"},
		{"a voltage as float", "43666666", "float32 ABCD 230.4: V"},
		{"the same, low word first", "66664366", "float32 CDAB 230.4: V"},
		{"low word first, tenths", "09000000", "uint32 CDAB x0.1 230.4: V"},
		{"a frequency as double", "40490000 00000000", "float64 ABCD 50: Hz"},
		{"nothing in it", "00000000", ""},
		{"no number", "7F807F80", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			raw, err := hex.DecodeString(strings.ReplaceAll(c.raw, " ", ""))
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, g := range Guesses(raw) {
				if g.Looks == nil {
					continue
				}
				line := g.Type
				for _, s := range []string{g.Order, g.Scale} {
					if s != "" {
						line += " " + s
					}
				}
				for _, v := range g.Values {
					line += " " + v.String()
				}
				got = append(got, line+": "+strings.Join(g.Looks, " "))
			}
			_, want, split := strings.Cut(c.want, "; ")
			if !split {
				want = c.want
			}
			found := want == "" && len(got) == 0
			for _, line := range got {
				found = found || line == want
			}
			if !found {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
}

func TestGuessesNameEveryTypeAndOrderThatFits(t *testing.T) {
	count := map[string]int{}
	for _, g := range Guesses([]byte{0x80, 1, 2, 3, 4, 5, 6, 0x87}) {
		if g.Scale == "" {
			count[g.Type]++
		}
	}
	if got, want := fmt.Sprint(count), "map[float32:4 float64:4 int16:1 int32:2 int64:2 uint16:1 uint32:4 uint64:4]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := Guesses([]byte{0x71, 2, 0x73, 4, 0x75, 6}); len(got) != 1 || got[0].Type != "uint16" {
		t.Errorf("three registers are three values of 16 bit only: %+v", got)
	}
}
