package devices_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"busgate/devices"
	"busgate/devices/modbus"
	"busgate/devices/sim"
)

// The bus is lent to a guest between two polls, and the polls go on.
func TestGuestReadsAndSearchesWhilePollsGoOn(t *testing.T) {
	virtual(t, func(t *testing.T) {
		p := newPlant(t, []*sim.Unit{counting(1, 0), counting(9, 0)}, meter("a", 1, time.Second, 3))
		p.start()
		time.Sleep(5 * time.Second)
		guest := func(share bool) *modbus.Driver {
			return &modbus.Driver{Guest: func(ctx context.Context, q modbus.Question) (r modbus.Reply, err error) {
				verr := p.fleet.Visit(ctx, "meters", devices.Visit{Name: "test", Share: share, Do: func(ctx context.Context, f devices.Field) error {
					r, err = modbus.Ask(ctx, f, q)
					return nil
				}})
				if verr != nil {
					err = verr
				}
				return r, err
			}}
		}
		log := p.options().Log
		raw, err := guest(false).ReadRaw(t.Context(), p.cfg.Buses["meters"], 9, "holding", 500, 2, log)
		if err != nil || fmt.Sprintf("%x", raw) != "01f401f5" {
			t.Errorf("%x %v", raw, err)
		}
		before := len(p.of("a"))
		start := time.Now()
		var found []uint8
		bus := *p.cfg.Buses["meters"]
		err = guest(true).Scan(t.Context(), modbus.Scan{Bus: &bus, Settings: []modbus.Setting{{Baud: 9600, Format: "8E1"}}, Log: log,
			Units: []uint8{1, 2, 3, 4, 5, 6, 7, 8, 9, 10},
			Begin: func(modbus.Setting, []uint8) {}, Found: func(s modbus.Sighting) { found = append(found, s.Unit) }, Done: func(modbus.Setting, modbus.Outcome) {}})
		took := time.Since(start)
		if err != nil || fmt.Sprint(found) != "[1 9]" {
			t.Errorf("found %v, %v", found, err)
		}
		rounds := len(p.of("a")) - before
		if want := int(took / time.Second); rounds < want-1 {
			t.Errorf("%d rounds in %v of search: polls waited", rounds, took)
		}
		p.stop()
		if wire := p.bus.Stats(); wire.GapViolations+wire.Collisions > 0 {
			t.Errorf("%+v", wire)
		}
		if r := p.of("a"); fmt.Sprint(r[len(r)-1].Values[2].Value) != "2" {
			t.Errorf("%+v", r[len(r)-1])
		}
	})
}

// A search takes no more than a quarter of the bus.
func TestGuestsHaveAQuarterOfTheBus(t *testing.T) {
	virtual(t, func(t *testing.T) {
		p := newPlant(t, []*sim.Unit{counting(1, 0)}, meter("a", 1, time.Second, 3))
		p.start()
		time.Sleep(10 * time.Second)
		start, used := time.Now(), time.Duration(0)
		for time.Since(start) < 5*time.Minute {
			err := p.fleet.Visit(t.Context(), "meters", devices.Visit{Name: "test", Share: true, Do: func(context.Context, devices.Field) error {
				time.Sleep(200 * time.Millisecond)
				used += 200 * time.Millisecond
				return nil
			}})
			if err != nil {
				t.Fatal(err)
			}
		}
		p.stop()
		if share := used.Seconds() / time.Since(start).Seconds(); share > .26 || share < .23 {
			t.Errorf("guests had %.0f %% of the time", 100*share)
		}
	})
}

