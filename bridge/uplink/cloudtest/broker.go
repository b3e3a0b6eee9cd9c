package cloudtest

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
)

// Options of a Broker. The zero value is a broker that does everything right.
type Options struct {
	AckDelay  time.Duration // before each acknowledgement leaves
	AtPublish bool          // QoS 2 is delivered at the first PUBLISH (method B); else at PUBREL (method A)
	Max2      int           // as mosquitto: more messages than this, QoS 2 without PUBREL and one of QoS 1, close the connection; 0 = any number

	// Login decides on a CONNECT; nil accepts all. The result is the CONNACK
	// return code.
	Login func(*packets.ConnectPacket) byte

	// Connected may close the connection at the first packet after CONNACK (false).
	Connected func(*packets.ConnectPacket) bool

	// Publish may close the connection instead of taking a message (false).
	Publish func(*packets.PublishPacket) bool

	// Drop acknowledges a message of QoS 1 and forgets it, as a broker does with what its
	// rights or quotas refuse.
	Drop func(*packets.PublishPacket) bool

	// Mute keeps acknowledgements of records back that it is true for.
	Mute func(*packets.PublishPacket) bool

	// Released may close the connection after a PUBREL was taken and before its
	// PUBCOMP leaves (false): the moment in which a client without R doubles.
	Released func(*packets.PubrelPacket) bool
}

// Delivery is a message that the broker has taken over for good: what a
// subscriber would have got.
type Delivery struct {
	Client  string // of the publisher
	Topic   string
	Payload []byte
	QoS     byte
	Retain  bool
	Dup     bool // of the PUBLISH that brought it
	Will    bool
	At      time.Time
}

// Broker is safe for concurrent use.
type Broker struct {
	o        Options
	listener net.Listener // nil without Listen
	wg       sync.WaitGroup

	mu         sync.Mutex
	closed     bool
	conns      map[*conn]bool
	sessions   map[string]*session
	retained   map[string]Delivery
	ledger     []Delivery
	violations []string
	deaf       time.Time // until then everything is swallowed
	connects   int
	packets    int
	changed    chan struct{} // closed and replaced at each packet
}

// session is what outlives a connection.
type session struct {
	client  string
	subs    map[string]byte
	inbound map[uint16]*packets.PublishPacket // QoS 2, received and not released
	queue   []*packets.PublishPacket          // QoS 1 to the client, not acknowledged, in order
	next    uint16
	conn    *conn // nil while away
	clean   bool
}

// New makes a broker that is given its connections with ServeConn.
func New(o Options) *Broker {
	return &Broker{
		o: o, conns: map[*conn]bool{}, sessions: map[string]*session{}, retained: map[string]Delivery{},
		changed: make(chan struct{}),
	}
}

// Listen makes a broker on a port of the loopback.
func Listen(o Options) (*Broker, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("test cloud: %w", err)
	}
	b := New(o)
	b.listener = l
	b.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			b.wg.Go(func() { b.ServeConn(c) })
		}
	})
	return b, nil
}

// Addr is host:port of Listen.
func (b *Broker) Addr() string { return b.listener.Addr().String() }

// Close ends all connections, without wills, and waits for them.
func (b *Broker) Close() {
	b.mu.Lock()
	b.closed = true
	b.cutLocked()
	b.mu.Unlock()
	if b.listener != nil {
		_ = b.listener.Close()
	}
	b.wg.Wait()
}

// Cut ends all connections with a reset; wills are published.
func (b *Broker) Cut() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.cutLocked()
}

func (b *Broker) cutLocked() {
	for c := range b.conns {
		c.reset()
	}
}

// Wipe forgets all sessions, as a broker that restarts without persistence, and
// cuts. What was received at QoS 2 and not released is gone with method A.
func (b *Broker) Wipe() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.sessions {
		if s.conn != nil {
			s.conn.session = nil
		}
	}
	clear(b.sessions)
	b.cutLocked()
}

// Restart is a broker that comes back without anything: sessions and retained
// messages are gone, connections are cut. Nobody is left to publish wills.
func (b *Broker) Restart() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for c := range b.conns {
		c.will = nil
		c.session = nil
	}
	clear(b.sessions)
	clear(b.retained)
	b.cutLocked()
}

// Hole swallows everything in both directions for d, while connections stay up.
func (b *Broker) Hole(d time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.deaf = time.Now().Add(d)
}

// Ledger is a copy of everything delivered so far.
func (b *Broker) Ledger() []Delivery {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.ledger)
}

// Len is the number of deliveries so far.
func (b *Broker) Len() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.ledger)
}

// Packets is the number of packets taken so far after CONNECTs; the channel is
// closed at the next.
func (b *Broker) Packets() (int, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.packets, b.changed
}

// Retained is the retained message of a topic.
func (b *Broker) Retained(topic string) (Delivery, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	d, ok := b.retained[topic]
	return d, ok
}

// Violations are breaches of MQTT 3.1.1 by clients, at most 100.
func (b *Broker) Violations() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.violations)
}

// Connects counts accepted CONNECTs.
func (b *Broker) Connects() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.connects
}

// Subscriptions are the filters of a client's session.
func (b *Broker) Subscriptions(client string) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var fs []string
	if s := b.sessions[client]; s != nil {
		for f := range s.subs {
			fs = append(fs, f)
		}
	}
	slices.Sort(fs)
	return fs
}

// Publish sends a message to who subscribed, as if another client had published it.
func (b *Broker) Publish(topic string, payload []byte, qos byte, retain bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.routeLocked(topic, payload, qos, retain)
}

func (b *Broker) violation(c *conn, format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.violationLocked(c, format, args...)
}

func (b *Broker) violationLocked(c *conn, format string, args ...any) {
	if len(b.violations) < 100 {
		b.violations = append(b.violations, c.name+": "+fmt.Sprintf(format, args...))
	}
	c.reset()
}

// deliverLocked enters a message into the ledger and hands it to subscribers.
func (b *Broker) deliverLocked(d Delivery) {
	d.At = time.Now()
	b.ledger = append(b.ledger, d)
	if d.Retain {
		if len(d.Payload) == 0 {
			delete(b.retained, d.Topic)
		} else {
			b.retained[d.Topic] = d
		}
	}
	b.routeLocked(d.Topic, d.Payload, d.QoS, false)
}

func (b *Broker) routeLocked(topic string, payload []byte, qos byte, retain bool) {
	for _, s := range b.sessions {
		for f, q := range s.subs {
			if Matches(f, topic) {
				b.sendLocked(s, topic, payload, min(qos, q), retain)
				break
			}
		}
	}
}

func (b *Broker) sendLocked(s *session, topic string, payload []byte, qos byte, retain bool) {
	p := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	p.TopicName, p.Payload, p.Qos, p.Retain = topic, payload, qos, retain
	if qos > 0 {
		s.next++
		if s.next == 0 {
			s.next = 1
		}
		p.MessageID = s.next
		s.queue = append(s.queue, p)
	}
	if s.conn != nil {
		s.conn.send(p, 0)
	}
}

// Matches tells whether a filter covers a topic. [MQTT-4.7.1]
func Matches(filter, topic string) bool {
	if strings.HasPrefix(topic, "$") != strings.HasPrefix(filter, "$") {
		return false
	}
	fs, ts := strings.Split(filter, "/"), strings.Split(topic, "/")
	for i, f := range fs {
		switch {
		case f == "#":
			return true
		case i >= len(ts) || f != "+" && f != ts[i]:
			return false
		}
	}
	return len(fs) == len(ts)
}
