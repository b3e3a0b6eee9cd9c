package bridge

import (
	"maps"
	"slices"
	"strings"
	"sync"

	"busgate/embeddedbroker"
)

// board holds the retained messages of the gateway that are no readings, as
// they should stand at the broker and at the clouds: availability must be
// truthful, so what the store did not keep is published again.
//
// It holds at most the topics of the configuration and maxAlerts alerts.
type board struct {
	b *Bridge

	order sync.Mutex // held over a Publish: posts of one topic keep their order

	mu      sync.Mutex // guards what follows; never held over a Publish
	msgs    map[string]*embeddedbroker.Message
	owed    map[string]*embeddedbroker.Message // not on disk as far as we know
	failing bool
}

func newBoard(b *Bridge) *board {
	return &board{b: b, msgs: map[string]*embeddedbroker.Message{}, owed: map[string]*embeddedbroker.Message{}}
}

// post publishes m and remembers it; an empty payload empties the topic. It is
// published again each minute as long as the store does not keep it.
func (x *board) post(m *embeddedbroker.Message) {
	x.order.Lock()
	defer x.order.Unlock()
	x.remember(m)
	x.publishLocked(m)
}

// note publishes m, which is soon out of date, and remembers it.
func (x *board) note(m *embeddedbroker.Message) {
	x.order.Lock()
	defer x.order.Unlock()
	x.remember(m)
	x.b.publish(m, nil)
}

// empty deletes the retained message of a topic.
func (x *board) empty(topic string) { x.post(x.b.message(topic, nil, true)) }

// retry publishes what was not kept.
func (x *board) retry() {
	x.order.Lock()
	defer x.order.Unlock()
	x.mu.Lock()
	owed := maps.Clone(x.owed)
	x.mu.Unlock()
	for _, topic := range slices.Sorted(maps.Keys(owed)) {
		x.publishLocked(owed[topic])
	}
}

func (x *board) remember(m *embeddedbroker.Message) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(m.Payload) == 0 {
		delete(x.msgs, m.Topic)
	} else {
		x.msgs[m.Topic] = m
	}
}

// publishLocked publishes m and owes it until the store has it. order is held.
func (x *board) publishLocked(m *embeddedbroker.Message) {
	x.mu.Lock()
	x.owed[m.Topic] = m
	x.mu.Unlock()
	if err := x.b.publish(m, receipt{x, m}); err != nil {
		x.kept(m, err)
	}
}

// receipt tells the board that the store has a message, or that it has not.
type receipt struct {
	x *board
	m *embeddedbroker.Message
}

func (r receipt) Committed(_ embeddedbroker.Seq, err error) { r.x.kept(r.m, err) }

func (x *board) kept(m *embeddedbroker.Message, err error) {
	x.mu.Lock()
	before := x.failing
	if err != nil {
		x.failing = true
	} else {
		if x.owed[m.Topic] == m {
			delete(x.owed, m.Topic)
		}
		x.failing = x.failing && len(x.owed) > 0
	}
	now := x.failing
	x.mu.Unlock()
	switch {
	case now && !before:
		x.b.log.Warn("availability is not kept for the uplinks; tried again each minute", "topic", m.Topic, "err", err)
	case before && !now:
		x.b.log.Info("availability is kept for the uplinks again")
	}
}

// get is the message of a topic, nil when there is none.
func (x *board) get(topic string) *embeddedbroker.Message {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.msgs[topic]
}

// below appends the messages of topics with that prefix, in the order of their topics.
func (x *board) below(ms []*embeddedbroker.Message, prefix string) []*embeddedbroker.Message {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, topic := range slices.Sorted(maps.Keys(x.msgs)) {
		if strings.HasPrefix(topic, prefix) {
			ms = append(ms, x.msgs[topic])
		}
	}
	return ms
}
