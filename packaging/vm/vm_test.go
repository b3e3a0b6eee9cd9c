package vm

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
)

var (
	cuts  = flag.Int("cuts", 10, "power cuts of TestPowerCuts")
	given = flag.String("deb", "", "folder with packages that are built already")

	console = flag.Bool("console", false, "show what the machines print")
)

// openToAll lets clients outside of the machine in.
const openToAll = "[broker]\nlisten = \":1883\"\nanonymous = true\n"

// editor is what sudoedit calls: it pastes /tmp/paste at the end of the file.
const editor = "#!/bin/sh\ncat /tmp/paste >>\"$1\"\n"

// adapter is an emulated FTDI adapter with a meter on its line.
func adapter(t *testing.T) (args []string, connect func()) {
	t.Helper()
	socket := filepath.Join(shortDir(t), "meter")
	return []string{"-device", "qemu-xhci,id=usb", "-chardev", "socket,id=meter,server=on,wait=off,path=" + socket,
		"-device", "usb-serial,chardev=meter,always-plugged=on"}, func() { connectMeter(t, socket) }
}

// shortDir is a folder whose path is short enough for a socket in it.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "v")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// client connects to the machine from outside.
func client(t *testing.T, port, id string, clean bool, limit time.Duration, got func(mqtt.Message)) mqtt.Client {
	t.Helper()
	o := mqtt.NewClientOptions().AddBroker("tcp://127.0.0.1:" + port).SetClientID(id).SetCleanSession(clean).SetAutoReconnect(false).
		SetConnectTimeout(time.Minute).SetWriteTimeout(time.Minute).SetOrderMatters(true)
	if got != nil {
		o.SetDefaultPublishHandler(func(_ mqtt.Client, m mqtt.Message) { got(m) })
	}
	// A forwarded port takes connections before anybody listens behind it.
	waitFor(t, limit, "the broker at the forwarded port", func() error { return probe(port) })
	c := mqtt.NewClient(o)
	if err := done(c.Connect(), limit); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Disconnect(0) })
	return c
}

