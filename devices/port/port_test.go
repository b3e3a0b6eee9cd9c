package port

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.bug.st/serial"
	"golang.org/x/sys/unix"

	"busgate/config"
)

var quiet = slog.New(slog.DiscardHandler)

// pty makes a pseudo terminal; its slave is a serial port for our purposes.
func pty(t *testing.T) (master *os.File, slave string) {
	t.Helper()
	m, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudo terminals here: %v", err)
	}
	t.Cleanup(func() { m.Close() })
	n, err := unix.IoctlGetInt(int(m.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(m.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	return m, fmt.Sprintf("/dev/pts/%d", n)
}

func bus(path string) *config.Bus {
	return &config.Bus{Name: "meters", Serial: path, Baud: 19200, DataBits: 8, Parity: 'N', StopBits: 1, RS485: "auto", Exclusive: true}
}

func open(t *testing.T, o *Opener, path string) *Port {
	t.Helper()
	p, err := o.Open(bus(path), 2, quiet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// wants fails unless err is the trouble with that word and text.
func wants(t *testing.T, err error, word, text string) {
	t.Helper()
	e, ok := errors.AsType[*Error](err)
	if !ok || e.Word() != word || e.Text() != text {
		t.Errorf("got %v\nwant %s: %s", err, word, text)
		if ok {
			t.Errorf("text %s", e.Text())
		}
	}
}

func TestPortReadsAndWrites(t *testing.T) {
	master, slave := pty(t)
	var o Opener
	p := open(t, &o, slave)
	if _, err := p.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 16)
	if n, err := master.Read(b); err != nil || string(b[:n]) != "ping" {
		t.Errorf("%q %v", b[:n], err)
	}
	if _, err := master.Write([]byte{0, 0x0D, 0x0A, 0x11, 0x13, 0x03, 0xFF}); err != nil {
		t.Fatal(err)
	}
	p.SetReadTimeout(5 * time.Second)
	if n, err := p.Read(b); err != nil || fmt.Sprintf("%X", b[:n]) != "000D0A111303FF" {
		t.Errorf("no byte has a meaning of its own: %X %v", b[:n], err)
	}
	p.SetReadTimeout(0)
	if n, err := p.Read(b); n != 0 || err != nil {
		t.Errorf("silence: %d %v", n, err)
	}
	if p.Path() != slave || p.Latency() != 0 {
		t.Errorf("%s %v", p.Path(), p.Latency())
	}
}

func TestCloseEndsARead(t *testing.T) {
	_, slave := pty(t)
	var o Opener
	p := open(t, &o, slave)
	p.SetReadTimeout(-1)
	done := make(chan error)
	go func() {
		_, err := p.Read(make([]byte, 8))
		done <- err
	}()
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; !errors.Is(err, ErrClosed) {
		t.Errorf("the read ended with %v", err)
	}
	if err := p.Close(); err != nil {
		t.Errorf("a second close: %v", err)
	}
	if _, err := p.Write([]byte{1}); !errors.Is(err, ErrClosed) {
		t.Errorf("write after close: %v", err)
	}
}

func TestUnpluggedPortIsGone(t *testing.T) {
	for _, op := range []string{"read", "write"} {
		t.Run(op, func(t *testing.T) {
			master, slave := pty(t)
			var o Opener
			p := open(t, &o, slave)
			master.Close()
			p.SetReadTimeout(time.Second)
			var err error
			if op == "read" {
				_, err = p.Read(make([]byte, 8))
			} else {
				_, err = p.Write([]byte{1})
			}
			wants(t, err, "port-gone", slave+" is gone (unplugged, or the USB hub lost power). 2 devices offline. It is opened again as soon as it is back")
		})
	}
}

func TestMissingPort(t *testing.T) {
	var o Opener
	_, err := o.Open(bus("/dev/ttyUSB77"), 1, quiet)
	wants(t, err, "port-missing", "there is no /dev/ttyUSB77. Ports of this computer: busgate scan")
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the cause is lost: %v", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	os.WriteFile(file, nil, 0o600)
	_, err = o.Open(bus(file), 1, quiet)
	wants(t, err, "port-missing", file+" is no serial port. Ports of this computer: busgate scan")
}

func TestBusyPort(t *testing.T) {
	_, slave := pty(t)
	var o Opener
	first := open(t, &o, slave)
	name := strings.TrimPrefix(slave, "/dev/")
	_, err := o.Open(bus(slave), 1, quiet)
	wants(t, err, "port-busy", name+" is in use by another program; see which: sudo fuser -v "+slave)

	proc := t.TempDir()
	fd := filepath.Join(proc, "812", "fd")
	os.MkdirAll(fd, 0o700)
	os.Symlink(slave, filepath.Join(fd, "7"))
	os.WriteFile(filepath.Join(proc, "812", "comm"), []byte("mbmd\n"), 0o600)
	o.procDir = proc
	_, err = o.Open(bus(slave), 1, quiet)
	wants(t, err, "port-busy", name+" is in use by mbmd (pid 812). Two programs cannot share one RS-485 port; stop it: sudo kill 812")
	os.WriteFile(filepath.Join(proc, "812", "cgroup"), []byte("0::/system.slice/mbmd.service\n"), 0o600)
	_, err = o.Open(bus(slave), 1, quiet)
	wants(t, err, "port-busy", name+" is in use by mbmd (pid 812). Two programs cannot share one RS-485 port; stop it: systemctl stop mbmd")

	// A container has terminals of its own by the same names.
	_, other := pty(t)
	os.Remove(filepath.Join(fd, "7"))
	os.Symlink(other, filepath.Join(fd, "7"))
	_, err = o.Open(bus(slave), 1, quiet)
	wants(t, err, "port-busy", name+" is in use by another program; see which: sudo fuser -v "+slave)

	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, &o, slave)
}

func TestSameDevice(t *testing.T) {
	node := func(dev, ino uint64, major, minor uint32) *unix.Stat_t {
		return &unix.Stat_t{Dev: dev, Ino: ino, Mode: unix.S_IFCHR, Rdev: unix.Mkdev(major, minor)}
	}
	usb, pts := node(5, 100, 188, 0), node(24, 3, 136, 0)
	for _, c := range []struct {
		fact string
		a, b *unix.Stat_t
		want bool
	}{
		{"one node", node(5, 100, 188, 0), usb, true},
		{"a node of its own in a container", node(70, 9, 188, 0), usb, true},
		{"another adapter", node(5, 101, 188, 1), usb, false},
		{"a file", &unix.Stat_t{Dev: 8, Ino: 1, Mode: unix.S_IFREG, Rdev: usb.Rdev}, usb, false},
		{"one terminal", node(24, 3, 136, 0), pts, true},
		{"a terminal of a container by the same name and number", node(71, 3, 136, 0), pts, false},
	} {
		if got := sameDevice(c.a, c.b); got != c.want {
			t.Errorf("%s: %v", c.fact, got)
		}
	}
}

func TestPortThatIsShared(t *testing.T) {
	_, slave := pty(t)
	var o Opener
	cfg := bus(slave)
	cfg.Exclusive = false
	a, err := o.Open(cfg, 1, quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b, err := o.Open(cfg, 1, quiet)
	if err != nil {
		t.Fatal(err)
	}
	b.Close()
}

func TestTextsOfOpening(t *testing.T) {
	dir := t.TempDir()
	node := filepath.Join(dir, "ttyUSB0")
	os.WriteFile(node, nil, 0)
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	group, err := user.LookupGroupId(me.Gid)
	if err != nil {
		t.Skip(err)
	}
	var o Opener
	permission := fmt.Sprintf("no permission for %s (group %s). Run: sudo usermod -aG %s %s, then restart", node, group.Name, group.Name, me.Username)
	for _, e := range []error{unix.EACCES, unix.EPERM} {
		wants(t, o.classify(node, "9600 8E1", e), "port-permission", permission)
	}
	wants(t, o.classify("/dev/null", "9600 8E1", unix.EPERM), "port-permission", "the service may not open null: devices of the kind char-1 are not in its unit. "+
		"Run: sudo systemctl edit busgate, add the lines [Service] and DeviceAllow=char-1 rw, then restart")
	wants(t, o.classify("/dev/null", "9600 8E1", unix.EACCES), "port-permission", fmt.Sprintf("no permission for null (group %s). Run: sudo usermod -aG %[1]s %s, then restart",
		groupOf("/dev/null"), me.Username))
	wants(t, o.classify(node, "9600 8E1", unix.EINVAL), "port-settings", node+" cannot be set to 9600 8E1 (invalid argument); try another baud or format")
	wants(t, o.classify(node, "9600 8E1", unix.EIO), "port-gone", node+" does not open (input/output error): is the adapter still plugged in?")
	wants(t, lost(node, 1, unix.EIO), "port-gone", node+" is gone (unplugged, or the USB hub lost power). 1 device offline. It is opened again as soon as it is back")
}

// The texts of the library are translated by its codes; this pins what it gives.
func TestLibraryErrors(t *testing.T) {
	_, err := serial.Open("/dev/ttyUSB77", &serial.Mode{BaudRate: 9600, DataBits: 8})
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing port: %v", err)
	}
	_, slave := pty(t)
	_, err = serial.Open(slave, &serial.Mode{BaudRate: 9600, DataBits: 9})
	if code(err) != serial.InvalidSerialPort && code(err) != serial.InvalidDataBits {
		t.Errorf("9 data bits: %v, code %d", err, code(err))
	}
}

// library is a port of the library in which things go wrong.
type library struct {
	reads, writes []func([]byte) (int, error)
	timeout       time.Duration
}

func (l *library) SetReadTimeout(d time.Duration) error { l.timeout = d; return nil }
func (l *library) Close() error                         { return nil }
func (l *library) Read(b []byte) (int, error) {
	f := l.reads[0]
	l.reads = l.reads[1:]
	return f(b)
}
func (l *library) Write(b []byte) (int, error) {
	f := l.writes[0]
	l.writes = l.writes[1:]
	return f(b)
}

func TestShortWritesAndInterruptionsAreNoErrors(t *testing.T) {
	var got []byte
	some := func(n int, err error) func([]byte) (int, error) {
		return func(b []byte) (int, error) { got = append(got, b[:n]...); return n, err }
	}
	l := &library{writes: []func([]byte) (int, error){some(2, nil), some(0, unix.EINTR), some(1, unix.EAGAIN), some(3, nil)},
		reads: []func([]byte) (int, error){
			func([]byte) (int, error) { return 0, unix.EINTR },
			func(b []byte) (int, error) { b[0] = 7; return 1, nil },
			func([]byte) (int, error) { return 0, fmt.Errorf("weird") },
		}}
	p := &Port{path: "/dev/ttyUSB0", opener: &Opener{}, lock: -1, raw: l}
	if n, err := p.Write([]byte("abcdef")); n != 6 || err != nil || string(got) != "abcdef" {
		t.Errorf("%d %v %q", n, err, got)
	}
	p.SetReadTimeout(time.Hour)
	b := make([]byte, 1)
	if n, err := p.Read(b); n != 1 || err != nil || b[0] != 7 {
		t.Errorf("%d %v", n, err)
	}
	if l.timeout > slice {
		t.Errorf("one read of the library lasts up to %v: Close would wait for it", l.timeout)
	}
	if _, err := p.Read(b); err == nil || err.Error() != "port /dev/ttyUSB0: weird" {
		t.Errorf("another error: %v", err)
	}
}

func TestLatencyOfAnAdapter(t *testing.T) {
	sys := t.TempDir()
	dir := filepath.Join(sys, "bus/usb-serial/devices/ttyUSB3")
	os.MkdirAll(dir, 0o700)
	node := filepath.Join(t.TempDir(), "ttyUSB3")
	os.WriteFile(node, nil, 0o600)
	link := filepath.Join(t.TempDir(), "usb-FTDI-port0")
	os.Symlink(node, link)
	o := Opener{sysDir: sys}
	for text, want := range map[string]time.Duration{"16\n": 16 * time.Millisecond, "1": time.Millisecond, "x": 0, "-5": 0} {
		os.WriteFile(filepath.Join(dir, "latency_timer"), []byte(text), 0o600)
		if got := o.latencyOf(link); got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip(err)
	}
	return len(list)
}

func TestReopeningLeaksNothing(t *testing.T) {
	_, slave := pty(t)
	var o Opener
	turn := func() {
		p, err := o.Open(bus(slave), 1, quiet)
		if err != nil {
			t.Fatal(err)
		}
		p.Close()
		o.Open(bus("/dev/ttyUSB77"), 1, quiet)
	}
	turn()
	before := descriptors(t)
	for range 100 {
		turn()
	}
	if n := descriptors(t); n != before {
		t.Errorf("%d descriptors, before 100 reopenings %d", n, before)
	}
}

// fill takes all descriptors below n.
func fill(t *testing.T, n int) (free func()) {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Cur < uint64(n)+64 {
		t.Skipf("only %d descriptors are allowed here", limit.Cur)
	}
	var fds []int
	for {
		fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		fds = append(fds, fd)
		if fd >= n {
			break
		}
	}
	free = func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
		fds = nil
	}
	t.Cleanup(free)
	return free
}

func TestDescriptorsAbove1023(t *testing.T) {
	_, slave := pty(t)
	t.Run("a port gets none and is not opened", func(t *testing.T) {
		var o Opener
		free := fill(t, 1030)
		_, err := o.Open(bus(slave), 1, quiet)
		free()
		wants(t, err, "port-fd", strings.TrimPrefix(slave, "/dev/")+" got a file descriptor above 1023: too many files are open in this process; fewer MQTT clients (max_clients) help")
		if o.FDHigh() != 1 {
			t.Errorf("counted %d", o.FDHigh())
		}
	})
	t.Run("a port that was open comes back on its old ones", func(t *testing.T) {
		var o Opener
		p := open(t, &o, slave)
		p.Close()
		free := fill(t, 1030)
		defer free()
		p, err := o.Open(bus(slave), 1, quiet)
		if err != nil {
			t.Fatal(err)
		}
		p.SetReadTimeout(0)
		if _, err := p.Read(make([]byte, 1)); err != nil {
			t.Error(err)
		}
		p.Close()
	})
}

func ptySlave(t *testing.T) string {
	t.Helper()
	_, slave := pty(t)
	return slave
}
