package modbus

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"busgate/devices"
	"busgate/devices/sim"
)

// Adapters of two wires whose receiver stays on hear what they send.
func TestAdapterThatHearsItself(t *testing.T) {
	for _, l := range []sim.Line{{Baud: 19200, Format: "8E1"}, {Baud: 9600, Format: "8N1", Chunk: 1}, asciiLine} {
		t.Run(l.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				u := counting(1, 1000)
				u.SetAnswerTime(5*time.Millisecond, 0)
				bus := sim.NewBus(l, 1, u)
				cfg := testBus(l)
				if l.ASCII {
					cfg.Protocol = "modbus-ascii"
				}
				dev := testDevice(1, 7, 0x200, 0x400)
				f := openSim(t, &Driver{}, cfg, bus, dev)
				line := f.link.(*Line)
				set := func(v byte) error {
					return f.Set(t.Context(), dev, []devices.Item{{Point: &dev.Points[0], Raw: []byte{0, v}}})
				}
				poll := func() {
					t.Helper()
					if a, err := f.Poll(t.Context(), groupOf(dev), noPause); err != nil || len(a.Values) != 3 || len(a.Errors) != 0 {
						t.Fatalf("%v %s", err, texts(a))
					}
				}
				bus.SetFaults(sim.Faults{Echo: true})
				poll() // three requests
				if !line.echoes.on || line.counts.Echo != 3 || line.counts.Foreign != 0 {
					t.Errorf("%+v after %d echoes, %d foreign", line.echoes, line.counts.Echo, line.counts.Foreign)
				}
				if err := set(42); err != nil {
					t.Error(err)
				}
				poll()
				u.SetFaults(sim.Faults{Dead: true})
				if err := set(43); !errors.Is(err, devices.ErrNoAnswer) {
					t.Errorf("the echo of a write counts as its answer: %v", err)
				}
				if _, err := f.Get(t.Context(), dev, &dev.Points[0]); !errors.Is(err, devices.ErrNoAnswer) {
					t.Errorf("the echo of a read counts as its answer: %v", err)
				}
				u.SetFaults(sim.Faults{})
				time.Sleep(10 * time.Second)
				poll()
				bus.SetFaults(sim.Faults{Echo: true, Cut: 1}) // the echo is whole, the answer is not
				if _, err := f.Get(t.Context(), dev, &dev.Points[0]); !errors.Is(err, devices.ErrBadFrame) {
					t.Errorf("%v", err)
				}
				bus.SetFaults(sim.Faults{}) // another adapter
				poll()
				if line.echoes.on {
					t.Errorf("the echo is gone, but %+v", line.echoes)
				}
				if err := set(44); err != nil {
					t.Error(err)
				}
				if w, _ := u.Get(sim.Holding, 7); w != 44 {
					t.Errorf("the unit holds %d", w)
				}
			})
		})
	}
}

func TestACollisionOfTheEchoIsABadFrame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := scripted(&script{answers: [][][]byte{{ask[:5], {0x99}, ask[6:], answer}}})
		l.echoes.on = true
		if ans, err := l.exchange(t.Context(), ask, wait); !errors.Is(err, devices.ErrBadFrame) {
			t.Errorf("% x %v", ans, err)
		}
	})
}

// A frame that is late stands before the echo.
func TestEchoBehindALateAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		before := seal([]byte{1, 3, 0, 9, 0, 30})
		late := seal(append([]byte{1, 3, 60}, make([]byte, 60)...))
		l := scripted(&script{answers: [][][]byte{nil, {late, ask, answer}}})
		l.echoes.on = true
		if _, err := l.exchange(t.Context(), before, wait); !errors.Is(err, devices.ErrNoAnswer) {
			t.Fatal(err)
		}
		if ans, err := l.exchange(t.Context(), ask, wait); err != nil || string(ans) != string(answer) || l.counts.Late != 1 {
			t.Errorf("% x %v %+v", ans, err, l.counts)
		}
	})
}
