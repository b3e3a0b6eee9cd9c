package uplink

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"busgate/buffer"
	"busgate/config"
	"busgate/embeddedbroker"
)

// gauge is a broker that acknowledges at once, keeps nothing, and counts the
// messages that it gets.
type gauge struct {
	ln net.Listener

	mu          sync.Mutex
	n, want     int
	first, last time.Time // of the messages counted
	over        chan struct{}
}

// newGauge listens on the loopback.
func newGauge(t testing.TB) *gauge {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serveGauge(t, ln)
}

func serveGauge(t testing.TB, ln net.Listener) *gauge {
	g := &gauge{ln: ln}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go g.swallow(c)
		}
	}()
	return g
}

func (g *gauge) addr() string { return g.ln.Addr().String() }

// expect begins to count; the channel is closed at the nth message.
func (g *gauge) expect(n int) <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.n, g.want, g.over = 0, n, make(chan struct{})
	return g.over
}

func (g *gauge) seen() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.n
}

// took is the time from the first to the last message.
func (g *gauge) took() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.last.Sub(g.first)
}

// count counts a message on a topic of readings: not birth, not status.
func (g *gauge) count(topic []byte) {
	if !bytes.HasSuffix(topic, []byte("/state")) && !bytes.HasSuffix(topic, []byte("/history")) || bytes.HasPrefix(topic, []byte("$")) {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	if g.n++; g.n == 1 {
		g.first = now
	}
	if g.last = now; g.n == g.want {
		close(g.over)
	}
}

func (g *gauge) swallow(c net.Conn) {
	defer func() { _ = c.Close() }()
	in, out := bufio.NewReaderSize(c, 64<<10), bufio.NewWriterSize(c, 64<<10)
	for {
		if in.Buffered() == 0 {
			_ = out.Flush()
		}
		first, err := in.ReadByte()
		if err != nil {
			return
		}
		n, err := binary.ReadUvarint(in)
		if err != nil {
			return
		}
		body := make([]byte, n)
		if _, err := io.ReadFull(in, body); err != nil {
			return
		}
		switch first >> 4 {
		case 1:
			_, _ = out.Write([]byte{0x20, 2, 0, 0})
		case 3:
			at := 2 + int(binary.BigEndian.Uint16(body))
			g.count(body[2:at])
			switch first >> 1 & 3 {
			case 1:
				_, _ = out.Write([]byte{0x40, 2, body[at], body[at+1]})
			case 2:
				_, _ = out.Write([]byte{0x50, 2, body[at], body[at+1]})
			}
		case 6:
			_, _ = out.Write([]byte{0x70, 2, body[0], body[1]})
		case 8:
			_, _ = out.Write([]byte{0x90, 3, body[0], body[1], 1})
		case 10:
			_, _ = out.Write([]byte{0xb0, 2, body[0], body[1]})
		case 12:
			_, _ = out.Write([]byte{0xd0, 0})
		}
	}
}

// endless is a source that always has more; it ends the benchmark at n acks.
type endless struct {
	mu    sync.Mutex
	ord   uint64
	acked int
	n     int
	over  chan struct{}
}

func (s *endless) Next(ctx context.Context, max int) ([]buffer.Record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]buffer.Record, max)
	for i := range out {
		s.ord++
		out[i] = buffer.Record{Ord: s.ord, Topic: "busgate/plant-a/grid/state", Payload: benchPayload,
			Kind: uint8(embeddedbroker.KindReading), Boot: "k3qz7aa-12", Numbers: []buffer.Number{{Stream: 1, N: s.ord}}}
	}
	return out, nil
}

func (s *endless) Ack(ords ...uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.acked < s.n && s.acked+len(ords) >= s.n {
		close(s.over)
	}
	s.acked += len(ords)
}

func (s *endless) Release(then func(error), _ ...uint64) { then(nil) }
func (s *endless) Unrelease(then func(error))            { then(nil) }
func (s *endless) Rewind()                               {}
func (s *endless) Owed() []buffer.Owed                   { return nil }

var benchPayload = []byte(`{"ts":"2026-11-21T06:01:02.123Z","voltage_l1":230.1,"power":871.1,"state":"run","relay1":true}`)

