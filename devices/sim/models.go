package sim

import (
	"math"
	"math/rand/v2"
	"time"
)

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 2)) }

// NewSDM630 is an Eastron SDM630 three-phase meter in a house: 52 quantities
// as float32 input registers that belong together (P = U*I*cos phi, the totals
// are sums, the counters are integrals). Like the real one it reads 0 between
// them, and knows nothing from 0x0180 on.
func NewSDM630(id byte, seed uint64) *Unit {
	u := NewUnit(id)
	u.SetIdentity("Eastron", "SDM630", "1.0")
	u.SetAnswerTime(25*time.Millisecond, 5*time.Millisecond)
	u.SetFill(func(t Table, addr uint16) (uint16, bool) { return 0, t == Input && addr < 0x180 })
	rng := newRand(seed)
	var ph [3]phase
	for i := range ph {
		ph[i] = newPhase(rng, []float64{280, 340, 250}[i], 1000+200*float64(i))
	}
	all := func(f func(phase, time.Duration) float64) func(time.Duration) float64 {
		return func(t time.Duration) float64 { return f(ph[0], t) + f(ph[1], t) + f(ph[2], t) }
	}
	perPhase := func(addr uint16, f func(phase, time.Duration) float64) {
		for i := range ph {
			u.LiveFloat32(Input, addr+2*uint16(i), func(t time.Duration) float64 { return f(ph[i], t) })
		}
	}
	perPhase(0x00, phase.voltage)
	perPhase(0x06, phase.current)
	perPhase(0x0C, phase.active)
	perPhase(0x12, phase.apparent)
	perPhase(0x18, phase.reactive)
	perPhase(0x1E, phase.cosphi)
	p, s, q := all(phase.active), all(phase.apparent), all(phase.reactive)
	hertz := newWave(rng, 50, 0.03, 90*time.Second)
	u.LiveFloat32(Input, 0x34, p)
	u.LiveFloat32(Input, 0x38, s)
	u.LiveFloat32(Input, 0x3C, q)
	u.LiveFloat32(Input, 0x3E, func(t time.Duration) float64 { return p(t) / s(t) })
	u.LiveFloat32(Input, 0x42, func(t time.Duration) float64 { return math.Acos(p(t)/s(t)) * 180 / math.Pi })
	u.LiveFloat32(Input, 0x46, func(t time.Duration) float64 { return round(hertz.at(t), 0.01) })
	thd := newWave(rng, 2.1, 0.6, 5*time.Minute)
	for i, addr := range []uint16{0xEA, 0xEC, 0xEE, 0xF8} {
		u.LiveFloat32(Input, addr, func(t time.Duration) float64 { return thd.at(t + time.Duration(i)*time.Minute) })
	}
	// counters: totals, then L1..L3 further up
	for _, c := range []struct {
		total, first uint16
		f            func(phase, time.Duration) float64
	}{
		{0x48, 0x15A, phase.imported},
		{0x4A, 0x160, phase.exported},
		{0x156, 0x166, func(p phase, t time.Duration) float64 { return p.imported(t) + p.exported(t) }},
		{0x4C, 0x16C, phase.varhIn},
		{0x4E, 0x172, phase.varhOut},
		{0x158, 0x178, func(p phase, t time.Duration) float64 { return p.varhIn(t) + p.varhOut(t) }},
	} {
		u.LiveFloat32(Input, c.total, all(c.f))
		perPhase(c.first, c.f)
	}
	return u
}

// phase is one of the three phases of a house.
type phase struct {
	volts, watts, factor wave
	kwh                  float64 // at the start
}

func newPhase(rng *rand.Rand, watts, kwh float64) phase {
	return phase{
		volts:  newWave(rng, 230.4, 2.5, 4*time.Minute),
		watts:  newWave(rng, watts, watts/3, 3*time.Minute),
		factor: newWave(rng, 0.95, 0.03, 7*time.Minute),
		kwh:    kwh,
	}
}

func (p phase) voltage(t time.Duration) float64  { return p.volts.at(t) }
func (p phase) active(t time.Duration) float64   { return p.watts.at(t) }
func (p phase) cosphi(t time.Duration) float64   { return p.factor.at(t) }
func (p phase) apparent(t time.Duration) float64 { return p.active(t) / p.cosphi(t) }
func (p phase) current(t time.Duration) float64  { return p.apparent(t) / p.voltage(t) }
func (p phase) reactive(t time.Duration) float64 {
	return math.Sqrt(p.apparent(t)*p.apparent(t) - p.active(t)*p.active(t))
}
func (p phase) imported(t time.Duration) float64 { return p.kwh + p.watts.sum(t)/3.6e6 }
func (p phase) exported(time.Duration) float64   { return 12.5 }
func (p phase) varhIn(t time.Duration) float64   { return p.kwh/3 + p.watts.sum(t)/3.6e6/3 }
func (p phase) varhOut(time.Duration) float64    { return 3.25 }

// NewXYMD02 is a thermometer and hygrometer in a cellar: input 1 is 0.1 °C
// signed, input 2 is 0.1 %.
func NewXYMD02(id byte, seed uint64) *Unit {
	u := NewUnit(id)
	u.SetAnswerTime(15*time.Millisecond, 5*time.Millisecond)
	rng := newRand(seed)
	temp, hum := newWave(rng, 18.4, 0.8, 10*time.Minute), newWave(rng, 61, 3, 8*time.Minute)
	u.Live(Input, 1, 1, func(t time.Duration) []uint16 { return []uint16{uint16(int16(math.Round(temp.at(t) * 10)))} })
	u.Live(Input, 2, 1, func(t time.Duration) []uint16 { return []uint16{uint16(math.Round(hum.at(t) * 10))} })
	return u
}

// NewRelays is a board of n relays as coils from 0 on; coil 255 switches all.
// Functions 1, 5 and 15.
func NewRelays(id byte, n int) *Unit {
	u := NewUnit(id)
	u.SetAnswerTime(5*time.Millisecond, 0)
	for i := range n {
		u.SetBit(Coil, uint16(i), false)
	}
	u.SetBit(Coil, 255, false)
	u.OnWrite(func(t Table, addr, w uint16) uint16 {
		if t == Coil && addr == 255 {
			for i := range n {
				u.cells[Coil][uint16(i)] = w
			}
			return 0
		}
		return w
	})
	return u
}

// NewInverter is a solar inverter that sends the low word first: input 5003
// uint32 0.1 kWh, 5030 int32 W, 5037 state (0 run), holding 5007 limit 0.1 %,
// which bounds the power.
func NewInverter(id byte, seed uint64) *Unit {
	const rated = 5000.0
	u := NewUnit(id)
	u.SetIdentity("Simulated", "Inverter", "1.0")
	u.SetAnswerTime(8*time.Millisecond, 0)
	u.SetFill(func(t Table, addr uint16) (uint16, bool) { return 0, t == Input && addr >= 5000 && addr < 5040 })
	sun := newWave(newRand(seed), 2310, 700, 6*time.Minute)
	u.Set(Holding, 5007, 1000)
	power := func(t time.Duration) float64 {
		return min(sun.at(t), rated*float64(u.cells[Holding][5007])/1000)
	}
	low := func(v uint32) []uint16 { return []uint16{uint16(v), uint16(v >> 16)} }
	u.Live(Input, 5030, 2, func(t time.Duration) []uint16 { return low(uint32(int32(math.Round(power(t))))) })
	u.Live(Input, 5003, 2, func(t time.Duration) []uint16 { return low(uint32(184210 + sun.sum(t)/3.6e5)) })
	u.Set(Input, 5037, 0)
	return u
}
