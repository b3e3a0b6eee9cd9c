package modbus

import (
	"fmt"
	"log/slog"
	"math"
	"strconv"
	"strings"

	"busgate/config"
	"busgate/config/report"
	"busgate/devices"
)

// orderRounds in a row tell that a value has its words in another order.
const orderRounds = 3

// plausible is what a quantity can be, by its unit of measurement.
var plausible = map[string]struct{ low, top float64 }{
	"V": {0, 1000}, "Hz": {40, 70}, "°C": {-60, 200}, "%": {0, 100}, "A": {-10000, 10000}, "W": {-1e7, 1e7},
}

// tiniest is what a float of a quantity is at least, but for 0; one of other
// bytes is mostly less.
const tiniest = 1e-4

// orders counts, by point, the rounds in a row in which another order of the
// bytes made sense and the configured one did not.
type orders map[string]*swapped

type swapped struct {
	order  string
	rounds int
}

// look judges one value of 32 bits, which was decoded to v or, being out of
// range, to nothing. The finding is not nil once three rounds agree.
func (o orders) look(dev *config.Device, p *config.Point, raw []byte, power int, v devices.Value) *devices.Finding {
	if len(raw) != 4 || p.Type != "float32" && p.Type != "int32" && p.Type != "uint32" {
		return nil
	}
	limits, known := plausible[p.Unit]
	if f := v.Float(); !known || len(o) == 0 && f >= limits.low && f <= limits.top && math.Abs(f) >= tiniest {
		return nil
	}
	sense := func(order string) (f float64, ok bool) {
		q := *p
		q.Order, q.Min, q.Max = order, nil, nil
		v, quality, err := devices.DecodeScaled(&q, raw, power)
		if err != nil || quality != devices.Good || !v.IsNumber() {
			return math.NaN(), false
		}
		f = v.Float()
		tiny := p.Type == "float32" && f != 0 && math.Abs(f) < tiniest
		return f, f >= limits.low && f <= limits.top && !tiny
	}
	now, ok := sense(p.Order)
	if ok || math.IsNaN(now) {
		delete(o, p.Name)
		return nil
	}
	better, value := better(p.Order, sense)
	s := o[p.Name]
	switch {
	case better == "":
		delete(o, p.Name)
		return nil
	case s == nil || s.order != better:
		o[p.Name] = &swapped{order: better, rounds: 1}
		return nil
	}
	if s.rounds++; s.rounds < orderRounds {
		return nil
	}
	return &devices.Finding{Err: "word-order", Level: slog.LevelWarn, Once: true, Key: "device." + dev.Name, Text: fmt.Sprintf(
		"%s reads %s %s; with order = %q it would be %s %s. Set order in [device.%s]", p.Name, figure(now), p.Unit, better, figure(value), p.Unit, dev.Name)}
}

// better is the other order that makes sense. Words that change places are the
// common case; a device that changes bytes inside its words would send nonsense
// in every register, so that these orders count only when the words do not
// explain it, and only when one of them alone does.
func better(order string, sense func(string) (float64, bool)) (string, float64) {
	words := map[string]string{"ABCD": "CDAB", "CDAB": "ABCD", "BADC": "DCBA", "DCBA": "BADC"}[order]
	if f, ok := sense(words); ok {
		return words, f
	}
	found, value := "", 0.0
	for _, other := range []string{"ABCD", "CDAB", "BADC", "DCBA"} {
		if other == order || other == words {
			continue
		}
		if f, ok := sense(other); ok {
			if found != "" {
				return "", 0
			}
			found, value = other, f
		}
	}
	return found, value
}

// figure is a number for people: 2 310, 230.1, -1.8e+09.
func figure(f float64) string {
	if a := math.Abs(f); a >= 1e7 || a < 1e-3 && a != 0 {
		return strconv.FormatFloat(f, 'g', 2, 64)
	}
	whole, rest, _ := strings.Cut(strconv.FormatFloat(f, 'f', 1, 64), ".")
	n, err := strconv.ParseInt(whole, 10, 64)
	if err != nil {
		return whole
	}
	text := report.Count(n)
	if n == 0 && f < 0 {
		text = "-0"
	}
	if rest != "0" {
		text += "." + rest
	}
	return text
}
