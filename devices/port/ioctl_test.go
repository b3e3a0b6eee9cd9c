package port

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"busgate/config"
)

// driver is the kernel's side of a serial port. What an ioctl reads and writes are
// images of the structures in memory, as the kernel sees them.
type driver struct {
	rs485, serial, icount []byte         // nil: ENOTTY, as for a driver without it
	fails                 map[uint]error // by request
	deaf                  bool           // takes the settings of RS-485 and leaves them out
	calls                 []string
}

// sizes are what the kernel copies on a 64-bit processor.
const (
	sizeRS485  = 32
	sizeSerial = 72
	sizeICount = 80
)

func (d *driver) ioctl(_ int, req uint, arg unsafe.Pointer) error {
	var name string
	var mine *[]byte
	var size int
	set := false
	switch req {
	case 0x542E: // of asm-generic/ioctls.h, which amd64, arm and arm64 share
		name, mine, size = "TIOCGRS485", &d.rs485, sizeRS485
	case 0x542F:
		name, mine, size, set = "TIOCSRS485", &d.rs485, sizeRS485, true
	case 0x541E:
		name, mine, size = "TIOCGSERIAL", &d.serial, sizeSerial
	case 0x541F:
		name, mine, size, set = "TIOCSSERIAL", &d.serial, sizeSerial, true
	case 0x545D:
		name, mine, size = "TIOCGICOUNT", &d.icount, sizeICount
	default:
		return fmt.Errorf("ioctl %#x is unknown", req)
	}
	theirs := unsafe.Slice((*byte)(arg), size)
	if set {
		name += " " + hex.EncodeToString(theirs)
	}
	d.calls = append(d.calls, name)
	if err := d.fails[req]; err != nil {
		return err
	}
	switch {
	case *mine == nil:
		return unix.ENOTTY
	case !set:
		copy(theirs, *mine)
	case d.deaf:
		copy(theirs, *mine)
	default:
		*mine = bytes.Clone(theirs)
	}
	return nil
}

// image is the bytes of a structure: 32-bit words, low byte first, as on every
// processor that busgate is built for, and zeros behind them.
func image(size int, words ...uint32) []byte {
	b := make([]byte, 0, size)
	for _, w := range words {
		b = append(b, byte(w), byte(w>>8), byte(w>>16), byte(w>>24))
	}
	return append(b, make([]byte, size-len(b))...)
}

// said is a log and what stands in it, a line for each message.
func said() (log *slog.Logger, lines func() string) {
	var b bytes.Buffer
	h := slog.NewTextHandler(&b, &slog.HandlerOptions{Level: slog.LevelDebug, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}})
	return slog.New(h), func() string { defer b.Reset(); return b.String() }
}

const refusal = `msg="the driver of this port does not switch the direction of RS-485; an adapter that does so by itself needs no rs485 = \"kernel\"" bus=meters port=/dev/ttyAMA0 err=`

