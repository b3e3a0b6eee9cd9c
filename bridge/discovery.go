package bridge

import (
	"bytes"
	"maps"
	"slices"

	"busgate/bridge/homeassistant"
	"busgate/embeddedbroker"
)

// mostGone is how many devices, and components of each, are remembered as gone.
const mostGone = 256

// discover makes the announcements to Home Assistant follow the configuration:
// what is new or another is published, what is gone is taken back. With all set
// everything is said again, because Home Assistant has started or is connected
// again: it may have missed what was taken back, and after a restart of busgate
// it surely has. What is gone is remembered until then.
func (b *Bridge) discover(all bool) {
	b.discovering.Lock()
	defer b.discovering.Unlock()
	b.mu.RLock()
	cfg, ended := b.cfg, b.ended
	b.mu.RUnlock()
	if ended {
		return
	}
	list := homeassistant.All(cfg, homeassistant.Origin{Version: b.version, URL: b.homepage})
	b.expect(list)
	shown := map[string][]string{}
	for _, a := range list {
		before := b.discovered[a.Topic]
		if m := b.board.get(a.Topic); all || m == nil || !bytes.Equal(m.Payload, a.Payload) {
			if p := a.Without(before); p != nil {
				b.board.post(b.message(a.Topic, p, true))
			}
			b.board.post(b.message(a.Topic, a.Payload, true))
		}
		shown[a.Topic] = a.Components
		if !all {
			gone := slices.DeleteFunc(slices.Clone(before), func(c string) bool { return slices.Contains(a.Components, c) })
			shown[a.Topic] = append(slices.Clone(a.Components), gone[:min(len(gone), mostGone)]...) // the newest first
		}
	}
	if gone := b.takeBack(shown, all); !all {
		for _, topic := range gone[:min(len(gone), mostGone)] {
			shown[topic] = nil
		}
	}
	if !maps.EqualFunc(b.discovered, shown, slices.Equal) {
		b.discovered = shown
		b.know(func(k *known) { k.Discovery = shown })
	}
	b.watchHomeAssistant(homeassistant.StatusTopic(cfg), len(shown) > 0)
}

// expect notes what is announced before it is: a kill in between must leave no
// ghost. discovering is held.
func (b *Bridge) expect(list []homeassistant.Announcement) {
	more, fresh := maps.Clone(b.discovered), false
	if more == nil {
		more = map[string][]string{}
	}
	for _, a := range list {
		_, there := more[a.Topic]
		all := slices.Clone(more[a.Topic])
		for _, c := range a.Components {
			if !slices.Contains(all, c) {
				all = append(all, c)
			}
		}
		fresh = fresh || !there || len(all) > len(more[a.Topic])
		more[a.Topic] = all
	}
	if fresh {
		b.know(func(k *known) { k.Discovery = more })
	}
}

// takeBack empties the announcements that are not in shown, with all set those
// that were emptied before as well, and returns the topics of both, the newest
// first. discovering is held.
func (b *Bridge) takeBack(shown map[string][]string, all bool) []string {
	var gone, before []string
	for _, topic := range slices.Sorted(maps.Keys(b.discovered)) {
		if _, ok := shown[topic]; ok {
			continue
		}
		if b.discovered[topic] != nil {
			gone = append(gone, topic)
		} else {
			before = append(before, topic)
		}
	}
	again := slices.Concat(gone, before)
	if all {
		gone = again
	}
	for _, topic := range gone {
		b.board.empty(topic)
	}
	return again
}

// watchHomeAssistant listens for the birth of Home Assistant while it knows of
// anything. discovering is held.
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
