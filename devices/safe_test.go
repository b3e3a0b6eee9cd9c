package devices_test

import (
	"strings"
	"testing"
	"time"

	"busgate/config"
	"busgate/devices/sim"
)

func TestSafeValues(t *testing.T) {
	virtual(t, func(t *testing.T) {
		u := counting(1, 0)
		list := written(u, nil)
		u.Set(sim.Holding, 10, 99)
		for i := range uint16(4) {
			u.SetBit(sim.Coil, i, true)
		}
		d := relays()
		d.Points[3].Safe, d.Points[3].SafeFor = int64(30), 5*time.Minute
		d.Points[4].Safe = false
		p := newPlant(t, []*sim.Unit{u}, d)
		p.start()
		time.Sleep(time.Minute)
		if got := strings.Join(list(), " "); got != "3:10=30 0:0=0" {
			t.Errorf("at the start: %s", got)
		}
		p.write("limit", "80")
		time.Sleep(4 * time.Minute)
		if got := list()[2:]; len(got) != 1 {
			t.Errorf("4 minutes after the command: %v", got)
		}
		time.Sleep(2 * time.Minute)
		if got := strings.Join(list()[3:], " "); got != "3:10=30" {
			t.Errorf("6 minutes after the command: %s", got)
		}
		time.Sleep(time.Hour)
		if got := list()[4:]; len(got) != 0 {
			t.Errorf("the safe value is written once: %v", got)
		}
		p.stop()
		if got := strings.Join(list()[4:], " "); got != "3:10=30 0:0=0" {
			t.Errorf("at the stop: %s", got)
		}
	})
}

func TestWritesOfSpecialRegisters(t *testing.T) {
	virtual(t, func(t *testing.T) {
		u := counting(1, 0)
		u.Set(sim.Holding, 30, 0x0F0F)
		u.Set(sim.Holding, 40, 0, 0)
		u.Set(sim.Holding, 50, 0, 0xFFFE)
		p := relayPlant(t, u, func(d *config.Device) {
			bit := holding("pump", 30, "uint16")
			bit.Bit = 4
			wide := holding("target", 40, "float32")
			wide.Order = "CDAB"
			scaled := holding("share", 50, "uint16")
			scaled.ScaleReg = 51
			d.Points = append(d.Points, bit, wide, scaled)
			for i := len(d.Points) - 3; i < len(d.Points); i++ {
				d.Points[i].Write = true
			}
		})
		for _, tt := range []struct{ point, text, want string }{
			{"pump", "on", "true"}, {"target", "230.1", "230.1"}, {"share", "12.5", "12.50"},
			{"share", "12.345", "out-of-range: share must be in steps of 0.01"},
		} {
			if got := p.write(tt.point, tt.text); got != tt.want {
				t.Errorf("%s = %s: %s, want %s", tt.point, tt.text, got, tt.want)
			}
		}
		for addr, want := range map[uint16]uint16{30: 0x0F1F, 40: 0x199A, 41: 0x4366, 50: 1250} {
			if w, _ := u.Get(sim.Holding, addr); w != want {
				t.Errorf("holding %d is %04X, want %04X", addr, w, want)
			}
		}
		p.stop()
	})
}

func TestWriteFunction16WhereItIsAskedFor(t *testing.T) {
	virtual(t, func(t *testing.T) {
		u := counting(1, 0)
		u.Without(5, 6)
		p := relayPlant(t, u, func(d *config.Device) { d.WriteFC = 16 })
		if got := p.write("limit", "80"); got != "80" {
			t.Error(got)
		}
		if got := p.write("relay1", "on"); got != "true" {
			t.Error(got)
		}
		p.stop()
	})
}
