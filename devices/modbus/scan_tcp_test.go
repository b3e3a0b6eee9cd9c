package modbus

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"busgate/config"
	"busgate/devices"
	"busgate/devices/sim"
)

// scanTCP scans a server on the loopback.
func scanTCP(t *testing.T, rtu bool, faults sim.TCPFaults, sc Scan, units ...*sim.Unit) []string {
	t.Helper()
	listen, protocol := sim.ListenTCP, "modbus-tcp"
	if rtu {
		listen, protocol = sim.ListenRTU, "modbus-rtu"
	}
	srv, err := listen("127.0.0.1:0", 1, units...)
	if err != nil {
		t.Fatal(err)
	}
	srv.SetFaults(faults)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { srv.Run(ctx) })
	defer wg.Wait()
	defer cancel()
	var d diary
	sc.Bus = &config.Bus{Name: "scan", TCP: srv.Addr(), Protocol: protocol}
	if err := new(Driver).Scan(t.Context(), d.scan(t, sc)); err != nil {
		t.Fatal(err)
	}
	return d.lines
}

func TestScanOverTCP(t *testing.T) {
	for _, rtu := range []bool{false, true} {
		// every unit that is asked answers: the time that a silent one is given is not
		// that of a busy machine
		got := scanTCP(t, rtu, sim.TCPFaults{}, Scan{Units: []uint8{1, 3}, Profiles: shipped(t), Timeout: 30 * time.Second}, sim.NewSDM630(1, 1), counting(3, 40000))
		expect(t, got, "0  unit 1: input 0 = 17255 eastron-sdm630", "0  unit 3: input 0 = 40000", "0  answers")
	}
}

func TestDeviceThatTakesNoNoticeOfTheUnitNumber(t *testing.T) {
	got := scanTCP(t, false, sim.TCPFaults{}, Scan{Timeout: 30 * time.Second}, counting(1, 0), counting(83, 0), counting(166, 0), counting(247, 0))
	expect(t, got, "0  unit 1: input 0 = 0", "0  answers")
}

func TestGatewayThatAnswersForSilentUnitsProvesNone(t *testing.T) {
	for _, code := range []byte{exGatewayPath, exGatewayTarget} {
		got := scanTCP(t, false, sim.TCPFaults{Exception: code}, Scan{Fast: true, Timeout: 20 * time.Millisecond}, counting(1, 0), counting(2, 0), counting(3, 0))
		if len(got) == 0 || got[len(got)-1] != "0  silence" {
			t.Errorf("exception %d: %q", code, got)
		}
	}
}

func TestScanOfAServerThatIsNotThere(t *testing.T) {
	var d diary
	err := new(Driver).Scan(t.Context(), d.scan(t, Scan{Bus: &config.Bus{TCP: "127.0.0.1:1", Protocol: "modbus-tcp"}}))
	if tr, ok := errors.AsType[devices.Trouble](err); !ok || tr.Word() != "unreachable" || len(d.begun) > 0 {
		t.Errorf("%v", err)
	}
}
