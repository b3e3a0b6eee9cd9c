package main

import (
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"busgate/devices"
)

// shownFaults are what each fault of the demo must end in: what the gateway says
// about it, or, where all is well in spite of it, what its bus has counted.
var shownFaults = []struct {
	fault string
	limit string
	want  string // a pattern in what is printed
}{
	{"crc=5%", "150s", `WARN bus rs485: \d+\.\d % of answers damaged in the last .* Wiring: `},
	{"noise", "110s", `WARN bus rs485: \d+\.\d % of answers damaged in the last .*, mostly unit 1(, the long ones)?\. Wiring: `},
	{"noise=1%", "110s", `WARN bus rs485: \d+\.\d % of answers damaged in the last .*, mostly unit 1(, the long ones)?\. Wiring: `},
	{"noise=00-first", "60s", `WARN bus rs485: a stray byte 00 stands before the answers`},
	{"lose=10%", "60s", `bus rs485: \d+ requests, \d+ good, \d+ timeouts`},
	{"dead=2", "110s", `WARN device cellar: unit 2 on rs485 gives no answer \(\d+ rounds, 2 tries of \d+ ms each\); .* of this bus do(es)?\. Powered\?`},
	{"dead=all", "60s", `WARN device grid: unit 1 on rs485 gives no answer`},
	{"double=1", "60s", `WARN device grid: the answers of unit 1 are damaged, those of other units are not: do two devices have unit_id 1\?`},
	{"late=1200ms", "90s", `WARN device grid: answers after 1\.\d s, later than timeout = 500ms allows \(\d+ in .*\)\. Give it timeout = "2s"`},
	{"busy=10%", "150s", `WARN device grid: busy \(exception 6\) \d+ times in an hour; asking less often may help \(interval\)`},
	{"exception=4", "60s", `WARN device grid: reports a failure of its own \(exception 4\) for input \d+\.\.\d+`},
	{"silent", "100s", `ERROR bus rs485: not one byte in 6\d s from 3 units\. Usually A and B swapped`},
	{"wrong-baud", "60s", `ERROR bus rs485: bytes arrive but none form a frame \(\d+ of \d+ bad\) at 9600 8N1: baud or format is wrong\.`},
	{"second-master", "90s", `ERROR bus rs485: somebody else talks on this bus \(a request to unit 4 that is not ours\)`},
	{"echo", "60s", `bus rs485: (.*), \d+ echoes`},
	{"cross-talk=10%", "60s", `bus rs485: (.*), \d+ of other units, thrown away`},
	{"unplug", "90s", `ERROR bus rs485: .*/rs485 is gone \(unplugged, or the USB hub lost power\)\. 3 devices offline\.(.|\n)*INFO bus rs485: the adapter is back after \ds(.|\n)*the adapter was lost 4 times in an hour`},
	{"word-order", "60s", `WARN device inverter: power reads .* W; with order = "CDAB" it would be \d .* W\. Set order in \[device\.inverter\] \(busgate\.toml:\d+\)`},
	{"gateway", "60s", `WARN device inverter: the Modbus gateway 127\.0\.0\.1 cannot reach unit 3 \(exception 11\)`},
	{"unreachable", "60s", `ERROR bus roof: 127\.0\.0\.1:1 does not answer \(connection refused\): is Modbus TCP switched on there\?`},
	{"tcp-limit", "60s", `ERROR bus roof: 127\.0\.0\.1 closes the connection at once: many devices serve only one client`},
	{"no-data", "60s", `WARN device truck: no data for \d+ s \(NMEA, 9600 8N1\); last good reading \d+s ago`},
	{"bad-checksum", "60s", `WARN device truck: \d+\.\d % of frames have a wrong checksum; baud right\? cable short\?`},
	{"clock", "60s", `WARN clock: this computer believes it is 2024-03-01(.|\n)*INFO clock: set by NTP`},
	{"buffer-full", "60s", `WARN buffer: full \(20 messages\): \d+ readings of cloud from .* dropped, oldest first`},
	{"auth", "60s", `ERROR uplink cloud: 127\.0\.0\.1 refused user "plant" \(not authorised\)`},
}

// Each fault of the demo is seen and said, and no reading is lost by it.
//
//	BUSGATE_DEMO=1 go test -v -timeout 60m -run DemoFaults ./cmd/busgate
func TestDemoFaults(t *testing.T) {
	tested := map[*demoFault]bool{}
	for _, c := range shownFaults {
		tested[faultOf(c.fault)] = true
	}
	for i := range demoFaults {
		if f := &demoFaults[i]; !tested[f] {
			t.Errorf("fault %s is shown by nothing", f.name)
		}
	}
	if os.Getenv("BUSGATE_DEMO") == "" {
		t.Skip("half an hour of faults in real time; enable it with BUSGATE_DEMO=1")
	}
	for _, c := range shownFaults {
		t.Run(c.fault, func(t *testing.T) {
			t.Parallel()
			code, out, errs := call(t, "demo", "--for", c.limit, "--port", "0", "--fault", c.fault)
			t.Logf("exit %d\n%s", code, lastLines(out, 4))
			if code != exitOK {
				t.Errorf("exit %d\n%s%s", code, out, errs)
			}
			if !regexp.MustCompile(c.want).MatchString(errs + out) {
				t.Errorf("nothing is\n%s\nin\n%s%s", c.want, errs, out)
			}
		})
	}
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

func TestBusLine(t *testing.T) {
	got := busLine(&devices.BusStatus{Name: "rs485", Reopened: 4, U: .5, RTT50: time.Second, Counts: devices.Counts{Requests: 412, Good: 380, Timeouts: 12, Late: 3, Intruders: 7}})
	if want := "rs485: 412 requests, 380 good, 12 timeouts, 3 too late, 7 caused by another master, 4 times opened again"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
