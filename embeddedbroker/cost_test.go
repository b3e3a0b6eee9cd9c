package embeddedbroker

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"runtime/debug"
	"runtime/metrics"
	"slices"
	"testing"
	"testing/synctest"

	"busgate/config"
	"busgate/embeddedbroker/packet"
)

// What a message costs: system calls, allocations, memory that stays.

func TestQueueIsAList(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	q := queue[item]{pool: &itemPieces}
	var want []uint64
	for step := range 20_000 {
		switch k := rnd.IntN(100); {
		case k < 50:
			q.push(item{ord: uint64(step)})
			want = append(want, uint64(step))
		case k < 90 && len(want) > 0:
			if got := q.pop().ord; got != want[0] {
				t.Fatalf("step %d: %d left the queue, %d was first", step, got, want[0])
			}
			want = want[1:]
		case k < 98:
			i := rnd.IntN(len(want) + 1)
			q.insert(i, item{ord: uint64(step)})
			want = slices.Insert(want, i, uint64(step))
		case k == 99 && rnd.IntN(20) == 0:
			q.clear()
			want = nil
		}
		if q.len() != len(want) {
			t.Fatalf("step %d: %d elements, want %d", step, q.len(), len(want))
		}
		if len(want) > 0 {
			if i := rnd.IntN(len(want)); q.at(i).ord != want[i] {
				t.Fatalf("step %d: element %d is %d, want %d", step, i, q.at(i).ord, want[i])
			}
		}
	}
}

func TestAnEmptyQueueOwnsNothing(t *testing.T) {
	q := queue[item]{pool: &itemPieces}
	m := &Message{Topic: "t"}
	for range 10_000 {
		q.push(item{msg: m})
	}
	for q.len() > 0 {
		q.pop()
	}
	if len(q.pieces) != 0 || cap(q.pieces) > 8 {
		t.Errorf("%d pieces, room for %d, want none", len(q.pieces), cap(q.pieces))
	}
	q.push(item{})
	for i := range pieceLen {
		if it := q.pieces[0][i]; it.msg != nil {
			t.Fatalf("a piece from the pool still refers to a message at %d", i)
		}
	}
}

// bursts is a connection on which the same bytes come again and again, and
// between two of them nothing is there.
type bursts struct {
	net.Conn
	burst []byte
	left  []byte
	times int
	reads int
}

func (b *bursts) Read(p []byte) (int, error) {
	if len(b.left) == 0 {
		if b.times == 0 {
			return 0, io.EOF
		}
		b.times--
		b.left = b.burst
	}
	b.reads++
	n := copy(p, b.left)
	b.left = b.left[n:]
	return n, nil
}

func (b *bursts) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)} }

