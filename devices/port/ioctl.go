package port

import (
	"context"
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

// rs485 is struct serial_rs485 of linux/serial.h.
type rs485 struct {
	flags      uint32
	delayOn    uint32 // ms
	delayAfter uint32
	padding    [5]uint32
}

const (
	rs485Enabled   = 1 << 0 // SER_RS485_ENABLED
	rs485RTSOnSend = 1 << 1 // SER_RS485_RTS_ON_SEND

	asyncLowLatency = 1 << 13 // ASYNC_LOW_LATENCY of linux/tty_flags.h
)

// setRS485 lets the kernel switch the direction of the line with RTS. The serial
// library has no call for it (go-serial#78, #170). "auto" keeps what the driver
// has, so that a sensor on RS-232 is not cut off; a failure is no error, for
// many USB adapters switch by themselves.
func setRS485(fd int, bus *config.Bus, log *slog.Logger) {
	if bus.RS485 == "off" {
		return
	}
	var s rs485
	if err := ioctl(fd, unix.TIOCGRS485, unsafe.Pointer(&s)); err != nil {
		level := slog.LevelDebug
		if bus.RS485 == "kernel" {
			level = slog.LevelWarn
		}
		log.Log(context.Background(), level, "the driver of this port does not switch the direction of RS-485", "bus", bus.Name, "err", err)
		return
	}
	if bus.RS485 != "kernel" || s.flags&rs485Enabled != 0 {
		return
	}
	s.flags |= rs485Enabled | rs485RTSOnSend
	if err := ioctl(fd, unix.TIOCSRS485, unsafe.Pointer(&s)); err != nil {
		log.Warn("the driver of this port does not switch the direction of RS-485", "bus", bus.Name, "err", err)
	}
}

// setLowLatency asks the driver to hand bytes over at once.
func setLowLatency(fd int, bus *config.Bus, log *slog.Logger) {
	var s [32]int32 // longer than struct serial_struct (72 bytes); its flags are the fifth int
	if err := ioctl(fd, unix.TIOCGSERIAL, unsafe.Pointer(&s)); err != nil {
		log.Debug("no low latency", "bus", bus.Name, "err", err)
		return
	}
	s[4] |= asyncLowLatency
	if err := ioctl(fd, unix.TIOCSSERIAL, unsafe.Pointer(&s)); err != nil {
		log.Debug("no low latency", "bus", bus.Name, "err", err)
	}
}

func ioctl(fd int, req uint, arg unsafe.Pointer) error {
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
	if o.icount != nil {
		return o.icount()
	}
	var c serialICounter
	if err := ioctl(fd, unix.TIOCGICOUNT, unsafe.Pointer(&c)); err != nil {
		return e, false
	}
	return LineErrors{Parity: uint64(uint32(c.parity)), Framing: uint64(uint32(c.frame)), Overrun: uint64(uint32(c.overrun + c.bufOverrun))}, true
}
