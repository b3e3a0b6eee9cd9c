package uart

import (
	"bytes"
	"strconv"
	"strings"

	"busgate/config"
	"busgate/devices"
)

// nmeaCheck tests a whole sentence. A star makes the check a must (NMEA 0183,
// 5.3.1); must asks for it in any case. The address field must be one: an XOR
// alone misses 1 damage of 256.
func nmeaCheck(b []byte, must bool) bool {
	b = trimLine(b, []byte("\n"))
	address := b[1:]
	if i := bytes.IndexAny(address, ",*"); i >= 0 {
		address = address[:i]
	}
	for _, c := range address {
		if (c < 'A' || c > 'Z') && (c < '0' || c > '9') {
			return false
		}
	}
	if len(address) < 3 {
		return false
	}
	if i := bytes.IndexByte(b, '*'); i < 0 {
		return !must
	}
	return starCheck(b)
}

// position says in which columns of a sentence a latitude and a longitude
// stand; the hemisphere follows. Column 0 is the address field.
var position = map[string][2]int{
	"RMC": {3, 5}, "GGA": {2, 4}, "GLL": {1, 3}, "GNS": {2, 4}, "RMA": {2, 4},
	"BEC": {2, 4}, "BWC": {2, 4}, "BWR": {2, 4}, "WPL": {1, 3},
}

// nmeaFields splits a sentence: its formatter such as RMC, and the columns from
// the address field on, without the check.
func nmeaFields(frame []byte) (formatter string, fields []string) {
	text := string(trimLine(frame, []byte("\n")))
	text, _, _ = strings.Cut(text, "*")
	if text != "" {
		text = text[1:]
	}
	fields = strings.Split(text, ",")
	address := fields[0]
	return address[max(0, len(address)-3):], fields
}

// nmeaPick takes a column of a sentence. The sentence may be written with its
// talker (GPRMC) or for any talker (RMC). An empty field, and a position of a
// receiver that has none, is NotAvailable.
func nmeaPick(p *config.Point) pick {
	return func(f *frame) (devices.Value, devices.Quality, bool, error) {
		formatter, fields := f.sentence()
		if p.Sentence != formatter && p.Sentence != fields[0] || p.Column >= len(fields) {
			return devices.Value{}, 0, false, nil
		}
		s := strings.TrimSpace(fields[p.Column])
		if s == "" || !valid(formatter, fields, p.Column) {
			return devices.Value{}, devices.NotAvailable, true, nil
		}
		if at, ok := position[formatter]; ok && (p.Column == at[0] || p.Column == at[1]) && p.Column+1 < len(fields) && p.Type != "string" {
			deg, err := degrees(p, s, fields[p.Column+1])
			if err != nil {
				return devices.Value{}, 0, true, err
			}
			v, q, err := devices.DecodeNumber(p, deg, 0)
			return v, q, true, err
		}
		v, q, err := textValue(p, s)
		return v, q, true, err
	}
}

// valid says whether the receiver has a position, for the columns that depend on it.
func valid(formatter string, fields []string, column int) bool {
	switch formatter {
	case "RMC": // status A; columns 3 to 8 are position, speed and course
		return column < 3 || column > 8 || fields[2] != "V"
	case "GGA": // quality 0: no fix
		return column < 2 || column > 11 || column == 6 || column == 7 || len(fields) < 7 || fields[6] != "0"
	case "GLL":
		return column > 4 || len(fields) < 7 || fields[6] != "V"
	}
	return true
}

// degrees turns ddmm.mmmm and a hemisphere into degrees, south and west
// negative, rounded to 1e-7 degrees (1 cm).
func degrees(p *config.Point, s, side string) (float64, error) {
	v, err := strconv.ParseFloat(s, 64)
	deg := float64(int(v / 100))
	min := v - deg*100
	sign := 1.0
	most := 90.0
	switch side {
	case "S", "W":
		sign = -1
	case "N", "E":
	default:
		return 0, &devices.RangeError{Text: p.Name + " has no hemisphere but " + strconv.Quote(side) + "; not published"}
	}
	if side == "E" || side == "W" {
		most = 180
	}
	if err != nil || v < 0 || min >= 60 || deg+min/60 > most {
		return 0, &devices.RangeError{Text: p.Name + " " + strconv.Quote(s) + " is no position; not published"}
	}
	micro := (deg + min/60) * 1e7
	return sign * float64(int64(micro+0.5)) / 1e7, nil
}
