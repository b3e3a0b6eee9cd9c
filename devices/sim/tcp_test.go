package sim

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// piped is a client of a server in a synctest bubble.
func piped(t *testing.T, srv *TCP) net.Conn {
	near, far := net.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { srv.ServeConn(ctx, far); close(done) }()
	t.Cleanup(func() { cancel(); near.Close(); <-done })
	return near
}

func mbap(id uint16, unit byte, pdu ...byte) []byte {
	out := binary.BigEndian.AppendUint16(nil, id)
	out = append(out, 0, 0, 0, byte(len(pdu)+1), unit)
	return append(out, pdu...)
}

func recv(t *testing.T, c net.Conn, n int) []byte {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	buf := make([]byte, n)
	k, err := io.ReadFull(c, buf)
	if err != nil && k == 0 {
		return nil
	}
	return buf[:k]
}

func TestTCPServer(t *testing.T) {
	good := mbap(7, 1, 3, 2, 0x03, 0xEF)
	for _, c := range []struct {
		name  string
		fault TCPFaults
		want  []byte
	}{
		{"answers", TCPFaults{}, good},
		{"another id", TCPFaults{WrongID: 1}, mbap(7+0x4000, 1, 3, 2, 0x03, 0xEF)},
		{"another unit", TCPFaults{WrongUnit: 1}, mbap(7, 2, 3, 2, 0x03, 0xEF)},
		{"two pieces", TCPFaults{Split: 1}, good},
		{"half a frame", TCPFaults{Half: 1}, good[:len(good)/2]},
		{"gateway exception", TCPFaults{Exception: 11}, mbap(7, 1, 0x83, 11)},
		{"lost", TCPFaults{Lose: 1}, nil},
		{"reset", TCPFaults{Reset: 1}, nil},
		{"late", TCPFaults{Late: 1, LateBy: time.Second}, good},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv := NewTCP(1, counter(1))
				srv.SetFaults(c.fault)
				conn := piped(t, srv)
				conn.Write(mbap(7, 1, 3, 0, 7, 0, 1))
				n := len(good)
				if c.fault.Exception != 0 {
					n = 9
				}
				if got := recv(t, conn, n); !bytes.Equal(got, c.want) {
					t.Errorf("got % x, want % x", got, c.want)
				}
			})
		})
	}
}

func TestTCPSwapTurnsTwoAnswersRound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := NewTCP(1, counter(1))
		srv.SetFaults(TCPFaults{Swap: true})
		conn := piped(t, srv)
		conn.Write(mbap(1, 1, 3, 0, 1, 0, 1))
		conn.Write(mbap(2, 1, 3, 0, 2, 0, 1))
		if a, b := recv(t, conn, 11), recv(t, conn, 11); a[1] != 2 || b[1] != 1 {
			t.Errorf("order %d %d", a[1], b[1])
		}
	})
}

func TestTCPListensOnLoopback(t *testing.T) {
	srv, err := ListenTCP("127.0.0.1:0", 1, NewInverter(3, 1))
	if err != nil {
		t.Fatal(err)
	}
	srv.SetFaults(TCPFaults{MaxConns: 1})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- srv.Run(ctx) }()
	a, err := net.Dial("tcp", srv.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	a.Write(mbap(1, 3, 3, 0x13, 0x8F, 0, 1))
	if got := recv(t, a, 11); !bytes.Equal(got, mbap(1, 3, 3, 2, 0x03, 0xE8)) {
		t.Errorf("limit % x", got)
	}
	b, err := net.Dial("tcp", srv.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if got := recv(t, b, 1); got != nil {
		t.Errorf("the second connection heard % x", got)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if got := recv(t, a, 1); got != nil {
		t.Errorf("after the end % x", got)
	}
}

func TestRTUOverTCP(t *testing.T) {
	srv, err := ListenRTU("127.0.0.1:0", 1, counter(1))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- srv.Run(ctx) }()
	defer func() { cancel(); <-done }()
	c, err := net.Dial("tcp", srv.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, pdu := range [][]byte{{3, 0, 7, 0, 1}, {16, 0, 7, 0, 1, 2, 0, 5}, {3, 0, 7, 0, 1}} {
		c.Write(Line{}.Seal(1, pdu))
	}
	want := append(Line{}.Seal(1, []byte{3, 2, 3, 0xEF}), Line{}.Seal(1, []byte{16, 0, 7, 0, 1})...)
	want = append(want, Line{}.Seal(1, []byte{3, 2, 0, 5})...)
	if got := recv(t, c, len(want)); !bytes.Equal(got, want) {
		t.Errorf("got % x, want % x", got, want)
	}
}
