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
	cost := time.Duration(0)
	for i, f := range p.Filters {
		cost += filterToil + lengthy(f.Filter)
		if i > 0 && i%judgedAtOnce == 0 {
			if err := c.breathe(); err != nil {
				return err
			}
		}
		s, code, err := c.judge(f, set)
		if err != nil {
			return err
		}
		if ack.Codes[i] = code; s != nil {
			s.ID = id
			asked[i] = s
		}
	}
	if c.maxOut > 0 && len(ack.Append(nil, c.version)) > c.maxOut { // [MQTT-3.1.2-24]
		return &packet.Error{Code: packet.TooLarge, Text: "SUBSCRIBE whose SUBACK is too large for the client"}
	}
	w := &wanted{asked: asked, codes: ack.Codes, ack: &ack, slot: c.reserve(packet.SUBACK, p.PID, 0)}
	if err := c.subscribe(w); err != nil {
		return err
	}
	if w.refused {
		c.b.gate.offence(c, "wants more subscriptions than a session may have")
	}
	return c.toil(cost + time.Duration(w.retained)*retainedToil)
}

// judge makes the subscription of one filter and its code in SUBACK; nil with a
// code of failure, or with a grant that delivers nothing (3.1 has no failure).
func (c *conn) judge(f packet.Filter, set *settings) (*sub, byte, error) {
	if tooDeep(f.Filter) {
		c.b.gate.offence(c, fmt.Sprintf("wants a filter of more than %d levels", maxLevels))
		return nil, c.refused(f.QoS, packet.BadFilter), nil
	}
	refused := c.refused(f.QoS, packet.NotAuthorized)
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

// roomFor says whether the session may have a further filter. core.mu is held.
func (s *session) roomFor(filter string) bool {
	w := weigh(filter)
	return len(s.subs) < maxSubscriptions && s.weight+w <= maxSessionWeight && s.b.subs.weight+w <= maxWeight
}

// refused is how a SUBACK of each version says no. 3.1 cannot: it grants what was
// asked for, and nothing is delivered.
func (c *conn) refused(qos, code byte) byte {
	switch c.version {
	case packet.V311:
		return 0x80
	case packet.V31:
		return qos
	}
	return code
}

// wanted is what is left to do of a SUBSCRIBE.
type wanted struct {
	asked    []*sub // nil = refused already
	codes    []byte // of these in ack
	ack      *packet.Suback
	slot     *slot // the place of ack
	refused  bool  // there was no room for one
	retained int   // messages that they brought
}

// subscribe hangs the subscriptions up and queues their retained messages, some
// at a time. As long as it takes turns with others, no message leaves for the
// client: its retained ones come behind SUBACK.
func (c *conn) subscribe(w *wanted) error {
	if turn(w.asked, (*sub).bytes) < len(w.asked) {
		c.mu.Lock()
		w.slot.holds = true
		c.holding++
		c.mu.Unlock()
	}
	for {
		n := turn(w.asked, (*sub).bytes)
		if err := c.whenReady(0, func() error { return c.hang(w, n) }); err != nil || n == len(w.asked) {
			return err
		}
		w.asked, w.codes = w.asked[n:], w.codes[n:]
		if err := c.breathe(); err != nil {
			return err
		}
	}
}

// bytes is the length of the filter; nil is one that was refused.
func (s *sub) bytes() int {
	if s == nil {
		return 0
	}
	return len(s.Filter)
}

// hang makes the next n subscriptions; with the last of them SUBACK is ready.
func (c *conn) hang(w *wanted, n int) error {
	b := c.b
	b.mu.Lock()
	defer b.mu.Unlock()
	s := c.sess
	switch {
	case s.conn != c:
		return c.superseded()
	case s.consumer != 0 && b.store.Busy():
		return ErrBusy
	}
	asked, last := w.asked[:n], n == len(w.asked)
	fresh := make([]bool, n)
	var ops []Op
	for i, v := range asked {
		if v == nil {
			continue
		}
		old := s.subs[v.Filter]
		if fresh[i] = old == nil; old != nil {
			b.subs.remove(old) // [MQTT-3.8.4-3]
		} else if !s.roomFor(v.Filter) {
			w.codes[i], w.refused = c.refused(v.QoS, packet.QuotaExceeded), true
			asked[i] = nil
			continue
		}
		s.subs[v.Filter] = v
		b.subs.add(v)
		if s.consumer != 0 {
			ops = append(ops, SaveSubscription{Client: s.id, Subscription: v.Subscription})
		}
	}
	var sl *slot
	if last {
		sl = w.slot
		sl.raw = w.ack.Append(nil, c.version)
	}
	after := Seq(0)
	if last && s.consumer == 0 && c.nothingBefore(sl) {
		sl.fill(0)
	} else {
		var err error
		if after, err = c.save(ops, sl); err != nil {
			return &ending{code: refusal(err), text: "its subscription cannot be kept: " + err.Error()}
		}
	}
	for i, v := range asked {
		if v != nil && v.group == nil && (v.RetainHandling == 0 || v.RetainHandling == 1 && fresh[i]) {
			w.retained += b.sendRetained(s, v, after)
		}
	}
	return nil
}

// save gives the store changes of subscriptions: with the place of the answer to
// all of them, which is filled when they are on disk, or nil while more follow.
// core.mu is held.
func (c *conn) save(ops []Op, sl *slot) (Seq, error) {
	e := Entry{Ops: ops, Done: &c.b.rel}
	switch {
	case sl != nil:
		e.Wait, e.Done = true, sl
	case len(ops) == 0:
		return 0, nil
	}
	err := c.b.store.Append(&e)
	return e.Seq, err
}

// superseded is why the reader ends whose session another connection has.
func (c *conn) superseded() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.kicked != nil {
		return c.kicked
	}
	return &ending{text: "its session ended"}
}

