package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestPeerWholeWay: pollers on pymodbus, a LAN subscriber, and two mosquittos as
// clouds (QoS 1 and QoS 2) that are away for 20 s: each gets every round, in
// order, and at QoS 2 none twice.
func TestPeerWholeWay(t *testing.T) {
	needPeers(t, "mosquitto", "mosquitto_sub", "socat", "/usr/bin/python3")
	t.Parallel()
	tcp, tty := modbusServers(t)
	one, two := openCloud(t, 1), openCloud(t, 2)
	dir, port := t.TempDir(), freePort(t)
	broker := fmt.Sprintf("127.0.0.1:%d", port)
	up := func(name string, c *cloud, qos int) string {
		return fmt.Sprintf("[uplink.%s]\naddresses = [\"mqtt://127.0.0.1:%d\"]\nqos = %d\n", name, c.port, qos)
	}
	file := filepath.Join(dir, "busgate.toml")
	if err := os.WriteFile(file, []byte(deviceMap(dir, broker, tcp, tty, up("one", one, 1), up("two", two, 2))), 0o644); err != nil {
		t.Fatal(err)
	}
	gw := start(t, nil, program(t), "run", "--config", file, "--socket", filepath.Join(dir, "s"))
	reachable(t, broker)
	lan := start(t, nil, "mosquitto_sub", "-h", "127.0.0.1", "-p", fmt.Sprint(port), "-q", "1", "-R", "-F", "%t %p", "-t", "busgate/#")

	readings := func() int { return len(states(t, lan.lines())) }
	waitFor(t, "40 rounds before the cut", time.Minute, func() bool { return readings() >= 40 })
	one.stop()
	two.stop()
	select { // the outage of the acceptance: 20 s of real time
	case <-time.After(20 * time.Second):
	case <-gw.done:
		t.Fatalf("the gateway ended:\n%s", strings.Join(gw.lines(), "\n"))
	}
	one.start()
	two.start()
	during := readings()
	waitFor(t, "40 rounds after the cut", time.Minute, func() bool { return readings() >= during+40 })
	behind := func(c *cloud) int { return len(states(t, lan.lines())) - len(c.sub.lines()) }
	waitFor(t, "both uplinks to be back", time.Minute, func() bool { return behind(one) < 20 && behind(two) < 20 })

	gw.end(syscall.SIGTERM) // drains the uplinks, then stops
	lanStates := states(t, lan.lines())
	t.Logf("%d rounds on the LAN; gateway: %s", len(lanStates), strings.Join(gw.lines(), "\n"))
	for name, c := range map[string]*cloud{"QoS 1": one, "QoS 2": two} {
		waitFor(t, name+": the gateway's last word", time.Minute, func() bool {
			l := c.sub.lines()
			return len(l) > len(lanStates) && slices.Contains(l[max(0, len(l)-3):], "busgate/t/gateway/status offline")
		})
		lost, twice, disordered := compare(lanStates, states(t, c.sub.lines()))
		again := c.redelivered()
		t.Logf("%s: %d rounds read on the LAN, %d lost, %d twice (mosquitto sent %d again by itself), %d out of order", name, len(lanStates), lost, twice, again, disordered)
		if lost+disordered > 0 || name == "QoS 2" && twice > again {
			t.Errorf("%s: %d lost, %d twice, %d out of order", name, lost, twice, disordered)
		}
	}
}

// compare holds what a LAN subscriber saw against the cloud, device by device.
// The LAN may have missed rounds (it subscribed late); the cloud may not.
func compare(lan, cloud []state) (lost, twice, disordered int) {
	type number struct {
		boot string
		n    int64
	}
	seen := map[number]bool{}
	last := map[string]number{}
	there := map[string]bool{}
	for _, s := range cloud {
		if s.n == 0 {
			continue // a copy sent at connecting
		}
		k := number{s.boot, s.n}
		if seen[k] {
			twice++
			continue
		}
		seen[k] = true
		if l := last[s.device]; l.boot == s.boot && s.n < l.n {
			disordered++
		}
		last[s.device] = k
		there[s.device+s.body] = true
	}
	for _, s := range lan {
		if !there[s.device+s.body] {
			lost++
		}
	}
	return lost, twice, disordered
}

