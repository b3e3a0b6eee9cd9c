package sim

import (
	"math"
	"math/rand/v2"
	"time"
)

// wave is a quantity that wanders around a mean: sines of unrelated periods.
// It has no state, so the same moment always gives the same value, and its
// integral is known exactly, so a counter never runs backwards.
type wave struct {
	mean  float64
	parts []sine
}

type sine struct{ amp, period, phase float64 } // period in seconds

// newWave wanders by at most swing around mean. The slowest part takes about
// period, the others less.
func newWave(rng *rand.Rand, mean, swing float64, period time.Duration) wave {
	w := wave{mean: mean}
	for i, share := range []float64{0.5, 0.3, 0.2} {
		w.parts = append(w.parts, sine{
			amp:    swing * share,
			period: period.Seconds() / math.Pow(2.7, float64(i)) * (0.8 + 0.4*rng.Float64()),
			phase:  2 * math.Pi * rng.Float64(),
		})
	}
	return w
}

func (w wave) at(t time.Duration) float64 {
	v := w.mean
	for _, s := range w.parts {
		v += s.amp * math.Sin(2*math.Pi*t.Seconds()/s.period+s.phase)
	}
	return v
}

// sum is the integral from 0 to t, in units of the wave times seconds.
func (w wave) sum(t time.Duration) float64 {
	v := w.mean * t.Seconds()
	for _, s := range w.parts {
		k := 2 * math.Pi / s.period
		v += s.amp / k * (math.Cos(s.phase) - math.Cos(k*t.Seconds()+s.phase))
	}
	return v
}

// round cuts v to steps, as a device with few digits does.
func round(v, step float64) float64 { return math.Round(v/step) * step }
