package embeddedbroker

import (
	"strings"
	"unicode/utf8"

	"busgate/embeddedbroker/packet"
)

// MatchTopic says whether filter matches topic by the rules of MQTT 4.7. Both
// must be well formed; filter is not a shared subscription.
func MatchTopic(filter, topic string) bool {
	if strings.HasPrefix(topic, "$") && (filter[0] == '+' || filter[0] == '#') {
		return false // [MQTT-4.7.2-1]
	}
	for {
		f, frest, fmore := strings.Cut(filter, "/")
		t, trest, tmore := strings.Cut(topic, "/")
		switch {
		case f == "#":
			return true
		case f != "+" && f != t:
			return false
		case !tmore:
			return !fmore || frest == "#" // a/# matches a
		case !fmore:
			return false
		}
		filter, topic = frest, trest
	}
}

// maxLevels is how many levels topics and filters may have, as in mosquitto:
// each costs much more memory than the two bytes it takes on the wire.
const maxLevels = 200

func tooDeep(topic string) bool {
	return len(topic) > maxLevels && strings.Count(topic, "/") >= maxLevels
}

// validTopic is the rule for a topic name to publish to.
func validTopic(t string) bool {
	return t != "" && len(t) <= 65535 && packet.ValidTopic(t) && utf8.ValidString(t) && strings.IndexByte(t, 0) < 0
}

// validFilter is the rule for a filter given in process.
func validFilter(f string) bool {
	return packet.ValidFilter(f) && utf8.ValidString(f) && strings.IndexByte(f, 0) < 0
}

// splitShare takes $share/NAME/filter apart. shared tells whether filter begins
// like one; ok whether it is well formed [MQTT-4.8.2-1] [MQTT-4.8.2-2].
func splitShare(filter string) (group, rest string, shared, ok bool) {
	tail, shared := strings.CutPrefix(filter, "$share/")
	if !shared {
		return "", filter, false, true
	}
	group, rest, ok = strings.Cut(tail, "/")
	return group, rest, true, ok && group != "" && !strings.ContainsAny(group, "+#") && packet.ValidFilter(rest)
}
