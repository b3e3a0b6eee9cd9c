package embeddedbroker

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"busgate/config/report"
	"busgate/embeddedbroker/packet"
)

// handle obeys one packet. An error ends the connection.
func (c *conn) handle(h packet.Header, body []byte) error {
	c.b.n.packetsIn.Add(1)
	if h.Long && c.version == packet.V5 {
		return &packet.Error{Code: packet.Malformed, Text: "remaining length not in its shortest form"}
	}
	if err := packet.CheckFlags(h, c.version); err != nil {
		return err
	}
	switch h.Type {
	case packet.PUBLISH:
		if err := c.pub.Decode(h, body, c.version); err != nil {
			return err
		}
		return c.onPublish(&c.pub)
	case packet.PUBACK, packet.PUBREC, packet.PUBREL, packet.PUBCOMP:
		var a packet.Ack
		if err := a.Decode(h, body, c.version); err != nil {
			return err
		}
		return c.onAck(&a)
	case packet.SUBSCRIBE:
		var s packet.Subscribe
		if err := s.Decode(h, body, c.version); err != nil {
			return err
		}
		return c.onSubscribe(&s)
	case packet.UNSUBSCRIBE:
		var u packet.Unsubscribe
		if err := u.Decode(h, body, c.version); err != nil {
			return err
		}
		return c.onUnsubscribe(&u)
	case packet.PINGREQ:
		if len(body) != 0 {
			return &packet.Error{Code: packet.Malformed, Text: "PINGREQ with a body"}
		}
		c.b.n.answers.Add(1)
		c.mu.Lock()
		c.ctl = append(c.ctl, byte(packet.PINGRESP)<<4, 0) // [MQTT-3.12.4-1]
		c.mu.Unlock()
		return nil
	case packet.DISCONNECT:
		var d packet.Disconnect
		if err := d.Decode(h, body, c.version); err != nil {
			return err
		}
		return c.onDisconnect(&d)
	}
	return &packet.Error{Code: packet.ProtocolError, Text: h.Type.String() + " after CONNECT"} // [MQTT-3.1.0-2]
}

func (c *conn) onDisconnect(d *packet.Disconnect) error {
	if v, ok := d.Props.Uint(packet.SessionExpiry); ok {
		c.b.mu.Lock()
		defer c.b.mu.Unlock()
		if s := c.sess; s.conn == c {
			if v != 0 && s.expiry == 0 {
				return &packet.Error{Code: packet.ProtocolError, Text: "DISCONNECT gives a session an expiry that CONNECT did not"}
			}
			s.expiry = min(time.Duration(v)*time.Second, c.b.set.Load().cfg.SessionExpiry)
		}
	}
	return &ending{clean: d.Code == packet.Success, text: "disconnected"}
}

// resolve finds the topic of a PUBLISH, by alias if it has one.
func (c *conn) resolve(p *packet.Publish) (string, error) {
	if !p.HasAlias {
		if string(p.Topic) != c.topic { // most clients stay with one
			c.topic = string(p.Topic)
		}
		return c.topic, nil
	}
	if p.Alias == 0 || p.Alias > inboundAlias {
		return "", &packet.Error{Code: packet.BadAlias, Text: "topic alias out of range"} // [MQTT-3.3.2-8] [MQTT-3.3.2-9]
	}
	if len(p.Topic) == 0 {
		t, ok := c.aliasIn[p.Alias]
		if !ok {
			return "", &packet.Error{Code: packet.ProtocolError, Text: "topic alias was never set"}
		}
		return t, nil
	}
	if c.aliasIn == nil {
		c.aliasIn = map[uint16]string{}
	}
	if c.aliased += len(p.Topic) - len(c.aliasIn[p.Alias]); c.aliased > inboundTopics {
		c.b.n.refusedAliases.Add(1)
		return "", &packet.Error{Code: packet.QuotaExceeded, Text: fmt.Sprintf("topic aliases for more than %d bytes of topics", inboundTopics)}
	}
	t := string(p.Topic)
	c.aliasIn[p.Alias] = t
	return t, nil
}

