package uart

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"busgate/config"
	"busgate/devices"
	"busgate/devices/profiles"
	"busgate/devices/sim"
)

// shipped are all profiles of UART sensors.
func shipped(t *testing.T) []*config.Profile {
	t.Helper()
	list, problems := config.Profiles("", profiles.FS)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	return list
}

// searched is what a search of a line finds.
func searched(t *testing.T, b *sim.Bus, baud int) (found []string, tried []string) {
	t.Helper()
	nobody := sim.NewBus(sim.Line{}, 1)
	d := &Driver{OpenPort: func(_ context.Context, w devices.Wire) (Port, error) {
		if w.Bus.Baud == baud {
			return b.Open()
		}
		return nobody.Open()
	}}
	err := d.Scan(t.Context(), Scan{Bus: serial9600, Profiles: shipped(t), Listen: 11 * time.Second, Log: slog.New(slog.DiscardHandler),
		Begin: func(baud int, format string, names []string) {
			tried = append(tried, fmt.Sprintf("%d %s %s", baud, format, strings.Join(names, " ")))
		},
		Found: func(x Sighting) {
			found = append(found, fmt.Sprintf("%d %s %s %s", x.Baud, x.Format, x.Profile.Name, x.Point.Name))
		}})
	if err != nil {
		t.Fatal(err)
	}
	return found, tried
}

// The probe of each profile proves its sensor, and no other.
func TestScanFindsEachSensor(t *testing.T) {
	sds := []byte{0xAA, 0xC0, 0x8C, 0, 0x94, 0, 0xBC, 0xF9, 0xD5, 0xAB}
	scale := []byte("01ST,GS,    12.5,kg\r\n")
	for name, c := range map[string]struct {
		bus  func() *sim.Bus
		baud int
		want string
	}{
		"nmea-gps":          {func() *sim.Bus { return sim.NewTalker(sim.Line{}, 1, time.Second, sim.NMEA(1)) }, 9600, "9600 8N1 nmea-gps "},
		"plantower-pms5003": {func() *sim.Bus { return sim.NewTalker(sim.Line{}, 1, time.Second, sim.PMS5003(1)) }, 9600, "9600 8N1 plantower-pms5003 "},
		"dsmr-p1":           {func() *sim.Bus { return sim.NewTalker(sim.Line{Baud: 115200}, 1, 10*time.Second, sim.P1(1)) }, 115200, "115200 8N1 dsmr-p1 import_t1"},
		"sml-meter":         {func() *sim.Bus { return sim.NewTalker(sim.Line{}, 1, 4*time.Second, sim.SML(1)) }, 9600, "9600 8N1 sml-meter import"},
		"winsen-mh-z19":     {func() *sim.Bus { return sim.NewPolled(sim.Line{}, 1, sim.MHZ19(1)) }, 9600, "9600 8N1 winsen-mh-z19 co2"},
		"nova-sds011": {func() *sim.Bus {
			return sim.NewTalker(sim.Line{}, 1, time.Second, func(uint64, time.Duration) []byte { return sds })
		}, 9600, "9600 8N1 nova-sds011 "},
		"dini-argeo-scale": {func() *sim.Bus {
			return sim.NewTalker(sim.Line{}, 1, time.Second, func(uint64, time.Duration) []byte { return scale })
		}, 9600, "9600 8N1 dini-argeo-scale "},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				found, _ := searched(t, c.bus(), c.baud)
				if len(found) != 1 || !strings.HasPrefix(found[0], c.want) {
					t.Errorf("found %q, want %q", found, c.want)
				}
			})
		})
	}
}

// A line on which nobody speaks is no sensor, nor is noise; each setting of the
// profiles was tried.
func TestScanOfNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		noise := sim.NewTalker(sim.Line{}, 1, 100*time.Millisecond, func(n uint64, _ time.Duration) []byte {
			return []byte{byte(n), 0x42, 0x4D, '$', '/', 'x', 0x0A, byte(3 * n)}
		})
		for _, b := range []*sim.Bus{sim.NewBus(sim.Line{}, 1), noise} {
			found, tried := searched(t, b, 9600)
			if len(found) > 0 {
				t.Errorf("found %q", found)
			}
			for _, p := range shipped(t) {
				if p.Frame != nil && !slices.ContainsFunc(tried, func(s string) bool { return slices.Contains(strings.Fields(s), p.Name) }) {
					t.Errorf("%s was not tried: %q", p.Name, tried)
				}
			}
		}
	})
}
