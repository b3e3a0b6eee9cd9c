package main

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"busgate/config"
	"busgate/embeddedbroker"
)

// TestListenersOnReload: what did not change stays open with its clients, what
// changed is bound before the old one closes, and what cannot be bound changes
// nothing.
func TestListenersOnReload(t *testing.T) {
	at := func() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(freePort(t))) }
	dir := t.TempDir()
	cfg := config.Broker{Enabled: true, Anonymous: true, MaxClients: 10, MaxPacket: 1 << 20, MaxQueued: 10, MaxQueuedSize: 1 << 20, QueueFull: "drop_oldest",
		Listen: at(), Socket: filepath.Join(dir, "one"), WebSocket: config.BrokerWebSocket{Listen: at()}}
	log := slog.New(slog.DiscardHandler)
	b, err := embeddedbroker.New(cfg, embeddedbroker.NewMemory(), embeddedbroker.Options{})
	if err != nil {
		t.Fatal(err)
	}
	l, err := openListeners(&gateway{broker: b, log: log}, &cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { b.Run(ctx) })
	wg.Go(func() { l.Run(ctx) })
	defer func() { cancel(); wg.Wait() }()
	hello := []byte{0x10, 13, 0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 0, 0, 1, 'x'}
	enter := func(network, address string) net.Conn {
		t.Helper()
		nc, err := net.Dial(network, address)
		if err != nil {
			t.Fatal(err)
		}
		nc.Write(hello)
		if _, err := nc.Read(make([]byte, 4)); err != nil {
			t.Fatal(err)
		}
		return nc
	}
	alive := func(nc net.Conn) {
		t.Helper()
		nc.Write([]byte{0xc0, 0})
		if n, err := nc.Read(make([]byte, 2)); n == 0 {
			t.Errorf("a client was lost: %v", err)
		}
	}
	page := func(address, origin string) int {
		t.Helper()
		r, _ := http.NewRequest("GET", "http://"+address+"/mqtt", nil)
		for k, v := range map[string]string{"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
			"Sec-WebSocket-Protocol": "mqtt", "Origin": origin} {
			r.Header.Set(k, v)
		}
		resp, err := http.DefaultTransport.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	enter("tcp", cfg.Listen).Close()
	inside := enter("unix", cfg.Socket)
	defer inside.Close()
	if got := page(cfg.WebSocket.Listen, "https://dash.example"); got != http.StatusForbidden {
		t.Errorf("a page of others: %d", got)
	}

	next := cfg
	next.Socket = filepath.Join(dir, "two")
	next.WebSocket.Origins = []string{"dash.example"}
	if err := l.Update(&next); err != nil {
		t.Fatal(err)
	}
	alive(inside)
	if nc, err := net.Dial("unix", cfg.Socket); err == nil {
		nc.Close()
		t.Error("the old socket is open")
	}
	enter("unix", next.Socket).Close()
	if got := page(next.WebSocket.Listen, "https://dash.example"); got != http.StatusSwitchingProtocols {
		t.Errorf("a page that was allowed: %d", got)
	}

	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	bad := next
	bad.Listen, bad.Socket = taken.Addr().String(), ""
	if err := l.Update(&bad); err == nil {
		t.Error("an address in use is no error")
	}
	enter("tcp", next.Listen).Close()
	enter("unix", next.Socket).Close()

	// The whole machine instead of loopback: the old address is in the way.
	_, port, _ := net.SplitHostPort(next.Listen)
	wide := next
	wide.Listen, wide.WebSocket.Listen = "0.0.0.0:"+port, taken.Addr().String()
	if err := l.Update(&wide); err == nil {
		t.Error("an address in use is no error")
	}
	enter("tcp", next.Listen).Close() // it was opened again
	wide.WebSocket.Listen = next.WebSocket.Listen
	if err := l.Update(&wide); err != nil {
		t.Error(err)
	}
	enter("tcp", "127.0.0.2:"+port).Close()

	// A reload beside the stop lets nobody in any more.
	l.Close()
	if err := l.Update(&next); err != errStopping {
		t.Errorf("a reload when the door is closed: %v", err)
	}
	if nc, err := net.Dial("unix", next.Socket); err == nil {
		nc.Close()
		t.Error("the socket is open again")
	}
}
