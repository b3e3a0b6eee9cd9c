package devices

import (
	"log/slog"
	"sync"
	"testing"
	"time"

	"busgate/config"
)

// TestRefreshBesideTheBus says something under the race detector, and by the map
// of the requests, which stops the program when two use it at once.
func TestRefreshBesideTheBus(t *testing.T) {
	f := &Fleet{o: Options{Log: slog.New(slog.DiscardHandler)}, epoch: time.Now()}
	d := &config.Device{Name: "grid", Bus: "meters", Interval: time.Second, MaxRead: 125}
	b := newBus(f, &config.Bus{Name: "meters", Protocol: "modbus-rtu"}, []*config.Device{d})
	var wg sync.WaitGroup
	wg.Go(func() {
		for range 100_000 {
			b.readMail(t.Context())
		}
	})
	for range 100_000 {
		b.refresh("grid")
	}
	wg.Wait()
}
