package uplink

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"busgate/bridge/uplink/cloudtest"
	"busgate/config"
	"busgate/embeddedbroker"
)

var full = flag.Bool("exact", false, "run the whole exactness suite: 20,000 messages, 50 faults, seeds 1 to 5")

// trial is one run against the lossy cloud.
type trial struct {
	messages, faults, window int
	seed                     uint64
	qos                      byte
	atPublish                bool
	kind                     string // of the faults: kill, cut, kill+cut, wipe, hole, none; release: the cloud cuts after a PUBREL, before its PUBCOMP
	noR                      bool
	ackDelay                 time.Duration
	batch                    int // readings in a batch; 0 = as they are
}

func (tr trial) String() string {
	method := "A"
	if tr.atPublish {
		method = "B"
	}
	return fmt.Sprintf("qos %d %s %s seed %d", tr.qos, method, tr.kind, tr.seed)
}

// saveEvery is how many acks the fake store may lose in a crash at QoS 2, where
// it costs a PUBREL each.
const saveEvery = 50

// fast are deadlines for a loopback that is cut on purpose all the time.
// All breaks are resets, which are seen at once; a machine that stands still for
// a while is no fault.
var fast = timing{
	connect: time.Minute, ack: time.Minute, write: time.Minute, ping: time.Minute, release: time.Minute,
	settle: 20 * time.Millisecond, retry: 5 * time.Millisecond, tick: 20 * time.Millisecond,
}

// patience is how long a link waits for an acknowledgement when the fault is a
// hole, which only a deadline finds.
const patience = 3 * time.Second / 2

// victim is a process of busgate that can be killed: its connections break, its
// store hears nothing more.
type victim struct {
	link   *Link
	st     *fakeStore
	cancel context.CancelFunc
	ended  chan struct{}
	mu     sync.Mutex
	conns  []net.Conn
	dead   bool
	facts  map[string][]byte // on disk
}

