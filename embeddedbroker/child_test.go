package embeddedbroker_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"busgate/buffer"
	"busgate/config"
	"busgate/embeddedbroker"
	"busgate/embeddedbroker/durable"
)

// TestChildProcess is the broker that other tests start as a process of its
// own, to kill it: a durable store and one listener, whose address it prints.
func TestChildProcess(t *testing.T) {
	path := os.Getenv("BUSGATE_TEST_STORE")
	if path == "" {
		t.Skip("only as a child of other tests")
	}
	s, err := buffer.Open(path, buffer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	cfg := config.Broker{Enabled: true, Anonymous: true, MaxClients: 1000, MaxPacket: 1 << 20, MaxQueued: 1_000_000,
		MaxQueuedSize: 256 << 20, SessionExpiry: time.Hour, Retain: true, MaxInflight: 100}
	b, err := embeddedbroker.New(cfg, durable.New(s), embeddedbroker.Options{})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { b.Run(ctx) })
	wg.Go(func() { b.Serve(ctx, l) })
	fmt.Printf("listening on %s\n", l.Addr())
	os.Stdin.Read(make([]byte, 1)) // the parent's end closes when it is gone
	cancel()
	wg.Wait()
	if err := s.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
}
