package embeddedbroker_test

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
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
// own, to kill or to measure it: a durable store and one listener, whose address
// it prints. BUSGATE_TEST_LISTEN, _USERS and _LOG say where to listen, who may
// log in and which file is for the lines.
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
	if cfg.Users = os.Getenv("BUSGATE_TEST_USERS"); cfg.Users != "" {
		cfg.Anonymous = false
	}
	var o embeddedbroker.Options
	if path := os.Getenv("BUSGATE_TEST_LOG"); path != "" {
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		o.Log = slog.New(slog.NewTextHandler(f, nil))
	}
	b, err := embeddedbroker.New(cfg, durable.New(s), o)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", cmp.Or(os.Getenv("BUSGATE_TEST_LISTEN"), "127.0.0.1:0"))
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
