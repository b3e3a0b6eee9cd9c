package port

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"busgate/config"
)

// rs485 is struct serial_rs485 of linux/serial.h: 32 bytes, the same for every
// processor.
type rs485 struct {
	flags      uint32
	delayOn    uint32 // ms
	delayAfter uint32
	padding    [5]uint32
}

const (
	rs485Enabled      = 1 << 0 // SER_RS485_ENABLED
	rs485RTSOnSend    = 1 << 1 // SER_RS485_RTS_ON_SEND
	rs485RTSAfterSend = 1 << 2 // SER_RS485_RTS_AFTER_SEND

	asyncLowLatency = 1 << 13 // ASYNC_LOW_LATENCY of linux/tty_flags.h
)

// serialSettings is room for struct serial_struct of linux/serial.h, of which only
// the flags are ours: 60 bytes on 32-bit processors, 72 on others.
type serialSettings struct {
	kind, line, port, irq int32
	flags                 int32
	rest                  [27]int32
}

// setRS485 lets the kernel switch the direction of the line with RTS. The serial
// library has no call for it (go-serial#78, #170). "auto" keeps what the driver
// has, so that a sensor on RS-232 is not cut off; a failure is no error, for
// many USB adapters switch by themselves. The polarity of RTS and the delays are
// the driver's where it has some.
func (o *Opener) setRS485(fd int, bus *config.Bus, log *slog.Logger) {
	if bus.RS485 == "off" {
		return
	}
	var s rs485
	err := o.control(fd, unix.TIOCGRS485, unsafe.Pointer(&s))
	if bus.RS485 != "kernel" {
		if err != nil {
			log.Debug("the driver of this port does not switch the direction of RS-485", "bus", bus.Name, "err", err)
		}
		return
	}
	if err == nil && s.flags&rs485Enabled == 0 {
		s.flags |= rs485Enabled
		if s.flags&(rs485RTSOnSend|rs485RTSAfterSend) == 0 {
			s.flags |= rs485RTSOnSend
		}
		// The kernel writes back what it has set: a driver may leave it out.
		if err = o.control(fd, unix.TIOCSRS485, unsafe.Pointer(&s)); err == nil && s.flags&rs485Enabled == 0 {
			err = errLeftOut
		}
	}
	level := slog.LevelDebug
	if o.first(bus.Serial, err) {
		level = slog.LevelWarn
	}
	if err != nil {
		log.Log(context.Background(), level, `the driver of this port does not switch the direction of RS-485; an adapter that does so by itself needs no rs485 = "kernel"`, "bus", bus.Name, "port", bus.Serial, "err", err)
	}
}

var errLeftOut = errors.New("the driver took the settings and left RS-485 off")

// maxRefused bounds the ports whose refusal is remembered: one for each bus that
// there may be.
const maxRefused = 64

// first says that the driver of a port refuses to switch the direction and did not
// when it was opened before: a port that is opened again and again says so once.
func (o *Opener) first(path string, err error) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if err == nil {
		delete(o.refused, path)
		return false
	}
	if o.refused[path] || len(o.refused) >= maxRefused {
		return false
	}
	if o.refused == nil {
		o.refused = map[string]bool{}
	}
	o.refused[path] = true
	return true
}

// setLowLatency asks the driver to hand bytes over at once.
func (o *Opener) setLowLatency(fd int, bus *config.Bus, log *slog.Logger) {
	var s serialSettings
	err := o.control(fd, unix.TIOCGSERIAL, unsafe.Pointer(&s))
	if err == nil && s.flags&asyncLowLatency == 0 {
		s.flags |= asyncLowLatency
		err = o.control(fd, unix.TIOCSSERIAL, unsafe.Pointer(&s))
	}
	if err != nil {
		log.Debug("no low latency", "bus", bus.Name, "err", err)
	}
}

// control is ioctl(2); arg points to what the request reads and writes.
func (o *Opener) control(fd int, req uint, arg unsafe.Pointer) error {
	if o.ioctl != nil {
		return o.ioctl(fd, req, arg)
	}
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(req), uintptr(arg)); e != 0 {
		return e
	}
	return nil
}

// latencyOf reads how long a USB adapter holds bytes back.
func (o *Opener) latencyOf(path string) time.Duration {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return 0
	}
	sys := o.sysDir
	if sys == "" {
		sys = "/sys"
	}
	b, err := os.ReadFile(filepath.Join(sys, "bus/usb-serial/devices", filepath.Base(real), "latency_timer"))
	if err != nil {
		return 0
	}
	ms, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || ms < 0 || ms > 255 {
		return 0
	}
	return time.Duration(ms) * time.Millisecond
}

// serialICounter is struct serial_icounter_struct of linux/serial.h.
type serialICounter struct {
	cts, dsr, rng, dcd, rx, tx, frame, overrun, parity, brk, bufOverrun int32
	reserved                                                            [9]int32
}

// LineErrors are the receive errors that the driver has counted since the port
// was opened (TIOCGICOUNT); zero where it does not count.
func (p *Port) LineErrors() (e LineErrors) {
	now, ok := p.opener.lineErrors(p.lock)
	if !ok || !p.counts {
		return e
	}
	return LineErrors{Parity: now.Parity - p.before.Parity, Framing: now.Framing - p.before.Framing, Overrun: now.Overrun - p.before.Overrun}
}

// LineErrors are receive errors of a UART.
type LineErrors struct{ Parity, Framing, Overrun uint64 }

// lineErrors reads the counters of a driver; many USB adapters have none.
func (o *Opener) lineErrors(fd int) (e LineErrors, ok bool) {
	var c serialICounter
	if err := o.control(fd, unix.TIOCGICOUNT, unsafe.Pointer(&c)); err != nil {
		return e, false
	}
	return LineErrors{Parity: uint64(uint32(c.parity)), Framing: uint64(uint32(c.frame)), Overrun: uint64(uint32(c.overrun + c.bufOverrun))}, true
}
