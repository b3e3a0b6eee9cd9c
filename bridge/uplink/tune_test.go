package uplink

import (
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestTune: the options are on the socket; a congestion control that the kernel
// does not have leaves its own in place.
func TestTune(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	option := func(congestion string) (timeout int, name string) {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		tune(c, 10*time.Second, congestion)
		raw, err := c.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		err = raw.Control(func(fd uintptr) {
			timeout, _ = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT)
			name, _ = unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION)
		})
		if err != nil {
			t.Fatal(err)
		}
		return timeout, name
	}
	timeout, own := option("kernel")
	if timeout != 10000 || own == "" {
		t.Errorf("TCP_USER_TIMEOUT %d ms, congestion control %q; want 10000 and the kernel's", timeout, own)
	}
	if _, name := option("reno"); name != "reno" { // every kernel has it
		t.Errorf("asked for reno, the socket has %q", name)
	}
	if _, name := option("nonesuch"); name != own {
		t.Errorf("asked for what no kernel has, the socket has %q, want %q", name, own)
	}
}
