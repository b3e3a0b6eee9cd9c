package main

import (
	"fmt"
	"testing"
)

// A daemon says at the start which bus cannot keep what it is asked for.
func TestRunWarnsOfABusThatIsTooSlow(t *testing.T) {
	file := mapWith(t, fmt.Sprintf("[gateway]\nname = \"t\"\ndata_dir = %q\n[web]\nlisten = \"\"\n[broker]\nlisten = \"127.0.0.1:%d\"\n[buffer]\nmin_free_disk = \"1MB\"\n"+
		"[bus.b]\nserial = \"/dev/ttyUSB77\"\nbaud = 300\n[device.grid]\nbus = \"b\"\ninterval = \"2s\"\nprofile = \"eastron-sdm630\"\n", t.TempDir(), freePort(t)))
	d := startDaemon(t, file)
	d.log.until(t, " s a round on bus `b` at 300 baud; `grid` asks for 2 s; all intervals will be stretched x", 1)
	d.stop()
	if code := <-d.code; code != exitOK {
		t.Errorf("exit %d:\n%s", code, d.log)
	}
}
