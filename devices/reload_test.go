package devices_test

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"busgate/config"
	"busgate/devices"
	"busgate/devices/modbus"
	"busgate/devices/sim"
)

// hold keeps the bus busy until release, so that what comes meanwhile waits.
func (p *plant) hold() (release func()) {
	p.t.Helper()
	free, held := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		err := p.fleet.Visit(p.t.Context(), "meters", devices.Visit{Name: "test", Do: func(context.Context, devices.Field) error {
			close(held)
			<-free
			return nil
		}})
		if err != nil {
			p.t.Error(err)
		}
	})
	<-held
	return func() {
		close(free)
		wg.Wait()
	}
}

// update puts a configuration into force that change makes of the one before.
func (p *plant) update(change func(*config.Config)) {
	p.t.Helper()
	cfg := *p.cfg
	cfg.Buses, cfg.Devices = maps.Clone(p.cfg.Buses), maps.Clone(p.cfg.Devices)
	change(&cfg)
	if err := p.fleet.Update(&cfg); err != nil {
		p.t.Fatal(err)
	}
	p.cfg = &cfg
}

// A read that waits for its slot while a reload takes points away is refused: the
// points that it means are no longer there.
func TestReadThatAReloadOvertakes(t *testing.T) {
	virtual(t, func(t *testing.T) {
		p := newPlant(t, []*sim.Unit{counting(1, 0)}, meter("a", 1, time.Hour, 3))
		p.start()
		time.Sleep(2 * time.Hour)
		release := p.hold()
		var wg sync.WaitGroup
		for _, points := range [][]int{nil, {2}} {
			wg.Go(func() {
				if a, err := p.fleet.Read(t.Context(), "a", points); err == nil || err.Error() != "the configuration has changed; try again" {
					t.Errorf("points %v: %+v %v", points, a, err)
				}
			})
		}
		synctest.Wait()
		p.update(func(c *config.Config) { c.Devices["a"] = meter("a", 1, time.Hour, 1) })
		release()
		wg.Wait()
		if _, err := p.fleet.Read(t.Context(), "a", []int{2}); err == nil {
			t.Error("a point that is not there is read")
		}
		if a, err := p.fleet.Read(t.Context(), "a", nil); err != nil || len(a.Values) != 1 {
			t.Errorf("%+v %v", a, err)
		}
		p.stop()
	})
}

// What a reload mends is not said to be wrong any more.
func TestAMistakeThatAReloadMends(t *testing.T) {
	virtual(t, func(t *testing.T) {
		u := counting(1, 0)
		u.Refuse(sim.Holding, 40001, 40002, 2)
		d := meter("inverter", 1, 10*time.Second, 3)
		d.Points = append(d.Points, holding("off", 40001, "uint16"))
		p := newPlant(t, []*sim.Unit{u}, d)
		p.start()
		time.Sleep(time.Minute)
		contains(t, p.saw(), "health inverter online illegal-address")
		p.update(func(c *config.Config) { c.Devices["inverter"] = meter("inverter", 1, 5*time.Second, 3) })
		time.Sleep(time.Minute)
		p.stop()
		if last := p.health[len(p.health)-1]; !last.Online || last.Report.Err != "" {
			t.Errorf("a minute after it is mended: %+v", last)
		}
	})
}

// twoWires is a plant with a second bus, attic, on a wire of its own.
func twoWires(t *testing.T, attic *sim.Bus, units []*sim.Unit, devs ...*config.Device) *plant {
	p := newPlant(t, units, devs...)
	b := *p.cfg.Buses["meters"]
	b.Name, b.Serial = "attic", "/dev/ttyUSB1"
	p.cfg.Buses["attic"] = &b
	o := p.options()
	o.Drivers["modbus-rtu"] = &modbus.Driver{OpenPort: func(_ context.Context, w devices.Wire) (modbus.Port, error) {
		wire := p.bus
		if w.Bus.Name == "attic" {
			wire = attic
		}
		port, err := wire.Open()
		if err != nil {
			return nil, err
		}
		return simPort{port}, nil
	}}
	p.startWith(o)
	return p
}

