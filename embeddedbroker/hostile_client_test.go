package embeddedbroker

import (
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"busgate/embeddedbroker/packet"
)

// Topics and filters may be long or deep; what they cost is bounded.
func TestHostileTopics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, j := watched(t)
		w := r.witness()
		heap := heapNow()
		deep := strings.Repeat("a/", maxLevels)
		rejected(t, r, "a topic of too many levels", packet.BadTopic, &packet.Publish{Topic: []byte(deep), QoS: 1, PID: 1})
		rejected(t, r, "a topic of 64 KB that is all levels", packet.BadTopic, &packet.Publish{Topic: []byte(strings.Repeat("/", 65535))})
		old := r.connect(packet.V311, "old")
		old.send(&packet.Publish{Topic: []byte(deep)})
		old.ended()
		c := r.connect(packet.V5, "c")
		c.send(&packet.Subscribe{PID: 1, Filters: []packet.Filter{{Filter: deep + "#"}, {Filter: strings.Repeat("+/", maxLevels-1) + "#"}}})
		if s := expect[*packet.Suback](c); s.Codes[0] != packet.BadFilter || s.Codes[1] != 0 {
			t.Errorf("codes % x", s.Codes)
		}
		c.send(&packet.Unsubscribe{PID: 2, Filters: []string{strings.Repeat("+/", maxLevels-1) + "#"}})
		expect[*packet.Unsuback](c)
		// 100 topics of 60 KB are 6 MB: nothing of them is remembered for long.
		long := strings.Repeat("x", 60_000)
		for i := range 100 {
			c.publish(n(long, i), "", 0, 0)
		}
		c.ping()
		r.b.mu.Lock()
		if n := r.b.subs.bytes; n > maxRouteBytes {
			t.Errorf("%d bytes of topics are cached", n)
		}
		r.b.mu.Unlock()
		// Retained ones of 200 levels: the levels count, not only the bytes.
		for i := range maxRetainedNodes/maxLevels + 10 {
			topic := n("r", i) + "/" + strings.Repeat("a/", maxLevels-2) + "x"
			c.send(&packet.Publish{Topic: []byte(topic), Retain: true, QoS: 1, PID: 1, Payload: []byte("x")})
			if a := c.acked(packet.PUBACK, 1); a.Code >= 0x80 && i < maxRetainedNodes/maxLevels-2 || a.Code < 0x80 && i > maxRetainedNodes/maxLevels {
				t.Fatalf("retained %d: 0x%02X", i, a.Code)
			}
		}
		if r.b.kept.nodes > maxRetainedNodes {
			t.Errorf("%d levels are kept", r.b.kept.nodes)
		}
		if grown := heapNow() - heap; grown > 160<<20 {
			t.Errorf("%d MB more are in use", grown>>20)
		}
		for _, m := range r.b.Retained("#") {
			c.publish(m.Topic, "", 0, 0)
			c.send(&packet.Publish{Topic: []byte(m.Topic), Retain: true})
		}
		c.ping()
		if k := &r.b.kept; k.nodes != 0 || k.count != 0 || k.bytes != 0 {
			t.Errorf("%d levels, %d messages, %d bytes are left", k.nodes, k.count, k.bytes)
		}
		if n := j.about("WARN broker: pipe"); n != 1 {
			t.Errorf("%d lines\n%s", n, j.all())
		}
		r.served(w)
	})
}

// What stands behind the topic aliases of one client is bounded in bytes; those
// that are replaced make room.
func TestHostileAliases(t *testing.T) {
	r, j := watched(t)
	w := r.witness()
	set := func(c *client, alias, bytes int) {
		c.try(&packet.Publish{Topic: []byte(strings.Repeat("x", bytes)), HasAlias: true, Alias: uint16(alias)})
	}
	c := r.connect(packet.V5, "good")
	for round := range 3 { // full each time
		for a := range inboundAlias {
			set(c, a+1, inboundTopics/inboundAlias-round)
		}
	}
	c.ping()
	c = r.connect(packet.V5, "one long")
	set(c, 16, inboundTopics-1)
	set(c, 16, inboundTopics-1)
	c.ping()
	c = r.connect(packet.V5, "bad")
	for a := range inboundAlias {
		set(c, a+1, 60_000)
	}
	if d := expect[*packet.Disconnect](c); d.Code != packet.QuotaExceeded {
		t.Errorf("code 0x%02X", d.Code)
	}
	c.ended()
	if n := r.b.Stats().RefusedAliases; n != 1 {
		t.Errorf("%d counted", n)
	}
	if n := j.about(`(client "bad") is cut off: topic aliases for more than 65536 bytes of topics`); n != 1 {
		t.Errorf("%d lines\n%s", n, j.all())
	}
	r.served(w)
}

