package cloudtest

import (
	"bytes"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/eclipse/paho.mqtt.golang/packets"
)

func delivery(c *conn, p *packets.PublishPacket) Delivery {
	return Delivery{Client: c.name, Topic: p.TopicName, Payload: p.Payload, QoS: p.Qos, Retain: p.Retain, Dup: p.Dup}
}

func (b *Broker) publishLocked(c *conn, s *session, p *packets.PublishPacket) bool {
	if why := c.check(s, p); why != "" {
		b.violationLocked(c, "%s", why)
		return false
	}
	if b.o.Publish != nil && !b.o.Publish(p) {
		return false
	}
	if b.o.Drop != nil && b.o.Drop(p) && p.Qos == 1 {
		a := packets.NewControlPacket(packets.Puback).(*packets.PubackPacket)
		a.MessageID = p.MessageID
		c.send(a, b.o.AckDelay)
		return true
	}
	mute := b.o.Mute != nil && b.o.Mute(p)
	switch p.Qos {
	case 0:
		b.deliverLocked(delivery(c, p))
	case 1:
		if b.o.Max2 > 0 && len(s.inbound) >= b.o.Max2 {
			return false
		}
		b.deliverLocked(delivery(c, p))
		if !mute {
			c.mu.Lock()
			c.pending[p.MessageID] = true
			c.mu.Unlock()
			a := packets.NewControlPacket(packets.Puback).(*packets.PubackPacket)
			a.MessageID = p.MessageID
			c.send(a, b.o.AckDelay)
		}
	case 2:
		if s.inbound[p.MessageID] == nil {
			s.inbound[p.MessageID] = p
			if b.o.AtPublish {
				b.deliverLocked(delivery(c, p))
			}
		}
		if b.o.Max2 > 0 && len(s.inbound) > b.o.Max2 {
			return false
		}
		if !mute {
			a := packets.NewControlPacket(packets.Pubrec).(*packets.PubrecPacket)
			a.MessageID = p.MessageID
			c.send(a, b.o.AckDelay)
		}
	}
	return true
}

// check is what a PUBLISH must keep to; "" when it does.
func (c *conn) check(s *session, p *packets.PublishPacket) string {
	c.mu.Lock()
	pending := c.pending[p.MessageID]
	c.mu.Unlock()
	switch {
	case p.Qos > 2: // [MQTT-3.3.1-4]
		return "PUBLISH with QoS 3"
	case p.Qos == 0 && p.Dup: // [MQTT-3.3.1-2]
		return "PUBLISH with QoS 0 and DUP"
	case p.Qos > 0 && p.MessageID == 0: // [MQTT-2.3.1-1]
		return "PUBLISH with packet id 0"
	case p.TopicName == "" || strings.ContainsAny(p.TopicName, "+#\x00") || !utf8.ValidString(p.TopicName): // [MQTT-3.3.2-2]
		return fmt.Sprintf("PUBLISH to %q", p.TopicName)
	case p.Qos > 0 && pending: // [MQTT-2.3.1-2]
		return fmt.Sprintf("packet id %d is used before its PUBACK", p.MessageID)
	case p.Qos == 2 && s.inbound[p.MessageID] != nil && !p.Dup:
		return fmt.Sprintf("packet id %d is used before its PUBREL", p.MessageID)
	case p.Qos == 2 && s.inbound[p.MessageID] != nil && (p.TopicName != s.inbound[p.MessageID].TopicName || !bytes.Equal(p.Payload, s.inbound[p.MessageID].Payload)):
		return fmt.Sprintf("packet id %d is sent again with another message", p.MessageID)
	}
	return ""
}

func (b *Broker) subscribeLocked(c *conn, s *session, p *packets.SubscribePacket) {
	a := packets.NewControlPacket(packets.Suback).(*packets.SubackPacket)
	a.MessageID = p.MessageID
	for i, f := range p.Topics {
		q := min(p.Qoss[i], 1)
		if strings.HasPrefix(f, "forbidden/") {
			a.ReturnCodes = append(a.ReturnCodes, 0x80)
			continue
		}
		s.subs[f] = q
		a.ReturnCodes = append(a.ReturnCodes, q)
	}
	c.send(a, b.o.AckDelay)
	for _, f := range p.Topics {
		for _, d := range b.retained {
			if _, ok := s.subs[f]; ok && Matches(f, d.Topic) {
				b.sendLocked(s, d.Topic, d.Payload, min(d.QoS, s.subs[f]), true)
			}
		}
	}
}
