package bridge

import (
	"busgate/config/report"
	"busgate/embeddedbroker"
)

// maxAlerts bounds the alerts that stand at one time. One more is logged and
// counted, not published.
const maxAlerts = 64

func (b *Bridge) uplinkTopic(name string) string { return b.gatewayTopic(kindUplink) + "/" + name }

// UplinkState publishes, on the LAN only, the state of an uplink: online,
// offline or draining. An uplink that is not configured is ignored.
func (b *Bridge) UplinkState(name, word string) {
	b.speaking.Lock()
	defer b.speaking.Unlock()
	b.mu.Lock()
	was, known := b.uplinks[name]
	if known && !b.ended {
		b.uplinks[name] = word
	}
	known = known && !b.ended
	b.mu.Unlock()
	if !known || was == word {
		return
	}
	b.board.post(b.word(b.uplinkTopic(name), word))
	b.Changed()
}

// UplinkStats publishes, on the LAN only, the numbers of an uplink. It is
// called each 30 s.
func (b *Bridge) UplinkStats(name string, n UplinkNumbers) {
	b.speaking.Lock()
	defer b.speaking.Unlock()
	b.mu.RLock()
	_, known := b.uplinks[name]
	b.mu.RUnlock()
	if !known {
		return
	}
	m := b.message(b.uplinkTopic(name)+"/stats", b.uplinkStats(n), true)
	m.QoS = 0
	b.board.note(m)
}

// Alert publishes a failure that belongs to no device, or empties its topic
// when the report says that it is solved. Err must be a name.
func (b *Bridge) Alert(r report.Report) {
	topic := b.gatewayTopic(kindAlert) + "/" + r.Err
	switch {
	case !legalName(r.Err):
		b.log.Warn("an alert without a name is not published", "err", r.Err)
	case r.Solved:
		if b.board.get(topic) != nil {
			b.board.post(b.message(topic, nil, true))
			b.Changed()
		}
	case b.board.get(topic) == nil && len(b.board.below(nil, b.gatewayTopic(kindAlert)+"/")) >= maxAlerts:
		b.stats.alertsDropped.Add(1)
		b.log.Warn("too many alerts stand; this one is not published", "err", r.Err)
	default:
		b.board.post(b.message(topic, b.alert(r), true))
		b.Changed()
	}
}

// publish gives a message of ours to the broker and counts it. With done it
// asks the store to keep it; when that is refused the LAN gets it all the same,
// and the error is for the uplinks.
func (b *Bridge) publish(m *embeddedbroker.Message, done embeddedbroker.Completion) error {
	err := b.broker.Publish(m, done)
	if err != nil && done != nil {
		if b.broker.Publish(m, nil) != nil {
			return err
		}
	}
	b.stats.published[pubKindOf(b.base, m.Topic)].Add(1)
	return err
}
