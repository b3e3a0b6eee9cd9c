package main

import (
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// dialed counts dials: each comes from another address, as clients do. One
// address that opens thousands of connections in seconds is held back.
var dialed atomic.Uint32

// dial connects one client and waits for CONNACK, and for SUBACK with a filter.
func dial(port int, id string, clean bool, filter string, qos byte) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	fail := func(err error) (int, error) { unix.Close(fd); return -1, fmt.Errorf("client %s: %w", id, err) }
	n := dialed.Add(1)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 1, byte(n >> 8), byte(n)}}); err != nil {
		return fail(err)
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return fail(err)
	}
	unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	flags := byte(0)
	if clean {
		flags = 2
	}
	body := append([]byte{0, 4, 'M', 'Q', 'T', 'T', 4, flags, 0, 0, 0, byte(len(id))}, id...)
	if err := exchange(fd, 0x10, body, 4); err != nil {
		return fail(err)
	}
	if filter != "" {
		body = append([]byte{0, 1, 0, byte(len(filter))}, filter...)
		if err := exchange(fd, 0x82, append(body, qos), 5); err != nil {
			return fail(err)
		}
	}
	return fd, nil
}

// exchange writes one short packet and reads an answer of n bytes.
func exchange(fd int, first byte, body []byte, n int) error {
	if _, err := unix.Write(fd, append([]byte{first, byte(len(body))}, body...)); err != nil {
		return err
	}
	answer := make([]byte, n)
	for got := 0; got < n; {
		m, err := unix.Read(fd, answer[got:])
		if err != nil {
			return err
		}
		if m == 0 {
			return fmt.Errorf("connection closed after % x", answer[:got])
		}
		got += m
	}
	if answer[n-1] >= 3 {
		return fmt.Errorf("refused: % x", answer)
	}
	return nil
}
