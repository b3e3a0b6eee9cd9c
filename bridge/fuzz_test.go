package bridge

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"
)

// FuzzCommand parses anything: it never panics, and what it takes is small,
// named and text.
func FuzzCommand(f *testing.F) {
	for _, s := range []string{"on", "42.5", `{"value":42.5,"id":"a1","expires":"2026-11-21T06:02:00Z"}`, `{"relay1":true,"limit":80,"ttl_s":30}`,
		`"x"`, `[1]`, `{"a":{}}`, "{", `{"value":1e999,"id":""}`, `{"a":1,"a":2}`, "\xff", `{"\ud800":1}`} {
		f.Add("limit", []byte(s))
		f.Add("", []byte(s))
	}
	f.Fuzz(func(t *testing.T, point string, payload []byte) {
		q, err := parseCommand(point, payload)
		if err != nil {
			if s := err.Error(); !utf8.ValidString(s) || strings.ContainsAny(s, "\n\r") || len(s) > 600 {
				t.Fatalf("text %q", s)
			}
			return
		}
		if len(payload) > maxCommand || !utf8.Valid(payload) || len(q.writes) == 0 || len(q.id) > maxID || q.ttl < 0 || q.ttl > maxTTL {
			t.Fatalf("%q gives %+v", payload, q)
		}
		seen := map[string]bool{}
		for _, w := range q.writes {
			if point != "" && w.point != point || seen[w.point] || point == "" && w.point == "id" {
				t.Fatalf("%q gives %+v", payload, q)
			}
			seen[w.point] = true
		}
		if point == "" && !json.Valid(payload) {
			t.Fatalf("%q was taken", payload)
		}
	})
}

// FuzzTopic takes topics apart: what comes out makes the topic again, and no
// topic is both for commands and ours.
func FuzzTopic(f *testing.F) {
	for _, s := range []string{"busgate/plant-a/grid/state", "busgate/plant-a/grid/set/x", "busgate/plant-a/gateway/alert/x", "busgate/plant-a/", "busgate/plant-a", "", "a/b"} {
		f.Add(s)
	}
	const base = "busgate/plant-a"
	f.Fuzz(func(t *testing.T, topic string) {
		p, ok := parseTopic(base, topic)
		if !ok {
			if strings.HasPrefix(topic, base+"/") && strings.Count(topic[len(base)+1:], "/") > 0 {
				t.Fatalf("%q is not taken apart", topic)
			}
			return
		}
		again := base + "/" + p.device + "/" + p.kind
		if p.deep {
			again += "/" + p.rest
		}
		if again != topic || strings.Contains(p.device, "/") || p.reserved() && p.command() {
			t.Fatalf("%q is %+v", topic, p)
		}
	})
}

// FuzzReply reads properties: whatever they are, the reply is bounded.
func FuzzReply(f *testing.F) {
	f.Add([]byte{propResponseTopic, 0, 1, 'a', propCorrelation, 0, 1, 'b'})
	f.Add([]byte{propUser, 0, 1, 'a', 0, 0, propExpiry, 1, 2})
	f.Fuzz(func(t *testing.T, props []byte) {
		r := parseReply(props)
		if len(r.topic)+len(r.correlation) > maxReply || r.topic == "" && r.correlation != nil {
			t.Fatalf("%x gives %+v", props, r)
		}
		if back := parseReply(append([]byte{propResponseTopic, 0, 1, 'a'}, r.props()...)); string(back.correlation) != string(r.correlation) {
			t.Fatalf("%x comes back as %x", r.correlation, back.correlation)
		}
	})
}

// FuzzRecord reads commands of an earlier run.
func FuzzRecord(f *testing.F) {
	j := &job{device: "pumps", id: "a", key: "k", received: testTime, arrived: 5, until: 9, steps: []step{{point: "p", text: "1"}, {point: "q", state: stepDone, ack: []byte("{}")}}}
	f.Add(j.encode())
	f.Fuzz(func(t *testing.T, raw []byte) {
		j, err := decodeJob(raw, testMono, testTime)
		if err != nil {
			return
		}
		if j.key == "" || len(j.steps) == 0 || j.arrived > testMono {
			t.Fatalf("%s gives %+v", raw, j)
		}
	})
}
