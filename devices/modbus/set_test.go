package modbus

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"busgate/config"
	"busgate/devices"
	"busgate/devices/sim"
)

func TestAPartOfARegister(t *testing.T) {
	tests := []struct {
		name  string
		set   func(u *sim.Unit)
		first string // functions of the first write
		then  string // of the second
		err   error  // of the first
	}{
		{"a unit that knows function 22", nil, "22", "22", nil},
		{"one that refuses it", func(u *sim.Unit) { u.Without(22) }, "22 3 6", "3 6", nil},
		{"one that calls it an illegal value", func(u *sim.Unit) {
			u.SetFaults(sim.Faults{Except: 1, Code: 3})
			time.AfterFunc(10*time.Millisecond, func() { u.SetFaults(sim.Faults{}) })
		}, "22 3 6", "3 6", nil},
		{"one that is silent about it", func(u *sim.Unit) { u.SetSilent(22) }, "22", "3 6", devices.ErrNoAnswer},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dev := testDevice(1, 30)
			onStation(t, dev, func(s *station) {
				s.poll()
				var asked []string
				s.u.Watch(func(pdu []byte) { asked = append(asked, fmt.Sprint(pdu[0])) })
				s.u.Set(sim.Holding, 30, 0x0F0F)
				if tt.set != nil {
					tt.set(s.u)
				}
				p := point("holding", 30, "uint16")
				p.Bit = 4
				item := []devices.Item{{Point: &p, Raw: []byte{0, 0x10}, Mask: []byte{0, 0x10}}}
				if err := s.f.Set(t.Context(), dev, item); !errors.Is(err, tt.err) {
					t.Errorf("%v", err)
				}
				if got := strings.Join(asked, " "); got != tt.first {
					t.Errorf("functions %s, want %s", got, tt.first)
				}
				asked = nil
				if err := s.f.Set(t.Context(), dev, item); err != nil {
					t.Error(err)
				}
				if got := strings.Join(asked, " "); got != tt.then {
					t.Errorf("functions %s the second time, want %s", got, tt.then)
				}
				if w, _ := s.u.Get(sim.Holding, 30); w != 0x0F1F {
					t.Errorf("the register holds %04X", w)
				}
			})
		})
	}
}

func TestMaskOfTwoRegistersIsNotOneOfFunction22(t *testing.T) {
	for _, tt := range []struct {
		mask string
		at   int
		ok   bool
	}{{"\x00\x10", 0, true}, {"\x00\x00\xF0\x01", 1, true}, {"\x00\x01\x80\x00", 0, false}, {"\x00\x00", -1, false}} {
		if at, ok := oneRegister([]byte(tt.mask)); ok != tt.ok || ok && at != tt.at {
			t.Errorf("%x: %d %v", tt.mask, at, ok)
		}
	}
	dev := testDevice(1, 30)
	onStation(t, dev, func(s *station) {
		s.u.Set(sim.Holding, 30, 0xAAAA, 0xBBBB)
		p := point("holding", 30, "uint32")
		err := s.f.Set(t.Context(), dev, []devices.Item{{Point: &p, Raw: []byte{0, 1, 0, 0}, Mask: []byte{0, 1, 0x80, 0}}})
		if a, _ := s.u.Get(sim.Holding, 30); err != nil || a != 0xAAAB {
			t.Errorf("%04X %v", a, err)
		}
		if b, _ := s.u.Get(sim.Holding, 31); b != 0x3BBB {
			t.Errorf("%04X", b)
		}
	})
}

// A command is to wait at most 100 ms for a block, whoever on the bus takes it.
func TestABusWithCommandsHasShortBlocks(t *testing.T) {
	var addrs []uint16
	for a := range uint16(80) {
		addrs = append(addrs, a)
	}
	meter, relays := testDevice(1, addrs...), testDevice(2, 0)
	meter.AnswerTime = 5 * time.Millisecond
	bus := testBus(sim.Line{Baud: 9600, Format: "8E1"})
	var d Driver
	alone, _ := d.Cost(devices.Wire{Bus: bus}, meter, groupOf(meter).Points)
	relays.Points[0].Write = true
	beside, _ := d.Cost(devices.Wire{Bus: bus, Devices: []*config.Device{meter, relays}}, meter, groupOf(meter).Points)
	if alone != 1 || beside != 3 { // 31 registers a block
		t.Errorf("%d requests alone, %d beside a board of relays", alone, beside)
	}
}