func TestAloneGuestKeepsCommandsOut(t *testing.T) {
	virtual(t, func(t *testing.T) {
		d := meter("a", 1, time.Second, 3)
		d.Points[0].Write = true
		p := newPlant(t, []*sim.Unit{counting(1, 0)}, d)
		p.start()
		time.Sleep(10 * time.Second)
		ctx, cancel := context.WithCancel(t.Context())
		var heard []devices.Frame
		ended := make(chan error, 1)
		go func() {
			ended <- p.fleet.Visit(ctx, "meters", devices.Visit{Name: "busgate monitor --listen-only", Alone: true, Do: func(ctx context.Context, f devices.Field) error {
				return modbus.Overhear(ctx, f, func(f devices.Frame) { heard = append(heard, f) })
			}})
		}()
		time.Sleep(time.Second)
		rounds := len(p.of("a"))
		p.bus.Inject("second-master")
		time.Sleep(time.Minute)
		buses, _ := p.fleet.Status()
		if buses[0].Guest != "busgate monitor --listen-only" || len(p.of("a")) != rounds {
			t.Errorf("guest %q, %d rounds while nothing may be sent", buses[0].Guest, len(p.of("a"))-rounds)
		}
		r, err := p.fleet.Write(t.Context(), devices.Command{Device: "a", Point: "p0", Text: "7"})
		if err != nil || r.Code != "refused" || r.Text != "bus meters only listens now (busgate monitor --listen-only)" {
			t.Errorf("%+v %v", r, err)
		}
		cancel()
		if err := <-ended; err == nil {
			t.Error("no error of the context")
		}
		p.bus.SetFaults(sim.Faults{})
		time.Sleep(10 * time.Second)
		if buses, _ := p.fleet.Status(); buses[0].Guest != "" || len(p.of("a")) <= rounds {
			t.Errorf("guest %q: polls do not go on", buses[0].Guest)
		}
		p.stop()
		requests := 0
		for i, f := range heard {
			if f.Mark != devices.MarkOK || f.Data[0] != 4 {
				t.Errorf("frame %d: %+v", i, f)
			}
			if f.RTT == 0 {
				requests++
			}
		}
		if len(heard) < 10 || 2*requests != len(heard) {
			t.Errorf("%d frames, %d requests", len(heard), requests)
		}
	})
}

// A command that was taken is read back before the bus only listens.
func TestAloneGuestWaitsForWhatWasPromised(t *testing.T) {
	virtual(t, func(t *testing.T) {
		u := counting(1, 0)
		p := relayPlant(t, u)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		written(u, func(_ sim.Table, _, w uint16) uint16 {
			time.AfterFunc(500*time.Millisecond, func() { u.Set(sim.Holding, 10, w) })
			return 50
		})
		time.AfterFunc(50*time.Millisecond, func() {
			ended <- p.fleet.Visit(ctx, "meters", devices.Visit{Name: "busgate monitor --listen-only", Alone: true,
				Do: func(ctx context.Context, _ devices.Field) error { <-ctx.Done(); return ctx.Err() }})
		})
		time.AfterFunc(time.Hour, cancel)
		begin := time.Now()
		if got := p.write("limit", "80"); got != "80" || time.Since(begin) > 5*time.Second {
			t.Errorf("%s after %v", got, time.Since(begin))
		}
		time.Sleep(time.Second)
		if buses, _ := p.fleet.Status(); buses[0].Guest == "" {
			t.Error("the guest has not got the bus")
		}
		cancel()
		<-ended
		p.stop()
	})
}

func TestVisitsOfABusThatIsClosed(t *testing.T) {
	virtual(t, func(t *testing.T) {
		p := newPlant(t, []*sim.Unit{counting(1, 0)}, meter("a", 1, time.Second, 3))
		var gone atomic.Bool
		p.open = func() error {
			if gone.Load() {
				return &wireTrouble{"port-missing", "there is no /dev/ttyUSB0", errors.New("ENOENT")}
			}
			return nil
		}
		p.start()
		time.Sleep(10 * time.Second)
		gone.Store(true)
		p.bus.Unplug()
		time.Sleep(10 * time.Second)
		_, err := p.fleet.Read(t.Context(), "a", nil)
		if err == nil || !strings.HasPrefix(err.Error(), "bus meters: /dev/ttyUSB0 is gone") {
			t.Errorf("read of a bus that is gone: %v", err)
		}
		gone.Store(false)
		p.bus.Replug()
		time.Sleep(20 * time.Second)
		if a, err := p.fleet.Read(t.Context(), "a", []int{1}); err != nil || len(a.Values) != 1 || a.Values[0].Point != "p1" {
			t.Errorf("%+v %v", a, err)
		}
		p.stop()
		if err := p.fleet.Visit(t.Context(), "meters", devices.Visit{Do: func(context.Context, devices.Field) error { return nil }}); err == nil {
			t.Error("a bus that has ended takes visits")
		}
		if err := p.fleet.Visit(t.Context(), "roof", devices.Visit{}); err == nil {
			t.Error("a bus that is not there takes visits")
		}
	})
}
