package cloudtest

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"sync"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
)

// conn is one connection. The goroutine of ServeConn reads; another writes what
// is due.
type conn struct {
	b       *Broker
	net     net.Conn
	name    string
	session *session // guarded by Broker.mu; nil after Wipe or a take-over
	will    *packets.ConnectPacket
	pending map[uint16]bool // QoS 1 ids whose PUBACK has not left, guarded by mu

	mu    sync.Mutex
	queue []due
	wake  chan struct{}
	over  chan struct{}
	once  sync.Once
}

// due is a packet with the moment at which it leaves.
type due struct {
	p  packets.ControlPacket
	at time.Time
}

// ServeConn serves one connection to its end.
func (b *Broker) ServeConn(nc net.Conn) {
	c := &conn{b: b, net: nc, name: nc.RemoteAddr().String(), wake: make(chan struct{}, 1), over: make(chan struct{}), pending: map[uint16]bool{}}
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		c.reset()
		return
	}
	b.conns[c] = true
	b.mu.Unlock()
	var wg sync.WaitGroup
	wg.Go(c.write)
	graceful := c.read()
	c.reset()
	wg.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.conns, c)
	if s := c.session; s != nil && s.conn == c {
		s.conn = nil
		if s.clean {
			delete(b.sessions, s.client)
		}
	}
	if !graceful {
		b.willLocked(c)
	}
}

// willLocked publishes the will, once.
func (b *Broker) willLocked(c *conn) {
	if w := c.will; w != nil && !b.closed {
		b.deliverLocked(Delivery{Client: w.ClientIdentifier, Topic: w.WillTopic, Payload: w.WillMessage, QoS: w.WillQos, Retain: w.WillRetain, Will: true})
	}
	c.will = nil
}

// reset ends the connection as a crash would.
func (c *conn) reset() {
	c.once.Do(func() {
		close(c.over)
		if t, ok := c.net.(*net.TCPConn); ok {
			_ = t.SetLinger(0)
		}
		_ = c.net.Close()
	})
}

