package uplink

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"busgate/bridge/uplink/cloudtest"
	"busgate/buffer"
)

func TestSessionIsExactWhateverIsCutWhere(t *testing.T) {
	const n = 6
	for _, c := range []struct {
		qos   byte
		atPub bool
	}{{0, false}, {1, false}, {2, false}, {2, true}} {
		events := newWorld(c.qos, c.atPub, n).run(nil)
		for _, kind := range []string{"cut", "kill", "wipe", "wipe+kill"} {
			for first := 0; first <= events; first++ {
				for second := first; second <= events+8; second += 3 {
					w := newWorld(c.qos, c.atPub, n)
					w.run(map[int]string{first: kind, second + 1: "cut"})
					lost, twice, reordered := tally(n, w.ledger)
					name := fmt.Sprintf("qos %d at-publish %v %s before event %d, cut before %d", c.qos, c.atPub, kind, first, second+1)
					if reordered != 0 {
						t.Errorf("%s: %d reordered: %v", name, reordered, w.ledger)
					}
					if len(w.st.twice) > 0 {
						t.Errorf("%s: acked wrongly: %v", name, w.st.twice)
					}
					switch {
					case c.qos == 0 && twice > 0 && kind == "cut":
						t.Errorf("%s: %d twice: %v", name, twice, w.ledger)
					case c.qos > 0 && lost != 0:
						t.Errorf("%s: %d lost: %v", name, lost, w.ledger)
					case c.qos == 2 && twice > 0 && (kind == "cut" || kind == "kill"):
						t.Errorf("%s: %d twice: %v", name, twice, w.ledger)
					case twice > 2*worldWindow+n && c.qos > 0:
						t.Errorf("%s: %d twice: %v", name, twice, w.ledger)
					}
				}
			}
		}
	}
}

func TestWithoutRTheSessionDoubles(t *testing.T) {
	const n = 6
	events := newWorld(2, true, n).run(nil)
	worst := 0
	for cut := 0; cut <= events; cut++ {
		w := newWorld(2, true, n)
		w.noR = true
		w.run(map[int]string{cut: "cut"})
		_, twice, _ := tally(n, w.ledger)
		worst = max(worst, twice)
	}
	if worst == 0 {
		t.Error("publishing again what the cloud has taken over was not noticed: the test proves nothing")
	}
}

func TestPubrecOutOfOrderIsHeldUntilThePrefixCloses(t *testing.T) {
	s := newSession()
	for ord := uint64(1); ord <= 3; ord++ {
		s.add(&flight{first: ord, last: ord, qos: 2})
	}
	s.pump()
	s.out = nil
	now := time.Unix(1, 0)
	s.pubrec(packetID(2), now)
	s.pubrec(packetID(3), now)
	if s.settle(); len(s.recs) != 0 || s.busy {
		t.Fatalf("released %v before PUBREC of ord 1", s.recs)
	}
	s.pubrec(packetID(1), now)
	if s.settle(); fmt.Sprint(s.recs) != "[1 2 3]" || !s.busy {
		t.Fatalf("released %v, want [1 2 3]", s.recs)
	}
	if len(s.out) != 0 {
		t.Fatalf("PUBREL left before the release is durable: %v", s.out)
	}
	s.durable()
	if len(s.out) != 3 {
		t.Fatalf("%d PUBREL, want 3", len(s.out))
	}
}

func TestUnknownIDs(t *testing.T) {
	s := newSession()
	s.add(&flight{first: 1, last: 1, qos: 1})
	s.pump()
	s.out = nil
	now := time.Unix(1, 0)
	s.puback(77, now)
	s.pubcomp(78, now)
	if s.unknown != 2 || len(s.out) != 0 || len(s.flights) != 1 {
		t.Errorf("unknown PUBACK and PUBCOMP: counted %d, wrote %d, in flight %d; want 2, 0, 1", s.unknown, len(s.out), len(s.flights))
	}
	s.pubrec(79, now)
	if len(s.out) != 1 || s.out[0].p.Details().MessageID != 79 {
		t.Errorf("unknown PUBREC is answered by %v, want PUBREL 79", s.out)
	}
	s.pubrec(packetID(1), now) // of a QoS 1 flight: an orphan of an earlier life
	if len(s.flights) != 1 || s.flights[0].step != sent {
		t.Errorf("PUBREC for a QoS 1 message changed it to %v", s.flights[0].step)
	}
}

