package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"busgate/devices/sim"
)

// socketPath is a path short enough for a socket.
func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "c")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}

// TestBufferCommands: a cloud that is not there lets readings pile up; every
// verb of `busgate buffer` works on them through the daemon, and without it.
func TestBufferCommands(t *testing.T) {
	inverter, err := sim.ListenTCP("127.0.0.1:0", 1, sim.NewInverter(3, 1))
	if err != nil {
		t.Fatal(err)
	}
	go inverter.Run(t.Context())
	dir, socket := t.TempDir(), socketPath(t)
	file := filepath.Join(dir, "busgate.toml")
	text := fmt.Sprintf("[gateway]\nname = \"t\"\ninterval = \"100ms\"\ndata_dir = %q\n[web]\nlisten = \"\"\n[broker]\nlisten = \"127.0.0.1:%d\"\n"+
		"[buffer]\nsync = \"10ms\"\nmin_free_disk = \"1MB\"\n[uplink.cloud]\naddresses = [\"mqtt://127.0.0.1:1\"]\n[device.inverter]\ntcp = %q\nunit_id = 3\n[device.inverter.points]\npower = { input = 5030 }\n",
		dir, freePort(t), inverter.Addr())
	write(t, file, text)

	if code, _, errs := call(t, "buffer", "list", "--socket", socket, "--config", file); code != exitNoReply || !strings.Contains(errs, "the daemon is not running") {
		t.Errorf("without daemon and store: exit %d, %s", code, errs)
	}
	stale, err := net.Listen("unix", socket) // as a killed daemon leaves it
	if err != nil {
		t.Fatal(err)
	}
	stale.(*net.UnixListener).SetUnlinkOnClose(false)
	stale.Close()

	d := startDaemon(t, file, "--socket", socket)
	d.log.until(t, "INFO running", 1)
	buffer := func(args ...string) (int, string, string) {
		return call(t, append(append([]string{"buffer"}, args...), "--socket", socket, "--config", file)...)
	}
	waitFor(t, "readings that wait", waitLong, func() bool {
		_, out, _ := buffer("export", "cloud")
		return strings.Count(out, `"topic":"busgate/t/inverter/state"`) >= 3
	})
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"list"}, exitOK, "\ncloud     uplink  "},
		{[]string{"list", "--json"}, exitOK, `{"name":"cloud","kind":"uplink","records":`},
		{[]string{"export", "cloud"}, exitOK, `"n":[1],"payload":"{\"ts\":`},
		{[]string{"export", "cloud", "--format", "csv"}, exitOK, "ts,topic,qos,payload\n"},
		{[]string{"export", "cloud", "--from", "2h", "--to", "1h"}, exitOK, ""},
		{[]string{"export", "cloud", "--from", "yesterday"}, exitFailed, `"yesterday" is no time: write 2026-11-21T06:00:00Z`},
		{[]string{"export", "clod"}, exitFailed, `no consumer "clod"`},
		{[]string{"export", "cloud", "--format", "xml"}, exitUsage, "allowed: ndjson, csv"},
		{[]string{"check"}, exitOK, " messages, 0 problems\n"},
		{[]string{"drop", "cloud"}, exitUsage, "either --before T or --all"},
		{[]string{"drop", "cloud", "--all"}, exitUsage, "nothing dropped"},
		{[]string{"drop", "cloud", "--before", "1h", "--yes"}, exitOK, "0 messages dropped"},
		{[]string{"drop", "cloud", "--all", "--yes", "--json"}, exitOK, `{"dropped":`},
		{[]string{"compact"}, exitOK, " KiB now\n"},
		{[]string{"burn"}, exitUsage, "say list, export, drop, compact or check"},
	} {
		code, out, errs := buffer(c.args...)
		if code != c.code || !strings.Contains(out+errs, c.want) {
			t.Errorf("%v: exit %d, want %d with %q:\n%s%s", c.args, code, c.code, c.want, out, errs)
		}
	}
	if _, out, _ := buffer("list", "--json"); !strings.Contains(out, `"operator":`) {
		t.Errorf("what was dropped by hand is not counted: %s", out)
	}

	if code, out, errs := call(t, "reload", "--socket", socket); code != exitOK || out != "reloaded: nothing changed\n" {
		t.Errorf("reload: exit %d, %q %q", code, out, errs)
	}
	write(t, file, text+"[device.other]\n")
	if code, _, errs := call(t, "reload", "--socket", socket); code != exitConfig || !strings.Contains(errs, "reload refused, the old configuration keeps running:\n") ||
		!strings.Contains(errs, "device `other` has no wire: give `bus`, `serial` or `tcp`") {
		t.Errorf("reload of a mistake: exit %d, %s", code, errs)
	}
	write(t, file, text)

	d.stop()
	if code := <-d.code; code != exitOK {
		t.Fatalf("exit %d:\n%s", code, d.log)
	}
	if code, out, errs := buffer("list"); code != exitOK || !strings.Contains(out, "\ncloud     uplink  ") {
		t.Errorf("without the daemon: exit %d, %s%s", code, out, errs)
	}
	if code, _, errs := call(t, "reload", "--socket", socket); code != exitNoReply || !strings.Contains(errs, "the daemon is not running") {
		t.Errorf("reload without the daemon: exit %d, %s", code, errs)
	}
}

func TestControlSocketIsForOne(t *testing.T) {
	socket := socketPath(t)
	ln, err := openControl(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if st, err := os.Stat(socket); err != nil || st.Mode().Perm() != 0o660 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if _, err := openControl(socket); err == nil || !strings.Contains(err.Error(), "in use by another busgate") {
		t.Errorf("a second one: %v", err)
	}
}

// TestControlWaitsForItsRequests: what the rooms below close is not used any more.
func TestControlWaitsForItsRequests(t *testing.T) {
	socket := socketPath(t)
	ln, err := openControl(socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var over atomic.Bool
	h := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		stop()
		<-r.Context().Done()
		for range 10_000 { // who does not wait is gone by then
			runtime.Gosched()
		}
		over.Store(true)
	})
	go newControlClient(socket).call(t.Context(), "/v1/status", nil, nil)
	if err := serveControl(ctx, quiet, ln, h); err != nil {
		t.Error(err)
	}
	if !over.Load() {
		t.Error("a request is still at work")
	}
}

func TestParseTime(t *testing.T) {
	for s, want := range map[string]string{
		"":                          "0001-01-01T00:00:00Z",
		"2026-11-21":                "2026-11-21T00:00:00Z",
		"2026-11-21T06:00:00+01:00": "2026-11-21T05:00:00Z",
	} {
		if got, err := parseTime(s); err != nil || got.Format("2006-01-02T15:04:05Z07:00") != want {
			t.Errorf("parseTime(%q) = %v, %v", s, got, err)
		}
	}
	for _, s := range []string{"soon", "-1h", "2026-13-01"} {
		if _, err := parseTime(s); err == nil {
			t.Errorf("parseTime(%q) is accepted", s)
		}
	}
}

func TestSizeKeepsSmallOnesReadable(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1<<20 - 1: "1024.0 KiB", 1 << 20: "1.0 MiB", 3 << 29: "1536.0 MiB"} {
		if got := size(n); got != want {
			t.Errorf("%d bytes: %q, want %q", n, got, want)
		}
	}
}
