package embeddedbroker

import (
	"fmt"
	"log/slog"
	"time"

	"busgate/config/report"
	"busgate/embeddedbroker/packet"
)

// onSubscribe obeys SUBSCRIBE: SUBACK leaves when the store has the
// subscriptions, retained messages follow it.
func (c *conn) onSubscribe(p *packet.Subscribe) error {
	id, _ := p.Props.Uint(packet.SubscriptionID)
	set := c.b.set.Load()
	ack := packet.Suback{PID: p.PID, Codes: make([]byte, len(p.Filters))}
	asked := make([]*sub, len(p.Filters))
	room, bytes := c.subscriptionsLeft()
	for i, f := range p.Filters {
		s, code, err := c.judge(f, set)
		if err != nil {
			return err
		}
		if s != nil {
			if bytes -= weigh(f.Filter); i >= room || bytes < 0 {
				s, code = nil, c.refused(f, packet.QuotaExceeded)
				c.b.gate.offence(c, "wants more subscriptions than a session may have")
			}
		}
		if ack.Codes[i] = code; s != nil {
			s.ID = id
			asked[i] = s
		}
	}
	raw := ack.Append(nil, c.version)
	if c.maxOut > 0 && len(raw) > c.maxOut { // [MQTT-3.1.2-24]
		return &packet.Error{Code: packet.TooLarge, Text: "SUBSCRIBE whose SUBACK is too large for the client"}
	}
	sl := c.reserve(packet.SUBACK, p.PID, 0)
	sl.raw = raw
	c.subscribe(asked, sl)
	return c.toil(time.Duration(len(p.Filters)) * filterToil)
}

// judge makes the subscription of one filter and its code in SUBACK; nil with a
// code of failure, or with a grant that delivers nothing (3.1 has no failure).
func (c *conn) judge(f packet.Filter, set *settings) (*sub, byte, error) {
	if tooDeep(f.Filter) {
		c.b.gate.offence(c, fmt.Sprintf("wants a filter of more than %d levels", maxLevels))
		return nil, c.refused(f, packet.BadFilter), nil
	}
	refused := c.refused(f, packet.NotAuthorized)
	_, rest, shared, ok := splitShare(f.Filter)
	switch {
	case shared && !ok:
		if c.version == packet.V5 {
			return nil, 0, &packet.Error{Code: packet.ProtocolError, Text: "malformed shared subscription"} // [MQTT-4.8.2-1]
		}
		return nil, refused, nil
	case shared && f.NoLocal:
		return nil, 0, &packet.Error{Code: packet.ProtocolError, Text: "no-local on a shared subscription"} // [MQTT-3.8.3-4]
	}
	if !set.acl.maySubscribe(c.user, c.id, rest) {
		c.b.n.refusedACL.Add(1)
		c.b.ladder.Fail(report.Report{Err: "lan-acl", Level: slog.LevelWarn, Who: "broker",
			Text: c.who() + " may not read " + report.Name(f.Filter) + " (acl)"})
		return nil, refused, nil
	}
	s := &sub{filter: rest, sess: c.sess, Subscription: Subscription{Filter: f.Filter, QoS: f.QoS, NoLocal: f.NoLocal,
		RetainAsPublished: f.RetainAsPublished, RetainHandling: f.RetainHandling}}
	if c.bridge {
		s.NoLocal, s.RetainAsPublished = true, true
	}
	return s, f.QoS, nil
}

// What may be subscribed to: filters of one session, and what they cost in
// memory there and in all sessions together. More are refused.
const (
	maxSubscriptions = 10_000
	maxSessionWeight = 16 << 20
	maxWeight        = 64 << 20
)

// subscriptionsLeft is how many further filters the session may have, and of
// what weight.
func (c *conn) subscriptionsLeft() (filters, bytes int) {
	c.b.mu.Lock()
	defer c.b.mu.Unlock()
	return maxSubscriptions - len(c.sess.subs), min(maxSessionWeight-c.sess.weight, maxWeight-c.b.subs.weight)
}

// refused is how a SUBACK of each version says no. 3.1 cannot: it grants, and
// nothing is delivered.
func (c *conn) refused(f packet.Filter, code byte) byte {
	switch c.version {
	case packet.V311:
		return 0x80
	case packet.V31:
		return f.QoS
	}
	return code
}