func TestControlPacketsTakeIDsOfCompletedOrds(t *testing.T) {
	s := newSession()
	s.completed = 70000
	s.add(&flight{first: 70001, last: 70001, qos: 1})
	for range 300 {
		s.say("t", nil, false, nil)
	}
	s.pump()
	if len(s.control) != maxControl || len(s.queue) != 300-maxControl || s.resumed {
		t.Fatalf("%d written, %d wait, resumed %v; want 256, 44, false", len(s.control), len(s.queue), s.resumed)
	}
	for ord := uint64(70000 - maxControl + 1); ord <= 70000; ord++ {
		if s.control[packetID(ord)] == nil {
			t.Fatalf("id of ord %d is not used", ord)
		}
	}
	for id := range s.control {
		s.puback(id, time.Unix(1, 0))
		break
	}
	s.pump()
	if len(s.queue) != 43 {
		t.Errorf("%d wait after one answer, want 43", len(s.queue))
	}
}

func TestPublishWaitsForAnIDThatAControlPacketHolds(t *testing.T) {
	s := newSession()
	s.completed = 10
	s.say("t", nil, false, nil)
	s.pump()
	if !s.blocked(10+65535) || s.blocked(11) {
		t.Errorf("blocked(%d) = %v, blocked(11) = %v; want true, false", 10+65535, s.blocked(10+65535), s.blocked(11))
	}
}

// TestSessionModel plays random events and faults; after each the state of the
// session must be one that C and R can describe.
func TestSessionModel(t *testing.T) {
	const n, faults = 60, 12
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		w := newWorld(2, seed%2 == 0, n)
		for step, left, idle := 0, faults, 0; idle < 200; step++ {
			if left > 0 && rnd.IntN(25) == 0 {
				left--
				w.fault([]string{"cut", "kill"}[rnd.IntN(2)])
			}
			if w.event(rnd.IntN(5)) {
				idle = 0
			} else {
				idle++
			}
			invariant(t, w.s, seed, step)
		}
		if lost, twice, reordered := tally(n, w.ledger); lost+twice+reordered != 0 || len(w.st.twice) > 0 {
			t.Fatalf("seed %d: lost %d, twice %d, reordered %d, acked wrongly %v", seed, lost, twice, reordered, w.st.twice)
		}
		if len(w.s.flights) != 0 || w.s.bytes != 0 || len(w.s.byID) != 0 {
			t.Fatalf("seed %d: at the end %d flights, %d bytes, %d ids", seed, len(w.s.flights), w.s.bytes, len(w.s.byID))
		}
	}
}

// invariant: ords rise from C; what is released is a prefix (C,R]; the bytes are
// those of the flights.
func invariant(t *testing.T, s *session, seed uint64, step int) {
	t.Helper()
	ord, open, bytes, held := s.completed, false, int64(0), 0
	for _, f := range s.flights {
		if f.first <= ord {
			t.Fatalf("seed %d step %d: ord %d after %d", seed, step, f.first, ord)
		}
		ord = f.last
		switch {
		case f.step == waiting || f.step == sent || f.step == received:
			open = true
		case f.step == released && open:
			t.Fatalf("seed %d step %d: ord %d is released while one before it is not", seed, step, f.first)
		}
		if f.step < released {
			held++
		}
		if f.step != done {
			bytes += f.size()
			if s.byID[packetID(f.first)] != f {
				t.Fatalf("seed %d step %d: ord %d is not found by its packet id", seed, step, f.first)
			}
		}
	}
	if held != s.held {
		t.Fatalf("seed %d step %d: %d hold a place in the window, counted %d", seed, step, held, s.held)
	}
	if bytes != s.bytes {
		t.Fatalf("seed %d step %d: %d bytes in flight, counted %d", seed, step, bytes, s.bytes)
	}
}

// TestPublishLeavesAnIDThatIsTaken alone: a birth that is not answered for 65,535
// messages holds the id of the next.
func TestPublishLeavesAnIDThatIsTaken(t *testing.T) {
	r := newRig(t, cloudtest.Options{})
	l := r.idle()
	near, far := bufferedPipe()
	defer func() { _ = far.Close() }()
	e := &epoch{opened: &opened{w: newWire(near, 1<<20, time.Second)}}
	l.s.resumed = true
	l.ready = []lot{{Record: buffer.Record{Ord: 7, Topic: "t"}}}
	l.s.control[packetID(7)] = &control{}
	if l.publish(e, time.Now()); len(l.s.flights) != 0 {
		t.Error("a message left with the id of a packet that is not answered")
	}
	delete(l.s.control, packetID(7))
	if l.publish(e, time.Now()); len(l.s.flights) != 1 {
		t.Errorf("%d in flight after the answer", len(l.s.flights))
	}
}