func TestReadingCostsFewSystemCalls(t *testing.T) {
	r := start(t, NewMemory())
	defer r.stop()
	packetOf := func(payload int) []byte {
		return (&packet.Publish{QoS: 1, PID: 1, Topic: []byte("plant/meter/energy"), Payload: make([]byte, payload)}).Append(nil, packet.V311)
	}
	for _, c := range []struct {
		name    string
		packet  []byte
		packets int
		reads   int // for one burst, at most, once the buffer has grown
		kept    int // room that stays afterwards
	}{
		{"single packets need no more than the first buffer", packetOf(128), 1, 1, firstBuffer},
		{"a window of packets comes in one read", packetOf(128), 100, 1, usualBuffer},
		{"packets that fill the first buffer over and over make it grow", packetOf(40), 1000, 2, usualBuffer},
		{"a large packet gets its room", packetOf(300_000), 1, 6, 400_000},
	} {
		t.Run(c.name, func(t *testing.T) {
			nc := &bursts{burst: slices.Repeat(c.packet, c.packets), times: 10}
			conn := newConn(r.b, nc)
			conn.sess = newSession(r.b, "c", 0)
			got := 0
			read := func(times int) int {
				before := nc.reads
				for range times * c.packets {
					_, body, err := conn.packet(1 << 20)
					if err != nil {
						t.Fatal(err)
					}
					if len(body)+5 < len(c.packet)-5 {
						t.Fatalf("a body of %d bytes", len(body))
					}
					got++
				}
				return nc.reads - before
			}
			read(5)
			if reads := read(5); reads > 5*c.reads {
				t.Errorf("%d reads for 5 bursts, want %d at most", reads, 5*c.reads)
			}
			if len(conn.buf) > c.kept {
				t.Errorf("room of %d bytes, want %d at most", len(conn.buf), c.kept)
			}
			if _, _, err := conn.packet(1 << 20); !errors.Is(err, io.EOF) || got != 10*c.packets {
				t.Errorf("%d packets and %v, want %d and EOF", got, err, 10*c.packets)
			}
		})
	}
	t.Run("the buffer is given back when little comes", func(t *testing.T) {
		nc := &bursts{burst: slices.Repeat(packetOf(128), 100), times: 3}
		conn := newConn(r.b, nc)
		conn.sess = newSession(r.b, "c", 0)
		for range 300 {
			if _, _, err := conn.packet(1 << 20); err != nil {
				t.Fatal(err)
			}
		}
		large := len(conn.buf)
		nc.burst, nc.times = packetOf(128), 3
		for range 3 {
			if _, _, err := conn.packet(1 << 20); err != nil {
				t.Fatal(err)
			}
		}
		if len(conn.buf) != firstBuffer || large == firstBuffer {
			t.Errorf("room of %d bytes after %d, want %d", len(conn.buf), large, firstBuffer)
		}
	})
}

func TestSendingAllocatesNothing(t *testing.T) {
	r := start(t, NewMemory())
	defer r.stop()
	s := newSession(r.b, "c", 0)
	for _, version := range []byte{packet.V311, packet.V5} {
		c := &conn{b: r.b, version: version}
		it := item{msg: &Message{Topic: "plant/meter/energy", Payload: make([]byte, 128), QoS: 1}, ord: 1, qos: 1, subIDs: []uint32{7}}
		buf := make([]byte, 0, 1024)
		cost := testing.AllocsPerRun(100, func() {
			if out, ok := s.encode(c, buf[:0], &it); !ok || len(out) < 128 {
				t.Fatal("not encoded")
			}
		})
		if cost > 0 {
			t.Errorf("version %d: %v allocations for one message", version, cost)
		}
	}
}

func TestAcknowledgementsMakeRoomForWhatWaitsInMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, NewMemory())
		defer r.stop()
		c := r.connect(packet.V5, "c", prop(packet.ReceiveMaximum, 2))
		c.subscribe("t", 1)
		l := r.b.Local("x")
		for i := range 6 {
			l.Publish(&Message{Topic: "t", Payload: []byte(n("m", i)), QoS: 1}, nil)
		}
		for i := range 6 { // each one that is acknowledged lets one more come
			synctest.Wait() // the writer has ended: nothing more may be sent
			c.take("t", n("m", i))
		}
	})
}

// deep is a log that needs a large stack, as TLS does.
type deep struct{ slog.Handler }

func (deep) Enabled(context.Context, slog.Level) bool { return true }

func (deep) Handle(context.Context, slog.Record) error {
	dig(256)
	return nil
}

//go:noinline
func dig(n int) (sum byte) {
	var frame [256]byte
	if n > 0 {
		frame[n%256] = dig(n - 1)
	}
	for _, b := range frame {
		sum += b
	}
	return sum + 1
}

func TestAnIdleClientKeepsNoDeepStack(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // it would shrink what is not used
	r := start(t, NewMemory(), func(_ *config.Broker, o *Options) { o.Log = slog.New(deep{slog.DiscardHandler}) })
	defer r.stop()
	stacks := func() uint64 {
		s := []metrics.Sample{{Name: "/memory/classes/heap/stacks:bytes"}}
		metrics.Read(s)
		return s[0].Value.Uint64()
	}
	const clients = 100
	before := stacks()
	for i := range clients {
		r.connect(packet.V311, n("c", i)).ping()
	}
	if each := (int64(stacks()) - int64(before)) / clients; each > 32<<10 { // our side's and the client's
		t.Errorf("a client keeps %d bytes of stack", each)
	}
}
