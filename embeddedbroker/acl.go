package embeddedbroker

import (
	"slices"
	"strings"
	"unicode/utf8"

	"busgate/config"
	"busgate/embeddedbroker/packet"
)

// acl judges who may write and read what. nil allows everything; otherwise
// what no rule grants is forbidden, and a deny rule beats every grant.
type acl struct{ rules map[string][]rule }

type rule struct {
	filter            string
	read, write, deny bool
	user, client      bool // holds %u, %c
}

func newACL(m map[string][]config.Rule) *acl {
	if m == nil {
		return nil
	}
	a := &acl{rules: map[string][]rule{}}
	for name, lines := range m {
		for _, l := range lines {
			r := rule{filter: l.Filter, deny: l.Verb == "deny"}
			r.read = l.Verb == "read" || l.Verb == "readwrite"
			r.write = l.Verb == "write" || l.Verb == "readwrite"
			for level := range strings.SplitSeq(l.Filter, "/") {
				r.user = r.user || level == "%u"
				r.client = r.client || level == "%c"
			}
			a.rules[name] = append(a.rules[name], r)
		}
	}
	return a
}

// of walks over the rules that apply to a user.
func (a *acl) of(user string, visit func(*rule) bool) {
	for _, name := range [...]string{user, "*"} {
		for i := range a.rules[name] {
			if !visit(&a.rules[name][i]) {
				return
			}
		}
		if user == "*" {
			return
		}
	}
}

// filterFor is the filter of a rule for one client; false: the rule means nothing for it.
func (r *rule) filterFor(user, client string) (string, bool) {
	if !r.user && !r.client {
		return r.filter, true
	}
	if r.user && user == "" {
		return "", false
	}
	levels := strings.Split(r.filter, "/")
	for i, l := range levels {
		switch l {
		case "%u":
			levels[i] = user
		case "%c":
			levels[i] = client
		}
	}
	return strings.Join(levels, "/"), true
}

// nameOK says whether user name and client id can stand in the rules that apply
// to them: a wildcard or a slash would widen a rule.
func (a *acl) nameOK(user, client string) bool {
	if a == nil {
		return true
	}
	ok := true
	a.of(user, func(r *rule) bool {
		ok = !(r.user && strings.ContainsAny(user, "+#/") || r.client && strings.ContainsAny(client, "+#/"))
		return ok
	})
	return ok
}

// may judges one topic.
func (a *acl) may(user, client, topic string, write bool) bool {
	if a == nil {
		return true
	}
	granted, denied := false, false
	a.of(user, func(r *rule) bool {
		if !r.deny && !(write && r.write || !write && r.read) || r.deny == denied && r.deny || !r.deny && granted {
			return true
		}
		f, ok := r.filterFor(user, client)
		if ok && MatchTopic(f, topic) {
			denied = denied || r.deny
			granted = granted || !r.deny
		}
		return !denied
	})
	return granted && !denied
}

// maySubscribe refuses a filter that lies inside a deny or meets no read rule.
// What it grants is judged again with each delivery.
func (a *acl) maySubscribe(user, client, filter string) bool {
	if a == nil {
		return true
	}
	granted, denied := false, false
	a.of(user, func(r *rule) bool {
		f, ok := r.filterFor(user, client)
		if !ok {
			return true
		}
		denied = denied || r.deny && inside(filter, f)
		granted = granted || r.read && overlap(filter, f)
		return !denied
	})
	return granted && !denied
}

// inside says whether every topic that inner matches is matched by outer.
func inside(inner, outer string) bool {
	in, out := strings.Split(inner, "/"), strings.Split(outer, "/")
	if strings.HasPrefix(in[0], "$") && (out[0] == "+" || out[0] == "#") {
		return false
	}
	for i, o := range out {
		switch {
		case o == "#":
			return true
		case i >= len(in) || in[i] == "#":
			return false
		case o != "+" && o != in[i]:
			return false
		}
	}
	return len(in) == len(out)
}

// overlap says whether some topic is matched by both filters.
func overlap(a, b string) bool {
	x, y := strings.Split(a, "/"), strings.Split(b, "/")
	wild := func(s string) bool { return s == "+" || s == "#" }
	if strings.HasPrefix(x[0], "$") && wild(y[0]) || strings.HasPrefix(y[0], "$") && wild(x[0]) {
		return false
	}
	for i := range max(len(x), len(y)) {
		switch {
		case i < len(x) && x[i] == "#", i < len(y) && y[i] == "#":
			return true
		case i == len(x) || i == len(y):
			return slices.Equal(x[i:min(i+1, len(x))], []string{"#"}) || slices.Equal(y[i:min(i+1, len(y))], []string{"#"})
		case x[i] != y[i] && x[i] != "+" && y[i] != "+":
			return false
		}
	}
	return true
}

// reserved says whether LAN clients may not publish to a topic at all: the
// gateway's own topics, $SYS and $share [MQTT-4.7.2-1].
func (b *Broker) reserved(topic string) bool {
	if strings.HasPrefix(topic, "$SYS/") {
		return !bridgeState(topic)
	}
	return strings.HasPrefix(topic, "$share/") || b.opts.Reserved != nil && b.opts.Reserved(topic)
}

// mislabelled says whether a payload is said to be UTF-8 and is not.
func mislabelled(p *packet.Publish) bool {
	v, ok := p.Props.Uint(packet.PayloadFormat)
	return ok && v == 1 && !utf8.Valid(p.Payload)
}

// bridgeState is the one topic below $SYS that clients may write: the state of
// a bridge that connects to us.
func bridgeState(topic string) bool {
	id, ok := strings.CutPrefix(topic, "$SYS/broker/connection/")
	if !ok {
		return false
	}
	id, ok = strings.CutSuffix(id, "/state")
	return ok && id != "" && !strings.Contains(id, "/")
}
