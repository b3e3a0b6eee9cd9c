package embeddedbroker

import (
	"cmp"
	"slices"
	"strings"
	"time"
)

// Bounds of the retained messages; more are refused like by a full store.
const (
	maxRetained      = 100_000
	maxRetainedBytes = 64 << 20
	maxRetainedNodes = 2 * maxRetained // levels, each counted once
)

// retained is the index of retained messages by level. It belongs to core.mu.
type retained struct {
	root  retainedNode
	nodes int // below root
	count int
	bytes int64
}

type retainedNode struct {
	kids map[string]*retainedNode
	msg  *Message
	seq  Seq // a new subscriber waits until this is released

	stored bool
}

// room says whether m can be kept.
func (r *retained) room(m *Message) bool {
	if len(m.Payload) == 0 {
		return true
	}
	if n := r.find(m.Topic); n != nil && n.msg != nil {
		return r.bytes-size(n.msg)+size(m) <= maxRetainedBytes
	}
	return r.count < maxRetained && r.bytes+size(m) <= maxRetainedBytes && r.nodes+strings.Count(m.Topic, "/") < maxRetainedNodes
}

func size(m *Message) int64 { return int64(len(m.Topic) + len(m.Payload) + len(m.Props)) }

// set keeps m, or with an empty payload removes what is kept [MQTT-3.3.1-6].
func (r *retained) set(m *Message, seq Seq, stored bool) {
	if len(m.Payload) == 0 {
		r.remove(m.Topic)
		return
	}
	n := &r.root
	for level := range strings.SplitSeq(m.Topic, "/") {
		kid := n.kids[level]
		if kid == nil {
			if n.kids == nil {
				n.kids = map[string]*retainedNode{}
			}
			kid = &retainedNode{}
			n.kids[strings.Clone(level)] = kid
			r.nodes++
		}
		n = kid
	}
	if n.msg != nil {
		r.bytes -= size(n.msg)
		r.count--
	}
	n.msg, n.seq, n.stored = m, seq, stored || n.stored && n.msg != nil // an older one may be on disk
	r.bytes += size(m)
	r.count++
}

func (r *retained) find(topic string) *retainedNode {
	n := &r.root
	for level := range strings.SplitSeq(topic, "/") {
		if n = n.kids[level]; n == nil {
			return nil
		}
	}
	return n
}

func (r *retained) remove(topic string) { r.prune(&r.root, topic) }

// prune takes topic out below n and says whether n is empty now.
func (r *retained) prune(n *retainedNode, topic string) bool {
	level, rest, more := strings.Cut(topic, "/")
	kid := n.kids[level]
	if kid == nil {
		return false
	}
	if more {
		if r.prune(kid, rest) {
			delete(n.kids, level)
			r.nodes--
		}
	} else {
		if kid.msg != nil {
			r.bytes -= size(kid.msg)
			r.count--
		}
		kid.msg = nil
		if len(kid.kids) == 0 {
			delete(n.kids, level)
			r.nodes--
		}
	}
	return len(n.kids) == 0 && n.msg == nil
}

// held is a retained message and the entry that a new subscriber waits for.
type held struct {
	msg *Message
	seq Seq
}

// match lists what filter asks for, in topic order, without what has expired.
func (r *retained) match(filter string, now time.Time) []held {
	var out []held
	take := func(n *retainedNode) {
		if n.msg != nil && (n.msg.Expires.IsZero() || now.Before(n.msg.Expires)) {
			out = append(out, held{n.msg, n.seq})
		}
	}
	matchRetained(&r.root, filter, true, take)
	slices.SortFunc(out, func(a, b held) int { return cmp.Compare(a.msg.Topic, b.msg.Topic) })
	return out
}

func matchRetained(n *retainedNode, filter string, first bool, take func(*retainedNode)) {
	level, rest, more := strings.Cut(filter, "/")
	step := func(k *retainedNode) {
		if more {
			if rest == "#" { // a/# matches a
				take(k)
			}
			matchRetained(k, rest, false, take)
			return
		}
		take(k)
	}
	switch level {
	case "#":
		for name, k := range n.kids {
			if !first || !strings.HasPrefix(name, "$") { // [MQTT-4.7.2-1]
				take(k)
				matchRetained(k, "#", false, take)
			}
		}
	case "+":
		for name, k := range n.kids {
			if !first || !strings.HasPrefix(name, "$") {
				step(k)
			}
		}
	default:
		if k := n.kids[level]; k != nil {
			step(k)
		}
	}
}