// nothingBefore says whether no answer waits in front of that of sl.
func (c *conn) nothingBefore(sl *slot) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.slots.first == sl
}

// sendRetained queues the retained messages of a new subscription, in topic
// order, behind its SUBACK, and says how many there are.
func (b *Broker) sendRetained(s *session, v *sub, after Seq) int {
	acl := b.set.Load().acl
	all := b.kept.match(v.filter, time.Now())
	for _, h := range all {
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
	return len(all)
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
	cost := time.Duration(0)
	for _, f := range p.Filters {
		cost += filterToil + lengthy(f)
	}
	return c.toil(cost)
}

func (c *conn) unsubscribe(p *packet.Unsubscribe) error {
	ack := packet.Unsuback{PID: p.PID, Codes: make([]byte, len(p.Filters))}
	if c.maxOut > 0 && len(ack.Append(nil, c.version)) > c.maxOut { // [MQTT-3.1.2-24]
		return &packet.Error{Code: packet.TooLarge, Text: "UNSUBSCRIBE whose UNSUBACK is too large for the client"}
	}
	sl := c.reserve(packet.UNSUBACK, p.PID, 0)
	filters, codes := p.Filters, ack.Codes
	for {
		n := turn(filters, func(f string) int { return len(f) })
		last := n == len(filters)
		err := c.whenReady(0, func() error {
			if last {
				return c.takeDown(filters, codes, &ack, sl)
			}
			return c.takeDown(filters[:n], codes, nil, nil)
		})
		if err != nil || last {
			return err
		}
		filters, codes = filters[n:], codes[n:]
		if err := c.breathe(); err != nil {
			return err
		}
	}
}

// takeDown ends subscriptions of the session and notes their codes. With the last
// ones of an UNSUBSCRIBE come ack, its answer, and the place of that, sl.
func (c *conn) takeDown(filters []string, codes []byte, ack *packet.Unsuback, sl *slot) error {
	b := c.b
	b.mu.Lock()
	defer b.mu.Unlock()
	s := c.sess
	switch {
	case s.conn != c:
		return c.superseded()
	case s.consumer != 0 && b.store.Busy():
		return ErrBusy
	}
	var ops []Op
	for i, f := range filters {
		old := s.subs[f] // compared character by character [MQTT-3.10.4-1]
		if old == nil {
			codes[i] = packet.NoSubscription
			continue
		}
		b.subs.remove(old)
		delete(s.subs, f)
		ops = append(ops, DropSubscription{Client: s.id, Filter: f})
	}
	if sl != nil {
		sl.raw = ack.Append(nil, c.version)
	}
	if s.consumer == 0 {
		if sl != nil {
			sl.fill(0)
		}
		return nil
	}
	if _, err := c.save(ops, sl); err != nil {
		return &ending{code: refusal(err), text: "its session cannot be kept: " + err.Error()}
	}
	return nil
}
