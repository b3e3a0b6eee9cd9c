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
