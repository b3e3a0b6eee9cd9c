package port

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"go.bug.st/serial"
	"golang.org/x/sys/unix"
)

// Error is a port that cannot be had or was lost. It has the methods that the
// fleet asks of a trouble with a whole bus.
type Error struct {
	word string
	text string
	err  error
}

// Word is port-gone, port-missing, port-busy, port-permission, port-settings or port-fd.
func (e *Error) Word() string { return e.word }

// Text is one sentence for people: what was seen, and what to do.
func (e *Error) Text() string { return e.text }

func (e *Error) Error() string { return e.word + ": " + e.err.Error() }

func (e *Error) Unwrap() error { return e.err }

// lost is the error of a port that was open and died.
func lost(path string, devices int, err error) *Error {
	offline := fmt.Sprintf("%d devices offline", devices)
	if devices == 1 {
		offline = "1 device offline"
	}
	return &Error{"port-gone", path + " is gone (unplugged, or the USB hub lost power). " + offline +
		". It is opened again as soon as it is back", err}
}

// gone says that err means a hang-up: the adapter left while the port was open.
func gone(err error) bool {
	for _, e := range []error{unix.EIO, unix.ENODEV, unix.ENXIO, unix.EBADF, unix.ENOTTY} {
		if errors.Is(err, e) {
			return true
		}
	}
	return code(err) == serial.PortClosed
}

// code is the code of an error of the serial library, -1 for any other.
func code(err error) serial.PortErrorCode {
	if pe, ok := errors.AsType[*serial.PortError](err); ok {
		return pe.Code()
	}
	return -1
}

// classify puts an error of opening path into words.
func (o *Opener) classify(path, setting string, err error) *Error {
	name := shortName(path)
	switch c := code(err); {
	case errors.Is(err, fs.ErrNotExist) || c == serial.PortNotFound:
		return &Error{"port-missing", "there is no " + path + ". Ports of this computer: busgate scan", err}
	case errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EWOULDBLOCK) || c == serial.PortBusy:
		return &Error{"port-busy", name + " is in use by " + o.holder(path), err}
	case errors.Is(err, unix.EPERM) && majorOf(path) >= 0: // DevicePolicy= of systemd; modes give EACCES
		return &Error{"port-permission", fmt.Sprintf("the service may not open %s: devices of the kind char-%d are not in its unit. "+
			"Run: sudo systemctl edit busgate, add the lines [Service] and DeviceAllow=char-%[2]d rw, then restart", name, majorOf(path)), err}
	case errors.Is(err, fs.ErrPermission) || c == serial.PermissionDenied:
		return &Error{"port-permission", fmt.Sprintf("no permission for %s (group %s). Run: sudo usermod -aG %[2]s %s, then restart",
			name, groupOf(path), userName()), err}
	case c == serial.InvalidSpeed || c == serial.InvalidDataBits || c == serial.InvalidParity || c == serial.InvalidStopBits || errors.Is(err, unix.EINVAL):
		return &Error{"port-settings", fmt.Sprintf("%s cannot be set to %s (%s); try another baud or format", name, setting, reason(err)), err}
	case errors.Is(err, unix.ENOTTY) || c == serial.InvalidSerialPort:
		return &Error{"port-missing", path + " is no serial port. Ports of this computer: busgate scan", err}
	}
	return &Error{"port-gone", fmt.Sprintf("%s does not open (%s): is the adapter still plugged in?", path, reason(err)), err}
}

// reason is the last link of an error's chain.
func reason(err error) string {
	if e, ok := errors.AsType[syscall.Errno](err); ok {
		return e.Error()
	}
	return err.Error()
}

// shortName is what people call the port: ttyUSB0 also for its link by-id.
func shortName(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	if rest, ok := strings.CutPrefix(path, "/dev/"); ok {
		return rest
	}
	return path
}

// holder is the rest of the sentence "is in use by", from the open files of all
// processes that we may look at.
func (o *Opener) holder(path string) string {
	h, ok := holderOf(o.proc(), path)
	if !ok {
		return "another program; see which: sudo fuser -v " + path
	}
	stop := fmt.Sprintf("sudo kill %d", h.pid)
	if unit := serviceOf(h.dir); unit != "" {
		stop = "systemctl stop " + unit
	}
	return fmt.Sprintf("%s (pid %d). Two programs cannot share one RS-485 port; stop it: %s", h.name, h.pid, stop)
}

// serviceOf is the systemd service that a process belongs to, "" when none.
func serviceOf(procDir string) string {
	b, err := os.ReadFile(filepath.Join(procDir, "cgroup"))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		last := line[strings.LastIndexByte(line, '/')+1:]
		if unit, ok := strings.CutSuffix(strings.TrimSpace(last), ".service"); ok {
			return unit
		}
	}
	return ""
}

// groupOf is the group that owns the node, by name where there is one.
func groupOf(path string) string {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return "dialout"
	}
	id := strconv.FormatUint(uint64(st.Gid), 10)
	if g, err := user.LookupGroupId(id); err == nil {
		return g.Name
	}
	return id
}

// majorOf is the major number of a character device, -1 when it is none.
func majorOf(path string) int {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR {
		return -1
	}
	return int(unix.Major(uint64(st.Rdev)))
}

func userName() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return strconv.Itoa(os.Getuid())
}
