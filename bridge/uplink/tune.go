package uplink

import (
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// tune makes the kernel give a dead connection up after d without an
// acknowledgement of what was sent, and choose its congestion control, "" or
// "kernel" for what it has. Other connections than TCP have no such options; the
// watchdog finds dead ones too, only later. A kernel without the congestion
// control that is asked for keeps its own.
func tune(c net.Conn, d time.Duration, congestion string) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return
	}
	_ = rc.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d/time.Millisecond))
		if congestion != "" && congestion != "kernel" {
			_ = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, congestion)
		}
	})
}
