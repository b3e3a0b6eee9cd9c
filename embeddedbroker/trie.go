package embeddedbroker

import (
	"slices"
	"strings"
)

// The cache of matched topics starts anew at any bound: topics, their bytes, and
// wishes of sessions in all of them together.
const (
	maxRoutes     = 4096
	maxRouteBytes = 1 << 20
	maxWishes     = 1 << 16
)

// levelWeight is about what one level of a filter costs in memory.
const levelWeight = 400

// weigh is about what a filter costs in memory, in bytes.
func weigh(filter string) int {
	return 2*len(filter) + levelWeight*(1+strings.Count(filter, "/"))
}

// sub is one subscription in the trie. Exactly one of sess, local and up is set.
type sub struct {
	Subscription
	filter string // what is matched: without $share/NAME
	sess   *session
	local  *localSub
	up     *uplink
	group  *shareGroup

	node *node // where it hangs
	pos  int   // its index there
}

// shareGroup are the subscriptions of one $share/NAME/filter.
type shareGroup struct {
	key     string
	members []*sub
	next    int
	node    *node
}

// node is one level of the trie.
type node struct {
	parent *node
	level  string
	kids   kids
	subs   []*sub
	groups []*shareGroup
}

// kids are the levels below a node. One alone, as most are, needs no map.
type kids struct {
	one  *node
	many map[string]*node
}

func (k *kids) get(level string) *node {
	if k.one != nil && k.one.level == level {
		return k.one
	}
	return k.many[level]
}

func (k *kids) add(n *node) {
	switch {
	case k.many != nil:
		k.many[n.level] = n
	case k.one == nil:
		k.one = n
	default:
		k.many = map[string]*node{k.one.level: k.one, n.level: n}
		k.one = nil
	}
}

func (k *kids) drop(n *node) {
	if k.one == n {
		k.one = nil
		return
	}
	if delete(k.many, n.level); len(k.many) == 0 {
		k.many = nil
	}
}

func (k *kids) empty() bool { return k.one == nil && k.many == nil }

// trie finds the subscriptions of a topic. It belongs to core.mu.
type trie struct {
	root    node
	groups  map[string]*shareGroup
	count   int
	shared  int
	weight  int // of the subscriptions of sessions
	wishes  int // in routes
	bytes   int // of the topics of routes
	routes  map[string]*route
	mayRead func(s *session, topic string) bool // judged once per route
}

// route is everything that wants one topic. It is immutable and valid until a
// subscription changes.
type route struct {
	topic    string
	sessions []wish
	locals   []*localSub
	uplinks  []*uplink
	groups   []*shareGroup
}

// wish is what one session wants of a topic: one copy, however many of its
// subscriptions match.
type wish struct {
	sess *session
	all  grant // of everybody else's messages
	own  grant // of its own: without the subscriptions that say no-local
}

// grant is the union of subscriptions.
type grant struct {
	ok     bool
	qos    byte
	asPub  bool
	subIDs []uint32
}

func (g *grant) add(s *sub) {
	g.ok = true
	g.qos = max(g.qos, s.QoS)
	g.asPub = g.asPub || s.RetainAsPublished
	if s.ID != 0 {
		g.subIDs = append(g.subIDs, s.ID)
	}
}

func newTrie(mayRead func(*session, string) bool) *trie {
	return &trie{groups: map[string]*shareGroup{}, routes: map[string]*route{}, mayRead: mayRead}
}

// add hangs s up. The caller took an older one of the same holder away.
func (t *trie) add(s *sub) {
	n := &t.root
	for level := range strings.SplitSeq(s.filter, "/") {
		kid := n.kids.get(level)
		if kid == nil {
			kid = &node{parent: n, level: strings.Clone(level)}
			n.kids.add(kid)
		}
		n = kid
	}
	s.node = n
	t.count++
	if s.sess != nil {
		w := weigh(s.Filter)
		t.weight += w
		s.sess.weight += w
	}
	t.forget()
	if !strings.HasPrefix(s.Filter, "$share/") || s.sess == nil {
		s.pos = len(n.subs)
		n.subs = append(n.subs, s)
		return
	}
	g := t.groups[s.Filter]
	if g == nil {
		g = &shareGroup{key: s.Filter, node: n}
		t.groups[s.Filter] = g
		n.groups = append(n.groups, g)
	}
	s.group = g
	g.members = append(g.members, s)
	t.shared++
}