// probe connects once, as MQTT 3.1.1 with a clean session and no name.
func probe(port string) error {
	c, err := net.DialTimeout("tcp", "127.0.0.1:"+port, time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if _, err := c.Write([]byte{0x10, 12, 0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 60, 0, 0}); err != nil {
		return err
	}
	var ack [4]byte
	if _, err := io.ReadFull(c, ack[:]); err != nil {
		return err
	}
	if ack != [4]byte{0x20, 2, 0, 0} {
		return fmt.Errorf("CONNACK % x", ack)
	}
	return nil
}

func done(token mqtt.Token, limit time.Duration) error {
	if !token.WaitTimeout(limit) {
		return errors.New("no answer")
	}
	return token.Error()
}

// stateFrom waits for a reading of the meter at a client outside.
func stateFrom(t *testing.T, port string, limit time.Duration) string {
	t.Helper()
	states := make(chan string, 64)
	c := client(t, port, "", true, limit, nil)
	defer c.Disconnect(0)
	if err := done(c.Subscribe("busgate/+/+/state", 1, func(_ mqtt.Client, m mqtt.Message) {
		select {
		case states <- m.Topic() + " " + string(m.Payload()):
		default: // nobody asks for so many
		}
	}), patience); err != nil {
		t.Fatal(err)
	}
	end := time.After(limit)
	for {
		select {
		case s := <-states:
			if strings.Contains(s, `"voltage_l1":230.5`) {
				return s
			}
		case <-end:
			t.Fatalf("no reading within %v", limit)
		}
	}
}

// TestFirstReading follows the README's section about the Raspberry Pi, word by
// word, until a reading is on the screen; then a client outside reads it, too.
func TestFirstReading(t *testing.T) {
	assets := needVM(t, "amd64")
	deb := buildPackage(t, "amd64")
	port, card := network(t)
	usb, connect := adapter(t)
	root := rootDisk(t, assets, deb, map[string]string{"/usr/local/bin/paste": editor})
	m := pc(t, assets, root, "", append(card, usb...)...)
	connect()
	m.ready()
	m.enter("cd /home/pi; su pi", `pi@gw:~\$ `)
	m.run("export EDITOR=/usr/local/bin/paste; unset HISTFILE")
	began := time.Now()
	commands := piCommands(t)
	for i, line := range commands {
		line = strings.ReplaceAll(line, "arm64", "amd64")
		if i == len(commands)-1 { // it goes on until Ctrl-C
			if _, err := fmt.Fprintln(m.in, line); err != nil {
				t.Fatal(err)
			}
			text, err := m.until(`busgate/gw/[^ ]*/state \{[^\n]*"voltage_l1":230.5[^\n]*\}`, patience)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("$ %s\n%s", line, text[strings.LastIndex(text, "busgate/gw/"):])
			m.enter("\x03", `pi@gw:~\$ `)
			break
		}
		out := m.run(line)
		t.Logf("[%5.1f s] $ %s\n%s", time.Since(began).Seconds(), line, out)
		if _, block, ok := strings.Cut(out, "# add to"); ok {
			_, block, _ = strings.Cut(block, "\n")
			m.put("/tmp/paste", "\n"+block+"\n")
		}
	}
	t.Logf("%d commands, %.1f minutes in a machine without acceleration", len(commands), time.Since(began).Minutes())

	m.enter("exit", `root@gw:[^ ]*# `)
	if got := m.run("cat /sys/bus/usb-serial/devices/ttyUSB0/latency_timer"); got != "1" {
		t.Errorf("latency of the adapter: %s ms", got)
	}
	t.Log(m.run("systemctl show busgate -p StatusText -p MemoryCurrent -p NRestarts; grep VmRSS /proc/$(systemctl show -P MainPID busgate)/status"))
	m.put("/etc/busgate/conf.d/lan.toml", openToAll)
	m.run("systemctl restart busgate")
	t.Log("outside: " + stateFrom(t, port, patience))
	m.run("DEBIAN_FRONTEND=noninteractive apt-get purge -y busgate && ! test -e /var/lib/busgate && ! test -e /etc/busgate")
}

// piCommands are the commands of the README's section.
func piCommands(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(text), "\n## On a Raspberry Pi\n")
	section, _, _ = strings.Cut(section, "\n## ")
	var lines []string
	for _, block := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(section, -1) {
		for line := range strings.Lines(block[1]) {
			line, _, _ = strings.Cut(line, " #")
			if line = strings.TrimSpace(line); line != "" {
				lines = append(lines, line)
			}
		}
	}
	if len(lines) < 4 {
		t.Fatalf("README.md has no commands for a Raspberry Pi: %q", lines)
	}
	return lines
}

