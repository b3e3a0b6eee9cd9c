package durable

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"busgate/buffer"
	"busgate/embeddedbroker"
)

// lane keeps every topic in one lane: kinds have topics of their own.
func lane(k embeddedbroker.Kind) uint8 {
	switch k {
	case embeddedbroker.KindStatus:
		return buffer.LaneState
	case embeddedbroker.KindReading:
		return buffer.LaneLive
	}
	return buffer.LaneLAN
}

// scratch is what records works in; the buffer copies what it is given.
type scratch struct {
	rs      []buffer.Record
	up, own []buffer.ConsumerID
	numbers []buffer.Number
	tags    []embeddedbroker.Target
	props   []byte
}

// records makes one record for all uplinks and one for all sessions, valid
// until the next call. d.order is held.
func (d *Store) records(e *embeddedbroker.Entry) []buffer.Record {
	if e.Msg == nil || len(e.Targets) == 0 {
		return nil
	}
	m, w := e.Msg, &d.work
	w.up, w.own, w.numbers, w.tags = w.up[:0], w.own[:0], w.numbers[:0], w.tags[:0]
	d.mu.Lock()
	for _, t := range e.Targets {
		id := buffer.ConsumerID(t.Consumer)
		name, ok := d.uplinks[id]
		if !ok {
			w.own = append(w.own, id)
			w.tags = append(w.tags, t)
			continue
		}
		w.up = append(w.up, id)
		if m.Kind == embeddedbroker.KindReading {
			w.numbers = append(w.numbers, d.s.Stream(name).Next())
		}
	}
	d.mu.Unlock()
	r := buffer.Record{Lane: lane(m.Kind), QoS: m.QoS, Retain: m.Retain, Kind: uint8(m.Kind), Topic: m.Topic, Payload: m.Payload,
		Expires: m.Expires, At: m.Wall, Mono: m.Mono}
	w.rs = w.rs[:0]
	if len(w.up) > 0 {
		r.To, r.Numbers, r.Props, r.Thinnable = w.up, w.numbers, m.Props, m.Kind == embeddedbroker.KindReading
		w.rs = append(w.rs, r)
	}
	if len(w.own) > 0 {
		w.props = appendTags(w.props[:0], w.tags, m)
		r.To, r.Numbers, r.Props, r.Thinnable = w.own, nil, w.props, false
		w.rs = append(w.rs, r)
	}
	return w.rs
}

// forget drops what the scratch refers to.
func (w *scratch) forget() {
	clear(w.rs)
	clear(w.tags)
	if cap(w.props) > maxScratch {
		w.props = nil
	}
}

// appendTags puts what each delivery needs, and the publisher, in front of the
// properties.
func appendTags(dst []byte, tags []embeddedbroker.Target, m *embeddedbroker.Message) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(tags)))
	for _, t := range tags {
		dst = binary.AppendUvarint(dst, uint64(t.Consumer))
		dst = binary.AppendUvarint(dst, t.Ord)
		flags := t.QoS
		if t.Retain {
			flags |= 4
		}
		if t.Shared {
			flags |= 8
		}
		dst = append(dst, flags)
		dst = binary.AppendUvarint(dst, uint64(len(t.SubIDs)))
		for _, id := range t.SubIDs {
			dst = binary.AppendUvarint(dst, uint64(id))
		}
	}
	dst = binary.AppendUvarint(dst, uint64(len(m.From)))
	dst = append(dst, m.From...)
	return append(dst, m.Props...)
}

var errTags = errors.New("its delivery notes are damaged")

// decodeDelivery turns a record back into the delivery to one session.
func decodeDelivery(r *buffer.Record, id embeddedbroker.ConsumerID) (embeddedbroker.Delivery, error) {
	t := tagReader{b: r.Props}
	d := embeddedbroker.Delivery{Seq: embeddedbroker.Seq(r.Seq)}
	found := false
	for range t.count() {
		consumer, ord, flags := t.uvarint(), t.uvarint(), t.byte()
		mine := consumer == uint64(id)
		if mine {
			found, d.Ord, d.QoS, d.Retain, d.Shared = true, ord, flags&3, flags&4 != 0, flags&8 != 0
		}
		for range t.count() {
			if sub := uint32(t.uvarint()); mine {
				d.SubIDs = append(d.SubIDs, sub)
			}
		}
	}
	from := t.bytes(t.count())
	if t.bad || !found {
		return d, errTags
	}
	d.Msg = &embeddedbroker.Message{Topic: r.Topic, Payload: r.Payload, QoS: r.QoS, Retain: r.Retain, Expires: r.Expires,
		Kind: embeddedbroker.Kind(r.Kind), From: string(from), Mono: r.Mono, Wall: r.At}
	if len(t.b) > 0 {
		d.Msg.Props = t.b
	}
	return d, nil
}

// tagReader reads notes; after a failure it gives zeros and bad is set.
type tagReader struct {
	b   []byte
	bad bool
}

func (t *tagReader) uvarint() uint64 {
	v, n := binary.Uvarint(t.b)
	if n <= 0 {
		t.bad, t.b = true, nil
		return 0
	}
	t.b = t.b[n:]
	return v
}

