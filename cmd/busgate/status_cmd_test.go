package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"busgate/devices/sim"
)

func some(f float64) *float64 { return &f }

func TestStatusText(t *testing.T) {
	s := gatewayStatus{Gateway: "plant-a", Version: "1.0", Uptime: 76 * 3600, Clock: "ntp", Queue: 4310, Clients: 1,
		Devices: []deviceStatus{
			{Name: "grid", State: "online", Age: some(1.2), Values: []pointReading{{"voltage", json.Number("230.1"), "V"}, {"broken", nil, "V"}, {"power", json.Number("871"), "W"}, {"mode", "run", ""}, {"energy", json.Number("1"), "kWh"}}, LastError: "an old one"},
			{Name: "pumps", State: "offline", Age: some(240), Values: []pointReading{{"relay", true, ""}}, Err: "timeout", LastError: "unit 1 on relays: no answer (2 tries of 500 ms)"},
			{Name: "new", State: "waiting"},
		},
		Buses: []busStatus{
			{Name: "meters", Load: 0.31, Stretch: 1, RTT50: 0.028, RTT95: 0.041, Requests: 12345, Timeouts: 12},
			{Name: "relays", Load: 1.5, Stretch: 1.5, Guest: "scan", Error: "ttyUSB1 is gone"},
		},
		Uplinks: []uplinkStatus{
			{Name: "cloud", State: "offline", Since: 720, Queue: 4310, Bytes: 3 << 20, Oldest: 720, Error: "dial tcp 203.0.113.7:8883: i/o timeout", NextTry: some(28.4)},
			{Name: "site", State: "draining", Since: 3, Queue: 20, Bytes: 2048, Oldest: 4, ETA: some(9), Error: "yesterday's"},
		}}
	var out bytes.Buffer
	s.print(&out)
	const want = `plant-a  busgate 1.0  up 3d04h  clock ntp  1 client on the broker
1 of 3 devices online; cloud down for 12m, 4310 messages wait; site draining, 20 messages wait, drained in 9s
DEVICE  STATE    AGE    VALUES                   ERROR
grid    online   1s     230.1 V  871 W  run  +2  -
pumps   offline  4m     -                        unit 1 on relays: no answer (2 tries of 500 ms)
new     waiting  never  -                        -
BUS     LOAD                                  REQUESTS  NO ANSWER  DAMAGED  LATE  FOREIGN  RTT p50/p95  ERROR
meters  31 %                                  12 345    0.1 %      0.0 %    0     0        28 / 41 ms   -
relays  150 %, intervals x 1.5, lent to scan  0         -          -        0     0        0 / 0 ms     ttyUSB1 is gone
UPLINK  STATE     FOR  QUEUE  SIZE     OLDEST  ERROR
cloud   offline   12m  4 310  3.0 MiB  12m     dial tcp 203.0.113.7:8883: i/o timeout
site    draining  3s   20     2.0 KiB  4s      -
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", &out, want)
	}
}

// TestStatusOfADaemon: one device that answers, one that does not, a cloud that
// is not there.
func TestStatusOfADaemon(t *testing.T) {
	inverter, err := sim.ListenTCP("127.0.0.1:0", 1, sim.NewInverter(3, 1))
	if err != nil {
		t.Fatal(err)
	}
	go inverter.Run(t.Context())
	dir, socket := t.TempDir(), socketPath(t)
	file := filepath.Join(dir, "busgate.toml")
	write(t, file, fmt.Sprintf("[gateway]\nname = \"t\"\ninterval = \"100ms\"\ndata_dir = %q\n[web]\nlisten = \"\"\n[broker]\nlisten = \"127.0.0.1:%d\"\n"+
		"[buffer]\nmin_free_disk = \"1MB\"\n[uplink.cloud]\naddresses = [\"mqtt://127.0.0.1:1\"]\n"+
		"[device.inverter]\ntcp = %q\nunit_id = 3\n[device.inverter.points]\npower = { input = 5030, unit = \"W\" }\n"+
		"[device.lost]\ntcp = \"127.0.0.1:1\"\n[device.lost.points]\nx = { input = 1 }\n", dir, freePort(t), inverter.Addr()))
	if code, _, errs := call(t, "status", "--socket", socket); code != exitNoReply || !strings.Contains(errs, "the daemon is not running") {
		t.Errorf("without a daemon: exit %d, %s", code, errs)
	}
	d := startDaemon(t, file, "--socket", socket)
	d.log.until(t, "INFO running", 1)
	online := regexp.MustCompile(`(?m)^inverter +online +\d+m?s +\d+ W +-$`)
	lost := regexp.MustCompile(`(?m)^lost +offline +never +- +127\.0\.0\.1:1`)
	cloud := regexp.MustCompile(`(?m)^cloud +offline +\S+ +[1-9]\d* .*refused`)
	var out string
	waitFor(t, "all of the status", waitLong, func() bool {
		var code int
		var errs string
		if code, out, errs = call(t, "status", "--socket", socket); code != exitOK {
			t.Fatalf("exit %d: %s", code, errs)
		}
		return online.MatchString(out) && lost.MatchString(out) && cloud.MatchString(out)
	})
	if !strings.Contains(out, "\n1 of 2 devices online; cloud down for ") {
		t.Error(out)
	}
	code, out, errs := call(t, "status", "--json", "--socket", socket)
	var s gatewayStatus
	if err := json.Unmarshal([]byte(out), &s); err != nil || code != exitOK || s.Gateway != "t" || len(s.Devices) != 2 || len(s.Buses) != 2 || s.Queue == 0 {
		t.Errorf("exit %d, %v: %s%s", code, err, out, errs)
	}
	d.stop()
	if code := <-d.code; code != exitOK {
		t.Errorf("exit %d:\n%s", code, d.log)
	}
}
