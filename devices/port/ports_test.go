package port

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// computer is a made-up /dev, /sys, /proc and /boot.
type computer struct {
	t    *testing.T
	root string
}

func (c computer) file(path, text string) {
	c.t.Helper()
	path = filepath.Join(c.root, path)
	os.MkdirAll(filepath.Dir(path), 0o700)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		c.t.Fatal(err)
	}
}

func (c computer) link(path, to string) {
	c.t.Helper()
	path = filepath.Join(c.root, path)
	os.MkdirAll(filepath.Dir(path), 0o700)
	if err := os.Symlink(to, path); err != nil {
		c.t.Fatal(err)
	}
}

// tty makes a port whose node is a pipe: who opens it waits for ever.
func (c computer) tty(name, device, driver string) {
	c.t.Helper()
	os.MkdirAll(filepath.Join(c.root, "dev"), 0o700)
	if err := unix.Mkfifo(filepath.Join(c.root, "dev", name), 0o600); err != nil {
		c.t.Fatal(err)
	}
	os.MkdirAll(filepath.Join(c.root, "sys/devices", device), 0o700)
	if driver != "" {
		c.link("sys/devices/"+device+"/driver", driver)
	}
	c.link("sys/class/tty/"+name+"/device", filepath.Join(c.root, "sys/devices", device))
}

func (c computer) roots() roots {
	return roots{c.root + "/dev", c.root + "/sys", c.root + "/proc", c.root + "/boot"}
}

func TestPortsAreListedWithoutOpeningOne(t *testing.T) {
	c := computer{t, t.TempDir()}
	c.tty("ttyUSB0", "usb1/1-1/ttyUSB0", "../../../../bus/usb-serial/drivers/ftdi_sio")
	c.link("dev/serial/by-id/usb-FTDI-if00-port0", "../../ttyUSB0")
	c.tty("ttyUSB1", "usb1/1-2/ttyUSB1", "../../../../bus/usb-serial/drivers/ch341-uart")
	c.link("proc/812/fd/7", filepath.Join(c.root, "dev/ttyUSB1"))
	c.file("proc/812/comm", "mbmd\n")
	// Linux 6.5 and later: two devices that drive nothing between the UART and its tty
	c.tty("ttyAMA0", "soc/fe20.serial/fe20.serial:0/fe20.serial:0.0", "../../../../../bus/serial-base/drivers/port")
	c.link("sys/devices/soc/fe20.serial/fe20.serial:0/driver", "../../../../bus/serial-base/drivers/ctrl")
	c.link("sys/devices/soc/fe20.serial/driver", "../../../bus/amba/drivers/uart-pl011")
	c.file("sys/class/tty/ttyAMA0/type", "32\n")
	c.file("sys/class/tty/console/active", "tty1 ttyAMA0\n")
	c.file("boot/firmware/cmdline.txt", "console=serial0,115200 console=tty1 root=/dev/mmcblk0p2\n")
	// no ports: an empty place of the driver 8250, a virtual terminal
	c.tty("ttyS3", "platform/serial8250", "../../../bus/platform/drivers/serial8250")
	c.file("sys/class/tty/ttyS3/type", "0\n")
	c.file("sys/class/tty/tty1/active", "tty1")

	got, err := c.roots().ports()
	if err != nil {
		t.Fatal(err)
	}
	dev := c.root + "/dev/"
	want := []Found{
		{Path: dev + "serial/by-id/usb-FTDI-if00-port0", TTY: "ttyUSB0", Driver: "ftdi_sio"},
		{Path: dev + "ttyAMA0", TTY: "ttyAMA0", Driver: "pl011", Console: "remove console=serial0 from cmdline.txt"},
		{Path: dev + "ttyUSB1", TTY: "ttyUSB1", Driver: "ch341-uart", Holder: "mbmd", PID: 812},
	}
	if len(got) != len(want) {
		t.Fatalf("%d ports, want %d: %+v", len(got), len(want), got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("got  %+v\nwant %+v", got[i], want[i])
		}
	}
}

func TestConsoleOfAnotherComputer(t *testing.T) {
	c := computer{t, t.TempDir()}
	c.tty("ttyS0", "pnp/00:05", "../../../bus/pnp/drivers/serial")
	c.file("sys/class/tty/console/active", "ttyS0\n")
	got, err := c.roots().ports()
	if err != nil || len(got) != 1 || got[0].Console != "remove console=ttyS0 from the kernel command line" || got[0].Driver != "serial" {
		t.Errorf("%+v %v", got, err)
	}
}

func TestComputerWithoutPorts(t *testing.T) {
	c := computer{t, t.TempDir()}
	c.file("sys/class/tty/console/active", "tty0\n")
	if got, err := c.roots().ports(); err != nil || len(got) != 0 {
		t.Errorf("%+v %v", got, err)
	}
	if _, err := (roots{sys: c.root + "/none"}).ports(); err == nil {
		t.Error("no sysfs, and no error")
	}
}
