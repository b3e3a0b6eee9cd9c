package uplink

import (
	"fmt"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
)

// world is a session between a store and a model broker, moved one event at a
// time, so that a fault can be put between any two.
type world struct {
	qos    byte
	atPub  bool // the broker delivers QoS 2 at PUBLISH
	noR    bool // R is not kept: what the rule is there for
	st     *fakeStore
	s      *session
	up     []packets.ControlPacket // on the way to the broker
	down   []packets.ControlPacket
	known  bool // the broker has a session
	in     map[uint16]string
	ledger []string
	now    time.Time
	queue  []*flight // leased, waiting for room
}

const worldWindow = 3

func newWorld(qos byte, atPub bool, n int) *world {
	w := &world{qos: qos, atPub: atPub, st: newFakeStore(65532, worldWindow), s: newSession(), in: map[uint16]string{}, now: time.Unix(0, 0)}
	w.st.manual = true
	w.st.fill(n)
	w.connect()
	return w
}

// start is what a new process does.
func (w *world) start() {
	w.s, w.queue = newSession(), nil
	for _, o := range w.st.Owed() {
		if o.Released {
			w.s.add(&flight{first: o.Ord, last: o.Ord, qos: 2, step: released, again: true})
		}
	}
}

// connect is CONNECT, CONNACK and what Link.prepare does.
func (w *world) connect() {
	w.up, w.down = nil, nil
	w.s.disconnected()
	if w.s.busy {
		for w.s.busy {
			if !w.st.commit() {
				panic("a release without an answer")
			}
		}
	}
	present := w.known
	w.known = true
	if !present {
		clear(w.in)
		w.s.wiped()
	}
	if w.noR || !present && w.s.taken() {
		w.st.Unrelease(func(error) {})
		for w.st.commit() {
		}
		w.flushAcks()
		w.s.drop()
		w.queue = nil
		w.st.Rewind()
	}
	w.s.pump()
	w.emit()
}

func (w *world) flushAcks() {
	w.st.Ack(w.s.acks...)
	w.s.acks = w.s.acks[:0]
}

// emit moves what the session wrote to the wire.
func (w *world) emit() {
	for _, fr := range w.s.out {
		w.up = append(w.up, fr.p)
		if fr.f != nil {
			w.s.written(fr.f, w.now)
		}
	}
	w.s.out = w.s.out[:0]
	w.flushAcks()
	if w.s.settle(); len(w.s.recs) > 0 {
		recs := w.s.recs
		w.s.recs = nil
		s := w.s
		w.st.Release(func(error) { s.durable() }, recs...)
	}
}

// event does the next thing that can happen of kind k, false when it cannot.
func (w *world) event(k int) bool {
	w.now = w.now.Add(time.Millisecond)
	switch k {
	case 0: // the store gives records
		rs := w.st.take(worldWindow - w.s.open())
		for _, r := range rs {
			w.s.add(&flight{first: r.Ord, last: r.Ord, topic: r.Topic, payload: r.Payload, qos: w.qos, again: r.Dup && w.qos > 0})
		}
		w.emit()
		return len(rs) > 0
	case 1:
		if len(w.up) == 0 {
			return false
		}
		p := w.up[0]
		w.up = w.up[1:]
		w.broker(p)
	case 2:
		if len(w.down) == 0 {
			return false
		}
		p := w.down[0]
		w.down = w.down[1:]
		switch p := p.(type) {
		case *packets.PubackPacket:
			w.s.puback(p.MessageID, w.now)
		case *packets.PubrecPacket:
			w.s.pubrec(p.MessageID, w.now)
		case *packets.PubcompPacket:
			w.s.pubcomp(p.MessageID, w.now)
		}
		w.emit()
	case 3:
		if !w.st.commit() {
			return false
		}
		w.emit()
	case 4:
		if len(w.st.saved) == len(w.st.acked) {
			return false
		}
		w.st.save()
	}
	return true
}

// broker is MQTT 3.1.1 as the receiver of messages.
func (w *world) broker(p packets.ControlPacket) {
	switch p := p.(type) {
	case *packets.PublishPacket:
		switch p.Qos {
		case 0:
			w.ledger = append(w.ledger, string(p.Payload))
		case 1:
			w.ledger = append(w.ledger, string(p.Payload))
			a := packets.NewControlPacket(packets.Puback).(*packets.PubackPacket)
			a.MessageID = p.MessageID
			w.down = append(w.down, a)
		case 2:
			if _, ok := w.in[p.MessageID]; !ok {
				w.in[p.MessageID] = string(p.Payload)
				if w.atPub {
					w.ledger = append(w.ledger, string(p.Payload))
				}
			}
			a := packets.NewControlPacket(packets.Pubrec).(*packets.PubrecPacket)
			a.MessageID = p.MessageID
			w.down = append(w.down, a)
		}
	case *packets.PubrelPacket:
		if m, ok := w.in[p.MessageID]; ok && !w.atPub {
			w.ledger = append(w.ledger, m)
		}
		delete(w.in, p.MessageID)
		a := packets.NewControlPacket(packets.Pubcomp).(*packets.PubcompPacket)
		a.MessageID = p.MessageID
		w.down = append(w.down, a)
	}
}

// fault is what can happen between two events.
func (w *world) fault(kind string) {
	switch kind {
	case "cut":
		w.connect()
	case "kill": // the connection of a killed process ends, too
		w.st = w.st.kill()
		w.start()
		w.connect()
	case "wipe":
		w.known = false
		w.connect()
	case "wipe+kill":
		w.known = false
		w.st = w.st.kill()
		w.start()
		w.connect()
	}
}

// run plays all events in turn, with faults before the events of these numbers,
// until nothing happens any more. It returns the number of events.
func (w *world) run(faults map[int]string) int {
	n, idle := 0, 0
	for k := 0; idle < 5; k++ {
		if kind, ok := faults[n]; ok {
			delete(faults, n)
			w.fault(kind)
			idle = 0
		}
		if w.event(k % 5) {
			n, idle = n+1, 0
		} else {
			idle++
		}
	}
	return n
}

// tally compares the ledger with what was sent.
func tally(n int, ledger []string) (lost, twice, reordered int) {
	seen := map[string]bool{}
	top := -1
	for _, m := range ledger {
		var i int
		fmt.Sscan(m, &i)
		if seen[m] {
			twice++
			continue
		}
		seen[m] = true
		if i < top {
			reordered++
		}
		top = max(top, i)
	}
	return n - len(seen), twice, reordered
}
