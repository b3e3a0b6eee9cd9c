package main

import (
	"regexp"
	"strings"
	"testing"
)

func TestScanForSensors(t *testing.T) {
	_, air, port, file := sensorsOf(t)
	socket := socketPath(t)
	code, out, errs := call(t, "scan", port, "--sensors", "--timeout", "20s", "--config", "/none/busgate.toml", "--socket", socket)
	want := `(?s)^9600 8N1   nmea-gps +lat 52\.5\d* °\n.*\n# add to /none/busgate\.toml:\n\[device\.nmea-gps\]\nserial  = "` + regexp.QuoteMeta(port) + `"\nprofile = "nmea-gps"\n$`
	if code != exitOK || !regexp.MustCompile(want).MatchString(out) || !strings.Contains(errs, "listening at 9600 8N1 for ") {
		t.Errorf("exit %d\n%s%s", code, out, errs)
	}
	path := strings.TrimSuffix(port, "0") + "1"
	code, out, errs = call(t, "scan", path, "--sensors", "--timeout", "50ms", "--config", file, "--socket", socket)
	if code != exitOK || !strings.Contains(out, "winsen-mh-z19      co2 ") || !strings.Contains(out, "already: `air`\n") || air.Stats().Requests == 0 {
		t.Errorf("exit %d\n%s%s", code, out, errs)
	}
	for _, c := range []struct {
		args string
		code int
		want string
	}{
		{"scan 192.168.1.40 --sensors", exitUsage, "looks for sensors on a serial port"},
		{"scan /dev/ttyUSB0 --sensors --baud 9600", exitUsage, "each profile says what its sensor has"},
		{"scan /dev/ttyUSB77 --sensors", exitFailed, "there is no /dev/ttyUSB77"},
		{"scan truck", exitFailed, "bus `truck` speaks uart; a sensor is looked for with --sensors"},
	} {
		code, out, errs := call(t, append(strings.Fields(c.args), "--config", file, "--socket", socket)...)
		if code != c.code || !strings.Contains(errs, c.want) {
			t.Errorf("%s: exit %d, want %d with %q\n%s%s", c.args, code, c.code, c.want, out, errs)
		}
	}
}
