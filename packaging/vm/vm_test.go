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
type adapter struct {
	t       *testing.T
	line    string // socket of the line
	monitor string // socket of qemu's monitor, which plugs and unplugs
}

func newAdapter(t *testing.T) *adapter {
	t.Helper()
	dir := shortDir(t)
	return &adapter{t, filepath.Join(dir, "meter"), filepath.Join(dir, "monitor")}
}

const adapterDevice = "usb-serial,id=adapter,chardev=meter,always-plugged=on"

// args are the options of a machine that the adapter is plugged into now or later.
func (a *adapter) args(now bool) []string {
	list := []string{"-device", "qemu-xhci,id=usb", "-chardev", "socket,id=meter,server=on,wait=off,path=" + a.line,
		"-monitor", "unix:" + a.monitor + ",server=on,wait=off"}
	if now {
		list = append(list, "-device", adapterDevice)
	}
	return list
}

func (a *adapter) plug() {
	a.t.Helper()
	a.order("device_add " + adapterDevice)
}

func (a *adapter) unplug() {
	a.t.Helper()
	a.order("device_del adapter")
}

// order gives qemu's monitor a command that has nothing to say.
func (a *adapter) order(command string) {
	a.t.Helper()
	const prompt = "(qemu) "
	c, err := net.Dial("unix", a.monitor)
	if err != nil {
		a.t.Fatal(err)
	}
	defer c.Close()
	var said strings.Builder
	answer := func() string {
		b := make([]byte, 4096)
		for said.Reset(); !strings.HasSuffix(said.String(), prompt); {
			n, err := c.Read(b)
			if err != nil {
				a.t.Fatalf("monitor: %v: %q", err, said.String())
			}
			said.Write(b[:n])
		}
		return said.String()
	}
	answer()
	if _, err := fmt.Fprintln(c, command); err != nil {
		a.t.Fatal(err)
	}
	if text := answer(); strings.Contains(text, "Error") {
		a.t.Fatalf("%s: %s", command, text)
	}
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
		SetConnectTimeout(patience).SetWriteTimeout(patience).SetPingTimeout(patience).SetOrderMatters(true)
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

// stateFrom waits for a fresh reading of the meter at a client outside.
func stateFrom(t *testing.T, port string, limit time.Duration) string {
	t.Helper()
	states := make(chan string, 64)
	c := client(t, port, "", true, limit, nil)
	defer c.Disconnect(0)
	if err := done(c.Subscribe("busgate/+/+/state", 1, func(_ mqtt.Client, m mqtt.Message) {
		if m.Retained() {
			return // of before
		}
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
	usb := newAdapter(t)
	root := rootDisk(t, assets, deb, map[string]string{"/usr/local/bin/paste": editor})
	m := pc(t, assets, image(root), append(card, usb.args(true)...)...)
	connectMeter(t, usb.line)
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
	m.run("systemctl reload busgate")
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
	t.Log(m.run("cat /proc/device-tree/model; echo; uname -m; grep MemTotal /proc/meminfo; date -u"))
	began := time.Now()
	m.run("DEBIAN_FRONTEND=noninteractive apt-get install -y /home/pi/busgate_*.deb >/tmp/apt.log 2>&1 || { cat /tmp/apt.log; false; }")
	t.Logf("installed in %.0f s", time.Since(began).Seconds())
	m.put("/etc/busgate/conf.d/lan.toml", openToAll)
	m.run("systemctl reload busgate")
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
