package embeddedbroker

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"

	"busgate/embeddedbroker/packet"
)

// player is a subscriber of the random scripts: it keeps the state that a
// client keeps and answers when it likes.
type player struct {
	id      string
	version byte
	qos     byte
	c       *client
	open    []opened               // begun and not completed, in the order of their first PUBLISH
	owed    []*packet.Ack          // answers that it has not sent yet
	live    map[uint16]bool        // ids of PUBLISH on this connection without an answer
	got     map[string]map[int]int // topic and QoS published -> number -> how often
	top     map[string]int         // ... -> highest number
	window  int
}

// opened is a message as the client sees it.
type opened struct {
	pid  uint16
	next packet.Type // PUBLISH: nothing was answered; PUBREL: PUBREC was; PUBCOMP: PUBREL has come
}

// find returns the place of an id in open, or -1.
func (p *player) find(pid uint16) int {
	return slices.IndexFunc(p.open, func(f opened) bool { return f.pid == pid })
}

// take looks at everything that has arrived and returns it.
func (p *player) take(t *testing.T) []packet.Packet {
	if p.c == nil {
		return nil
	}
	p.c.mu.Lock()
	all := p.c.got
	p.c.got = nil
	p.c.mu.Unlock()
	for _, x := range all {
		switch x := x.(type) {
		case *packet.Publish:
			p.message(t, x)
		case *packet.Ack:
			if x.Type == packet.PUBREL {
				if i := p.find(x.PID); i >= 0 {
					p.open[i].next = packet.PUBCOMP
				}
				p.owed = append(p.owed, &packet.Ack{Type: packet.PUBCOMP, PID: x.PID})
			}
		}
	}
	return all
}

func (p *player) message(t *testing.T, m *packet.Publish) {
	if m.PID == 0 || p.live[m.PID] {
		t.Fatalf("%s: id %d comes twice on one connection", p.id, m.PID)
	}
	p.live[m.PID] = true
	if len(p.live) > p.window {
		t.Fatalf("%s: %d open messages, the window is %d", p.id, len(p.live), p.window)
	}
	at := p.find(m.PID)
	if at >= 0 && (!m.Dup || p.open[at].next != packet.PUBLISH) {
		t.Fatalf("%s: id %d comes again, DUP %v, when %v is to come", p.id, m.PID, m.Dup, p.open[at].next)
	}
	if at < 0 {
		p.open = append(p.open, opened{m.PID, packet.PUBLISH})
	}
	if at < 0 || m.QoS == 1 {
		qos, number, _ := strings.Cut(string(m.Payload), ":")
		key := string(m.Topic) + " " + qos
		n, _ := strconv.Atoi(number)
		if p.got[key] == nil {
			p.got[key] = map[int]int{}
		}
		if p.got[key][n]++; p.got[key][n] > 1 && (m.QoS == 2 || !m.Dup) {
			t.Fatalf("%s: %s %d comes %d times, DUP %v", p.id, key, n, p.got[key][n], m.Dup)
		} else if p.got[key][n] == 1 {
			if n < p.top[key] {
				t.Fatalf("%s: %s %d comes after %d", p.id, key, n, p.top[key])
			}
			p.top[key] = n
		}
	}
	if m.QoS == 1 {
		p.owed = append(p.owed, &packet.Ack{Type: packet.PUBACK, PID: m.PID})
		return
	}
	p.owed = append(p.owed, &packet.Ack{Type: packet.PUBREC, PID: m.PID})
}

// answer sends one of the answers that are owed, any one.
func (p *player) answer(rnd *rand.Rand) {
	if p.c == nil || len(p.owed) == 0 {
		return
	}
	i := rnd.IntN(len(p.owed))
	a := p.owed[i]
	p.owed = slices.Delete(p.owed, i, i+1)
	p.c.try(a)
	at := p.find(a.PID)
	if a.Type == packet.PUBREC {
		p.open[at].next = packet.PUBREL
		return
	}
	delete(p.live, a.PID)
	if at >= 0 {
		p.open = slices.Delete(p.open, at, at+1)
	}
}