// A device that moves to another bus is what that one says, also when the bus that
// it left was busy and hears of it last.
func TestADeviceThatMovesToAnotherBus(t *testing.T) {
	virtual(t, func(t *testing.T) {
		attic := sim.NewBus(sim.Line{Baud: 9600, Format: "8E1"}, 5, counting(2, 0), counting(3, 0))
		other := meter("other", 3, time.Second, 3)
		other.Bus = "attic"
		p := twoWires(t, attic, []*sim.Unit{counting(1, 0), counting(2, 0)}, meter("stays", 1, time.Second, 3), meter("moves", 2, time.Second, 3), other)
		time.Sleep(30 * time.Second)
		release := p.hold()
		p.update(func(c *config.Config) {
			d := meter("moves", 2, time.Second, 3)
			d.Bus = "attic"
			c.Devices["moves"] = d
		})
		time.Sleep(10 * time.Second)
		release()
		time.Sleep(10 * time.Second)
		p.stop()
		var of []string
		for _, e := range p.saw() {
			if strings.HasPrefix(e, "health moves ") {
				of = append(of, strings.TrimPrefix(e, "health moves "))
			}
		}
		if got := strings.Join(of, ", "); got != "online, offline, online" {
			t.Errorf("said of the device: %s", got)
		}
	})
}

// Who watches a bus sees its frames also after it was opened anew.
func TestWatchingGoesOnOverAReload(t *testing.T) {
	virtual(t, func(t *testing.T) {
		p := newPlant(t, []*sim.Unit{counting(1, 0)}, meter("a", 1, time.Second, 3))
		p.start()
		time.Sleep(10 * time.Second)
		_, coming, stop := p.fleet.Tap("meters").Watch()
		defer stop()
		p.update(func(c *config.Config) {
			b := *c.Buses["meters"]
			b.Retries = 3
			c.Buses["meters"] = &b
		})
		for len(coming) > 0 {
			<-coming
		}
		time.Sleep(10 * time.Second)
		if len(coming) < 10 {
			t.Errorf("%d frames in 10 s after the reload", len(coming))
		}
		p.stop()
	})
}

// A coil that a reload has closed to commands is not written along with others.
func TestACommandThatAReloadForbids(t *testing.T) {
	virtual(t, func(t *testing.T) {
		u := counting(1, 0)
		p := relayPlant(t, u, func(d *config.Device) { d.Points[5].Write = true })
		list := written(u, nil)
		release := p.hold()
		want := []string{"true", "refused: the configuration has changed; try again", "true"}
		var wg sync.WaitGroup
		for i, w := range want {
			wg.Go(func() {
				if got := p.write(fmt.Sprintf("relay%d", i+1), "on"); got != w {
					t.Errorf("relay%d: %s, want %s", i+1, got, w)
				}
			})
			synctest.Wait()
		}
		p.update(func(c *config.Config) {
			d := *c.Devices["relays"]
			d.Points = append([]config.Point(nil), d.Points...)
			d.Points[5].Write = false
			c.Devices["relays"] = &d
		})
		release()
		wg.Wait()
		if got := strings.Join(list(), " "); got != "0:0=1 0:2=1" {
			t.Errorf("written: %s", got)
		}
		p.stop()
	})
}

// closingDriver opens fields that do something before their wire is closed.
type closingDriver struct {
	*modbus.Driver
	closing func()
}

type closingField struct {
	devices.Field
	closing func()
}

func (d closingDriver) Open(ctx context.Context, w devices.Wire) (devices.Field, error) {
	f, err := d.Driver.Open(ctx, w)
	if err != nil {
		return nil, err
	}
	return closingField{f, d.closing}, nil
}

func (f closingField) Close() error {
	f.closing()
	return f.Field.Close()
}

// What comes while a bus ends is refused, and does not wait for a bus that is gone.
func TestWhoComesWhileTheBusCloses(t *testing.T) {
	virtual(t, func(t *testing.T) {
		p := newPlant(t, []*sim.Unit{counting(1, 0)}, relays())
		o := p.options()
		did := false
		o.Drivers["modbus-rtu"] = closingDriver{p.driver(), func() {
			did = true
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			r, err := p.fleet.Write(ctx, devices.Command{Device: "relays", Point: "limit", Text: "1"})
			if err != nil || r.Code != "refused" || r.Text != "the bus meters is closed" {
				t.Errorf("a command: %+v %v", r, err)
			}
			_, err = p.fleet.Read(ctx, "relays", nil)
			if err == nil || ctx.Err() != nil {
				t.Errorf("a read: %v", err)
			}
		}}
		p.startWith(o)
		time.Sleep(10 * time.Second)
		p.stop()
		if !did {
			t.Error("nothing was closed")
		}
	})
}
