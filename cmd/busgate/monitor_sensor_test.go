package main

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"busgate/devices/sim"
)

// sensorsOf are a GPS that talks and a CO2 sensor that is asked, each on a line of
// its own, and a device map of both.
func sensorsOf(t *testing.T) (gps, air *sim.Bus, port, file string) {
	t.Helper()
	dir := t.TempDir()
	gps = sim.NewTalker(sim.Line{Baud: 57600}, 1, 200*time.Millisecond, sim.NMEA(1))
	air = sim.NewPolled(sim.Line{}, 1, sim.MHZ19(1))
	var paths []string
	for i, b := range []*sim.Bus{gps, air} {
		p, err := sim.NewPty(b, filepath.Join(dir, fmt.Sprintf("ttyUSB%d", i)))
		if err != nil {
			t.Skipf("no pseudo terminals here: %v", err)
		}
		serve(t, p.Run)
		paths = append(paths, p.Path())
	}
	file = mapWith(t, fmt.Sprintf("[gateway]\nname = \"t\"\ninterval = \"500ms\"\ndata_dir = %q\n[web]\nlisten = \"\"\n[broker]\nlisten = \"127.0.0.1:%d\"\n[buffer]\nmin_free_disk = \"1MB\"\n"+
		"[device.truck]\nserial = %q\nbaud = 57600\nprofile = \"nmea-gps\"\n[device.air]\nserial = %q\nprofile = \"winsen-mh-z19\"\n", dir, freePort(t), paths[0], paths[1]))
	return gps, air, paths[0], file
}

// monitored calls monitor again and again, until its output matches.
func monitored(t *testing.T, pattern string, args ...string) (out, errs string) {
	t.Helper()
	re := regexp.MustCompile(pattern)
	waitFor(t, pattern, waitLong, func() bool {
		var code int
		code, out, errs = call(t, append([]string{"monitor"}, args...)...)
		if code != exitOK {
			t.Fatalf("%v: exit %d\n%s%s", args, code, out, errs)
		}
		return re.MatchString(out)
	})
	return out, errs
}

func TestMonitorOfSensors(t *testing.T) {
	gps, air, port, file := sensorsOf(t)
	socket := socketPath(t)
	with := func(args string) []string {
		return append(strings.Fields(args), "--config", file, "--socket", socket)
	}
	const position = `<-  truck: (speed [\d.]+ km/h, )?.*lat 52\.5\d+ °, lon 13\.[34]\d+ °`

	// without a daemon: by name and by port, as frames and as they come
	_, errs := monitored(t, position+`(.|\n)*\ntruck +\d+ frames?\n`, with("truck --for 700ms")...)
	if !strings.Contains(errs, "only listening at 57600 8N1, nothing is sent") {
		t.Errorf("said %q", errs)
	}
	monitored(t, position, with(port+" --for 700ms")...)
	monitored(t, `<-  "\$GPRMC,.*\\n\$GPGGA,`, port, "--raw", "--baud", "57600", "--for", "700ms", "--config", "/none", "--socket", socket)
	gps.SetFaults(sim.Faults{BitError: .003})
	monitored(t, `\?\?  .*DAMAGED(.|\n)*, \d+ damaged`, with("truck --for 1s")...)
	gps.SetFaults(sim.Faults{})
	if out, _ := monitored(t, `nothing was heard`, with("air --for 200ms")...); air.Stats().Requests != 0 {
		t.Errorf("a monitor asked a sensor:\n%s", out)
	}

	d := startDaemon(t, file, "--socket", socket)
	d.log.until(t, "INFO running", 1)
	_, errs = monitored(t, position, with("truck --for 700ms")...)
	if !strings.Contains(errs, "bus truck of the running gateway, 57600 8N1") {
		t.Errorf("said %q", errs)
	}
	monitored(t, `->  FF 01 86 00 00 00 00 00 79\n(.|\n)*<-  air: co2 \d+ ppm   \[\d+(\.\d)? ms\]\n +FF 86 `, with("air --for 1500ms --hex")...)
	out, _ := monitored(t, `"kind":"frame"`, with("air --for 1500ms --json")...)
	for line := range strings.Lines(out) {
		var row monitorRow
		if err := json.Unmarshal([]byte(line), &row); err != nil || row.TS.IsZero() || row.Kind == "frame" && (row.Device != "air" || row.Hex == "" || row.Unit != nil) {
			t.Errorf("%v: %s", err, line)
		}
	}
	if out, errs := monitored(t, `nothing was heard`, with("air --for 700ms --listen-only")...); strings.Contains(out, "->") || !strings.Contains(errs, "it polls nothing while this listens") {
		t.Errorf("said %q\n%s", errs, out)
	}
	d.stop()
	if code := <-d.code; code != exitOK {
		t.Fatalf("exit %d:\n%s", code, d.log)
	}
}