func TestRS485IsSwitchedByTheKernel(t *testing.T) {
	delays := []uint32{7, 9}
	with := func(flags uint32) []byte { return image(sizeRS485, append([]uint32{flags}, delays...)...) }
	for _, c := range []struct {
		fact  string
		mode  string
		has   []byte
		deaf  bool
		fails map[uint]error
		calls string // "" for none
		log   string
	}{
		{"off asks for nothing", "off", with(0), false, nil, "", ""},
		{"auto keeps what the driver has", "auto", with(0), false, nil, "TIOCGRS485", ""},
		{"auto says only to those who debug that there is nothing", "auto", nil, false, nil, "TIOCGRS485",
			`level=DEBUG msg="the driver of this port does not switch the direction of RS-485" bus=meters err="inappropriate ioctl for device"`},
		{"kernel switches it on, RTS high while it sends, delays kept", "kernel", with(0), false, nil,
			"TIOCGRS485 TIOCSRS485 03000000" + "07000000" + "09000000" + strings.Repeat("00", 20), ""},
		{"the polarity of the device tree is kept", "kernel", with(4), false, nil,
			"TIOCGRS485 TIOCSRS485 05000000" + "07000000" + "09000000" + strings.Repeat("00", 20), ""},
		{"as are termination and the own echo", "kernel", with(2 | 16 | 32), false, nil,
			"TIOCGRS485 TIOCSRS485 33000000" + "07000000" + "09000000" + strings.Repeat("00", 20), ""},
		{"what is on is left alone", "kernel", with(5), false, nil, "TIOCGRS485", ""},
		{"a driver without it", "kernel", nil, false, nil, "TIOCGRS485", `level=WARN ` + refusal + `"inappropriate ioctl for device"`},
		{"a driver that refuses the settings", "kernel", with(0), false, map[uint]error{0x542F: unix.EINVAL},
			"TIOCGRS485 TIOCSRS485 03000000" + "07000000" + "09000000" + strings.Repeat("00", 20), `level=WARN ` + refusal + `"invalid argument"`},
		{"a driver that takes them and does nothing", "kernel", with(0), true, nil,
			"TIOCGRS485 TIOCSRS485 03000000" + "07000000" + "09000000" + strings.Repeat("00", 20), `level=WARN ` + refusal + `"the driver took the settings and left RS-485 off"`},
	} {
		t.Run(c.fact, func(t *testing.T) {
			d := &driver{rs485: c.has, deaf: c.deaf, fails: c.fails}
			o := Opener{ioctl: d.ioctl}
			log, lines := said()
			o.setRS485(3, &config.Bus{Name: "meters", Serial: "/dev/ttyAMA0", RS485: c.mode}, log)
			if got := strings.Join(d.calls, " "); got != c.calls {
				t.Errorf("asked %s\nwant  %s", got, c.calls)
			}
			if got := strings.TrimSpace(lines()); got != c.log {
				t.Errorf("says %s\nwant %s", got, c.log)
			}
		})
	}
}

// A port that is opened every few seconds says once that its driver refuses, and
// once more when it had not refused in between.
func TestRefusalOfRS485IsSaidOnce(t *testing.T) {
	d := &driver{}
	o := Opener{ioctl: d.ioctl}
	log, lines := said()
	open := func(path string) string {
		o.setRS485(3, &config.Bus{Name: "meters", Serial: path, RS485: "kernel"}, log)
		level, _, _ := strings.Cut(lines(), " ")
		return level
	}
	if got := open("/dev/ttyUSB0") + open("/dev/ttyUSB0") + open("/dev/ttyUSB1") + open("/dev/ttyUSB0"); got != "level=WARNlevel=DEBUGlevel=WARNlevel=DEBUG" {
		t.Errorf("%s", got)
	}
	d.rs485 = image(sizeRS485)
	if got := open("/dev/ttyUSB0"); got != "" {
		t.Errorf("a driver that does it: %s", got)
	}
	d.rs485 = nil
	if got := open("/dev/ttyUSB0"); got != "level=WARN" {
		t.Errorf("another adapter: %s", got)
	}
	for i := range 2 * maxRefused {
		open(fmt.Sprint("/dev/ttyS", i))
	}
	if len(o.refused) > maxRefused {
		t.Errorf("%d ports are remembered", len(o.refused))
	}
}

func TestLowLatency(t *testing.T) {
	has := func(flags uint32) []byte {
		b := image(sizeSerial, 4, 1, 0x3F8, 4, flags, 16, 0, 115200, 50)
		b[71] = 0xEE // the last byte of the structure
		return b
	}
	wants := "TIOCGSERIAL TIOCSSERIAL " + hex.EncodeToString(has(0x2040)) // 0x2000 and what was there
	for _, c := range []struct {
		fact  string
		has   []byte
		fails map[uint]error
		calls string
		log   string
	}{
		{"the bit is set, all else stays", has(0x40), nil, wants, ""},
		{"it is set already", has(0x2040), nil, "TIOCGSERIAL", ""},
		{"a driver without settings", nil, nil, "TIOCGSERIAL", `level=DEBUG msg="no low latency" bus=meters err="inappropriate ioctl for device"`},
		{"not for us", has(0x40), map[uint]error{0x541F: unix.EPERM}, wants, `level=DEBUG msg="no low latency" bus=meters err="operation not permitted"`},
	} {
		t.Run(c.fact, func(t *testing.T) {
			d := &driver{serial: c.has, fails: c.fails}
			o := Opener{ioctl: d.ioctl}
			log, lines := said()
			o.setLowLatency(3, &config.Bus{Name: "meters"}, log)
			if got := strings.Join(d.calls, " "); got != c.calls {
				t.Errorf("asked %s\nwant  %s", got, c.calls)
			}
			if got := strings.TrimSpace(lines()); got != c.log {
				t.Errorf("says %s\nwant %s", got, c.log)
			}
		})
	}
}