func (c *conn) onPublish(p *packet.Publish) error {
	c.b.n.received.Add(1)
	c.b.n.publishBytes.Add(uint64(len(p.Payload)))
	set := c.b.set.Load()
	topic, err := c.resolve(p)
	if err != nil {
		return err
	}
	if tooDeep(topic) {
		return &packet.Error{Code: packet.BadTopic, Text: fmt.Sprintf("topic of more than %d levels", maxLevels)}
	}
	if len(p.SubIDs) > 0 {
		return &packet.Error{Code: packet.ProtocolError, Text: "PUBLISH of a client with a subscription id"} // [MQTT-3.3.4-6]
	}
	if p.Retain && !set.cfg.Retain {
		if c.version == packet.V5 {
			return &packet.Error{Code: packet.RetainUnsupported, Text: "retain is off"} // [MQTT-3.2.2-14]
		}
		p.Retain = false
	}
	if p.QoS > 0 {
		if err := c.account(p.PID); err != nil {
			return err
		}
	}
	if c.denied(topic, set) {
		c.answer(p, packet.NotAuthorized)
		return nil
	}
	if set.cfg.CheckFormat && mislabelled(p) {
		c.answer(p, packet.BadPayloadFormat)
		return nil
	}
	if p.QoS == 2 && c.repeated(p.PID) {
		return nil
	}
	if err := c.route(p, c.message(p, topic)); err != nil || len(topic) <= longTopic {
		return err
	}
	return c.toil(lengthy(topic))
}

// message copies what outlives the packet.
func (c *conn) message(p *packet.Publish, topic string) *Message {
	own := make([]byte, len(p.Payload)+len(p.Props))
	n := copy(own, p.Payload)
	copy(own[n:], p.Props)
	m := &Message{Topic: topic, Payload: own[:n:n], QoS: p.QoS, Retain: p.Retain, From: c.id}
	if len(p.Props) > 0 {
		m.Props = own[n:]
	}
	m.Wall = c.wall
	if p.HasExpiry {
		m.Expires = c.now.Add(time.Duration(p.Expiry) * time.Second)
	}
	return m
}

