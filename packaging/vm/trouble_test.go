package vm

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"
)

// trouble is a machine with a gateway that has trouble.
type trouble struct {
	*testing.T
	m   *machine
	usb *adapter
}

// TestTrouble: what happens to a gateway over the years. Each time systemd and
// busgate bring it back, and one line of the journal says why.
func TestTrouble(t *testing.T) {
	assets := needVM(t, "amd64")
	usb := newAdapter(t)
	root := rootDisk(t, assets, buildPackage(t, "amd64"), nil)
	// No network card, and a clock whose battery is empty. What the service
	// keeps has a disk of its own, so that a full one is not that of the journal.
	m := pc(t, assets, image(root), append(usb.args(false), "-rtc", "base=1970-01-01T00:00:00",
		"-drive", image(dataDisk(t, "96M"))+",if=none,id=data", "-device", "virtio-blk-pci,drive=data")...)
	connectMeter(t, usb.line)
	m.ready()
	s := &trouble{t, m, usb}
	m.run("mkdir -p /var/lib/busgate && mount -L data /var/lib/busgate")
	m.put("/etc/busgate/conf.d/plant.toml", "[gateway]\ninterval = \"1s\"\n[device.meter]\nserial = \"/dev/ttyUSB0\"\nprofile = \"eastron-sdm630\"\n"+
		"[uplink.cloud]\naddresses = [\"mqtt://10.9.9.9:1883\"]\nsend = [\"#\"]\n[buffer]\nmin_free_disk = \"0MB\"\n")
	m.run("DEBIAN_FRONTEND=noninteractive apt-get install -y /home/pi/busgate_*.deb >/dev/null 2>&1")

	for _, scene := range []func(){s.adapter, s.network, s.clock, s.killed, s.stuck, s.hungry, s.strangeDevice, s.full} {
		scene()
	}
	t.Logf("warnings and errors of the whole run:\n%s", m.run("journalctl -b -u busgate -p 4 --no-pager -o cat | cut -c-300"))
}

// reading waits for a fresh reading of the meter at a client in the machine.
func (s *trouble) reading(what string) {
	s.Helper()
	waitFor(s.T, patience, "a reading: "+what, func() error {
		out, _ := s.m.try("mosquitto_sub -h 127.0.0.1 -t busgate/gw/meter/state -R -C 1 -W 20")
		at := strings.Index(out, "{")
		if at < 0 || !strings.Contains(out, `"voltage_l1":230.5`) {
			return errors.New(out)
		}
		s.Logf("%s: %.80s...", what, out[at:])
		return nil
	})
}

// restarts runs a line and waits until systemd has started the service once
// more than before.
func (s *trouble) restarts(what, line string) {
	s.Helper()
	count := func() int {
		n, err := strconv.Atoi(s.m.run("systemctl show -P NRestarts busgate"))
		if err != nil {
			s.Fatal(err)
		}
		return n
	}
	n, began := count(), time.Now()
	s.m.try(line)
	waitFor(s.T, patience, "a restart: "+what, func() error {
		if count() <= n {
			return errors.New("not yet")
		}
		return nil
	})
	s.Logf("%s: restarted within %.0f s", what, time.Since(began).Seconds())
	s.reading(what)
}

// adapter: the first adapter of all is plugged in after the service has started,
// later it is pulled out, and it comes back.
func (s *trouble) adapter() {
	s.m.journal("no adapter", 0, "meter: there is no /dev/ttyUSB0")
	s.usb.plug()
	s.reading("the adapter is plugged in")
	mark := s.m.mark()
	s.usb.unplug()
	s.m.journal("the adapter is pulled out", mark, "/dev/ttyUSB0 is gone .unplugged")
	s.usb.plug()
	s.reading("the adapter is back")
}

func (s *trouble) network() {
	s.m.journal("without network", 0, "uplink cloud: no route")
}

func (s *trouble) clock() {
	s.Logf("clock at boot: %s", s.m.run("date -u +%FT%T"))
	s.m.journal("a clock that was never set", 0, `clock: this computer believes it is [0-9-]+, before busgate was built \([0-9-]+\), and NTP has not set it`)
	mark := s.m.mark()
	s.m.run("date -s '1970-01-01 00:10:00' && systemctl restart busgate")
	s.reading("clock in 1970")
	s.m.journal("clock in 1970", mark, `clock: this computer believes it is 1970-01-01, before busgate was built \([0-9-]+\), and NTP has not set it`)
	mark = s.m.mark()
	s.m.run("date -s '2027-03-01 12:00:00'")
	s.m.journal("the clock is set", mark, `clock: set \(\+[0-9]+d\); what waits is re-dated`)
	s.reading("clock set")
}

