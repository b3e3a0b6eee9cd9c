package uplink

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"sync"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"busgate/embeddedbroker"
)

const (
	downQueue    = 256              // messages from the cloud that wait to be durable
	downPatience = 10 * time.Second // after that without room the cloud is made to send again
)

// downlink publishes locally what came from the cloud, one after the other, so
// that the order of the cloud holds.
type downlink struct {
	fn     func(context.Context, *embeddedbroker.Message) error
	queue  chan descent
	done   chan descent // durable or refused; never blocks the worker
	taken  int          // put into queue and not yet read from done
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// descent is one message on its way down.
type descent struct {
	m     *embeddedbroker.Message
	epoch uint64 // of the connection that must acknowledge it
	id    uint16
	qos   byte
	err   error
}

func newDownlink(fn func(context.Context, *embeddedbroker.Message) error) *downlink {
	ctx, cancel := context.WithCancel(context.Background())
	d := &downlink{fn: fn, queue: make(chan descent, downQueue), done: make(chan descent, downQueue), cancel: cancel}
	d.wg.Go(func() {
		for m := range d.queue {
			if m.err = ctx.Err(); m.err == nil { // at the end nobody is left to acknowledge what waits: it comes again
				m.err = d.fn(ctx, m.m)
			}
			d.done <- m
		}
	})
	return d
}

// put queues a message; false when there is no room.
func (d *downlink) put(m descent) bool {
	if d.taken >= downQueue {
		return false
	}
	d.taken++
	d.queue <- m
	return true
}

func (d *downlink) stop() {
	d.cancel()
	close(d.queue)
	d.wg.Wait()
}

// arrive takes a PUBLISH of the cloud: it is checked, queued, and acknowledged
// when it is durable. What is refused is acknowledged at once.
func (l *Link) arrive(e *epoch, p *packets.PublishPacket, now time.Time) error {
	if p.Qos > 0 && p.MessageID == 0 { // [MQTT-2.3.1-1]
		return &closing{reason: "protocol", err: errMalformed}
	}
	if p.Qos == 2 && l.s.inbound[p.MessageID] { // [MQTT-4.3.3-2]
		l.s.pubrecIn(p.MessageID)
		return nil
	}
	topic, payload := l.set.topics.local(p.TopicName), p.Payload
	if l.set.thingsboard() {
		var command bool
		if topic, payload, command = l.coder.boardCommand(p.Payload, now); !command || p.TopicName != boardRPC {
			l.stats.downRefused++
			l.s.confirm(p.Qos, p.MessageID)
			return nil
		}
	}
	switch {
	case l.echo(p.TopicName, topic, p.Payload):
		l.stats.echo++
	case l.o.Down == nil || !l.accepts(topic):
		l.stats.downRefused++
		l.log.Debug("message from the cloud is outside accept", "topic", topic)
	default:
		d := descent{epoch: e.number, id: p.MessageID, qos: p.Qos, m: &embeddedbroker.Message{
			Topic: topic, Payload: payload, QoS: p.Qos, Retain: p.Retain, Kind: embeddedbroker.KindDown, From: l.who,
		}}
		if !l.down.put(d) {
			l.stats.downOverflow++
			if e.overflow.IsZero() {
				e.overflow = now
			}
		}
		return nil
	}
	l.s.confirm(p.Qos, p.MessageID)
	return nil
}

// arrived acknowledges what is durable now, on the connection that brought it.
func (l *Link) arrived(e *epoch, d descent) {
	l.down.taken--
	if d.err != nil {
		l.stats.downOverflow++
		l.log.Warn("message from the cloud was not taken; it will be sent again", "topic", d.m.Topic, "err", d.err)
		if e != nil && e.overflow.IsZero() {
			e.overflow = time.Now()
		}
		return
	}
	l.stats.downAccepted++
	if e != nil && d.epoch == e.number {
		l.s.confirm(d.qos, d.id)
	}
}

func (l *Link) accepts(topic string) bool {
	for _, f := range l.set.accept {
		if matches(f, topic) {
			return true
		}
	}
	return false
}

// echo tells that a message is our own, come back: it speaks with our status
// topic, or carries our gateway and a boot of our store.
func (l *Link) echo(remote, local string, payload []byte) bool {
	if local == l.set.status() || remote == l.set.topics.remote(l.set.status()) {
		return true
	}
	if l.o.Boot == "" || !bytes.Contains(payload, []byte(`"boot"`)) {
		return false
	}
	var m struct{ Gw, Boot string }
	if json.Unmarshal(payload, &m) != nil || m.Gw != l.gw.Name {
		return false
	}
	ours, _, _ := strings.Cut(l.o.Boot, "-")
	theirs, _, _ := strings.Cut(m.Boot, "-")
	return ours == theirs
}

// confirm acknowledges a PUBLISH of the broker.
func (s *session) confirm(qos byte, id uint16) {
	switch qos {
	case 1:
		p := packets.NewControlPacket(packets.Puback).(*packets.PubackPacket)
		p.MessageID = id
		s.out = append(s.out, frame{p: p})
	case 2:
		s.inbound[id] = true
		s.pubrecIn(id)
	}
}

func (s *session) pubrecIn(id uint16) {
	p := packets.NewControlPacket(packets.Pubrec).(*packets.PubrecPacket)
	p.MessageID = id
	s.out = append(s.out, frame{p: p})
}

// pubrelIn ends a QoS 2 message of the broker. [MQTT-4.3.3-2]
func (s *session) pubrelIn(id uint16) {
	delete(s.inbound, id)
	p := packets.NewControlPacket(packets.Pubcomp).(*packets.PubcompPacket)
	p.MessageID = id
	s.out = append(s.out, frame{p: p})
}
