package uart

import (
	"math"
	"strconv"
	"strings"
	"unicode"

	"busgate/config"
	"busgate/devices"
)

// textValue reads a value that the sensor wrote as text. Type string keeps it;
// bool takes on, off, true, false, 1, 0; every other type is a number, whose
// decimals are kept exactly as they are written, and a unit may follow it.
// Without a type a bare number is a number and anything else text.
func textValue(p *config.Point, s string) (devices.Value, devices.Quality, error) {
	s = strings.TrimSpace(s)
	switch p.Type {
	case "string":
		return devices.TextValue(strings.ToValidUTF8(s, "\uFFFD")), devices.Good, nil
	case "bool":
		return boolValue(p, s)
	case "":
		if strings.TrimRightFunc(s, unit) != s || strings.Trim(s, "0123456789.,+-eE") != "" {
			return devices.TextValue(strings.ToValidUTF8(s, "\uFFFD")), devices.Good, nil
		}
	}
	neg, mag, exp, ok := decimal(s)
	if ok {
		if exp == 0 && sentinel(p, neg, mag) {
			return devices.Value{}, devices.NotAvailable, nil
		}
		return devices.DecodeInteger(p, neg, mag, exp)
	}
	// an exponent, or more than 64 bits
	t := strings.TrimRightFunc(s, unit)
	switch strings.ToLower(s) {
	case "nan", "-nan", "inf", "-inf", "+inf":
		t = "nan"
	}
	f, err := strconv.ParseFloat(t, 64)
	if err != nil && !math.IsInf(f, 0) || strings.ContainsAny(s, "xX_pP") {
		return devices.Value{}, 0, &devices.RangeError{Text: p.Name + " " + strconv.QuoteToASCII(cut(s)) + " is no number; not published"}
	}
	if strings.ContainsAny(t, "eE") || math.IsNaN(f) || math.IsInf(f, 0) {
		return devices.DecodeNumber(p, f, 0)
	}
	return devices.DecodeLong(p, f)
}

func boolValue(p *config.Point, s string) (devices.Value, devices.Quality, error) {
	switch strings.ToLower(s) {
	case "1", "on", "true", "yes":
		return devices.BoolValue(true), devices.Good, nil
	case "0", "off", "false", "no":
		return devices.BoolValue(false), devices.Good, nil
	}
	return devices.Value{}, 0, &devices.RangeError{Text: p.Name + " " + strconv.QuoteToASCII(cut(s)) + " is neither on nor off; not published"}
}

// decimal reads sign, digits and one decimal point or comma as ±mag * 10^exp,
// and lets a unit follow. ok is false for anything else, and when the digits do
// not fit 64 bits.
func decimal(s string) (neg bool, mag uint64, exp int, ok bool) {
	s = strings.TrimRightFunc(s, unit)
	if s != "" && (s[0] == '-' || s[0] == '+') {
		neg = s[0] == '-'
		s = strings.TrimLeft(s[1:], " ") // scales write "-   1.5"
	}
	digits, point := 0, false
	for i := range len(s) {
		switch c := s[i]; {
		case c >= '0' && c <= '9':
			d := uint64(c - '0')
			if mag > (math.MaxUint64-d)/10 {
				return false, 0, 0, false
			}
			mag = mag*10 + d
			digits++
			if point {
				exp--
			}
		case (c == '.' || c == ',') && !point:
			point = true
		default:
			return false, 0, 0, false
		}
	}
	return neg, mag, exp, digits > 0
}

// unit says that r may stand behind a number.
func unit(r rune) bool {
	return unicode.IsLetter(r) || r == '%' || r == '°' || r == ' '
}

func sentinel(p *config.Point, neg bool, mag uint64) bool {
	for _, s := range p.Invalid {
		if neg == (s < 0) && uint64(max(s, -s)) == mag {
			return true
		}
	}
	return false
}

// cut keeps a text for people short.
func cut(s string) string {
	if len(s) > 40 {
		return s[:40]
	}
	return s
}
