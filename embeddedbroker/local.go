package embeddedbroker

import (
	"errors"
	"fmt"
	"sync"
	"time"
)

// localQueue is how many messages wait for one local subscription.
const localQueue = 1024

// Local is a client in the same process: same router, order and retained rules,
// no encoding, no copy, no ACL. Safe for concurrent use; messages of one
// Local keep the order of the calls.
type Local struct {
	b      *Broker
	name   string
	origin origin // guarded by core.mu
}

// Local returns an in-process client; name is what its messages come From.
func (b *Broker) Local(name string) *Local { return &Local{b: b, name: name} }

// Publish routes m, which nobody may change afterwards. With done the call
// means "tell me when it is kept": done.Committed is called exactly once unless
// an error is returned, after the flush when somebody durable wants m, else at
// once with Seq 0. Without done, m is written with the next commit, and what
// cannot be kept is counted and lost. Publish waits only with done and while
// too much waits for the disk. Errors: ErrFull, ErrReadOnly, a malformed topic.
func (l *Local) Publish(m *Message, done Completion) error {
	if !validTopic(m.Topic) {
		return fmt.Errorf("publish: malformed topic %q", m.Topic)
	}
	if m.QoS > 2 {
		return fmt.Errorf("publish to %s: QoS %d", m.Topic, m.QoS)
	}
	p := publication{msg: m, wait: done != nil}
	if done != nil {
		p.done = localDone{l.b, done}
	}
	for {
		l.b.mu.Lock()
		waiting, err := l.b.publishLocked(&l.origin, &p)
		l.b.mu.Unlock()
		switch {
		case errors.Is(err, ErrBusy) && !isStopped(l.b.stop):
			time.Sleep(fullRetry / 10)
		case err != nil:
			return fmt.Errorf("publish to %s: %w", m.Topic, err)
		case done != nil && !waiting:
			done.Committed(0, nil)
			return nil
		default:
			return nil
		}
	}
}

// localDone tells the publisher and then the router.
type localDone struct {
	b    *Broker
	done Completion
}

func (d localDone) Committed(seq Seq, err error) {
	d.done.Committed(seq, err)
	d.b.rel.advance(seq)
}

// Subscribe calls f for each matching message, in order, one call at a time, on
// a goroutine of the subscription. Retained messages come first. Message.Retain
// is as published. After cancel returns one call that was due may still run. At
// most 1024 messages wait: at qos 0 a newer one takes the place of an older one
// of its topic, else of the oldest; at qos 1 and 2 nothing is dropped that can be
// refused: a LAN publisher at QoS 1 or 2 is answered as by a full store.
func (l *Local) Subscribe(filter string, qos byte, f func(*Message)) (cancel func()) {
	b := l.b
	s := &localSub{b: b, qos: qos, f: f}
	v := &sub{filter: filter, local: s, Subscription: Subscription{Filter: filter, QoS: qos}}
	if !validFilter(filter) {
		panic(fmt.Sprintf("embeddedbroker: malformed filter %q in the program", filter))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stopped {
		return func() {}
	}
	b.subs.add(v)
	b.locals[s] = struct{}{}
	for _, h := range b.kept.match(filter, time.Now()) {
		s.add(h.msg, h.seq)
	}
	s.wake()
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.subs.remove(v)
		delete(b.locals, s)
		s.close()
	}
}

// localSub is one subscription of a Local. Its goroutine runs while there is
// something to deliver.
type localSub struct {
	b   *Broker
	qos byte
	f   func(*Message)

	mu      sync.Mutex
	q       queue[localItem]
	waits   Seq // what the releaser was asked for
	running bool
	closed  bool
}

type localItem struct {
	msg  *Message
	wait Seq
}

func (l *localSub) full() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.q.len() >= localQueue
}

func (l *localSub) add(m *Message, wait Seq) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.q.push(localItem{m, wait})
}

// push queues a message by the rule of the subscription.
func (l *localSub) push(m *Message, wait Seq) {
	l.mu.Lock()
	if l.q.len() >= localQueue {
		l.b.n.droppedLocal.Add(1)
		if l.qos > 0 {
			l.mu.Unlock()
			return
		}
		l.replaceLocked(m)
	}
	l.q.push(localItem{m, wait})
	l.mu.Unlock()
	l.wake()
}

// replaceLocked takes out the waiting message of the same topic, or the oldest.
func (l *localSub) replaceLocked(m *Message) {
	victim := 0
	for i := range l.q.len() {
		if l.q.at(i).msg.Topic == m.Topic {
			victim = i
			break
		}
	}
	for i := victim; i > 0; i-- {
		*l.q.at(i) = *l.q.at(i - 1)
	}
	l.q.pop()
}

// wake starts the goroutine if there is something to do.
func (l *localSub) wake() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.running || l.closed || l.q.len() == 0 || l.holdLocked() {
		return
	}
	l.running = true
	l.b.work.Go(l.run)
}

// holdLocked says whether the front has to wait, and sees to it that wake is called.
func (l *localSub) holdLocked() bool {
	wait := l.q.at(0).wait
	if wait <= l.b.rel.released() {
		return false
	}
	if l.waits == wait { // one entry at the releaser, however much is pushed meanwhile
		return wait > l.b.rel.released()
	}
	l.waits = wait
	return l.b.rel.await(wait, l)
}

func (l *localSub) run() {
	for {
		l.mu.Lock()
		if l.closed || l.q.len() == 0 || l.holdLocked() {
			l.running = false
			l.mu.Unlock()
			return
		}
		it := l.q.pop()
		l.mu.Unlock()
		l.f(it.msg)
	}
}

func (l *localSub) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.q.clear()
}

// uplink is a durable consumer in the routing table.
type uplink struct {
	name string
	id   ConsumerID
	want func(*Message) bool
	subs []*sub
}

// Consumer makes an uplink a target of every message that matches a filter and
// that want accepts; want is pure and runs under the routing lock, nil takes
// all. It returns when the store has the consumer. A second call with the same
// name replaces filters and want.
func (l *Local) Consumer(name string, filters []string, want func(*Message) bool) (ConsumerID, error) {
	b := l.b
	for _, f := range filters {
		if !validFilter(f) {
			return 0, fmt.Errorf("consumer %s: malformed filter %q", name, f)
		}
	}
	id, err := b.store.Register(name, ConsumerOptions{Uplink: true})
	if err != nil {
		return 0, fmt.Errorf("consumer %s: %w", name, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.unhookLocked(name)
	up := &uplink{name: name, id: id, want: want}
	for _, f := range filters {
		v := &sub{filter: f, up: up, Subscription: Subscription{Filter: f, QoS: 2}}
		b.subs.add(v)
		up.subs = append(up.subs, v)
	}
	b.uplinks[name] = up
	return id, nil
}

// RemoveConsumer forgets an uplink and what waits for it.
func (l *Local) RemoveConsumer(name string) {
	b := l.b
	b.mu.Lock()
	defer b.mu.Unlock()
	if up := b.unhookLocked(name); up != nil {
		b.store.Forget(up.id)
	}
}

func (b *Broker) unhookLocked(name string) *uplink {
	up := b.uplinks[name]
	if up == nil {
		return nil
	}
	for _, v := range up.subs {
		b.subs.remove(v)
	}
	delete(b.uplinks, name)
	return up
}
