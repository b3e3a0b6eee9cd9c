package uplink

import (
	"bufio"
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

// sink is a broker that acknowledges at once and keeps nothing.
func sink(b *testing.B) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go swallow(c)
		}
	}()
	return ln.Addr().String()
}

func swallow(c net.Conn) {
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
			switch first >> 1 & 3 {
			case 1:
				_, _ = out.Write([]byte{0x40, 2, body[at], body[at+1]})
			case 2:
				_, _ = out.Write([]byte{0x50, 2, body[at], body[at+1]})
			}
		case 6:
			_, _ = out.Write([]byte{0x70, 2, body[0], body[1]})
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
			cfg := &config.Uplink{Name: "c", Addresses: []string{"mqtt://" + sink(b)}, ClientID: "g", QoS: qos, Window: 100, KeepAlive: time.Minute, Send: []string{"#"}}
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
	c, err := net.Dial("tcp", sink(b))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	window := make(chan struct{}, 100)
	go func() {
		in := bufio.NewReaderSize(c, 64<<10)
		for ack := make([]byte, 4); ; {
			if _, err := io.ReadFull(in, ack); err != nil {
				return
			}
			if ack[0] == 0x40 {
				<-window
			}
		}
	}()
	const topic = "busgate/plant-a/grid/state"
	out := bufio.NewWriterSize(c, 64<<10)
	if _, err := out.WriteString("\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01g"); err != nil {
		b.Fatal(err)
	}
	size := 2 + len(topic) + 2 + len(benchPayload)
	for i := range b.N {
		if len(window) == cap(window) {
			_ = out.Flush()
		}
		window <- struct{}{}
		head := binary.AppendUvarint([]byte{0x32}, uint64(size))
		head = binary.BigEndian.AppendUint16(head, uint16(len(topic)))
		_, _ = out.Write(append(head, topic...))
		_, _ = out.Write(binary.BigEndian.AppendUint16(nil, packetID(uint64(i))))
		_, _ = out.Write(benchPayload)
	}
	_ = out.Flush()
}

func BenchmarkPayload(b *testing.B) {
	b.ReportAllocs()
	co := coder{gateway: "plant-a", stream: 1}
	r := buffer.Record{Payload: benchPayload, Kind: uint8(embeddedbroker.KindReading), Boot: "k3qz7aa-12", Numbers: []buffer.Number{{Stream: 1, N: 84211}}}
	for b.Loop() {
		co.payload(&r, false)
	}
}
