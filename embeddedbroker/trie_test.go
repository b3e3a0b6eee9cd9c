package embeddedbroker

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"busgate/config"
)

// naive is the matching of MQTT 4.7 written a second time, level by level.
func naive(filter, topic string) bool {
	f, t := strings.Split(filter, "/"), strings.Split(topic, "/")
	if topic[0] == '$' && (f[0] == "+" || f[0] == "#") {
		return false
	}
	for i, l := range f {
		if l == "#" {
			return i <= len(t)
		}
		if i >= len(t) || l != "+" && l != t[i] {
			return false
		}
	}
	return len(f) == len(t)
}

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		filter, topic string
		want          bool
	}{
		{"a/b", "a/b", true}, {"a/b", "a/c", false}, {"a/b", "a", false}, {"a", "a/b", false},
		{"a/#", "a", true}, {"a/b/#", "a/b", true}, {"a/#", "a/b/c", true}, {"a/#", "ab", false},
		{"+", "a", true}, {"+", "a/b", false}, {"+/+", "/a", true}, {"/+", "/a", true}, {"+", "/a", false},
		{"#", "a/b", true}, {"#", "$SYS/x", false}, {"+/x", "$SYS/x", false}, {"$SYS/#", "$SYS/x", true}, {"$SYS/+", "$SYS/x", true},
		{"a/+/c", "a//c", true}, {"a/+", "a/", true}, {"a/+/#", "a/b", true}, {"a/+/#", "a", false}, {"#", "/", true}, {"a/$b", "a/$b", true},
	} {
		if got := MatchTopic(c.filter, c.topic); got != c.want {
			t.Errorf("MatchTopic(%q, %q) = %v", c.filter, c.topic, got)
		}
	}
}

// randomLevels makes topics and filters that meet often.
func randomLevels(rnd *rand.Rand, filter bool) string {
	if filter && rnd.IntN(8) == 0 {
		return "#"
	}
	var out []string
	for range 1 + rnd.IntN(4) {
		l := []string{"a", "b", "", "$x"}[rnd.IntN(4)]
		if filter && rnd.IntN(3) == 0 {
			l = "+"
		}
		out = append(out, l)
	}
	if filter && rnd.IntN(3) == 0 {
		out = append(out, "#")
	}
	if s := strings.Join(out, "/"); s != "" {
		return s
	}
	return "a"
}

func TestTrieAgreesWithNaiveMatcher(t *testing.T) {
	covers(t, "5", "MQTT-4.7.2-1")
	covers(t, "311", "MQTT-4.7.2-1")
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 2))
	tr := newTrie(func(*session, string) bool { return true })
	var live []*sub
	for step := range 4000 {
		switch {
		case rnd.IntN(3) > 0 && len(live) < 100:
			f := randomLevels(rnd, true)
			s := &sub{filter: f, sess: &session{id: fmt.Sprint(step)}, Subscription: Subscription{Filter: f, QoS: byte(rnd.IntN(3))}}
			tr.add(s)
			live = append(live, s)
		case len(live) > 0:
			i := rnd.IntN(len(live))
			tr.remove(live[i])
			live = slices.Delete(live, i, i+1)
		}
		topic := randomLevels(rnd, false)
		var want []string
		for _, s := range live {
			if got := MatchTopic(s.filter, topic); got != naive(s.filter, topic) {
				t.Fatalf("MatchTopic(%q, %q) = %v", s.filter, topic, got)
			} else if got {
				want = append(want, s.sess.id)
			}
		}
		var got []string
		for _, w := range tr.route(topic).sessions {
			got = append(got, w.sess.id)
		}
		slices.Sort(want)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Fatalf("%q: got %v, want %v", topic, got, want)
		}
	}
	for _, s := range live {
		tr.remove(s)
	}
	if !tr.root.kids.empty() || tr.count != 0 {
		t.Errorf("an empty trie has levels %v, count %d", tr.root.kids, tr.count)
	}
}

func TestRetainedAgreesWithNaiveMatcher(t *testing.T) {
	covers(t, "5", "MQTT-4.7.2-1")
	covers(t, "311", "MQTT-4.7.2-1")
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 3))
	var r retained
	kept := map[string]string{}
	for range 3000 {
		topic, payload := randomLevels(rnd, false), ""
		if rnd.IntN(3) > 0 {
			payload = fmt.Sprint(rnd.IntN(100))
		}
		r.set(&Message{Topic: topic, Payload: []byte(payload)}, 0, false)
		if kept[topic] = payload; payload == "" {
			delete(kept, topic)
		}
		filter := randomLevels(rnd, true)
		var want, got []string
		bytes := int64(0)
		for k, v := range kept {
			bytes += int64(len(k) + len(v))
			if naive(filter, k) {
				want = append(want, k+"="+v)
			}
		}
		for _, h := range r.match(filter, timeZero) {
			got = append(got, h.msg.Topic+"="+string(h.msg.Payload))
		}
		byTopic := func(a, b string) int { return strings.Compare(a[:strings.Index(a, "=")], b[:strings.Index(b, "=")]) }
		slices.SortFunc(want, byTopic)
		if !slices.Equal(got, want) {
			t.Fatalf("%q: got %v, want %v", filter, got, want)
		}
		if r.count != len(kept) || r.bytes != bytes {
			t.Fatalf("count %d bytes %d, want %d %d", r.count, r.bytes, len(kept), bytes)
		}
	}
	for k := range kept {
		r.remove(k)
	}
	if len(r.root.kids) != 0 {
		t.Errorf("an empty index has %d levels", len(r.root.kids))
	}
}

