package uplink

import (
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// emulator is a link between two networks: every byte takes delay to cross it,
// rate bytes a second fit through each way, and what is not sent yet waits in a
// buffer. It joins any connections, in real or in virtual time.
type emulator struct {
	delay   time.Duration // one way
	rate    int64         // bytes a second; 0 = any
	swallow atomic.Bool   // everything disappears, while connections stay up

	up, down atomic.Int64 // bytes that crossed
	sent     atomic.Int64 // chunks that crossed, both ways: about the segments
}

// The emulator moves what one segment holds, and buffers half a second of
// 10 Mbit/s, as home routers do.
const (
	emulatorChunk = 1448
	emulatorQueue = 640 << 10 / emulatorChunk
)

// join carries bytes between a, the gateway's side, and b until either ends.
func (e *emulator) join(a, b net.Conn) {
	var wg sync.WaitGroup
	wg.Go(func() { e.carry(b, a, &e.up) })
	wg.Go(func() { e.carry(a, b, &e.down) })
	wg.Wait()
}

// crossing is a chunk and when it arrives.
type crossing struct {
	data []byte
	at   time.Time
}

func (e *emulator) carry(dst, src net.Conn, count *atomic.Int64) {
	line := make(chan crossing, emulatorQueue)
	var wg sync.WaitGroup
	wg.Go(func() {
		for c := range line {
			time.Sleep(time.Until(c.at)) // the link is what is emulated
			if _, err := dst.Write(c.data); err != nil {
				_ = src.Close()
			}
		}
		_ = dst.Close()
	})
	free := time.Now() // when the line has sent all before
	for {
		b := make([]byte, emulatorChunk)
		n, err := src.Read(b)
		if n > 0 && !e.swallow.Load() {
			if now := time.Now(); free.Before(now) {
				free = now
			}
			if e.rate > 0 {
				free = free.Add(time.Duration(n) * time.Second / time.Duration(e.rate))
			}
			count.Add(int64(n))
			e.sent.Add(1)
			line <- crossing{b[:n], free.Add(e.delay)}
		}
		if err != nil {
			break
		}
	}
	close(line)
	wg.Wait()
	_ = src.Close()
}

// listen makes a port whose connections cross the link to address.
func (e *emulator) listen(address string) (net.Listener, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			a, err := ln.Accept()
			if err != nil {
				return
			}
			b, err := net.Dial("tcp", address)
			if err != nil {
				_ = a.Close()
				continue
			}
			go e.join(a, b)
		}
	}()
	return ln, nil
}