// BenchmarkLink relays over the loopback; BenchmarkRaw is the same window
// without store, session and encoder, for the ratio.
func BenchmarkLink(b *testing.B) {
	for _, qos := range []byte{0, 1, 2} {
		b.Run(fmt.Sprint("qos", qos), func(b *testing.B) {
			b.ReportAllocs()
			src := &endless{n: b.N, over: make(chan struct{})}
			cfg := &config.Uplink{Name: "c", Addresses: []string{"mqtt://" + newGauge(b).addr()}, ClientID: "g", QoS: qos, Window: 100, KeepAlive: time.Minute, Send: []string{"#"}}
			l, err := New(cfg, &config.Gateway{Name: "plant-a", Topic: "busgate"}, nil, Options{Stream: 1})
			if err != nil {
				b.Fatal(err)
			}
			l.src = src
			ctx, cancel := context.WithCancel(b.Context())
			ended := make(chan error)
			go func() { ended <- l.Run(ctx) }()
			<-src.over
			b.StopTimer()
			cancel()
			<-ended
		})
	}
}

func BenchmarkRaw(b *testing.B) {
	b.ReportAllocs()
	c, err := net.Dial("tcp", newGauge(b).addr())
	if err != nil {
		b.Fatal(err)
	}
	if _, err := rawPublish(c, 1, 100, b.N, benchPayload); err != nil {
		b.Fatal(err)
	}
}

// rawPublish is a pipelined publisher with nothing behind it: n messages, window
// of them in flight. It returns the time from the first write to the last
// acknowledgement and closes c.
func rawPublish(c net.Conn, qos byte, window, n int, payload []byte) (time.Duration, error) {
	defer func() { _ = c.Close() }()
	const topic = "busgate/plant-a/grid/state"
	if _, err := c.Write([]byte("\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01g")); err != nil {
		return 0, err
	}
	in := bufio.NewReaderSize(c, 64<<10)
	if _, err := io.ReadFull(in, make([]byte, 4)); err != nil { // CONNACK
		return 0, err
	}
	free, over := make(chan struct{}, window), make(chan error, 1)
	var mu sync.Mutex // of out
	out := bufio.NewWriterSize(c, 64<<10)
	began := time.Now()
	go func() {
		for ack, left := make([]byte, 4), n; left > 0; {
			if in.Buffered() == 0 {
				mu.Lock()
				_ = out.Flush()
				mu.Unlock()
			}
			if _, err := io.ReadFull(in, ack); err != nil {
				over <- err
				return
			}
			if ack[0] == 0x50 {
				mu.Lock()
				_, _ = out.Write([]byte{0x62, 2, ack[2], ack[3]})
				mu.Unlock()
				continue
			}
			left--
			<-free
		}
		over <- nil
	}()
	size := 2 + len(topic) + 2 + len(payload)
	for i := range n {
		select {
		case free <- struct{}{}:
		default:
			mu.Lock()
			_ = out.Flush()
			mu.Unlock()
			select {
			case free <- struct{}{}:
			case err := <-over:
				return 0, err
			}
		}
		head := binary.AppendUvarint([]byte{0x30 | qos<<1}, uint64(size))
		head = binary.BigEndian.AppendUint16(head, uint16(len(topic)))
		mu.Lock()
		_, _ = out.Write(append(head, topic...))
		_, _ = out.Write(binary.BigEndian.AppendUint16(nil, packetID(uint64(i))))
		_, _ = out.Write(payload)
		mu.Unlock()
	}
	mu.Lock()
	_ = out.Flush()
	mu.Unlock()
	err := <-over
	return time.Since(began), err
}

func BenchmarkPayload(b *testing.B) {
	b.ReportAllocs()
	co := coder{gateway: "plant-a", stream: 1}
	r := buffer.Record{Payload: benchPayload, Kind: uint8(embeddedbroker.KindReading), Boot: "k3qz7aa-12", Numbers: []buffer.Number{{Stream: 1, N: 84211}}}
	for b.Loop() {
		co.payload(&r, false)
	}
}