func TestFilterAlgebraAgreesWithTopics(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 4))
	var topics []string
	for range 3000 {
		topics = append(topics, randomLevels(rnd, false))
	}
	for range 400 {
		a, b := randomLevels(rnd, true), randomLevels(rnd, true)
		in, over := inside(a, b), overlap(a, b)
		for _, x := range topics {
			ma, mb := MatchTopic(a, x), MatchTopic(b, x)
			if ma && !mb && in {
				t.Fatalf("%q is said to be inside %q, but matches %q alone", a, b, x)
			}
			if ma && mb && !over {
				t.Fatalf("%q and %q are said not to overlap, but both match %q", a, b, x)
			}
		}
	}
}

func TestShareNames(t *testing.T) {
	for _, c := range []struct {
		filter     string
		shared, ok bool
	}{{"a/b", false, true}, {"$share/g/a", true, true}, {"$share/g/#", true, true}, {"$share//a", true, false},
		{"$share/g", true, false}, {"$share/g/", true, false}, {"$share/g+/a", true, false}, {"$share/#/a", true, false}} {
		if _, _, shared, ok := splitShare(c.filter); shared != c.shared || ok != c.ok {
			t.Errorf("%s: %v %v", c.filter, shared, ok)
		}
	}
}

func TestACL(t *testing.T) {
	a := newACL(map[string][]config.Rule{
		"joe": {{Verb: "readwrite", Filter: "own/%u/#"}, {Verb: "read", Filter: "plant/+/state"}, {Verb: "deny", Filter: "plant/secret/#"}},
		"*":   {{Verb: "read", Filter: "$SYS/#"}, {Verb: "write", Filter: "in/%c"}},
	})
	for _, c := range []struct {
		user, client, topic string
		write, want         bool
	}{
		{"joe", "c", "own/joe/x", true, true}, {"joe", "c", "own/ann/x", true, false}, {"ann", "c", "own/ann/x", true, false},
		{"joe", "c", "plant/a/state", false, true}, {"joe", "c", "plant/a/state", true, false}, {"joe", "c", "plant/secret/state", false, false},
		{"", "c", "$SYS/broker/uptime", false, true}, {"joe", "c", "$SYS/broker/uptime", false, true}, {"", "c", "in/c", true, true}, {"", "c", "in/d", true, false},
	} {
		if got := a.may(c.user, c.client, c.topic, c.write); got != c.want {
			t.Errorf("%+v: got %v", c, got)
		}
	}
	for filter, want := range map[string]bool{"plant/#": true, "plant/secret/#": false, "plant/secret/x": false, "other/#": false, "#": true, "own/+/x": true} {
		if got := a.maySubscribe("joe", "c", filter); got != want {
			t.Errorf("subscribe %s: %v", filter, got)
		}
	}
	if a.nameOK("joe", "a/b") || a.nameOK("jo#e", "a") == false || a.nameOK("joe", "ok") == false {
		t.Error("names")
	}
	var none *acl
	if !none.may("x", "y", "z", true) || !none.maySubscribe("x", "y", "#") || !none.nameOK("+", "#") {
		t.Error("without a table everything is allowed")
	}
}

func FuzzFilter(f *testing.F) {
	f.Add("a/+/#", "a/b")
	f.Fuzz(func(t *testing.T, filter, topic string) {
		if !validFilter(filter) || !validTopic(topic) {
			return
		}
		want := naive(filter, topic)
		if got := MatchTopic(filter, topic); got != want {
			t.Fatalf("MatchTopic(%q, %q) = %v", filter, topic, got)
		}
		tr := newTrie(func(*session, string) bool { return true })
		tr.add(&sub{filter: filter, sess: &session{}, Subscription: Subscription{Filter: filter}})
		if got := len(tr.route(topic).sessions) == 1; got != want {
			t.Fatalf("trie of %q matches %q: %v", filter, topic, got)
		}
		var r retained
		r.set(&Message{Topic: topic, Payload: []byte("x")}, 0, false)
		if got := len(r.match(filter, timeZero)) == 1; got != want {
			t.Fatalf("retained %q matches %q: %v", topic, filter, got)
		}
	})
}

var (
	timeZero time.Time
	discard  = slog.New(slog.DiscardHandler)
)
