package bridge

import (
	"strings"

	"busgate/config"
)

// Kinds of message below {base}/<device>/.
const (
	kindStatus  = "status"
	kindState   = "state"
	kindInfo    = "info"
	kindError   = "error"
	kindAck     = "ack"
	kindHistory = "history"
	kindSet     = "set"
	kindGet     = "get"
)

// gatewayDevice is the device that the gateway itself is; config lets no other have this name.
const gatewayDevice = "gateway"

// Kinds that only {base}/gateway/ has.
const (
	kindUplink = "uplink"
	kindBus    = "bus"
	kindAlert  = "alert"
	kindLoss   = "loss"
)

const (
	wordOnline   = "online"
	wordOffline  = "offline"
	wordDraining = "draining"
)

// maxName is the longest name of a device or point, as config checks it.
const maxName = 64

// place is a topic below {base}, taken apart: {base}/<device>/<kind>[/<rest>].
type place struct {
	device, kind string
	rest         string // may hold further levels
	deep         bool   // there is a rest, though it may be empty
}

// parseTopic takes a topic apart. It is false for a topic outside of base and
// for one with fewer than two levels below it.
func parseTopic(base, topic string) (place, bool) {
	t, ok := strings.CutPrefix(topic, base)
	if !ok || t == "" || t[0] != '/' {
		return place{}, false
	}
	var p place
	p.device, t, ok = strings.Cut(t[1:], "/")
	if !ok {
		return place{}, false
	}
	p.kind, p.rest, p.deep = strings.Cut(t, "/")
	return p, true
}

// reserved says that only the gateway publishes there: a forged reading would
// be stored as ours.
func (p place) reserved() bool {
	switch p.kind {
	case kindStatus, kindInfo, kindError, kindAck, kindHistory:
		return !p.deep
	case kindState:
		return !p.deep || !strings.Contains(p.rest, "/")
	case kindUplink, kindBus, kindAlert:
		return p.device == gatewayDevice && p.deep
	case kindLoss:
		return p.device == gatewayDevice && !p.deep
	}
	return false
}

// command says that the topic is one that the gateway listens to.
func (p place) command() bool {
	switch p.kind {
	case kindSet:
		return !p.deep || !strings.Contains(p.rest, "/")
	case kindGet:
		return !p.deep
	}
	return false
}

// legalName says that s can be the name of a device or point: [a-z0-9_-]{1,64}.
func legalName(s string) bool {
	if s == "" || len(s) > maxName {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_' && c != '-' {
			return false
		}
	}
	return true
}

// topics are the names of one device, made once.
type topics struct {
	status, state, info, failure, ack string
	points                            []string // state/<point>, in the order of the points; nil without scalars
}

func newTopics(base, device string, points []config.Point, scalars bool) topics {
	p := base + "/" + device + "/"
	t := topics{status: p + kindStatus, state: p + kindState, info: p + kindInfo, failure: p + kindError, ack: p + kindAck}
	if scalars {
		t.points = make([]string, len(points))
		for i := range points {
			t.points[i] = t.state + "/" + points[i].Name
		}
	}
	return t
}

// Reserved says whether topic is one of those that only the gateway itself may
// publish: the out-topics of {base}. The broker drops such publishes of LAN
// clients. Safe for concurrent use.
func (b *Bridge) Reserved(topic string) bool {
	p, ok := parseTopic(b.base, topic)
	return ok && p.reserved()
}