// All of it is asked before the library opens the port, and a port whose driver
// refuses everything, as a pseudo terminal does, works without.
func TestSettingsOfTheDriverComeFirst(t *testing.T) {
	for _, refuses := range []bool{false, true} {
		master, slave := pty(t)
		d := &driver{}
		o := Opener{ioctl: d.ioctl}
		if refuses {
			o.ioctl = nil
		} else {
			d.rs485, d.serial, d.icount = image(sizeRS485), image(sizeSerial), image(sizeICount)
		}
		cfg := bus(slave)
		cfg.RS485 = "kernel"
		log, lines := said()
		p, err := o.Open(cfg, 1, log)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Write([]byte("ping")); err != nil {
			t.Error(err)
		}
		b := make([]byte, 8)
		if n, err := master.Read(b); err != nil || string(b[:n]) != "ping" {
			t.Errorf("%q %v", b[:n], err)
		}
		p.Close()
		want := strings.ReplaceAll(`level=WARN `+refusal+`"inappropriate ioctl for device"`, "/dev/ttyAMA0", slave) +
			"\nlevel=DEBUG msg=\"no low latency\" bus=meters err=\"inappropriate ioctl for device\""
		if !refuses {
			want = ""
			if names := callNames(d.calls); names != "TIOCGRS485 TIOCSRS485 TIOCGSERIAL TIOCSSERIAL TIOCGICOUNT" {
				t.Errorf("asked %s", names)
			}
		}
		if got := strings.TrimSpace(lines()); got != want {
			t.Errorf("says %s\nwant %s", got, want)
		}
	}
}

func callNames(calls []string) string {
	var out []string
	for _, c := range calls {
		name, _, _ := strings.Cut(c, " ")
		out = append(out, name)
	}
	return strings.Join(out, " ")
}

// The counters of the driver are those since the port was opened. They stand
// behind cts, dsr, rng, dcd, rx and tx: frame, overrun, parity, brk and, of the
// buffer, another overrun.
func TestErrorsThatTheDriverCounts(t *testing.T) {
	d := &driver{icount: image(sizeICount, 91, 92, 93, 94, 95, 96, 7, 1, 5, 97, 2)}
	o := Opener{ioctl: d.ioctl}
	p := open(t, &o, ptySlave(t))
	if e := p.LineErrors(); e != (LineErrors{}) {
		t.Errorf("just opened: %+v", e)
	}
	d.icount = image(sizeICount, 0, 0, 0, 0, 0, 0, 8, 1, 43, 0, 6)
	if e := p.LineErrors(); e != (LineErrors{Parity: 38, Framing: 1, Overrun: 4}) {
		t.Errorf("%+v", e)
	}
	d.icount = nil // the adapter went
	if e := p.LineErrors(); e != (LineErrors{}) {
		t.Errorf("a driver that does not say: %+v", e)
	}
	var plain Opener // a pseudo terminal has no counters
	q := open(t, &plain, ptySlave(t))
	if e := q.LineErrors(); e != (LineErrors{}) {
		t.Errorf("a pseudo terminal: %+v", e)
	}
}

// The kernel copies as many bytes as its structures have, whatever ours are.
func TestStructuresAreAsLargeAsTheKernels(t *testing.T) {
	if a, b, c := unsafe.Sizeof(rs485{}), unsafe.Sizeof(serialSettings{}), unsafe.Sizeof(serialICounter{}); a != sizeRS485 || b < sizeSerial || c != sizeICount {
		t.Errorf("%d, %d and %d bytes", a, b, c)
	}
}

// layout is what this test says of the structures, as the C program below prints it.
func layout(long int) string {
	var r rs485
	var s serialSettings
	var c serialICounter
	return fmt.Sprintf("rs485 %d %d %d %d\nserial %d %d\nicount %d %d %d %d %d\nbits %#x %#x %#x %#x\n",
		unsafe.Sizeof(r), unsafe.Offsetof(r.flags), unsafe.Offsetof(r.delayOn), unsafe.Offsetof(r.delayAfter),
		sizeSerial-12*(8-long)/4, unsafe.Offsetof(s.flags),
		unsafe.Sizeof(c), unsafe.Offsetof(c.frame), unsafe.Offsetof(c.overrun), unsafe.Offsetof(c.parity), unsafe.Offsetof(c.bufOverrun),
		rs485Enabled, rs485RTSOnSend, rs485RTSAfterSend, asyncLowLatency) +
		fmt.Sprintf("asks %#x %#x %#x %#x %#x\n", unix.TIOCGRS485, unix.TIOCSRS485, unix.TIOCGSERIAL, unix.TIOCSSERIAL, unix.TIOCGICOUNT)
}