// TestTrouble: what happens to a gateway over the years. Each time systemd and
// busgate bring it back, and one line of the journal says why.
func TestTrouble(t *testing.T) {
	assets := needVM(t, "amd64")
	usb, connect := adapter(t)
	root := rootDisk(t, assets, buildPackage(t, "amd64"), nil)
	data := dataDisk(t, "96M")
	// No network card, and a clock without a battery.
	m := pc(t, assets, root, "", append(usb, "-rtc", "base=1970-01-01T00:00:00",
		"-drive", "file="+data+",format=raw,if=none,id=data", "-device", "virtio-blk-pci,drive=data")...)
	connect()
	m.ready()
	m.run("mkdir -p /var/lib/busgate && mount -L data /var/lib/busgate")
	m.put("/etc/busgate/conf.d/plant.toml", "[gateway]\ninterval = \"1s\"\n[device.meter]\nserial = \"/dev/ttyUSB0\"\nprofile = \"eastron-sdm630\"\n"+
		"[uplink.cloud]\naddresses = [\"mqtt://10.9.9.9:1883\"]\n[buffer]\nmin_free_disk = \"0MB\"\n")
	m.run("DEBIAN_FRONTEND=noninteractive apt-get install -y /home/pi/busgate_*.deb >/dev/null 2>&1")
	reading := func(what string) {
		t.Helper()
		waitFor(t, patience, "a reading: "+what, func() error {
			out, _ := m.try("mosquitto_sub -h 127.0.0.1 -t 'busgate/gw/meter/state' -R -C 1 -W 20")
			if !strings.Contains(out, `"voltage_l1":230.5`) {
				return errors.New(out)
			}
			t.Logf("%s: %.80s...", what, out[strings.Index(out, "{"):])
			return nil
		})
	}
	t.Logf("clock at boot: %s", m.run("date -u +%FT%T"))
	reading("without network, clock not set")
	m.journal("without network", `uplink cloud: `)
	m.run("date -s '1970-01-01 00:10:00' && systemctl restart busgate")
	reading("clock in 1970")
	m.journal("clock in 1970", "clock")

	restarts := func() int {
		n, err := strconv.Atoi(m.run("systemctl show -P NRestarts busgate"))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	n := restarts()
	m.run("kill -9 $(systemctl show -P MainPID busgate)")
	waitFor(t, patience, "a restart", func() error { return moreThan(restarts(), n) })
	reading("after kill -9")
	m.journal("kill -9", "Main process exited, code=killed, status=9")
	n = restarts()
	began := time.Now()
	m.run("kill -STOP $(systemctl show -P MainPID busgate)")
	waitFor(t, patience, "a restart", func() error { return moreThan(restarts(), n) })
	reading(fmt.Sprintf("after SIGSTOP, restarted within %.0f s", time.Since(began).Seconds()))
	m.journal("SIGSTOP", "Watchdog timeout")

	m.run("dd if=/dev/zero of=/var/lib/busgate/filler bs=64k 2>/dev/null; sync; true")
	m.run("for i in $(seq 200); do head -c 20000 /dev/urandom | base64 -w0 | mosquitto_pub -h 127.0.0.1 -t busgate/gw/x/$i -q 0 -s; done")
	m.journal("full /var", `(disk is full|the disk|no space)`)
	reading("full /var")
	m.run("systemctl restart busgate")
	reading("full /var, after a restart")
	m.run("rm /var/lib/busgate/filler")
	m.journal("room again", `(writes again|room again|disk is well|disk has)`)
	reading("room again")
	out := m.run("journalctl -b -u busgate -p 4 --no-pager -o cat")
	t.Logf("warnings and errors of the whole run:\n%s", out)
}

func moreThan(n, was int) error {
	if n <= was {
		return fmt.Errorf("%d restarts", n)
	}
	return nil
}

// TestRaspberryPi: an emulated Raspberry Pi 3 (four Cortex-A53, SD card, USB
// network, no clock) installs the package and answers on 1883.
func TestRaspberryPi(t *testing.T) {
	assets := needVM(t, "arm64")
	root := rootDisk(t, assets, buildPackage(t, "arm64"), nil)
	port, _ := network(t)
	m := boot(t, assets, "qemu-system-aarch64", "-M", "raspi3b", "-dtb", filepath.Join(assets, "pi3.dtb"),
		"-append", "console=ttyS1,115200 panic=-1 net.ifnames=0 quiet systemd.show_status=0",
		"-drive", "file="+root+",format=raw,if=sd", "-netdev", "user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:"+port+"-:1883", "-device", "usb-net,netdev=net",
		"-serial", "null", "-serial", "stdio")
	m.ready()
	t.Log(m.run("cat /proc/device-tree/model; echo; uname -m; free -m | head -2; date -u"))
	began := time.Now()
	m.run("DEBIAN_FRONTEND=noninteractive apt-get install -y /home/pi/busgate_*.deb >/tmp/apt.log 2>&1 || { cat /tmp/apt.log; false; }")
	t.Logf("installed in %.0f s", time.Since(began).Seconds())
	m.put("/etc/busgate/conf.d/lan.toml", openToAll)
	m.run("systemctl restart busgate")
	t.Log(m.run("busgate version; systemctl show busgate -p ActiveState -p StatusText -p MemoryCurrent; grep VmRSS /proc/$(systemctl show -P MainPID busgate)/status"))
	got := make(chan string, 1)
	c := client(t, port, "outside", true, patience, nil)
	if err := done(c.Subscribe("busgate/gw/gateway/status", 1, func(_ mqtt.Client, m mqtt.Message) {
		select {
		case got <- string(m.Payload()):
		default: // the first one is enough
		}
	}), patience); err != nil {
		t.Fatal(err)
	}
	select {
	case s := <-got:
		t.Logf("answers on 1883: gateway/status %s, %.0f s after power on", s, time.Since(m.began).Seconds())
	case <-time.After(patience):
		t.Fatal("no answer")
	}
}