// TestPeerKill: busgate is killed 20 times while a publisher and the pollers
// run. What it acknowledged, and each round older than sync, is at the cloud.
func TestPeerKill(t *testing.T) {
	needPeers(t, "mosquitto", "mosquitto_sub", "mosquitto_pub", "socat", "/usr/bin/python3")
	t.Parallel()
	const rounds, sync = 20, 500 * time.Millisecond
	tcp, tty := modbusServers(t)
	c := openCloud(t, 1)
	dir, port := t.TempDir(), freePort(t)
	broker := fmt.Sprintf("127.0.0.1:%d", port)
	file := filepath.Join(dir, "busgate.toml")
	text := deviceMap(dir, broker, tcp, tty, fmt.Sprintf("[uplink.one]\naddresses = [\"mqtt://127.0.0.1:%d\"]\nqos = 1\nsend = [\"{base}/#\", \"lan/#\"]\n[buffer]\nsync = \"%dms\"\n", c.port, sync.Milliseconds()))
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	var acked []string
	var due []state // rounds that were older than sync when the kill came
	line := 0
	for i := range rounds {
		gw := start(t, nil, program(t), "run", "--config", file, "--socket", filepath.Join(dir, "s"))
		reachable(t, broker)
		lan := start(t, nil, "mosquitto_sub", "-h", "127.0.0.1", "-p", fmt.Sprint(port), "-q", "1", "-R", "-F", "%U %t %p", "-t", "busgate/#")
		r, w := io.Pipe()
		pub := start(t, r, "mosquitto_pub", "-h", "127.0.0.1", "-p", fmt.Sprint(port), "-d", "-q", "1", "-l", "-t", "lan/stream")
		first := line
		alive := make(chan struct{})
		go func() {
			defer close(alive)
			for {
				if _, err := fmt.Fprintf(w, "line %d\n", line); err != nil {
					return
				}
				line++
			}
		}()
		select {
		case <-time.After(time.Duration(1700+i*97%900) * time.Millisecond):
		case <-gw.done:
			t.Fatalf("round %d: the gateway ended:\n%s", i, strings.Join(gw.lines(), "\n"))
		}
		killed := time.Now()
		gw.end(syscall.SIGKILL)
		pub.end(syscall.SIGKILL)
		r.Close()
		<-alive
		lan.end(syscall.SIGKILL)
		// mosquitto_pub numbers its messages 1, 2, 3 ...: Mid n is line first+n-1.
		for _, l := range pub.lines() {
			var mid int
			if k := strings.Index(l, "received PUBACK (Mid: "); k >= 0 {
				if _, err := fmt.Sscanf(l[k:], "received PUBACK (Mid: %d", &mid); err == nil {
					acked = append(acked, fmt.Sprintf("line %d", first+mid-1))
				}
			}
		}
		for _, l := range lan.lines() {
			var at float64
			stamp, rest, _ := strings.Cut(l, " ")
			if _, err := fmt.Sscan(stamp, &at); err != nil {
				continue
			}
			if killed.Sub(time.UnixMicro(int64(at*1e6))) > 2*sync {
				due = append(due, states(t, []string{rest})...)
			}
		}
	}
	gw := start(t, nil, program(t), "run", "--config", file, "--socket", filepath.Join(dir, "s"))
	reachable(t, broker)
	cloudHas := func() (map[string]bool, []state) {
		lines := c.sub.lines()
		got := map[string]bool{}
		for _, l := range lines {
			if body, ok := strings.CutPrefix(l, "lan/stream "); ok {
				got[body] = true
			}
		}
		return got, states(t, lines)
	}
	missing := -1
	waitFor(t, fmt.Sprintf("%d acknowledged lines and %d rounds at the cloud", len(acked), len(due)), 2*time.Minute, func() bool {
		got, sts := cloudHas()
		missing = 0
		for _, a := range acked {
			if !got[a] {
				missing++
			}
		}
		lost, _, _ := compare(due, sts)
		missing += lost
		return missing == 0
	})
	gw.end(syscall.SIGTERM)
	got, sts := cloudHas()
	_, twice, disordered := compare(due, sts)
	t.Logf("%d kills: %d acknowledged lines (%d at the cloud), %d rounds older than sync, %d missing, %d rounds twice, %d out of order",
		rounds, len(acked), len(got), len(due), missing, twice, disordered)
	if disordered > 0 {
		t.Errorf("%d rounds out of order", disordered)
	}
	if len(acked) < rounds || len(due) < rounds {
		t.Errorf("too little happened for a verdict: %d acknowledged, %d rounds", len(acked), len(due))
	}
}

