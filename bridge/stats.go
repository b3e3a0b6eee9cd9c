package bridge

import (
	"maps"
	"sync"
	"sync/atomic"
)

// Kinds of published messages, as in busgate_published_total{kind}.
const (
	pubState = iota
	pubScalar
	pubStatus
	pubInfo
	pubError
	pubAck
	pubGateway // state, alert and uplink of the gateway
	pubOther   // answers to a response topic, emptied topics of another kind
	pubKinds
)

var pubNames = [pubKinds]string{"state", "scalar", "status", "info", "error", "ack", "gateway", "other"}

// pubKindOf is the kind of message that a topic of ours carries.
func pubKindOf(base, topic string) int {
	p, ok := parseTopic(base, topic)
	switch {
	case !ok:
		return pubOther
	case p.kind == kindStatus:
		return pubStatus
	case p.kind == kindInfo:
		return pubInfo
	case p.kind == kindAck:
		return pubAck
	case p.device == gatewayDevice:
		return pubGateway
	case p.kind == kindError:
		return pubError
	case p.kind == kindState && p.deep:
		return pubScalar
	case p.kind == kindState:
		return pubState
	}
	return pubOther
}

// CommandResult is a device and how a command for it ended: ok, or the error
// word of its ack. Device is "" for one that is not configured.
type CommandResult struct{ Device, Result string }

// Stats are the counters of the bridge since New.
type Stats struct {
	Published     map[string]uint64        // messages by kind: state, scalar, status, info, error, ack, gateway, other
	Commands      map[CommandResult]uint64 // points of commands that were answered
	Repeated      uint64                   // commands with an id that was known
	IDsForgotten  uint64                   // ids dropped before their 24 h
	Ignored       uint64                   // commands not answered: no such name can exist, or an empty retained one
	Orphans       uint64                   // rounds and changes of health of unknown devices
	AcksLost      uint64                   // acks that the store did not keep for the uplinks
	AlertsDropped uint64
	Waiting       int // commands that wait for their bus
}

// counters are what Stats shows.
type counters struct {
	published     [pubKinds]atomic.Uint64
	orphans       atomic.Uint64
	ignored       atomic.Uint64
	repeated      atomic.Uint64
	acksLost      atomic.Uint64
	alertsDropped atomic.Uint64

	mu       sync.Mutex
	commands map[CommandResult]uint64 // devices of the configuration x words of section 4
}

func (c *counters) command(device, code string) {
	if code == "" {
		code = "ok"
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.commands == nil {
		c.commands = map[CommandResult]uint64{}
	}
	c.commands[CommandResult{device, code}]++
}

// Stats returns the counters. Safe for concurrent use.
func (b *Bridge) Stats() Stats {
	c := &b.stats
	s := Stats{Published: make(map[string]uint64, pubKinds), Ignored: c.ignored.Load(), Orphans: c.orphans.Load(),
		Repeated: c.repeated.Load(), AcksLost: c.acksLost.Load(), AlertsDropped: c.alertsDropped.Load()}
	for k, name := range pubNames {
		s.Published[name] = c.published[k].Load()
	}
	c.mu.Lock()
	s.Commands = maps.Clone(c.commands)
	c.mu.Unlock()
	s.Waiting, s.IDsForgotten = b.commands.numbers()
	return s
}