// count is a number of things that take at least one byte each.
func (t *tagReader) count() int {
	n := t.uvarint()
	if n > uint64(len(t.b)) {
		t.bad, t.b = true, nil
		return 0
	}
	return int(n)
}

func (t *tagReader) byte() byte {
	b := t.bytes(1)
	if len(b) == 0 {
		return 0
	}
	return b[0]
}

func (t *tagReader) bytes(n int) []byte {
	if n > len(t.b) {
		t.bad, t.b = true, nil
		return nil
	}
	b := t.b[:n]
	t.b = t.b[n:]
	return b
}

// changes turns operations into changes of tables. Names of the sessions that
// go are forgotten here too.
func (d *Store) changes(e *embeddedbroker.Entry) []buffer.Change {
	var cs []buffer.Change
	for _, op := range e.Ops {
		switch op := op.(type) {
		case embeddedbroker.SaveSession:
			cs = append(cs, buffer.Session{Client: op.Session.Client, Data: encode(op.Session)})
		case embeddedbroker.DropSession:
			cs = append(cs, buffer.Session{Client: op.Client, Gone: true}, buffer.Drop{Consumer: buffer.ConsumerID(op.Consumer)})
			d.drop(op.Consumer)
		case embeddedbroker.SaveSubscription:
			cs = append(cs, buffer.Subscription{Client: op.Client, Filter: op.Subscription.Filter, Data: encode(op.Subscription)})
		case embeddedbroker.DropSubscription:
			cs = append(cs, buffer.Subscription{Client: op.Client, Filter: op.Filter, Gone: true})
		case embeddedbroker.SaveRetained:
			cs = append(cs, encodeRetained(e.Msg))
		case embeddedbroker.DropRetained:
			cs = append(cs, buffer.Retained{Topic: op.Topic, Gone: true})
		case embeddedbroker.MarkIn:
			cs = append(cs, buffer.Inbound{Client: op.Client, ID: op.PID, Gone: op.Drop})
		case embeddedbroker.MarkOut:
			cs = append(cs, buffer.Released{Consumer: buffer.ConsumerID(op.Consumer), Seq: uint64(op.Seq), Tag: op.PID})
		}
	}
	return cs
}

// weigh is about how many bytes of a batch an entry takes.
func weigh(records []buffer.Record, changes []buffer.Change) int64 {
	n := entryWeight * (1 + len(records))
	for i := range records {
		r := &records[i]
		n += len(r.Topic) + len(r.Payload) + len(r.Props)
	}
	for _, c := range changes {
		switch c := c.(type) {
		case buffer.Session:
			n += len(c.Client) + len(c.Data)
		case buffer.Subscription:
			n += len(c.Client) + len(c.Filter) + len(c.Data)
		case buffer.Retained:
			n += len(c.Topic) + len(c.Data) + len(c.Payload)
		default:
			n += entryWeight
		}
	}
	return int64(n)
}

// encode writes what is rarely written and worth reading with other tools.
func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic("durable: " + err.Error()) // plain structs of ours
	}
	return b
}

// found is a session while its parts are gathered.
type found struct {
	session embeddedbroker.Session
	subs    []embeddedbroker.Subscription
	in      []uint16
}

func (f *found) decode(data []byte) error {
	if len(data) == 0 {
		return nil
	}
	if err := json.Unmarshal(data, &f.session); err != nil {
		return fmt.Errorf("session: %w", err)
	}
	return nil
}

func (f *found) subscribe(c buffer.Subscription) error {
	var s embeddedbroker.Subscription
	if err := json.Unmarshal(c.Data, &s); err != nil {
		return fmt.Errorf("subscription %q of %q: %w", c.Filter, c.Client, err)
	}
	f.subs = append(f.subs, s)
	return nil
}

// retainedNotes is what of a retained message is neither topic nor payload.
type retainedNotes struct {
	QoS     byte                `json:"q"`
	Kind    embeddedbroker.Kind `json:"k,omitempty"`
	Expires int64               `json:"e,omitempty"` // ms UTC
	Wall    int64               `json:"w,omitempty"`
	From    string              `json:"f,omitempty"`
	Props   []byte              `json:"p,omitempty"`
}

func encodeRetained(m *embeddedbroker.Message) buffer.Retained {
	if len(m.Payload) == 0 {
		return buffer.Retained{Topic: m.Topic, Gone: true}
	}
	return buffer.Retained{Topic: m.Topic, Payload: m.Payload,
		Data: encode(retainedNotes{QoS: m.QoS, Kind: m.Kind, Expires: millis(m.Expires), Wall: millis(m.Wall), From: m.From, Props: m.Props})}
}

func decodeRetained(r buffer.Retained) (*embeddedbroker.Message, error) {
	var n retainedNotes
	if err := json.Unmarshal(r.Data, &n); err != nil {
		return nil, fmt.Errorf("retained %q: %w", r.Topic, err)
	}
	return &embeddedbroker.Message{Topic: r.Topic, Payload: r.Payload, QoS: n.QoS, Retain: true, Kind: n.Kind,
		Expires: instant(n.Expires), Wall: instant(n.Wall), From: n.From, Props: n.Props}, nil
}

func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func instant(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}