// remove takes s down.
func (t *trie) remove(s *sub) {
	n := s.node
	if n == nil {
		return
	}
	s.node = nil
	t.count--
	if s.sess != nil {
		w := weigh(s.Filter)
		t.weight -= w
		s.sess.weight -= w
	}
	t.forget()
	if g := s.group; g != nil {
		t.shared--
		g.members = slices.DeleteFunc(g.members, func(m *sub) bool { return m == s })
		if len(g.members) == 0 {
			delete(t.groups, g.key)
			n.groups = slices.DeleteFunc(n.groups, func(x *shareGroup) bool { return x == g })
		}
	} else {
		last := n.subs[len(n.subs)-1]
		n.subs[s.pos] = last
		last.pos = s.pos
		n.subs[len(n.subs)-1] = nil
		n.subs = n.subs[:len(n.subs)-1]
	}
	for n.parent != nil && n.kids.empty() && len(n.subs) == 0 && len(n.groups) == 0 {
		n.parent.kids.drop(n)
		n = n.parent
	}
}

// route finds who wants topic.
func (t *trie) route(topic string) *route {
	if r := t.routes[topic]; r != nil {
		return r
	}
	r := &route{topic: topic}
	w := walk{r: r, seen: map[*session]int{}, mayRead: t.mayRead}
	w.down(&t.root, topic, true)
	if len(t.routes) >= maxRoutes || t.wishes+len(r.sessions) > maxWishes || t.bytes+len(topic) > maxRouteBytes {
		t.forget()
	}
	t.routes[topic] = r
	t.bytes += len(topic)
	t.wishes += len(r.sessions)
	return r
}

// forget empties the cache: a subscription or a right has changed, or it is full.
func (t *trie) forget() {
	clear(t.routes)
	t.wishes, t.bytes = 0, 0
}

// walk gathers one route.
type walk struct {
	r       *route
	seen    map[*session]int // index in r.sessions, -1 = may not read it
	mayRead func(*session, string) bool
}

func (w *walk) down(n *node, topic string, first bool) {
	level, rest, more := strings.Cut(topic, "/")
	if !first || !strings.HasPrefix(topic, "$") { // [MQTT-4.7.2-1]
		if k := n.kids.get("#"); k != nil {
			w.take(k)
		}
		if k := n.kids.get("+"); k != nil {
			w.step(k, rest, more)
		}
	}
	if k := n.kids.get(level); k != nil && level != "#" && level != "+" {
		w.step(k, rest, more)
	}
}

func (w *walk) step(n *node, rest string, more bool) {
	if more {
		w.down(n, rest, false)
		return
	}
	w.take(n)
	if k := n.kids.get("#"); k != nil { // a/# matches a
		w.take(k)
	}
}

func (w *walk) take(n *node) {
	for _, s := range n.subs {
		switch {
		case s.local != nil:
			w.r.locals = append(w.r.locals, s.local)
		case s.up != nil:
			if !slices.Contains(w.r.uplinks, s.up) {
				w.r.uplinks = append(w.r.uplinks, s.up)
			}
		default:
			i, ok := w.seen[s.sess]
			if !ok {
				i = w.meet(s.sess)
			}
			if i < 0 {
				continue
			}
			v := &w.r.sessions[i]
			v.all.add(s)
			if !s.NoLocal { // [MQTT-3.8.3-3]
				v.own.add(s)
			}
		}
	}
	w.r.groups = append(w.r.groups, n.groups...)
}

// meet opens the wish of a session that may read the topic.
func (w *walk) meet(s *session) int {
	i := -1
	if w.mayRead(s, w.r.topic) {
		i = len(w.r.sessions)
		w.r.sessions = append(w.r.sessions, wish{sess: s})
	}
	w.seen[s] = i
	return i
}
