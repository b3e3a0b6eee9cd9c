package modbus

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strings"

	"busgate/config"
	"busgate/devices"
)

// ReadRaw opens a wire, makes one read and closes the wire. table is input,
// holding, coil or discrete. The answer is two bytes a register, big-endian, or
// one byte, 0 or 1, a bit. addr+n must not pass 65536; n is 1 to 125, of bits to
// 2000. A timeout or a damaged answer is asked again as the bus says.
//
// Errors: devices.Trouble of the wire, devices.ErrNoAnswer, devices.ErrBadFrame,
// *devices.Exception, or the context's.
func (d *Driver) ReadRaw(ctx context.Context, bus *config.Bus, unit uint8, table string, addr, n int, log *slog.Logger) ([]byte, error) {
	most := 125
	if isBits(table) {
		most = 2000
	}
	if n < 1 || n > most || addr < 0 || addr+n > 65536 {
		return nil, fmt.Errorf("read %s %d, %d of them: at most %d, and addresses end at 65535", table, addr, n, most)
	}
	opened, err := d.Open(ctx, devices.Wire{Bus: bus, Log: log})
	if err != nil {
		return nil, err
	}
	defer opened.Close()
	f := opened.(*field)
	raw, _, err := f.again(ctx, f.unitOf(&config.Device{UnitID: unit, MaxRead: 125}), span{table, addr, addr + n})
	if err != nil {
		return nil, err
	}
	if !isBits(table) {
		return append([]byte(nil), raw...), nil
	}
	bits := make([]byte, n)
	for i := range bits {
		bits[i] = raw[i/8] >> (i % 8) & 1
	}
	return bits, nil
}

// Guess is registers read as values of one type.
type Guess struct {
	Type   string
	Order  string // "" for types of one register
	Scale  string // "", x0.1 or x0.01
	Values []devices.Value
	Looks  []string // what each value could be: V, Hz, °C, %; nil when one is not plausible
}

// Guesses reads registers, two bytes each, as numbers of every type and order
// that fits in them. Whole numbers are also tried in tenths and hundredths, and
// the first that is plausible is kept. Signed types stand there when a value is
// negative.
func Guesses(raw []byte) []Guess {
	var list []Guess
	for _, typ := range []string{"uint16", "int16", "uint32", "int32", "float32", "uint64", "int64", "float64"} {
		size := 2 * config.Words(typ, 0)
		if len(raw) < size || len(raw)%size != 0 {
			continue
		}
		orders := []string{"ABCD", "CDAB", "BADC", "DCBA"}
		if size == 2 {
			orders = []string{""}
		}
		for _, order := range orders {
			list = append(list, guess(raw, size, typ, order)...)
		}
	}
	return list
}

// guess reads raw as values of one type.
func guess(raw []byte, size int, typ, order string) []Guess {
	var list []Guess
	for i, scale := range []string{"", "x0.1", "x0.01"} {
		p := config.Point{Table: "holding", Type: typ, Order: order, Bit: -1, ScaleReg: -1, Digits: -1, Scale: config.Decimal{M: 1, E: -i}}
		g := Guess{Type: typ, Order: order, Scale: scale}
		negative := false
		for at := 0; at < len(raw); at += size {
			v, _, err := devices.Decode(&p, raw[at:at+size])
			if err != nil {
				return nil
			}
			g.Values = append(g.Values, v)
			negative = negative || v.Float() < 0
		}
		if strings.HasPrefix(typ, "int") && !negative {
			return nil
		}
		g.Looks = looks(g.Values, typ)
		if i == 0 || g.Looks != nil {
			list = append(list, g)
		}
		if g.Looks != nil || strings.HasPrefix(typ, "float") {
			return list
		}
	}
	return list
}

// usual is what the values of a quantity mostly are. The narrow ones come first.
var usual = []struct {
	unit     string
	low, top float64
}{
	{"Hz", 49.5, 50.5}, {"Hz", 59.5, 60.5}, {"V", 100, 130}, {"V", 207, 253}, {"V", 380, 440}, {"°C", -40, 60}, {"%", 60, 100},
}

// looks says what each of the values could be; nil when one of them is nothing
// usual. Floats may be anything that is not far from 1: few registers that are
// something else look so.
func looks(values []devices.Value, typ string) []string {
	var out []string
	zeros := 0
	for _, v := range values {
		f := v.Float()
		unit := ""
		for _, u := range usual {
			if f >= u.low && f <= u.top {
				unit = u.unit
				break
			}
		}
		size := math.Abs(f)
		float := strings.HasPrefix(typ, "float")
		switch {
		case f == 0:
			zeros++
		case float && !(size >= 1e-3 && size < 1e7), !float && unit == "":
			return nil
		case float && size < 0.1:
			unit = ""
		}
		if unit == "" {
			unit = "a number"
		}
		out = append(out, unit)
	}
	if zeros == len(values) {
		return nil
	}
	return out
}

// Words16 are registers as numbers.
func Words16(raw []byte) []uint16 {
	words := make([]uint16, len(raw)/2)
	for i := range words {
		words[i] = binary.BigEndian.Uint16(raw[2*i:])
	}
	return words
}

// Refusal is what a unit or wire says to a read that failed, without a name of
// the bus before it, and whether the unit answered at all.
func Refusal(bus *config.Bus, unit uint8, err error) (text string, answered bool) {
	x, refused := errors.AsType[*devices.Exception](err)
	switch {
	case refused:
		return fmt.Sprintf("unit %d on %s refuses: %s", unit, bus.Name, x.Text), true
	case errors.Is(err, devices.ErrBadFrame):
		return badFrameText(bus, unit, 1+bus.Retries), false
	case errors.Is(err, devices.ErrNoAnswer):
		return noAnswerText(bus, unit, 1+bus.Retries, bus.Timeout), false
	}
	return err.Error(), false
}