// TestPeerFailures: one clear line for each thing that goes wrong in a plant,
// and the rest goes on.
func TestPeerFailures(t *testing.T) {
	needPeers(t, "mosquitto", "mosquitto_sub", "mosquitto_passwd", "socat", "/usr/bin/python3")
	t.Parallel()
	tcp, _ := modbusServers(t)
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	pair := start(t, nil, "socat", "-d", "-d", "pty,raw,echo=0,link="+a, "pty,raw,echo=0,link="+b)
	pair.until(t, "that both ends are there", has("starting data transfer loop"))
	start(t, nil, "/usr/bin/python3", "testdata/modbus_server.py", "rtu", b, "19200")

	// a cloud that knows another password
	secrets, cloudPort := filepath.Join(dir, "passwd"), freePort(t)
	if out, err := exec.Command("mosquitto_passwd", "-b", "-c", secrets, "plant", "right").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	conf := filepath.Join(dir, "mosquitto.conf")
	os.WriteFile(conf, fmt.Appendf(nil, "listener %d 127.0.0.1\npassword_file %s\nuser root\n", cloudPort, secrets), 0o600)
	start(t, nil, "mosquitto", "-c", conf)
	reachable(t, fmt.Sprintf("127.0.0.1:%d", cloudPort))
	os.WriteFile(filepath.Join(dir, "secret"), []byte("wrong\n"), 0o600)

	port := freePort(t)
	text := deviceMap(dir, fmt.Sprintf("127.0.0.1:%d", port), tcp, a,
		"[device.dead]\nbus = \"line\"\nunit_id = 9\n[device.dead.points]\nv = { input = 0 }\n",
		fmt.Sprintf("[uplink.cloud]\naddresses = [\"mqtt://127.0.0.1:%d\"]\nuser = \"plant\"\npassword_file = %q\n", cloudPort, filepath.Join(dir, "secret")))
	file := filepath.Join(dir, "busgate.toml")
	os.WriteFile(file, []byte(text), 0o644)
	gw := start(t, nil, program(t), "run", "--config", file, "--socket", filepath.Join(dir, "s"))

	gw.until(t, "the refused login", has(`uplink cloud: 127.0.0.1 refused user "plant" (not authorised)`))
	gw.until(t, "the dead device", has("device dead: unit 9 on line gives no answer"))
	lan := start(t, nil, "mosquitto_sub", "-h", "127.0.0.1", "-p", fmt.Sprint(port), "-q", "1", "-F", "%t %p", "-t", "busgate/#")
	lan.until(t, "the dead device's status", has("busgate/t/dead/status offline"))
	lan.until(t, "the live device's status", has("busgate/t/grid/status online"))
	pair.end(syscall.SIGKILL) // the adapter is pulled out
	gw.until(t, "the port that is gone", has("bus line: "+a+" is gone"))
	lan.until(t, "the status of the bus's device", has("busgate/t/grid/status offline"))
	before := len(states(t, lan.lines()))
	waitFor(t, "ten further rounds of the other bus", time.Minute, func() bool { return len(states(t, lan.lines())) >= before+10 })
	for what, n := range map[string]int{"refused user": 1, "unit 9 on line gives no answer": 1, " is gone": 1} {
		if got := strings.Count(strings.Join(gw.lines(), "\n"), what); got != n {
			t.Errorf("%q stands in %d lines, want %d", what, got, n)
		}
	}
	t.Logf("the log:\n%s", bytes.TrimSpace([]byte(strings.Join(gw.lines(), "\n"))))
	gw.end(syscall.SIGTERM)
}
