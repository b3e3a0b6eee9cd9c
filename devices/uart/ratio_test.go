package uart

import (
	"testing"
	"testing/synctest"
	"time"

	"busgate/devices/sim"
)

// On a line that is never quiet, with one damaged frame in twenty, every whole
// frame is taken and no damaged one.
func TestATalkerAtTheSpeedOfTheWire(t *testing.T) {
	for _, tt := range []struct {
		profile string
		line    sim.Line
		every   time.Duration
		gen     func(uint64, time.Duration) []byte
		each    uint64 // good frames of one burst
	}{
		{"plantower-pms5003", sim.Line{}, 34 * time.Millisecond, sim.PMS5003(1), 1},
		{"sml-meter", sim.Line{}, 0, sim.SML(1), 1},
		{"dsmr-p1", sim.Line{Baud: 115200}, 0, sim.P1(1), 1},
		{"nmea-gps", sim.Line{}, 0, sim.NMEA(1), 3},
	} {
		t.Run(tt.profile, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				every := tt.every
				if every == 0 { // as long as one takes, and a character
					every = time.Duration(len(tt.gen(0, 0))+8) * tt.line.Char()
				}
				b := sim.NewTalker(tt.line, 9, every, tt.gen)
				b.SetFaults(sim.Faults{Damage: .05})
				dev := profiled(t, tt.profile)
				r := read(t, b, dev)
				for range 60 {
					time.Sleep(time.Second)
					r.poll()
				}
				s, c := b.Stats(), r.field.Counts()
				whole := tt.each*s.Talks - s.Damaged
				ratio := float64(c.Good) / float64(whole)
				t.Logf("%s %v: %d frames in a minute, %d damaged, %d taken, %.4f of the whole ones", tt.profile, tt.line, tt.each*s.Talks, s.Damaged, c.Good, ratio)
				if ratio < .995 || c.Good > whole+2 || s.Damaged == 0 { // the last one is on its way; a line end may be hurt without harm
					t.Errorf("%d taken of %d whole: %+v", c.Good, whole, c)
				}
			})
		})
	}
}

// A polled sensor is asked as fast as request, answer and the silence between
// them allow.
func TestAPolledSensorAtTheSpeedOfTheWire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := sim.Line{Chunk: 1}
		b := sim.NewPolled(line, 1, sim.MHZ19(1))
		r := read(t, b, profiled(t, "winsen-mh-z19"))
		r.poll()
		begin := time.Now()
		const polls = 200
		for range polls {
			if a := r.poll(); len(a.Values) != 1 {
				t.Fatalf("%+v", a)
			}
		}
		limit := polls * (18*line.Char() + line.Silence())
		ratio := float64(limit) / float64(time.Since(begin))
		t.Logf("limit/used %.4f", ratio)
		if ratio < .995 {
			t.Errorf("%.4f of the limit", ratio)
		}
	})
}
