package devices_test

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"busgate/config"
	"busgate/devices"
	"busgate/devices/modbus"
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

// A safe value is written in the scale that the device has at that moment, also
// at the stop.
func TestSafeValueOfAScaledPoint(t *testing.T) {
	virtual(t, func(t *testing.T) {
		u := counting(1, 0)
		list := written(u, nil)
		u.Set(sim.Holding, 50, 0, 0xFFFE)
		d := meter("relays", 1, 10*time.Second, 3)
		share := holding("share", 50, "uint16")
		share.ScaleReg, share.Write, share.Safe = 51, true, 12.5
		d.Points = append(d.Points, share)
		p := newPlant(t, []*sim.Unit{u}, d)
		p.start()
		time.Sleep(time.Minute)
		p.write("share", "40")
		p.stop()
		if got := strings.Join(list(), " "); got != "3:50=1250 3:50=4000 3:50=1250" {
			t.Errorf("written: %s, want 12.5 at the start, 40, and 12.5 at the stop", got)
		}
	})
}

// losingDriver opens fields that lose one write, or the answer to it, when armed.
type losingDriver struct {
	*modbus.Driver
	armed, heard *atomic.Bool
}

type losingField struct {
	devices.Field
	losingDriver
}

func (d losingDriver) Open(ctx context.Context, w devices.Wire) (devices.Field, error) {
	f, err := d.Driver.Open(ctx, w)
	if err != nil {
		return nil, err
	}
	return losingField{f, d}, nil
}

func (f losingField) Set(ctx context.Context, dev *config.Device, items []devices.Item) error {
	if !f.armed.Swap(false) {
		return f.Field.Set(ctx, dev, items)
	}
	if f.heard.Load() {
		if err := f.Field.Set(ctx, dev, items); err != nil {
			return err
		}
	}
	return devices.ErrNoAnswer
}

// At the stop, too, an answer that is lost is no reason to leave a pump running,
// nor to write twice what was done.
func TestSafeValueAtTheStopOverALostAnswer(t *testing.T) {
	for _, heard := range []bool{true, false} {
		t.Run(fmt.Sprintf("heard %v", heard), func(t *testing.T) {
			virtual(t, func(t *testing.T) {
				u := counting(1, 0)
				for i := range uint16(4) {
					u.SetBit(sim.Coil, i, false)
				}
				d := relays()
				d.Points[4].Safe = true
				p := newPlant(t, []*sim.Unit{u}, d)
				o := p.options()
				drv := losingDriver{p.driver(), &atomic.Bool{}, &atomic.Bool{}}
				o.Drivers["modbus-rtu"] = drv
				p.startWith(o)
				time.Sleep(time.Minute)
				p.write("relay1", "off")
				time.Sleep(5 * time.Second)
				list := written(u, nil)
				drv.heard.Store(heard)
				drv.armed.Store(true)
				p.stop()
				if w, _ := u.Get(sim.Coil, 0); w != 1 || strings.Join(list(), " ") != "0:0=1" {
					t.Errorf("relay1 is %d; written: %v", w, list())
				}
			})
		})
	}
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