// connect comes back, at times as another version and with another window, and
// holds what the broker repeats, before any answer, against what is open
// [MQTT-4.4.0-1]: a PUBREL for each PUBREC, and each PUBLISH without an answer
// as far as these leave room in the window, in the old order [MQTT-4.6.0-1].
func (p *player) connect(t *testing.T, r *rig, rnd *rand.Rand) {
	p.drop()
	opts := []option{persistent}
	p.version, p.window = versions[rnd.IntN(len(versions))], testConfig().MaxInflight
	if p.version == packet.V5 {
		p.window = 1 + rnd.IntN(10)
		opts = append(opts, prop(packet.ReceiveMaximum, uint32(p.window)))
	}
	p.c = r.connect(p.version, p.id, opts...)
	var releases, messages []uint16
	for _, f := range p.open {
		if f.next == packet.PUBLISH {
			messages = append(messages, f.pid)
		} else {
			releases = append(releases, f.pid)
		}
	}
	messages = messages[:min(len(messages), max(0, p.window-len(releases)))]
	synctest.Wait()
	var released, repeated []uint16
	for _, x := range p.take(t) {
		switch x := x.(type) {
		case *packet.Publish:
			if x.Dup {
				repeated = append(repeated, x.PID)
			}
		case *packet.Ack:
			released = append(released, x.PID)
		}
	}
	for _, pid := range releases {
		if !slices.Contains(released, pid) {
			t.Fatalf("%s: no PUBREL for %d after the reconnect, only for %v; open are %v", p.id, pid, released, p.open)
		}
	}
	if !slices.Equal(repeated, messages) {
		t.Fatalf("%s: after the reconnect PUBLISH %v come again, want %v; open are %v, the window is %d", p.id, repeated, messages, p.open, p.window)
	}
}

func (p *player) drop() {
	if p.c != nil {
		p.c.close()
		synctest.Wait()
	}
	p.c, p.owed, p.live = nil, nil, map[uint16]bool{}
}

// TestRandomScripts lets clients connect, publish, answer late and in any
// order, vanish, and the broker restart, and holds what they see against the
// rules: nothing acknowledged is lost, QoS 2 comes once, publisher, topic and
// QoS keep their order, windows and ids hold.
func TestRandomScripts(t *testing.T) {
	for range 12 {
		seed := rand.Uint64()
		t.Run(strconv.FormatUint(seed, 16), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { randomScript(t, rand.New(rand.NewPCG(seed, 5))) })
		})
	}
}

// publishSome sends one message and sees it completed; at times it vanishes in
// the middle of QoS 2 and repeats.
func publishSome(r *rig, rnd *rand.Rand, pub *client, sent map[string]int) *client {
	topic, qos := fmt.Sprint("p/", rnd.IntN(2)), byte(1+rnd.IntN(2))
	key := fmt.Sprint(topic, " ", qos)
	sent[key]++
	m := &packet.Publish{Topic: []byte(topic), QoS: qos, PID: uint16(1 + rnd.IntN(65535)), Payload: fmt.Appendf(nil, "%d:%d", qos, sent[key])}
	pub.send(m)
	if qos == 1 {
		pub.find(packet.PUBACK, m.PID)
		return pub
	}
	pub.find(packet.PUBREC, m.PID)
	if rnd.IntN(4) == 0 {
		pub.close()
		synctest.Wait()
		pub = r.connect(packet.V311, "pub", persistent)
		m.Dup = true
		pub.send(m)
		pub.find(packet.PUBREC, m.PID)
	}
	pub.send(&packet.Ack{Type: packet.PUBREL, PID: m.PID})
	pub.find(packet.PUBCOMP, m.PID)
	return pub
}

func randomScript(t *testing.T, rnd *rand.Rand) {
	store := NewMemory()
	r := start(t, store)
	var players []*player
	for i := range 3 {
		p := &player{id: n("sub", i), qos: byte(1 + rnd.IntN(2)), got: map[string]map[int]int{}, top: map[string]int{}}
		p.connect(t, r, rnd)
		p.c.subscribe("p/#", p.qos)
		players = append(players, p)
	}
	sent := map[string]int{}
	pub := r.connect(packet.V311, "pub", persistent)
	for range 600 {
		switch k := rnd.IntN(20); {
		case k < 8:
			pub = publishSome(r, rnd, pub, sent)
		case k < 16:
			players[rnd.IntN(3)].answer(rnd)
		case k < 18:
			players[rnd.IntN(3)].connect(t, r, rnd)
		case k < 19:
			players[rnd.IntN(3)].drop()
		case rnd.IntN(4) == 0:
			r.stop()
			for _, p := range players {
				p.drop()
			}
			r = start(t, store)
			pub = r.connect(packet.V311, "pub", persistent)
		}
		synctest.Wait()
		for _, p := range players {
			p.take(t)
		}
	}
	for _, p := range players {
		p.connect(t, r, rnd)
		for {
			synctest.Wait()
			if p.take(t); len(p.owed) == 0 {
				break
			}
			p.answer(rnd)
		}
		for key, total := range sent {
			if len(p.got[key]) != total {
				t.Errorf("%s: %d of %d %s", p.id, len(p.got[key]), total, key)
			}
		}
	}
}
