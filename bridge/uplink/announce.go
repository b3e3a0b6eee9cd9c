package uplink

import (
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"busgate/buffer"
	"busgate/config"
	"busgate/embeddedbroker"
)

// factIdentity is the key under which the identity of the last session is kept.
const factIdentity = "identity"

// drainPatience is how long a link goes on draining before it leaves for a
// broker or session that does not know what is in flight.
const drainPatience = 30 * time.Second

// announce says who we are: birth, the states of the devices, subscriptions.
// Birth follows CONNACK because a broker that a connection of the same client id
// is taken over from publishes the old will first.
func (l *Link) announce(e *epoch) {
	if l.base.will { // also when the will itself is switched off: the cloud shows whether it bears anything
		l.s.say(l.set.topics.remote(l.set.status()), []byte("online"), l.set.retain, nil)
	}
	if l.o.Birth != nil && !l.suspect.bare {
		filters, want := Wants(&l.set.cfg, &l.gw)
		birth := l.o.Birth()
		for _, m := range birth {
			if want(m) && m.Topic != l.set.status() && slices.ContainsFunc(filters, func(f string) bool { return matches(f, m.Topic) }) {
				l.introduce(m, birth)
			}
		}
	}
	l.subscribe()
	l.report(e)
}

// introduce says one message of birth.
func (l *Link) introduce(m *embeddedbroker.Message, birth []*embeddedbroker.Message) {
	topic, payload, retain := l.rename(m.Topic), m.Payload, m.Retain && l.set.retain
	var told func(packets.ControlPacket)
	if m.Topic == l.gw.Base()+"/gateway/info" {
		payload, told = l.closingNumber(payload), func(packets.ControlPacket) { l.closingTold() }
	}
	if l.set.thingsboard() {
		r := buffer.Record{Topic: m.Topic, Payload: payload, Kind: uint8(m.Kind), At: m.Wall}
		var ok bool
		if topic, payload, ok = l.coder.board(&r); !ok || topic != boardDisconnect && l.offline(m.Topic, birth) {
			return
		}
		retain = false
	}
	if int64(len(topic)+len(payload)) <= l.set.maxPacket-maxHeader {
		l.s.say(topic, payload, retain, told)
	}
}

// offline tells that birth says so of the device that a topic belongs to.
func (l *Link) offline(topic string, birth []*embeddedbroker.Message) bool {
	rest, _ := strings.CutPrefix(topic, l.gw.Base()+"/")
	device, kind, _ := strings.Cut(rest, "/")
	status := l.gw.Base() + "/" + device + "/status"
	return kind != "error" && device != "gateway" && slices.ContainsFunc(birth, func(m *embeddedbroker.Message) bool {
		return m.Topic == status && string(m.Payload) == "offline"
	})
}

// subscribe makes the subscriptions of this session those of the configuration.
// What the broker refuses is tried again at the next connect.
func (l *Link) subscribe() {
	var gone, wanted []string
	for _, f := range l.filters {
		if !slices.Contains(l.set.routesIn, f) {
			gone = append(gone, f)
		}
	}
	for _, f := range l.set.routesIn {
		if !slices.Contains(l.filters, f) {
			wanted = append(wanted, f)
		}
	}
	l.filters = slices.DeleteFunc(l.filters, func(f string) bool { return slices.Contains(gone, f) })
	l.s.unsubscribe(gone)
	l.s.subscribe(wanted, func(filter string, code byte) {
		if code > 2 {
			l.log.Warn("the cloud refuses a subscription; commands by it will not come", "filter", filter)
			return
		}
		l.filters = append(l.filters, filter)
	})
}

// update takes over what Update was given. e is nil between two connections.
func (l *Link) update(e *epoch) {
	l.mu.Lock()
	next := l.next
	l.next = nil
	l.mu.Unlock()
	if next == nil || e != nil && !e.leave.IsZero() {
		if next != nil { // the newest counts
			l.later(next)
		}
		return
	}
	was, had := l.base, l.set.identity()
	if e != nil && !soft(&was.cfg, &next.cfg) {
		// The connection goes on with the old settings until it ends.
		l.later(next)
		e.leave = time.Now()
		if was.identity() != next.identity() {
			e.leave = e.leave.Add(drainPatience)
		}
		return
	}
	l.take(next)
	if !soft(&was.cfg, &next.cfg) {
		l.at, l.cache, l.back = 0, nil, backoff{}
		l.amnesty()
	}
	if had != l.set.identity() {
		l.clean = l.set.identity()
	}
	if e != nil {
		l.subscribe()
	}
}

// take makes settings of the configuration ours, with what was learned of the
// cloud laid over them.
func (l *Link) take(next *settings) {
	l.base = next
	l.set = l.suspect.apply(next)
	l.coder = coder{gateway: l.gw.Name, name: l.name, base: l.gw.Base(), unixMS: l.gw.Time == "unix_ms", stream: l.o.Stream}
	shut := l.gate.shut
	l.gate, l.packed = newGate(next), nil
	l.gate.shut = shut
	l.month.cap, l.month.day = next.cfg.BudgetMonth, min(max(next.cfg.BudgetDay, 1), 28)
}

// later keeps settings until the connection that runs has ended, unless newer
// ones came.
func (l *Link) later(next *settings) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.next == nil {
		l.next = next
	}
}

// soft tells whether a connection can go on from one configuration to the other.
func soft(a, b *config.Uplink) bool {
	x, y := *a, *b
	for _, c := range []*config.Uplink{&x, &y} {
		c.Send, c.Accept = nil, nil
		c.Window, c.WindowBytes, c.Order, c.LiveAge = 0, 0, "", 0
		c.RateMsgs, c.RateBytes, c.BudgetMonth, c.BudgetDay = 0, 0, 0, 0
		c.Compress, c.MaxRecords, c.MaxAge, c.MaxBytes, c.MaxPacket = "", 0, 0, 0, 0
		c.CommandTTL, c.RetryUnknown = 0, false
	}
	return reflect.DeepEqual(x, y)
}

// report tells the cloud what was lost; the store forgets that it has to be told
// when the cloud has acknowledged it.
func (l *Link) report(e *epoch) {
	if l.o.Losses == nil || l.telling == e.number {
		return
	}
	ls := l.o.Losses()
	if len(ls) == 0 {
		return
	}
	ls = ls[:min(len(ls), maxLosses)]
	ids := make([]int64, 0, len(ls))
	for _, x := range ls {
		ids = append(ids, x.ID)
	}
	l.telling = e.number
	l.s.say(l.lossTopic(), lossReport(ls), false, func(packets.ControlPacket) {
		l.telling = 0
		if l.o.Told != nil {
			l.o.Told(ids...)
		}
	})
}