// send queues a packet that leaves after d.
func (c *conn) send(p packets.ControlPacket, d time.Duration) {
	c.mu.Lock()
	c.queue = append(c.queue, due{p, time.Now().Add(d)})
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// write sends what is due until the connection is over.
func (c *conn) write() {
	for {
		var buf bytes.Buffer
		now := time.Now()
		n := 0
		c.b.mu.Lock() // never while c.mu is held
		deaf := now.Before(c.b.deaf)
		c.b.mu.Unlock()
		c.mu.Lock()
		for ; n < len(c.queue) && !c.queue[n].at.After(now); n++ {
			if a, ok := c.queue[n].p.(*packets.PubackPacket); ok {
				delete(c.pending, a.MessageID)
			}
			if !deaf {
				_ = c.queue[n].p.Write(&buf)
			}
		}
		c.queue = c.queue[n:]
		wait := time.Hour
		if len(c.queue) > 0 {
			wait = c.queue[0].at.Sub(now)
		}
		c.mu.Unlock()
		if buf.Len() > 0 {
			if _, err := c.net.Write(buf.Bytes()); err != nil {
				c.reset()
				return
			}
			continue
		}
		t := time.NewTimer(wait)
		select {
		case <-c.over:
			t.Stop()
			return
		case <-c.wake:
		case <-t.C:
		}
		t.Stop()
	}
}

// read handles packets until the connection ends; true after DISCONNECT.
func (c *conn) read() bool {
	in := bufio.NewReader(c.net)
	p, err := c.packet(in)
	if err != nil {
		return true
	}
	first, ok := p.(*packets.ConnectPacket)
	if !ok { // [MQTT-3.1.0-1]
		c.b.violation(c, "%T before CONNECT", p)
		return true
	}
	if !c.b.connect(c, first) {
		return true
	}
	bears := c.b.o.Connected == nil || c.b.o.Connected(first)
	limit := time.Duration(first.Keepalive) * time.Second * 3 / 2
	for {
		if limit > 0 { // [MQTT-3.1.2-24]
			_ = c.net.SetReadDeadline(time.Now().Add(limit))
		}
		p, err := c.packet(in)
		if err != nil {
			return false
		}
		c.b.mu.Lock()
		deaf := time.Now().Before(c.b.deaf)
		c.b.mu.Unlock()
		if deaf {
			continue
		}
		if _, ok := p.(*packets.DisconnectPacket); ok {
			return true
		}
		if !bears || !c.b.handle(c, p) {
			return false
		}
	}
}

// packet reads one packet and checks its form.
func (c *conn) packet(in *bufio.Reader) (packets.ControlPacket, error) {
	first, err := in.ReadByte()
	if err != nil {
		return nil, err
	}
	length := 0
	for shift := 0; ; shift += 7 {
		b, err := in.ReadByte()
		if err != nil {
			return nil, err
		}
		length |= int(b&0x7f) << shift
		if b < 0x80 {
			break
		}
		if shift == 21 {
			c.b.violation(c, "remaining length of five bytes")
			return nil, io.ErrUnexpectedEOF
		}
	}
	body := make([]byte, length)
	if _, err := io.ReadFull(in, body); err != nil {
		return nil, err
	}
	kind, flags := first>>4, first&0x0f
	want := byte(0)
	if kind == packets.Pubrel || kind == packets.Subscribe || kind == packets.Unsubscribe {
		want = 2
	}
	if kind != packets.Publish && flags != want { // [MQTT-2.2.2-2]
		c.b.violation(c, "%s with flags %04b", packets.PacketNames[kind], flags)
		return nil, io.ErrUnexpectedEOF
	}
	p, err := packets.NewControlPacketWithHeader(packets.FixedHeader{
		MessageType: kind, Dup: flags&8 != 0, Qos: flags >> 1 & 3, Retain: flags&1 != 0, RemainingLength: length,
	})
	if err == nil {
		err = p.Unpack(bytes.NewBuffer(body))
	}
	if err != nil {
		c.b.violation(c, "%v", err)
	}
	return p, err
}

// connect answers CONNECT; false when the connection is refused.
func (b *Broker) connect(c *conn, p *packets.ConnectPacket) bool {
	ack := packets.NewControlPacket(packets.Connack).(*packets.ConnackPacket)
	ack.ReturnCode = p.Validate()
	if ack.ReturnCode == packets.ErrProtocolViolation {
		b.violation(c, "CONNECT is not valid")
		return false
	}
	if ack.ReturnCode == packets.Accepted && b.o.Login != nil {
		ack.ReturnCode = b.o.Login(p)
	}
	if ack.ReturnCode != packets.Accepted {
		var buf bytes.Buffer
		_ = ack.Write(&buf)
		_, _ = c.net.Write(buf.Bytes())
		_ = c.net.Close() // without a reset, which could overtake the answer
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return false
	}
	c.name = p.ClientIdentifier
	s := b.sessions[c.name]
	if s != nil && s.conn != nil { // [MQTT-3.1.4-2]; the old will goes first
		old := s.conn
		old.session, s.conn = nil, nil
		b.willLocked(old)
		old.reset()
	}
	ack.SessionPresent = s != nil && !s.clean && !p.CleanSession
	if !ack.SessionPresent {
		s = &session{client: c.name, subs: map[string]byte{}, inbound: map[uint16]*packets.PublishPacket{}}
		b.sessions[c.name] = s
	}
	s.conn, s.clean, c.session = c, p.CleanSession, s
	if p.WillFlag {
		c.will = p
	}
	b.connects++
	c.send(ack, 0)
	for _, q := range s.queue {
		again := *q
		again.Dup = true
		c.send(&again, 0)
	}
	return true
}

// handle takes one packet; false ends the connection.
func (b *Broker) handle(c *conn, p packets.ControlPacket) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := c.session
	if s == nil || b.closed {
		return false
	}
	b.packets++
	close(b.changed)
	b.changed = make(chan struct{})
	switch p := p.(type) {
	case *packets.PublishPacket:
		return b.publishLocked(c, s, p)
	case *packets.PubrelPacket:
		if m := s.inbound[p.MessageID]; m != nil {
			delete(s.inbound, p.MessageID)
			if !b.o.AtPublish {
				b.deliverLocked(delivery(c, m))
			}
		}
		if b.o.Released != nil && !b.o.Released(p) {
			return false
		}
		a := packets.NewControlPacket(packets.Pubcomp).(*packets.PubcompPacket)
		a.MessageID = p.MessageID
		c.send(a, b.o.AckDelay)
	case *packets.PubackPacket:
		for i, q := range s.queue {
			if q.MessageID == p.MessageID {
				s.queue = append(s.queue[:i:i], s.queue[i+1:]...)
				break
			}
		}
	case *packets.SubscribePacket:
		b.subscribeLocked(c, s, p)
	case *packets.UnsubscribePacket:
		for _, f := range p.Topics {
			delete(s.subs, f)
		}
		a := packets.NewControlPacket(packets.Unsuback).(*packets.UnsubackPacket)
		a.MessageID = p.MessageID
		c.send(a, b.o.AckDelay)
	case *packets.PingreqPacket:
		c.send(packets.NewControlPacket(packets.Pingresp), 0)
	default:
		b.violationLocked(c, "unexpected %T", p)
		return false
	}
	return true
}
