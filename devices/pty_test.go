package devices_test

import (
	"context"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"busgate/config"
	"busgate/config/report"
	"busgate/devices"
	"busgate/devices/modbus"
	"busgate/devices/sim"
)

// The whole way over a real terminal: the port is opened, read, lost and found again.
func TestAdapterThatIsUnplugged(t *testing.T) {
	link := filepath.Join(t.TempDir(), "usb-FTDI-port0")
	pty, err := sim.NewPty(sim.NewBus(sim.Line{Baud: 115200}, 1, counting(1, 100), counting(2, 200)), link)
	if err != nil {
		t.Skip(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { pty.Run(ctx) })

	p := newPlant(t, nil, meter("a", 1, 100*time.Millisecond, 3), meter("b", 2, 100*time.Millisecond, 3))
	p.cfg.Buses["meters"] = &config.Bus{Name: "meters", Serial: link, Protocol: "modbus-rtu", Baud: 115200, DataBits: 8, Parity: 'N', StopBits: 1,
		Timeout: 5 * time.Second, Retries: 1, MaxRead: 125, MaxHole: 124, RS485: "auto", Exclusive: true}
	states := make(chan devices.Health, 64)
	log := slog.New(p.recorder)
	f, err := devices.New(p.cfg, channelSink{p.recorder, states}, devices.Options{Drivers: map[string]devices.Driver{"modbus-rtu": &modbus.Driver{}},
		Log: log, Ladder: report.NewLadder(log)})
	if err != nil {
		t.Fatal(err)
	}
	wg.Go(func() { f.Run(ctx) })
	both := func(online bool) {
		t.Helper()
		seen := map[string]bool{}
		for len(seen) < 2 {
			select {
			case h := <-states:
				if h.Online == online {
					seen[h.Device] = true
				}
			case <-ctx.Done():
				t.Fatal("the test ends")
			}
		}
	}
	both(true)
	if r := p.of("a"); len(r) == 0 || len(r[0].Values) != 3 || r[0].Values[2].Value.String() != "102" {
		t.Errorf("first round %+v", r)
	}
	pty.Unplug()
	both(false)
	contains(t, p.log(), "ERROR bus meters: "+link+" is gone (unplugged, or the USB hub lost power). 2 devices offline. It is opened again as soon as it is back")
	contains(t, p.saw(), "health a offline port-gone")
	if err := pty.Replug(); err != nil {
		t.Fatal(err)
	}
	both(true)
	back := 0
	for _, line := range p.log() {
		if strings.HasPrefix(line, "INFO bus meters: the adapter is back after ") {
			back++
		}
	}
	if back != 1 {
		t.Errorf("its return is said %d times: %s", back, strings.Join(p.log(), "\n"))
	}
}

func TestEndpointThatRefuses(t *testing.T) {
	const addr = "127.0.0.1:1" // a port that was just closed somebody else may have by now
	p := newPlant(t, nil, meter("a", 1, time.Second, 1))
	p.cfg.Buses["meters"] = &config.Bus{Name: "meters", TCP: addr, Protocol: "modbus-tcp", Timeout: time.Second}
	states := make(chan devices.Health, 64)
	log := slog.New(p.recorder)
	f, err := devices.New(p.cfg, channelSink{p.recorder, states}, devices.Options{Drivers: map[string]devices.Driver{"modbus-tcp": &modbus.Driver{}}, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { f.Run(ctx) })
	h := <-states
	cancel()
	wg.Wait()
	if h.Online || h.Report.Err != "unreachable" {
		t.Errorf("%+v", h)
	}
	contains(t, p.log(), "ERROR bus meters: "+addr+" does not answer (connection refused): is Modbus TCP switched on there?")
}

// channelSink passes each Health on, too.
type channelSink struct {
	*recorder
	states chan devices.Health
}

func (c channelSink) Health(ctx context.Context, h devices.Health) {
	c.recorder.Health(ctx, h)
	select {
	case c.states <- h:
	default:
	}
}
