//go:build linux

package sim_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"busgate/devices/sim"
)

// A small plant in real time: an RS-485 bus and a GPS receiver behind terminals,
// and an inverter on TCP.
func Example() {
	dir, err := os.MkdirTemp("", "plant")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	line := sim.Line{Baud: 9600, Format: "8N1"}
	bus := sim.NewBus(line, 1, sim.NewSDM630(1, 1), sim.NewXYMD02(2, 1), sim.NewRelays(3, 4))
	rs485, err := sim.NewPty(bus, filepath.Join(dir, "rs485"))
	if err != nil { // no pseudo terminals here: the same units over TCP
		fmt.Println(err)
		return
	}
	truck, err := sim.NewPty(sim.NewTalker(line, 1, time.Second, sim.NMEA(1)), filepath.Join(dir, "truck"))
	if err != nil {
		fmt.Println(err)
		return
	}
	inverter, err := sim.ListenTCP("127.0.0.1:0", 1, sim.NewInverter(3, 1))
	if err != nil {
		panic(err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { rs485.Run(ctx) })
	wg.Go(func() { truck.Run(ctx) })
	wg.Go(func() { inverter.Run(ctx) })

	if err := rs485.Inject("crc=5%"); err != nil {
		panic(err)
	}
	// serial = rs485.Path(), serial = truck.Path(), tcp = inverter.Addr()
	cancel()
	// Output:
}
