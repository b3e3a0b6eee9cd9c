package bridge

import (
	"bytes"
	"maps"
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
	announced := map[string][]string{}
	for _, a := range homeassistant.All(cfg, homeassistant.Origin{Version: b.version, URL: b.homepage}) {
		announced[a.Topic] = a.Components
		if p := a.Without(b.discovered[a.Topic]); p != nil {
			b.board.post(b.message(a.Topic, p, true))
		}
		if m := b.board.get(a.Topic); all || m == nil || !bytes.Equal(m.Payload, a.Payload) {
			b.board.post(b.message(a.Topic, a.Payload, true))
		}
	}
	for _, topic := range slices.Sorted(maps.Keys(b.discovered)) {
		if _, ok := announced[topic]; !ok {
			b.board.empty(topic)
		}
	}
	if !maps.EqualFunc(b.discovered, announced, slices.Equal) {
		b.discovered = announced
		b.know(func(k *known) { k.Discovery = announced })
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
