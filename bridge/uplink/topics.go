package uplink

import (
	"slices"
	"strings"

	"busgate/config"
	"busgate/embeddedbroker"
)

// swap replaces one prefix by another.
type swap struct {
	filter        string // local; which topics it is for
	local, remote string
}

func (m swap) up(topic string) string {
	if rest, ok := strings.CutPrefix(topic, m.local); ok {
		return m.remote + rest
	}
	return topic
}

func (m swap) down(topic string) (string, bool) {
	rest, ok := strings.CutPrefix(topic, m.remote)
	return m.local + rest, ok
}

// topicMap translates between the topics of the LAN and those of the cloud.
// The first route whose filter fits decides, then the prefixes of the uplink.
type topicMap struct {
	out, in []swap
	rest    swap
	hub     *hubTopics // nil: the cloud takes any topic
	board   bool       // ThingsBoard: commands come as calls
}

func newTopicMap(cfg *config.Uplink) topicMap {
	t := topicMap{rest: swap{filter: "#", local: cfg.LocalPrefix, remote: cfg.RemotePrefix}, board: cfg.Encode == encodeThingsBoard}
	if presets[cfg.Profile].hub {
		t.hub = &hubTopics{cfg.ClientID}
	}
	for _, r := range cfg.Routes {
		m := swap{filter: r.Filter, local: r.LocalPrefix, remote: r.RemotePrefix}
		if r.Direction == "in" {
			t.in = append(t.in, m)
		} else {
			t.out = append(t.out, m)
		}
	}
	return t
}

// remote is the name in the cloud of a topic of the LAN.
func (t *topicMap) remote(topic string) string { return t.wrap(t.mapped(topic)) }

// wrap makes of a name in the cloud the topic to publish on.
func (t *topicMap) wrap(name string) string {
	if t.hub != nil {
		return t.hub.remote(name)
	}
	return name
}

func (t *topicMap) mapped(topic string) string {
	for _, m := range t.out {
		if matches(m.filter, topic) {
			return m.up(topic)
		}
	}
	return t.rest.up(topic)
}

// local is the name on the LAN of a topic of the cloud, before accept is asked.
func (t *topicMap) local(topic string) string {
	if t.hub != nil {
		topic = t.hub.local(topic)
	}
	for _, m := range t.in {
		if l, ok := m.down(topic); ok && matches(m.filter, l) {
			return l
		}
	}
	if l, ok := t.rest.down(topic); ok {
		return l
	}
	return topic
}

// subscription is the filter to subscribe in the cloud for a filter of the LAN.
func (t *topicMap) subscription(filter string) string {
	if t.board {
		return boardRPC
	}
	if t.hub != nil {
		return t.hub.filter()
	}
	return t.remoteFilter(filter)
}

// remoteFilter is the name in the cloud of a filter of the LAN.
func (t *topicMap) remoteFilter(filter string) string {
	for _, m := range slices.Concat(t.in, t.out) {
		if m.filter == filter {
			return m.up(filter)
		}
	}
	return t.rest.up(filter)
}

// matches tells whether a filter covers a topic. [MQTT-4.7.1-2] [MQTT-4.7.1-3] [MQTT-4.7.2-1]
func matches(filter, topic string) bool {
	if strings.HasPrefix(topic, "$") && !strings.HasPrefix(filter, "$") {
		return false
	}
	for {
		f, frest, fmore := strings.Cut(filter, "/")
		if f == "#" {
			return true
		}
		t, trest, tmore := strings.Cut(topic, "/")
		if f != "+" && f != t {
			return false
		}
		if !fmore || !tmore {
			return fmore == tmore || fmore && frest == "#"
		}
		filter, topic = frest, trest
	}
}

// overlap tells whether a topic exists that both filters cover.
func overlap(a, b string) bool {
	as, bs := strings.Split(a, "/"), strings.Split(b, "/")
	for i := 0; ; i++ {
		switch {
		case i < len(as) && as[i] == "#" || i < len(bs) && bs[i] == "#":
			return true
		case i == len(as) || i == len(bs):
			return len(as) == len(bs)
		case as[i] != bs[i] && as[i] != "+" && bs[i] != "+":
			return false
		}
	}
}

// Wants is what an uplink takes: the filters for the routing table, and a check
// for what they cover and the uplink does not want: commands, its own state,
// the numbers of the buses, $SYS, discovery, and what came down from a cloud. A filter that names such a
// level itself (busgate/plant-a/+/set/#) overrules the check, except for $SYS
// and what came down. Both results may be used from any goroutine.
func Wants(cfg *config.Uplink, gw *config.Gateway) (filters []string, want func(*embeddedbroker.Message) bool) {
	filters = slices.Clone(cfg.Send)
	for _, r := range cfg.Routes {
		if r.Direction == "out" && !slices.Contains(filters, r.Filter) {
			filters = append(filters, r.Filter)
		}
	}
	base := gw.Base()
	depth := strings.Count(base, "/") + 1 // levels of base
	kept := []struct {
		filter string
		level  int // the level by which a filter names it
	}{
		{base + "/+/set/#", depth + 1},
		{base + "/+/get/#", depth + 1},
		{base + "/gateway/uplink/#", depth + 1},
		{base + "/gateway/bus/#", depth + 1},
		{base + "/gateway/status", depth + 1}, // the link's own word: will and birth
		{"homeassistant/#", 0},
	}
	named, perPoint := slices.Clone(filters), PerPoint(cfg)
	board := coder{gateway: gw.Name, base: base}
	return filters, func(m *embeddedbroker.Message) bool {
		if cfg.Encode == encodeThingsBoard && !board.takes(m) {
			return false
		}
		if device, point, ok := stateOf(base, m.Topic); ok && device != "" {
			if perPoint && point == "" || !perPoint && point != "" && gw.Payload != "value" {
				return false // the states, or scalars that another uplink asked for
			}
		}
		if m.Kind == embeddedbroker.KindDown || strings.HasPrefix(m.Topic, "$SYS/") {
			return false
		}
		if m.Kind == embeddedbroker.KindStatus && !strings.HasPrefix(m.Topic, base+"/") { // discovery under a prefix of its own
			return names(named, m.Topic, 0)
		}
		for _, k := range kept {
			if matches(k.filter, m.Topic) && !names(named, m.Topic, k.level) {
				return false
			}
		}
		return true
	}
}

// names tells whether one of the filters covers the topic and spells its level
// number i out.
func names(filters []string, topic string, i int) bool {
	return slices.ContainsFunc(filters, func(f string) bool {
		ls := strings.Split(f, "/")
		return matches(f, topic) && i < len(ls) && ls[i] != "+" && ls[i] != "#"
	})
}
