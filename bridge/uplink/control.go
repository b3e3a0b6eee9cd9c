package uplink

import (
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
)

const (
	maxControl   = 256 // control packets that wait for an answer
	maxSubscribe = 8   // filters in one SUBSCRIBE: AWS takes no more
)

// control is a packet of our own that the broker answers and the store knows
// nothing of: birth, device states at connect, SUBSCRIBE, UNSUBSCRIBE.
type control struct {
	owing
	p    packets.ControlPacket
	done func(p packets.ControlPacket) // called with the answer; nil: nobody asks
}

func (c *control) publish() bool { _, ok := c.p.(*packets.PublishPacket); return ok }

// ask queues a control packet; pump writes it.
func (s *session) ask(p packets.ControlPacket, done func(packets.ControlPacket)) {
	s.queue = append(s.queue, &control{p: p, done: done})
}

// say queues a PUBLISH of our own with QoS 1.
func (s *session) say(topic string, payload []byte, retain bool, done func(packets.ControlPacket)) {
	p := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	p.TopicName, p.Payload, p.Retain, p.Qos = topic, payload, retain, 1
	s.ask(p, done)
}

// subscribe asks for filters at QoS 1.
func (s *session) subscribe(filters []string, done func(filter string, code byte)) {
	for len(filters) > 0 {
		n := min(len(filters), maxSubscribe)
		part := filters[:n]
		filters = filters[n:]
		p := packets.NewControlPacket(packets.Subscribe).(*packets.SubscribePacket)
		for _, f := range part {
			p.Topics = append(p.Topics, f)
			p.Qoss = append(p.Qoss, 1)
		}
		s.ask(p, func(a packets.ControlPacket) {
			codes := a.(*packets.SubackPacket).ReturnCodes
			for i, f := range part {
				code := byte(0x80) // a missing code is a refusal
				if i < len(codes) {
					code = codes[i]
				}
				done(f, code)
			}
		})
	}
}

// unsubscribe drops filters.
func (s *session) unsubscribe(filters []string) {
	for len(filters) > 0 {
		n := min(len(filters), maxSubscribe)
		p := packets.NewControlPacket(packets.Unsubscribe).(*packets.UnsubscribePacket)
		p.Topics = filters[:n]
		filters = filters[n:]
		s.ask(p, nil)
	}
}

// pump writes control packets as ids are free, and resumes the session when
// all that was asked before has left: birth goes ahead of the backlog.
func (s *session) pump() {
	if s.hold {
		return
	}
	for len(s.queue) > 0 {
		id, ok := s.controlID()
		if !ok {
			return
		}
		c := s.queue[0]
		s.queue[0] = nil
		s.queue = s.queue[1:]
		switch p := c.p.(type) {
		case *packets.PublishPacket:
			p.MessageID = id
		case *packets.SubscribePacket:
			p.MessageID = id
		case *packets.UnsubscribePacket:
			p.MessageID = id
		}
		s.control[id] = c
		s.out = append(s.out, frame{p: c.p, o: &c.owing})
	}
	if !s.resumed && !(s.alone && len(s.control) > 0) {
		s.resume()
	}
}

// controlID finds an id for a control packet: that of one of the last 256
// completed ords, which is free at the broker and far from those to come.
func (s *session) controlID() (uint16, bool) {
	if len(s.control) >= maxControl {
		return 0, false
	}
	for i := range uint64(maxControl) {
		id := packetID(s.completed%65535 + 65535 - i)
		if s.control[id] == nil && s.byID[id] == nil {
			return id, true
		}
	}
	return 0, false
}

// answered ends the control packet of this id.
func (s *session) answered(id uint16, now time.Time) *control {
	c := s.control[id]
	delete(s.control, id)
	s.lastAck = now
	s.reach = max(s.reach, c.end)
	if c.publish() && c.done != nil {
		c.done(nil)
	}
	return c
}

func (s *session) suback(p *packets.SubackPacket, now time.Time) {
	c := s.control[p.MessageID]
	if c == nil {
		s.unknown++
		return
	}
	if _, ok := c.p.(*packets.SubscribePacket); !ok {
		s.unknown++
		return
	}
	s.answered(p.MessageID, now)
	c.done(p)
}

func (s *session) unsuback(p *packets.UnsubackPacket, now time.Time) {
	c := s.control[p.MessageID]
	if c == nil {
		s.unknown++
		return
	}
	if _, ok := c.p.(*packets.UnsubscribePacket); !ok {
		s.unknown++
		return
	}
	s.answered(p.MessageID, now)
}
