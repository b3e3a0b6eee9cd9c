package uplink

import (
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// tune makes the kernel give a dead connection up after d without an
// acknowledgement of what was sent. Other connections than TCP have no such
// option; the watchdog finds those too, only later.
func tune(c net.Conn, d time.Duration) {
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
	})
}
