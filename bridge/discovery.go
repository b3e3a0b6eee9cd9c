package bridge

import (
	"bytes"
	"slices"

	"busgate/bridge/homeassistant"
	"busgate/embeddedbroker"
)

// discover makes the announcements to Home Assistant follow the configuration:
// what is new or another is published, what is gone is taken back. With all set
// everything is published again, as after a start of Home Assistant.
func (b *Bridge) discover(all bool) {
	b.discovering.Lock()
	defer b.discovering.Unlock()
	b.mu.RLock()
	cfg, ended := b.cfg, b.ended
	b.mu.RUnlock()
	if ended {
		return
	}
	b.watchHomeAssistant(homeassistant.StatusTopic(cfg), cfg.HomeAssistant.Discovery)
	var topics []string
	for _, a := range homeassistant.All(cfg, homeassistant.Origin{Version: b.version, URL: b.homepage}) {
		topics = append(topics, a.Topic)
		if m := b.board.get(a.Topic); all || m == nil || !bytes.Equal(m.Payload, a.Payload) {
			b.board.post(b.message(a.Topic, a.Payload, true))
		}
	}
	for _, topic := range b.discovered {
		if !slices.Contains(topics, topic) {
			b.board.empty(topic)
		}
	}
	if !slices.Equal(b.discovered, topics) {
		b.discovered = topics
		b.know(func(k *known) { k.Discovery = topics })
	}
}

// watchHomeAssistant listens for the birth of Home Assistant while discovery is
// on. discovering is held.
func (b *Bridge) watchHomeAssistant(topic string, on bool) {
	if b.watched == topic && on || b.watched == "" && !on {
		return
	}
	if b.watched != "" {
		b.unwatch()
		b.watched = ""
	}
	if !on {
		return
	}
	b.watched = topic
	b.unwatch = b.broker.Subscribe(topic, 1, func(m *embeddedbroker.Message) {
		if string(m.Payload) == wordOnline && !m.Retain { // a retained one is of before we announced
			b.discover(true)
		}
	})
}

// endDiscovery ends the subscription. The announcements stay: the entities are
// unavailable, not gone.
func (b *Bridge) endDiscovery() {
	b.discovering.Lock()
	defer b.discovering.Unlock()
	b.watchHomeAssistant("", false)
}
