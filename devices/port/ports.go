package port

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Found is a serial port of this computer.
type Found struct {
	Path   string // what to write into the device map: /dev/serial/by-id/... where there is one
	TTY    string // ttyUSB0
	Driver string // of the kernel: ftdi_sio, ch341, pl011; "" when it does not say
	// Console is how to take the port from the Linux console, "" when that does
	// not use it: "remove console=serial0 from cmdline.txt".
	Console string
	Holder  string // program that has it open, "" when none that we may see
	PID     int    // of Holder
}

// roots is where the kernel's files are; tests put theirs there.
type roots struct{ dev, sys, proc, boot string }

// Ports lists the serial ports of this computer by the names of their paths. It
// opens none of them: listing with the serial library opens every ttyS*, and
// that can hang (go-serial#104).
func Ports() ([]Found, error) {
	return roots{dev: "/dev", sys: "/sys", proc: "/proc", boot: "/boot"}.ports()
}

func (r roots) ports() ([]Found, error) {
	entries, err := os.ReadDir(filepath.Join(r.sys, "class/tty"))
	if err != nil {
		return nil, fmt.Errorf("list serial ports: %w", err)
	}
	byID, console := r.byID(), r.console()
	var list []Found
	for _, e := range entries {
		tty := e.Name()
		dir := filepath.Join(r.sys, "class/tty", tty)
		device, err := filepath.EvalSymlinks(filepath.Join(dir, "device"))
		if err != nil { // a virtual terminal has no device
			continue
		}
		if kind, err := os.ReadFile(filepath.Join(dir, "type")); err == nil && strings.TrimSpace(string(kind)) == "0" {
			continue // a place for a UART that is not there (PORT_UNKNOWN of linux/serial_core.h)
		}
		f := Found{Path: filepath.Join(r.dev, tty), TTY: tty, Driver: driverOf(device)}
		if h, ok := holderOf(r.proc, f.Path); ok {
			f.Holder, f.PID = h.name, h.pid
		}
		if link := byID[tty]; link != "" {
			f.Path = link
		}
		if slices.Contains(console, tty) {
			f.Console = r.freeConsole(tty)
		}
		list = append(list, f)
	}
	slices.SortFunc(list, func(a, b Found) int {
		return cmp.Or(cmp.Compare(group(a), group(b)), cmp.Compare(a.Path, b.Path))
	})
	return list, nil
}

// group puts adapters before the ports of the board.
func group(f Found) int {
	if filepath.Base(f.Path) != f.TTY {
		return 0
	}
	return 1
}

// byID is the link in /dev/serial/by-id of each tty that has one.
func (r roots) byID() map[string]string {
	dir := filepath.Join(r.dev, "serial/by-id")
	entries, _ := os.ReadDir(dir) // absent while no adapter is plugged in
	links := map[string]string{}
	for _, e := range entries {
		link := filepath.Join(dir, e.Name())
		if to, err := os.Readlink(link); err == nil && links[filepath.Base(to)] == "" {
			links[filepath.Base(to)] = link
		}
	}
	return links
}

// console lists the ttys that kernel messages go to.
func (r roots) console() []string {
	b, err := os.ReadFile(filepath.Join(r.sys, "class/tty/console/active"))
	if err != nil {
		return nil
	}
	return strings.Fields(string(b))
}

// freeConsole says how to take a port from the console. A Raspberry Pi has it
// in cmdline.txt, under an alias that its firmware replaces.
func (r roots) freeConsole(tty string) string {
	for _, file := range []string{"firmware/cmdline.txt", "cmdline.txt"} {
		b, err := os.ReadFile(filepath.Join(r.boot, file))
		if err != nil {
			continue
		}
		for _, word := range strings.Fields(string(b)) {
			name, _, _ := strings.Cut(strings.TrimPrefix(word, "console="), ",")
			if strings.HasPrefix(word, "console=") && (name == tty || strings.HasPrefix(name, "serial")) {
				return "remove console=" + name + " from cmdline.txt"
			}
		}
	}
	return "remove console=" + tty + " from the kernel command line"
}

// driverOf is the driver of a device in sysfs. From Linux 6.5 on a UART stands
// below two devices of the bus serial-base, which drive nothing.
func driverOf(device string) string {
	for range 4 {
		to, err := os.Readlink(filepath.Join(device, "driver"))
		name := filepath.Base(to)
		if err == nil && !strings.Contains(to, "serial-base") {
			return strings.TrimPrefix(name, "uart-")
		}
		device = filepath.Dir(device)
	}
	return ""
}

// holder is a process that has a port open.
type holder struct {
	name, dir string // dir is that of the process in /proc
	pid       int
}

// sameDevice says that two nodes are one device. A container has nodes of its
// own for the devices it shares, and terminals of its own by the same numbers.
func sameDevice(a, b *unix.Stat_t) bool {
	const ptySlaves = 136 // to 143: major numbers of pseudo terminals
	if a.Dev == b.Dev && a.Ino == b.Ino {
		return true
	}
	major := unix.Major(uint64(b.Rdev))
	return a.Mode&unix.S_IFMT == unix.S_IFCHR && b.Mode&unix.S_IFMT == unix.S_IFCHR && a.Rdev == b.Rdev && (major < ptySlaves || major > ptySlaves+7)
}

// holderOf looks for who has path open among the processes that we may look at.
func holderOf(proc, path string) (holder, bool) {
	var port unix.Stat_t
	if unix.Stat(path, &port) != nil {
		return holder{}, false
	}
	fds, _ := filepath.Glob(filepath.Join(proc, "[0-9]*", "fd", "*"))
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err != nil || !filepath.IsAbs(to) { // most are sockets and pipes
			continue
		}
		var st unix.Stat_t
		if unix.Stat(fd, &st) != nil || !sameDevice(&st, &port) {
			continue
		}
		dir := filepath.Dir(filepath.Dir(fd))
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || pid == os.Getpid() {
			continue
		}
		if comm, err := os.ReadFile(filepath.Join(dir, "comm")); err == nil {
			return holder{strings.TrimSpace(string(comm)), dir, pid}, true
		}
	}
	return holder{}, false
}