// subscribe hangs the subscriptions up and queues their retained messages.
func (c *conn) subscribe(asked []*sub, sl *slot) {
	b := c.b
	b.mu.Lock()
	defer b.mu.Unlock()
	s := c.sess
	if s.conn != c {
		return
	}
	fresh := make([]bool, len(asked))
	var ops []Op
	for i, v := range asked {
		if v == nil {
			continue
		}
		old := s.subs[v.Filter]
		if fresh[i] = old == nil; old != nil {
			b.subs.remove(old) // [MQTT-3.8.4-3]
		}
		s.subs[v.Filter] = v
		b.subs.add(v)
		if s.consumer != 0 {
			ops = append(ops, SaveSubscription{Client: s.id, Subscription: v.Subscription})
		}
	}
	after := Seq(0)
	if s.consumer == 0 && c.nothingBefore(sl) {
		sl.fill(0)
	} else {
		e := Entry{Ops: ops, Wait: true, Done: sl}
		if err := b.store.Append(&e); err != nil {
			c.kick(&ending{code: refusal(err), text: "its subscription cannot be kept: " + err.Error()})
			return
		}
		after = e.Seq
	}
	for i, v := range asked {
		if v != nil && v.group == nil && (v.RetainHandling == 0 || v.RetainHandling == 1 && fresh[i]) {
			b.sendRetained(s, v, after)
		}
	}
}

// nothingBefore says whether no answer waits in front of that of sl.
func (c *conn) nothingBefore(sl *slot) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.slots.first == sl
}

// sendRetained queues the retained messages of a new subscription, in topic
// order, behind its SUBACK.
func (b *Broker) sendRetained(s *session, v *sub, after Seq) {
	acl := b.set.Load().acl
	for _, h := range b.kept.match(v.filter, time.Now()) {
		if !acl.may(s.user, s.id, h.msg.Topic, false) || v.NoLocal && h.msg.From == s.id {
			continue
		}
		it := item{msg: h.msg, qos: min(h.msg.QoS, v.QoS), retain: true, wait: max(after, h.seq), free: true}
		if v.ID != 0 {
			it.subIDs = []uint32{v.ID}
		}
		if it.qos > 0 {
			it.ord = s.number()
		}
		if it.qos > 0 && s.consumer != 0 && !b.storeRetained(s, &it) {
			continue
		}
		if it.wait <= b.rel.released() {
			it.wait = 0
		}
		s.push(it)
	}
}

// storeRetained keeps the delivery of a retained message to a persistent session.
func (b *Broker) storeRetained(s *session, it *item) bool {
	e := Entry{Msg: it.msg, Wait: it.qos == 2, Done: &b.rel,
		Targets: []Target{{Consumer: s.consumer, Ord: it.ord, QoS: it.qos, Retain: true, SubIDs: it.subIDs}}}
	save := SaveSession{}
	if s.nextOrd >= s.savedOrd {
		save = s.durableLocked(ordReserve)
		e.Ops = []Op{save}
	}
	if err := b.store.Append(&e); err != nil {
		b.n.droppedFull.Add(1)
		return false
	}
	s.savedOrd = max(s.savedOrd, save.Session.NextOrd)
	it.seq, it.free = e.Seq, false
	if e.Wait {
		it.wait = max(it.wait, e.Seq)
	}
	return true
}

// onUnsubscribe obeys UNSUBSCRIBE.
func (c *conn) onUnsubscribe(p *packet.Unsubscribe) error {
	if err := c.unsubscribe(p); err != nil {
		return err
	}
	return c.toil(time.Duration(len(p.Filters)) * filterToil)
}

func (c *conn) unsubscribe(p *packet.Unsubscribe) error {
	ack := packet.Unsuback{PID: p.PID, Codes: make([]byte, len(p.Filters))}
	if c.maxOut > 0 && len(ack.Append(nil, c.version)) > c.maxOut { // [MQTT-3.1.2-24]
		return &packet.Error{Code: packet.TooLarge, Text: "UNSUBSCRIBE whose UNSUBACK is too large for the client"}
	}
	sl := c.reserve(packet.UNSUBACK, p.PID, 0)
	b := c.b
	b.mu.Lock()
	defer b.mu.Unlock()
	s := c.sess
	if s.conn != c {
		return nil
	}
	var ops []Op
	for i, f := range p.Filters {
		old := s.subs[f] // compared character by character [MQTT-3.10.4-1]
		if old == nil {
			ack.Codes[i] = packet.NoSubscription
			continue
		}
		b.subs.remove(old)
		delete(s.subs, f)
		ops = append(ops, DropSubscription{Client: s.id, Filter: f})
	}
	sl.raw = ack.Append(nil, c.version)
	if s.consumer == 0 {
		sl.fill(0)
		return nil
	}
	if err := b.store.Append(&Entry{Ops: ops, Wait: true, Done: sl}); err != nil {
		return &ending{code: refusal(err), text: "its session cannot be kept: " + err.Error()}
	}
	return nil
}