// account opens an inbound message; one too many is an error of the client
// [MQTT-3.3.4-9].
func (c *conn) account(pid uint16) error {
	if c.version != packet.V5 {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open[pid] = struct{}{}
	if len(c.open) > receiveMax {
		return &packet.Error{Code: packet.ReceiveMaxExceeded, Text: "more open messages than receive maximum"}
	}
	return nil
}

// answer takes the next place for the answer to p and fills it: positive before
// 5.0, which has no other [MQTT-3.3.5-2].
func (c *conn) answer(p *packet.Publish, code byte) {
	if p.QoS == 0 {
		return
	}
	if c.version != packet.V5 {
		code = 0
	}
	c.reserve(ackType(p.QoS), p.PID, 0).fill(code)
}

func ackType(qos byte) packet.Type {
	if qos == 2 {
		return packet.PUBREC
	}
	return packet.PUBACK
}

// repeated answers a QoS 2 PUBLISH whose id is open already: PUBREC again, when
// the first one is on disk, and no second delivery [MQTT-4.3.3-10].
func (c *conn) repeated(pid uint16) bool {
	s := c.sess
	s.mu.Lock()
	open := s.in[pid]
	s.mu.Unlock()
	if !open {
		return false
	}
	sl := c.reserve(packet.PUBREC, pid, 0)
	if s.consumer == 0 {
		sl.fill(0)
		return true
	}
	c.b.mu.Lock()
	defer c.b.mu.Unlock()
	c.barrierLocked(sl, nil)
	return true
}

// barrierLocked lets an answer to a persistent session go when everything before
// it is on disk, ops included; false: they cannot be kept and the connection
// ends. core.mu is held.
func (c *conn) barrierLocked(sl *slot, ops []Op) bool {
	err := c.b.store.Append(&Entry{Ops: ops, Wait: true, Done: sl})
	if err != nil {
		c.kick(&ending{code: refusal(err), text: "its session cannot be kept: " + err.Error()})
	}
	return err == nil
}

// route gives the message to the router and lets the answer go when it may.
func (c *conn) route(p *packet.Publish, m *Message) error {
	pub := publication{msg: m, wait: p.QoS > 0}
	var sl *slot
	if p.QoS > 0 {
		sl = c.reserve(ackType(p.QoS), p.PID, len(p.Payload))
		pub.done, pub.slot = sl, sl
	}
	if p.QoS == 2 && c.sess.consumer != 0 {
		pub.ops = []Op{MarkIn{Client: c.id, PID: p.PID}}
	}
	waiting, err := c.publish(&pub, p)
	switch {
	case err != nil && p.QoS > 0:
		return c.full(sl, &pub, p, err)
	case p.QoS > 0 && !waiting:
		sl.fill(sl.code)
	}
	return nil
}

// publish routes once; a QoS 2 id is open from then on. A stale connection
// changes nothing.
func (c *conn) publish(pub *publication, p *packet.Publish) (waiting bool, err error) {
	b := c.b
	b.mu.Lock()
	defer b.mu.Unlock()
	if c.sess.conn != c {
		return true, nil // superseded: nobody is there to be answered
	}
	waiting, err = b.publishLocked(&c.origin, pub)
	if err == nil && p.QoS == 2 {
		c.sess.mu.Lock()
		c.sess.openLocked(p.PID)
		c.sess.mu.Unlock()
	}
	return waiting, err
}

// full handles a message that the store refused. 5.0 is told so; before, the
// answer is withheld and the reader waits for room.
func (c *conn) full(sl *slot, pub *publication, p *packet.Publish, err error) error {
	busy := errors.Is(err, ErrBusy)
	if c.version != packet.V5 && !busy && !errors.Is(err, ErrFull) && !errors.Is(err, ErrReadOnly) {
		return &ending{text: "its message can never be kept: " + err.Error()}
	}
	if c.version == packet.V5 && !busy {
		c.b.n.refusedFull.Add(1)
		sl.fill(refusal(err))
		return nil
	}
	c.b.n.withheld.Add(1)
	began := time.Now()
	for {
		if err := c.pause(fullRetry); err != nil {
			return err
		}
		waiting, err := c.publish(pub, p)
		if err == nil {
			if !waiting {
				sl.fill(sl.code)
			}
			return nil
		}
		if !errors.Is(err, ErrBusy) && time.Since(began) >= fullWait {
			return &ending{code: refusal(err), text: "its message cannot be kept: " + err.Error()}
		}
	}
}

// whenReady does what changes durable state for a client, again and again as long
// as the store is busy, but not for longer than limit unless that is 0.
func (c *conn) whenReady(limit time.Duration, do func() error) error {
	began := time.Now()
	for first := true; ; first = false {
		err := do()
		if !errors.Is(err, ErrBusy) || limit > 0 && time.Since(began) >= limit {
			return err
		}
		if first {
			c.b.n.withheld.Add(1)
		}
		if err := c.pause(fullRetry); err != nil {
			return err
		}
	}
}

// pause waits, unless the connection is to end.
func (c *conn) pause(d time.Duration) error {
	until := time.Now().Add(d) // before the timer starts: there is one wake-up, and it must find that time is up
	stop := time.AfterFunc(d, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.cond.Broadcast()
	})
	defer stop.Stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.kicked == nil && time.Now().Before(until) {
		c.cond.Wait()
	}
	c.listenLocked()
	if c.kicked != nil {
		return c.kicked
	}
	return nil
}

// denied says whether the client may not write to topic; it is told and counted
// once here.
func (c *conn) denied(topic string, set *settings) bool {
	if c.b.reserved(topic) {
		c.b.n.refusedReserved.Add(1)
		c.b.ladder.Fail(report.Report{Err: "lan-acl", Level: slog.LevelWarn, Who: "broker",
			Text: c.who() + " may not write " + report.Name(topic) + ": the gateway publishes it itself"})
		return true
	}
	if !set.acl.may(c.user, c.id, topic, true) {
		c.b.n.refusedACL.Add(1)
		c.b.ladder.Fail(report.Report{Err: "lan-acl", Level: slog.LevelWarn, Who: "broker",
			Text: c.who() + " may not write " + report.Name(topic) + " (acl)"})
		return true
	}
	return false
}

// who names the client for people.
func (c *conn) who() string {
	if c.user != "" {
		return "user " + report.Name(c.user)
	}
	return "client " + report.Name(c.id)
}