func launch(t *testing.T, tr trial, st *fakeStore, addr string, facts map[string][]byte) *victim {
	v := &victim{st: st, ended: make(chan struct{}), facts: maps.Clone(facts)}
	if v.facts == nil {
		v.facts = map[string][]byte{}
	}
	cfg := &config.Uplink{
		Name: "cloud", Addresses: []string{"mqtt://" + addr}, ClientID: "gw", QoS: tr.qos, Window: tr.window, KeepAlive: time.Minute,
		Send: []string{"#"}, Will: true, Retain: true, Compress: "deflate", MaxRecords: tr.batch, MaxAge: 20 * time.Millisecond,
	}
	if tr.batch > 0 {
		cfg.Encode = "json-batch"
	}
	l, err := New(cfg, &config.Gateway{Name: "gw", Topic: "busgate"}, nil, Options{
		Usage: st.usage, Stream: 1,
		Fact: func(k string) []byte { v.mu.Lock(); defer v.mu.Unlock(); return v.facts[k] },
		Keep: func(k string, b []byte, then func(error)) {
			time.AfterFunc(st.delay, func() {
				v.mu.Lock()
				dead := v.dead
				if !dead {
					v.facts[k] = b
				}
				v.mu.Unlock()
				if !dead {
					then(nil)
				}
			})
		},
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			v.mu.Lock()
			defer v.mu.Unlock()
			if v.dead {
				return nil, net.ErrClosed
			}
			c, err := (&net.Dialer{}).DialContext(ctx, network, address)
			if err == nil {
				v.conns = append(v.conns, c)
			}
			return c, err
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	l.src, l.timing = st, fast
	if tr.kind == "hole" {
		l.timing.connect, l.timing.ack, l.timing.ping = patience, patience, patience
	}
	if tr.noR {
		l.hook = func(h hook) { // what a client without R does: publish again what was taken over
			for _, f := range l.s.flights {
				if h == hookResume && f.step >= received && f.step <= released && f.payload != nil {
					f.step = waiting
				}
			}
		}
	}
	v.link = l
	ctx, cancel := context.WithCancel(context.Background())
	v.cancel = cancel
	go func() { defer close(v.ended); _ = l.Run(ctx) }()
	return v
}

// kill ends the process as SIGKILL does and returns the store that the next finds.
func (v *victim) kill() *fakeStore {
	v.mu.Lock()
	v.dead = true
	for _, c := range v.conns {
		_ = c.(*net.TCPConn).SetLinger(0)
		_ = c.Close()
	}
	next := v.st.kill()
	v.mu.Unlock()
	v.cancel()
	<-v.ended
	return next
}

// result is what a trial showed.
type result struct {
	lost, twice, reordered int
	packets                int // that carried messages
	cuts                   int // connections that ended before the last
	violations             []string
}

// releases makes a cloud cut the connection after every so many PUBRELs. Nothing
// of it depends on how fast anybody is: each cut falls between a PUBREL that was
// taken and its PUBCOMP.
func releases(every int) func(*packets.PubrelPacket) bool {
	n := 0
	return func(*packets.PubrelPacket) bool { n++; return n%every != 0 }
}

func (tr trial) run(t *testing.T) result {
	o := cloudtest.Options{AckDelay: tr.ackDelay, AtPublish: tr.atPublish}
	if tr.kind == "release" {
		o.Released = releases(tr.messages / tr.faults)
	}
	cloud, err := cloudtest.Listen(o)
	if err != nil {
		t.Fatal(err)
	}
	defer cloud.Close()
	rnd := rand.New(rand.NewPCG(tr.seed, 0))
	st := newFakeStore(65535-uint64(tr.messages)/2, 2*tr.window*max(1, tr.batch)) // the packet ids wrap in the middle
	st.every, st.noted, st.delay = saveEvery, tr.qos < 2, 500*time.Microsecond
	for i := range tr.messages {
		if tr.batch > 0 {
			st.put("busgate/gw/m/state", fmt.Appendf(nil, `{"ts":"x","i":%d}`, i), embeddedbroker.KindReading)
		} else {
			st.put("t", fmt.Appendf(nil, "%d", i), embeddedbroker.KindLAN)
		}
	}
	v := launch(t, tr, st, cloud.Addr(), nil)
	at := faultPoints(rnd, tr)
	for _, n := range at {
		if !awaitOr(t, cloud, n, func() bool { return tr.qos == 0 && v.st.empty() }) {
			break // at QoS 0 a cut loses what was on its way: fewer may ever come
		}
		kind := tr.kind
		if kind == "kill+cut" {
			kind = []string{"kill", "cut"}[rnd.IntN(2)]
		}
		switch kind {
		case "cut":
			cloud.Cut()
		case "wipe":
			cloud.Wipe()
		case "hole":
			cloud.Hole(patience + time.Second)
		case "kill":
			st = v.kill()
			v = launch(t, tr, st, cloud.Addr(), v.facts)
		}
	}
	v.st.drained(t.Context())
	v.cancel()
	<-v.ended
	var ledger []string
	packets := 0
	for _, d := range cloud.Ledger() {
		switch d.Topic {
		case "t":
			packets++
			ledger = append(ledger, string(d.Payload))
		case "busgate/gw/gateway/history":
			packets++
			var u unpacked
			if err := json.Unmarshal(inflate(t, d.Payload), &u); err != nil {
				t.Fatal(err)
			}
			for _, e := range u.D["m"] {
				ledger = append(ledger, fmt.Sprint(e.N-1))
			}
		}
	}
	lost, twice, reordered := tally(tr.messages, ledger)
	if len(v.st.twice) > 0 {
		t.Errorf("%v: acked wrongly: %v", tr, v.st.twice)
	}
	return result{lost, twice, reordered, packets, cloud.Connects() - 1, cloud.Violations()}
}

// faultPoints are numbers of packets at which a fault comes: acknowledged or
// not, between any two.
func faultPoints(rnd *rand.Rand, tr trial) []int {
	if tr.kind == "release" { // the cloud makes them
		return nil
	}
	all := tr.messages
	if tr.qos == 2 {
		all *= 2
	}
	all /= max(1, tr.batch)
	var at []int
	for range tr.faults {
		at = append(at, rnd.IntN(all*9/10))
	}
	slices.Sort(at)
	return at
}

// await waits until the cloud has taken n packets.
func await(t *testing.T, cloud *cloudtest.Broker, n int) { awaitOr(t, cloud, n, nil) }

// awaitOr waits until the cloud has taken n packets; false when over says that
// it will not.
func awaitOr(t *testing.T, cloud *cloudtest.Broker, n int, over func() bool) bool {
	for {
		k, more := cloud.Packets()
		if k >= n {
			return true
		}
		look := time.NewTimer(50 * time.Millisecond)
		select {
		case <-more:
		case <-look.C:
			if over != nil && over() {
				return false
			}
		case <-t.Context().Done():
			t.Fatal("not finished")
		}
		look.Stop()
	}
}

func TestExactThroughALossyCloud(t *testing.T) {
	messages, faults, seeds := 2000, 10, []uint64{1}
	kinds := []string{"kill+cut", "wipe", "release"}
	if *full {
		messages, faults, seeds = 20000, 50, []uint64{1, 2, 3, 4, 5}
		kinds = []string{"kill", "cut", "kill+cut", "wipe", "hole", "none", "release"}
	}
	for _, kind := range kinds {
		for _, c := range []struct {
			qos       byte
			atPublish bool
		}{{1, false}, {2, false}, {2, true}} {
			for _, seed := range seeds {
				if kind == "release" && (c.qos < 2 || seed > 1) {
					continue // there is nothing to release, and nothing random
				}
				tr := trial{messages: messages, faults: faults, window: 100, seed: seed, qos: c.qos, atPublish: c.atPublish, kind: kind, ackDelay: 20 * time.Millisecond}
				t.Run(tr.String(), func(t *testing.T) {
					t.Parallel()
					r := tr.run(t)
					t.Logf("%v: lost %d, twice %d, reordered %d", tr, r.lost, r.twice, r.reordered)
					if r.lost != 0 || r.reordered != 0 || len(r.violations) > 0 {
						t.Errorf("lost %d, reordered %d, violations %q", r.lost, r.reordered, r.violations)
					}
					breaks := max(tr.faults, r.cuts) // a machine that stands still looks like a hole
					most := breaks * tr.window
					switch {
					case tr.qos == 2 && kind != "wipe":
						most = 0
					case tr.qos == 2: // what waits for PUBCOMP only is doubled, too
						most += breaks * (tr.window / completing)
					}
					if r.twice > most {
						t.Errorf("%d twice, at most %d are allowed", r.twice, most)
					}
				})
			}
		}
	}
}

// TestExactnessSuiteNoticesAMissingR: the cloud cuts after it has taken a PUBREL
// and before its PUBCOMP. Whatever the timing, a client that publishes again what
// was taken over then doubles that message at least.
func TestExactnessSuiteNoticesAMissingR(t *testing.T) {
	for _, atPublish := range []bool{false, true} {
		tr := trial{messages: 500, faults: 5, window: 100, seed: 1, qos: 2, atPublish: atPublish, kind: "release", ackDelay: time.Millisecond}
		with := tr.run(t)
		tr.noR = true
		without := tr.run(t)
		t.Logf("%v: without R %d twice after %d cuts", tr, without.twice, without.cuts)
		if with.lost+with.twice+with.reordered+len(with.violations) > 0 || with.cuts < tr.faults {
			t.Errorf("%v: %+v", tr, with)
		}
		if without.twice < tr.faults {
			t.Errorf("%v: without R %d twice after %d cuts, want at least one each: the suite proves nothing", tr, without.twice, without.cuts)
		}
	}
}

func TestQoS0IsNeverTwice(t *testing.T) {
	tr := trial{messages: 2000, faults: 5, window: 100, seed: 1, qos: 0, kind: "cut"}
	if r := tr.run(t); r.twice > 0 || r.reordered > 0 {
		t.Errorf("%d twice, %d reordered", r.twice, r.reordered)
	}
}