func (s *trouble) killed() {
	mark := s.m.mark()
	s.restarts("kill -9", "kill -9 $(systemctl show -P MainPID busgate)")
	s.m.journal("kill -9", mark, "Main process exited, code=killed, status=9")
}

func (s *trouble) stuck() {
	mark := s.m.mark()
	s.restarts("SIGSTOP", "kill -STOP $(systemctl show -P MainPID busgate)")
	s.m.journal("SIGSTOP", mark, "Watchdog timeout")
}

// hungry: what the service may take is bounded. MemoryHigh= would only slow the
// process down for a long time, so it is lifted for this scene.
func (s *trouble) hungry() {
	const cgroup = "/sys/fs/cgroup/system.slice/busgate.service/"
	if got := s.m.run("cat " + cgroup + "memory.high " + cgroup + "memory.max | xargs"); got != fmt.Sprint(128<<20, " ", 192<<20) {
		s.Errorf("memory.high and memory.max: %s", got)
	}
	mark := s.m.mark()
	s.m.run("systemctl set-property --runtime busgate MemoryHigh=infinity")
	s.restarts("300 MB taken", "sh -c 'echo $$ >"+cgroup+"cgroup.procs; head -c 300M /dev/zero | tail >/dev/null'")
	s.m.journal("300 MB taken", mark, "killed by the OOM killer")
	s.m.run("rm -r /run/systemd/system.control/busgate.service.d && systemctl daemon-reload && systemctl restart busgate")
}

// strangeDevice: a device whose number is not in the unit is refused, and what
// the journal advises opens it.
func (s *trouble) strangeDevice() {
	mark := s.m.mark()
	s.m.run("mknod -m 660 /dev/ttyODD0 c 240 0 && chgrp dialout /dev/ttyODD0")
	s.m.put("/etc/busgate/conf.d/odd.toml", "[device.odd]\nserial = \"/dev/ttyODD0\"\nprofile = \"eastron-sdm630\"\n")
	s.m.run("systemctl reload busgate")
	const advice = "DeviceAllow=char-240 rw"
	s.m.journal("a device that is not in the unit", mark, "ttyODD0: .*systemctl edit busgate.*"+advice)
	s.reading("the other bus")
	mark = s.m.mark()
	s.m.put("/etc/systemd/system/busgate.service.d/override.conf", "[Service]\n"+advice+"\n")
	s.m.run("systemctl daemon-reload && systemctl restart busgate")
	s.m.journal("... after what the journal advised", mark, "ttyODD0 does not open .no such device or address.")
	s.m.run("rm -r /etc/systemd/system/busgate.service.d /etc/busgate/conf.d/odd.toml && systemctl daemon-reload && systemctl restart busgate")
}

func (s *trouble) full() {
	const fill = "dd if=/dev/zero of=/var/lib/busgate/filler bs=64k oflag=append conv=notrunc 2>/dev/null; "
	const load = "for i in $(seq 20); do head -c 50000 /dev/urandom | base64 -w0 | mosquitto_pub -h 127.0.0.1 -t plant/$i -q 0 -s; done; "
	fullAfter := func(what, line string) {
		mark := s.m.mark()
		s.m.run(line)
		waitFor(s.T, patience, "a full disk", func() error {
			said, status := s.m.try(fill + load + fmt.Sprintf("%s | tail -n +%d >/run/said; grep -q 'the disk is full' /run/said || { tail -5 /run/said; false; }", showJournal, mark+1))
			if status != "0" {
				return fmt.Errorf("not yet: the journal ends with\n%s", said)
			}
			return nil
		})
		s.m.journal(what, mark, "the disk is full")
		s.reading(what)
	}
	s.reading("before the disk is full")
	fullAfter("full /var", "true")
	fullAfter("full /var, after a restart", "systemctl restart busgate")
	mark := s.m.mark()
	s.m.run("rm /var/lib/busgate/filler")
	s.m.journal("room again", mark, "the disk has room again")
	s.reading("room again")
}