// source prints the layout out of the kernel's headers.
const source = `
#include <linux/serial.h>
#include <asm-generic/ioctls.h>
#define AT(s, m) (unsigned)__builtin_offsetof(struct s, m)
#define SIZE(s) (unsigned)sizeof(struct s)
int printf(const char *, ...);
int main(void) {
	printf("rs485 %u %u %u %u\n", SIZE(serial_rs485), AT(serial_rs485, flags), AT(serial_rs485, delay_rts_before_send), AT(serial_rs485, delay_rts_after_send));
	printf("serial %u %u\n", SIZE(serial_struct), AT(serial_struct, flags));
	printf("icount %u %u %u %u %u\n", SIZE(serial_icounter_struct), AT(serial_icounter_struct, frame), AT(serial_icounter_struct, overrun), AT(serial_icounter_struct, parity), AT(serial_icounter_struct, buf_overrun));
	printf("bits %#x %#x %#x %#x\n", SER_RS485_ENABLED, SER_RS485_RTS_ON_SEND, SER_RS485_RTS_AFTER_SEND, (unsigned)ASYNC_LOW_LATENCY);
	printf("asks %#x %#x %#x %#x %#x\n", TIOCGRS485, TIOCSRS485, TIOCGSERIAL, TIOCSSERIAL, TIOCGICOUNT);
	return 0;
}
`

// What we say of the kernel's structures is what its headers say, as a C compiler
// sees them: on this processor, and with the pointers of 32 bits of an old Pi,
// where the numbers are compared while it compiles.
func TestPeerLayoutOfTheKernelsHeaders(t *testing.T) {
	if os.Getenv("BUSGATE_PEERS") == "" {
		t.Skip("runs gcc: BUSGATE_PEERS=1 go test -run Peer ./devices/port")
	}
	if _, err := exec.LookPath("gcc"); err != nil {
		t.Skip("needs gcc: apt-get install gcc libc6-dev")
	}
	dir := t.TempDir()
	file, bin := filepath.Join(dir, "layout.c"), filepath.Join(dir, "layout")
	if err := os.WriteFile(file, []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("gcc", "-o", bin, file).CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v %s", err, out)
	}
	out, err := exec.Command(bin).CombinedOutput()
	if want := layout(8); err != nil || string(out) != want {
		t.Errorf("%v\nthe headers say\n%sand we say\n%s", err, out, want)
	}
	arch, _ := exec.Command("gcc", "-print-multiarch").Output()
	small := []string{"-m32", "-isystem", "/usr/include/" + strings.TrimSpace(string(arch))}
	if out, err := exec.Command("gcc", append(small, "-E", "-include", "linux/serial.h", "-x", "c", "/dev/null")...).CombinedOutput(); err != nil {
		t.Logf("32 bits are not compared, this gcc has none: %v %.300s", err, out)
		return
	}
	asserts := fmt.Sprintf(`#include <linux/serial.h>
_Static_assert(sizeof(void *) == 4, "not 32 bits");
_Static_assert(sizeof(struct serial_rs485) == %d, "rs485");
_Static_assert(sizeof(struct serial_struct) == %d && sizeof(struct serial_struct) <= %d, "serial");
_Static_assert(__builtin_offsetof(struct serial_struct, flags) == %d, "flags");
_Static_assert(sizeof(struct serial_icounter_struct) == %d, "icount");
_Static_assert(__builtin_offsetof(struct serial_icounter_struct, frame) == %d, "frame");
`, sizeRS485, 60, unsafe.Sizeof(serialSettings{}), unsafe.Offsetof(serialSettings{}.flags), sizeICount, unsafe.Offsetof(serialICounter{}.frame))
	if err := os.WriteFile(file, []byte(asserts), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("gcc", append(small, "-S", "-o", "/dev/null", file)...).CombinedOutput(); err != nil {
		t.Errorf("32 bits: %v %s", err, out)
	}
}
