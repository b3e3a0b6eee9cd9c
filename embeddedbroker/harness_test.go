package embeddedbroker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"busgate/config"
	"busgate/embeddedbroker/packet"
)

// testConfig is what a broker of the tests runs with.
func testConfig() config.Broker {
	return config.Broker{Enabled: true, Anonymous: true, MaxClients: 1000, MaxPacket: 1 << 20, MaxQueued: 100_000,
		MaxQueuedSize: 64 << 20, SessionExpiry: 7 * 24 * time.Hour, Retain: true, MaxInflight: 100, QueueFull: queueDropOldest}
}

// pipeListener hands out the server ends of net.Pipe, which work inside a
// synctest bubble.
type pipeListener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newPipeListener() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return pipeAddr{} }

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "pipe" }

// rig is a running broker and a way to its listener.
type rig struct {
	t      testing.TB
	b      *Broker
	l      *pipeListener
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// start runs a broker on store until the test ends or stop is called.
func start(t testing.TB, store Store, change ...func(*config.Broker, *Options)) *rig {
	t.Helper()
	cfg, o := testConfig(), Options{Version: "test"}
	for _, f := range change {
		f(&cfg, &o)
	}
	b, err := New(cfg, store, o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &rig{t: t, b: b, l: newPipeListener(), cancel: cancel}
	r.wg.Go(func() { b.Run(ctx) })
	r.wg.Go(func() {
		if err := b.Serve(ctx, r.l); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(r.stop)
	return r
}

func (r *rig) stop() {
	r.cancel()
	r.wg.Wait()
}

// client is a raw MQTT client: what arrives waits in a queue of its own.
type client struct {
	t       testing.TB
	nc      net.Conn
	version byte
	ack     *packet.Connack

	mu   sync.Mutex
	cond sync.Cond
	got  []packet.Packet
	err  error
	bad  error // what the server may not send
	hold bool  // do not read
}

// dial opens a connection without CONNECT.
func (r *rig) dial(version byte) *client {
	r.t.Helper()
	a, b := net.Pipe()
	select {
	case r.l.conns <- b:
	case <-r.l.done:
		r.t.Fatal("listener is closed")
	}
	return newClient(r.t, a, version)
}

func newClient(t testing.TB, nc net.Conn, version byte) *client {
	c := &client{t: t, nc: nc, version: version}
	c.cond.L = &c.mu
	go c.read()
	t.Cleanup(func() {
		c.nc.Close()
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.bad != nil {
			t.Errorf("a client of version %d got what no server sends: %v", version, c.bad)
		}
	})
	return c
}

func (c *client) read() {
	var buf []byte
	chunk := make([]byte, 4096)
	for {
		c.mu.Lock()
		for c.hold {
			c.cond.Wait()
		}
		c.mu.Unlock()
		n, err := c.nc.Read(chunk)
		buf = append(buf, chunk[:n]...)
		for err == nil {
			h, k, herr := packet.ReadHeader(buf)
			if herr != nil {
				err = herr
			}
			if k == 0 || len(buf) < k+h.Length {
				break
			}
			p, derr := packet.Decode(h, bytes.Clone(buf[k:k+h.Length]), c.version)
			buf = buf[k+h.Length:]
			if derr == nil {
				derr = lawful(p, c.version)
			}
			c.mu.Lock()
			if c.bad = derr; derr != nil {
				c.mu.Unlock()
				err = derr
				break
			}
			c.got = append(c.got, p)
			c.cond.Broadcast()
			c.mu.Unlock()
		}
		if err != nil {
			c.mu.Lock()
			c.err = err
			c.cond.Broadcast()
			c.mu.Unlock()
			return
		}
	}
}

// next waits for the next packet.
func (c *client) next() packet.Packet {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.got) == 0 && c.err == nil {
		c.cond.Wait()
	}
	if len(c.got) == 0 {
		c.t.Fatalf("connection ended: %v", c.err)
	}
	p := c.got[0]
	c.got = c.got[1:]
	return p
}

// expect waits for a packet of type T.
func expect[T packet.Packet](c *client) T {
	c.t.Helper()
	p := c.next()
	v, ok := p.(T)
	if !ok {
		c.t.Fatalf("got %T %+v, want %T", p, p, v)
	}
	return v
}

// ended waits for the end of the connection; nothing else may come.
func (c *client) ended() {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.got) == 0 && c.err == nil {
		c.cond.Wait()
	}
	if len(c.got) > 0 {
		c.t.Fatalf("got %T %+v, want the end of the connection", c.got[0], c.got[0])
	}
	if c.bad != nil {
		c.t.Fatalf("got %v, want the end of the connection", c.bad)
	}
	if !errors.Is(c.err, io.EOF) && !errors.Is(c.err, io.ErrClosedPipe) && !errors.Is(c.err, net.ErrClosed) {
		c.t.Logf("ended with %v", c.err)
	}
}

// silent checks that nothing waits; use it after a ping or in a bubble after Wait.
func (c *client) silent() {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.got) > 0 {
		c.t.Fatalf("got %T %+v, want nothing", c.got[0], c.got[0])
	}
}

func (c *client) send(p packet.Packet) {
	c.t.Helper()
	if _, err := c.nc.Write(p.Append(nil, c.version)); err != nil {
		c.t.Fatalf("send %T: %v", p, err)
	}
}

func (c *client) raw(b ...byte) {
	c.t.Helper()
	c.nc.Write(b)
}

func (c *client) close() { c.nc.Close() }

// ping returns when the server has handled everything sent before and what it
// had to say at once has arrived.
func (c *client) ping() {
	c.t.Helper()
	c.send(&packet.Ping{Type: packet.PINGREQ})
	if p := expect[*packet.Ping](c); p.Type != packet.PINGRESP {
		c.t.Fatalf("got %v, want PINGRESP", p.Type)
	}
}

type option func(*packet.Connect)

func keep(s uint16) option { return func(p *packet.Connect) { p.KeepAlive = s } }
func persistent(p *packet.Connect) {
	p.CleanStart = false
	if p.Version == packet.V5 {
		p.Props = p.Props.WithUint(packet.SessionExpiry, 3600)
	}
}
func clean(p *packet.Connect) { p.CleanStart = true }
func prop(id byte, v uint32) option {
	return func(p *packet.Connect) { p.Props = p.Props.WithUint(id, v) }
}
func will(topic, payload string, qos byte, retain bool) option {
	return func(p *packet.Connect) {
		p.Will = &packet.Will{Topic: topic, Payload: []byte(payload), QoS: qos, Retain: retain}
	}
}

// connect dials and sends CONNECT; without options it is a clean session.
func (r *rig) connect(version byte, id string, opts ...option) *client {
	r.t.Helper()
	c := r.dial(version)
	p := &packet.Connect{Version: version, ClientID: id, CleanStart: true}
	for _, o := range opts {
		o(p)
	}
	c.send(p)
	c.ack = expect[*packet.Connack](c)
	if c.ack.Code != 0 {
		r.t.Fatalf("connect %s: code 0x%02X", id, c.ack.Code)
	}
	return c
}

// subscribe waits for SUBACK.
func (c *client) subscribe(filter string, qos byte) {
	c.t.Helper()
	c.subscribeWith(nil, packet.Filter{Filter: filter, QoS: qos})
}

func (c *client) subscribeWith(props packet.Props, fs ...packet.Filter) {
	c.t.Helper()
	c.send(&packet.Subscribe{PID: 60000, Props: props, Filters: fs})
	s := expect[*packet.Suback](c)
	for i, code := range s.Codes {
		if code != fs[i].QoS {
			c.t.Fatalf("subscribe %s: code 0x%02X", fs[i].Filter, code)
		}
	}
}

// publish sends one message and completes it.
func (c *client) publish(topic, payload string, qos byte, pid uint16) {
	c.t.Helper()
	c.send(&packet.Publish{Topic: []byte(topic), Payload: []byte(payload), QoS: qos, PID: pid})
	switch qos {
	case 1:
		c.acked(packet.PUBACK, pid)
	case 2:
		c.acked(packet.PUBREC, pid)
		c.send(&packet.Ack{Type: packet.PUBREL, PID: pid})
		c.acked(packet.PUBCOMP, pid)
	}
}

func (c *client) acked(typ packet.Type, pid uint16) *packet.Ack {
	c.t.Helper()
	a := expect[*packet.Ack](c)
	if a.Type != typ || a.PID != pid {
		c.t.Fatalf("got %v %d, want %v %d", a.Type, a.PID, typ, pid)
	}
	return a
}

// receive waits for a message and checks topic and payload.
func (c *client) receive(topic, payload string) *packet.Publish {
	c.t.Helper()
	p := expect[*packet.Publish](c)
	if string(p.Topic) != topic || string(p.Payload) != payload {
		c.t.Fatalf("got %s %q, want %s %q", p.Topic, p.Payload, topic, payload)
	}
	return p
}

// take receives a message and completes it.
func (c *client) take(topic, payload string) *packet.Publish {
	c.t.Helper()
	p := c.receive(topic, payload)
	c.complete(p)
	return p
}

// complete answers a message; other messages may come before its PUBREL.
func (c *client) complete(p *packet.Publish) {
	c.t.Helper()
	switch p.QoS {
	case 1:
		c.send(&packet.Ack{Type: packet.PUBACK, PID: p.PID})
	case 2:
		c.send(&packet.Ack{Type: packet.PUBREC, PID: p.PID})
		c.find(packet.PUBREL, p.PID)
		c.send(&packet.Ack{Type: packet.PUBCOMP, PID: p.PID})
	}
}

// find waits for an answer and takes it out of what has arrived.
func (c *client) find(typ packet.Type, pid uint16) {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		for i, p := range c.got {
			if a, ok := p.(*packet.Ack); ok && a.Type == typ && a.PID == pid {
				c.got = slices.Delete(c.got, i, i+1)
				return
			}
		}
		if c.err != nil {
			c.t.Fatalf("connection ended before %v %d: %v", typ, pid, c.err)
		}
		c.cond.Wait()
	}
}

func n(prefix string, i int) string { return fmt.Sprintf("%s%d", prefix, i) }