// A flood of subscriptions ends at what a session may have, and at what all may
// have; what leaves makes room.
func TestHostileSubscriptions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, j := watched(t)
		w := r.witness()
		flood := func(id string, filter func(int) string) (c *client, granted int) {
			c = r.connect(packet.V5, id)
			for i := range 60 {
				s := &packet.Subscribe{PID: uint16(i + 1)}
				for k := range 200 {
					s.Filters = append(s.Filters, packet.Filter{Filter: filter(200*i + k)})
				}
				c.send(s)
				for _, code := range expect[*packet.Suback](c).Codes {
					switch code {
					case 0:
						granted++
					case packet.QuotaExceeded:
					default:
						t.Errorf("code 0x%02X", code)
					}
				}
			}
			return c, granted
		}
		deep := strings.Repeat("+/", maxLevels-2)
		a, got := flood("short", func(i int) string { return n("s", i) })
		if got != maxSubscriptions {
			t.Errorf("%d short filters", got)
		}
		_, got = flood("deep", func(i int) string { return deep + n("d", i) })
		if want := maxSessionWeight / weigh(deep+"d1"); got < want-5 || got > want+5 {
			t.Errorf("%d deep filters, %d weigh what is allowed", got, want)
		}
		var wg sync.WaitGroup
		for i := range 6 {
			wg.Go(func() { flood(n("more", i), func(k int) string { return deep + n("d", k) }) })
		}
		wg.Wait()
		nap(offenceEvery)
		if _, got = flood("late", func(k int) string { return deep + n("d", k) }); got > 1 {
			t.Errorf("%d filters beyond what all may have", got)
		}
		r.b.mu.Lock()
		if r.b.subs.weight > maxWeight {
			t.Errorf("all weigh %d", r.b.subs.weight)
		}
		r.b.mu.Unlock()
		if n := j.about("wants more subscriptions"); n != 1 {
			t.Errorf("%d lines\n%s", n, j.all())
		}
		a.close()
		for i := range 6 {
			r.b.DropSession(n("more", i))
		}
		r.b.DropSession("deep")
		r.b.DropSession("late")
		r.served(w)
		w.ping()
		nap(2 * toilRest)
		r.b.mu.Lock()
		if got, want := r.b.subs.weight, weigh("witness"); got != want {
			t.Errorf("%d of weight is left, want %d", got, want)
		}
		r.b.mu.Unlock()
	})
}

// Sessions that outlive their connection are bounded; those that exist go on.
func TestHostileSessions(t *testing.T) {
	r, _ := watched(t)
	r.b.mu.Lock()
	for i := range maxSessions {
		r.b.sessions[n("s", i)] = newSession(r.b, n("s", i), 0)
	}
	r.b.mu.Unlock()
	for v, code := range map[byte]byte{packet.V5: packet.QuotaExceeded, packet.V311: packet.Refused3Server} {
		c := r.dial(v)
		p := &packet.Connect{Version: v, ClientID: "one more"}
		persistent(p)
		c.send(p)
		if a := expect[*packet.Connack](c); a.Code != code {
			t.Errorf("version %d: code 0x%02X", v, a.Code)
		}
		r.connect(v, "s7", persistent)
		r.connect(v, "volatile")
	}
}

// Large wills and names of clients that sleep are bounded together.
func TestHostileWills(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, j := watched(t)
		payload := strings.Repeat("x", 50_000)
		late := func(p *packet.Connect) { p.Will.Props = packet.Props{}.WithUint(packet.WillDelay, 3600) }
		taken := 0
		for i := range 2 * maxSessionBytes / len(payload) {
			c := r.dialFrom(packet.V5, fmt.Sprintf("10.0.%d.1", i/100))
			p := &packet.Connect{Version: packet.V5, ClientID: n("c", i)}
			for _, o := range []option{persistent, will("w", payload, 0, false), late} {
				o(p)
			}
			c.send(p)
			if expect[*packet.Connack](c).Code == 0 {
				taken++
			}
			c.close()
			synctest.Wait()
		}
		if want := maxSessionBytes / len(payload); taken < want-1 || taken > want {
			t.Errorf("%d large sessions, want %d", taken, want)
		}
		if n := j.about("no room for another session"); n != 4 { // of the addresses from 10.0.3.1 on
			t.Errorf("%d lines\n%.500s", n, j.all())
		}
		r.connect(packet.V5, "small", persistent)
	})
}

// Names that are guessed are not kept at full length.
func TestHostileNames(t *testing.T) {
	var g gatekeeper
	r := start(t, NewMemory())
	heap := heapNow()
	for i := range maxAddresses {
		a, b := net.Pipe()
		a.Close()
		c := newConn(r.b, b)
		c.kicked = &ending{} // it does not wait for its answer
		g.failed(c, n("u", i)+strings.Repeat("x", 20_000))
	}
	if grown := heapNow() - heap; grown > 8<<20 {
		t.Errorf("%d bytes are kept", grown)
	}
}
