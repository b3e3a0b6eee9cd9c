package uplink

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"busgate/bridge/uplink/cloudtest"
	"busgate/buffer"
	"busgate/config"
	"busgate/embeddedbroker"
)

// outage is a gateway of the real store and the real link, in virtual time, on a
// link of 200 ms and 10 Mbit/s that can be down.
type outage struct {
	t     *testing.T
	cfg   config.Uplink
	gw    config.Gateway
	path  string
	o     buffer.Options
	cloud *cloudtest.Broker
	line  emulator

	store  *buffer.Store
	c      *buffer.Consumer
	stream *buffer.Stream
	link   *Link
	cancel context.CancelFunc
	ended  chan error

	mu     sync.Mutex
	up     bool
	facts  map[string][]byte
	newest map[string]*embeddedbroker.Message // by device
}

func newOutage(t *testing.T) *outage {
	return &outage{
		t: t, gw: config.Gateway{Name: "plant-a", Topic: "busgate", Time: "rfc3339"}, path: filepath.Join(memoryDir(t), "busgate.db"),
		o: buffer.Options{Reserve: -1, Limits: buffer.Limits{MinFreeDisk: -1}},
		cfg: config.Uplink{
			Name: "cloud", Addresses: []string{"mqtt://iot.example.com:1883"}, ClientID: "plant-a", QoS: 1, Window: 50, KeepAlive: time.Minute,
			Send: []string{"#"}, Will: true, Retain: true, Encode: "as-is", Order: "live_first", LiveAge: time.Minute,
		},
		cloud: cloudtest.New(cloudtest.Options{}), line: emulator{delay: 100 * time.Millisecond, rate: 10e6 / 8},
		facts: map[string][]byte{}, newest: map[string]*embeddedbroker.Message{},
	}
}

// memoryDir is a folder in memory where there is one: the flushes of three days
// wait for a disk that others keep busy, and prove nothing here.
func memoryDir(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "busgate-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// start is a start of the process.
func (x *outage) start() {
	x.t.Helper()
	var err error
	if x.store, err = buffer.Open(x.path, x.o); err != nil {
		x.t.Fatal(err)
	}
	if x.c, err = x.store.Consumer("cloud", ConsumerOptions(&x.cfg, "cloud")); err != nil {
		x.t.Fatal(err)
	}
	x.stream = x.store.Stream("cloud")
	closed, last := x.store.Closing()
	x.link, err = New(&x.cfg, &x.gw, x.c, Options{
		Birth: x.birth, Dial: x.dial, Boot: x.store.Boot(), Stream: x.stream.ID(), Grace: time.Second,
		Usage:  func() (int, int64, time.Duration) { n, b := x.c.Pending(); return n, b, 0 },
		Fact:   func(k string) []byte { x.mu.Lock(); defer x.mu.Unlock(); return x.facts[k] },
		Keep:   func(k string, v []byte, then func(error)) { x.mu.Lock(); x.facts[k] = v; x.mu.Unlock(); then(nil) },
		Losses: func() []buffer.Loss { return x.store.Losses(x.c) }, Told: x.store.Told,
		Closing: func() (string, uint64) { return closed, last["cloud"] },
	})
	if err != nil {
		x.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	x.cancel, x.ended = cancel, make(chan error, 1)
	go func() { x.ended <- x.link.Run(ctx) }()
}

// stop ends the process in order.
func (x *outage) stop() {
	x.t.Helper()
	x.cancel()
	if err := <-x.ended; err != nil {
		x.t.Error(err)
	}
	if err := x.store.Close(context.Background()); err != nil {
		x.t.Error(err)
	}
}

// birth is what the bridge gives: info, then the newest states, not numbered.
func (x *outage) birth() []*embeddedbroker.Message {
	x.mu.Lock()
	defer x.mu.Unlock()
	ms := []*embeddedbroker.Message{status("busgate/plant-a/gateway/info", `{"version":"1"}`)}
	for _, d := range slices.Sorted(maps.Keys(x.newest)) {
		ms = append(ms, x.newest[d])
	}
	return ms
}

func (x *outage) dial(context.Context, string, string) (net.Conn, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.up {
		return nil, syscall.ENETUNREACH
	}
	a, near := bufferedPipe()
	far, b := bufferedPipe()
	go x.line.join(near, far)
	go x.cloud.ServeConn(b)
	return a, nil
}

func (x *outage) connect(up bool) {
	x.mu.Lock()
	x.up = up
	x.mu.Unlock()
	if !up {
		x.cloud.Cut()
	}
}

// round is a round of every device, as the bridge and the router hand it over.
func (x *outage) round(devices ...string) {
	now := time.Now()
	for _, d := range devices {
		topic := "busgate/plant-a/" + d + "/state"
		p := fmt.Appendf(nil, `{"ts":"%s","power":%d.5,"energy":%d}`, now.UTC().Format("2006-01-02T15:04:05.000Z"), now.Second()*17, now.Unix())
		x.store.AppendLazy([]buffer.Record{{To: []buffer.ConsumerID{x.c.ID()}, Lane: buffer.LaneLive, QoS: 1, Retain: true,
			Kind: uint8(embeddedbroker.KindReading), Topic: topic, Payload: p, At: now, Numbers: []buffer.Number{x.stream.Next()}}})
		m := &embeddedbroker.Message{Topic: topic, Payload: p, QoS: 1, Retain: true, Kind: embeddedbroker.KindReading}
		x.mu.Lock()
		x.newest[d] = m
		x.mu.Unlock()
	}
}

// rounds takes a round of every device each interval for d.
func (x *outage) rounds(d, interval time.Duration, each func(), devices ...string) {
	for range d / interval {
		time.Sleep(interval)
		x.round(devices...)
		if each != nil {
			each()
		}
	}
}

// arrived fails unless the retained states at the cloud are the newest.
func (x *outage) arrived(devices []string) {
	x.t.Helper()
	for _, d := range devices {
		want := string(x.newest[d].Payload)
		if got, _ := x.cloud.Retained("busgate/plant-a/" + d + "/state"); !strings.HasPrefix(string(got.Payload), want[:30]) {
			x.t.Errorf("at %v the cloud has\n  %s\nnot\n  %s", time.Now(), got.Payload, want)
		}
	}
}

// budgeted takes rounds while the backlog goes, and counts those in which the
// budget held it back. The traffic must keep to the pace of the month, and live
// readings must arrive meanwhile.
func (x *outage) budgeted(d, interval time.Duration, devices []string) (waited int) {
	x.t.Helper()
	over, held := int64(0), time.Duration(0)
	x.rounds(d, interval, func() {
		st := x.link.Status()
		begin, end := period(time.Now(), 1)
		pace := int64(float64(x.cfg.BudgetMonth)*(float64(time.Since(begin))/float64(end.Sub(begin)))) + x.cfg.BudgetMonth/30
		over = max(over, st.BudgetUsed-pace)
		if st.BudgetWait > held {
			waited++
		}
		held = st.BudgetWait
		time.Sleep(2 * time.Second) // until the round is on disk, and one round trip
		x.arrived(devices)
	}, devices...)
	if waited == 0 {
		x.t.Error("the budget never held the backlog back: the test proves nothing about it")
	}
	if most := int64(2 * affordable * 400); over > most { // one lot is on its way while the next is leased
		x.t.Errorf("%d bytes above the pace of the month, want no more than two lots of the backlog (%d)", over, most)
	}
	return waited
}

// forwards fails when a retained state, or the history of a device, goes back.
func (x *outage) forwards(ledger []cloudtest.Delivery) {
	x.t.Helper()
	state, history := map[string]string{}, map[string]string{}
	for _, d := range ledger {
		ts := ""
		if i := strings.Index(string(d.Payload), `"ts":"`); i >= 0 {
			ts = string(d.Payload[i+6 : i+30])
		}
		switch {
		case strings.HasSuffix(d.Topic, "/state"):
			if ts < state[d.Topic] || !d.Retain {
				x.t.Fatalf("%s goes back to %s after %s (retained %v)", d.Topic, ts, state[d.Topic], d.Retain)
			}
			state[d.Topic] = ts
		case strings.HasSuffix(d.Topic, "/history"):
			if ts < history[d.Topic] || d.Retain || !strings.Contains(string(d.Payload), `"h":1`) {
				x.t.Fatalf("%s: %s after %s (retained %v)", d.Topic, d.Payload, history[d.Topic], d.Retain)
			}
			history[d.Topic] = ts
		}
	}
}

// book is what a receiver notes that follows the written rule: it drops what
// (boot, n) it has seen; a gap is in a loss report or a fault.
type book struct {
	seen   map[string]map[uint64]bool
	lost   map[string]map[uint64]bool
	closed map[string]uint64 // last number of a boot
	twice  int
}

func read(t *testing.T, ledger []cloudtest.Delivery) *book {
	b := &book{seen: map[string]map[uint64]bool{}, lost: map[string]map[uint64]bool{}, closed: map[string]uint64{}}
	note := func(m map[string]map[uint64]bool, boot string, n uint64) bool {
		if m[boot] == nil {
			m[boot] = map[uint64]bool{}
		}
		was := m[boot][n]
		m[boot][n] = true
		return !was
	}
	for _, d := range ledger {
		var m struct {
			Boot string
			N    uint64
			Loss []struct {
				Boot   string
				Lo, Hi uint64
			}
			Last   lastNumber
			Before []lastNumber
		}
		if d.Will || !strings.HasPrefix(string(d.Payload), "{") {
			continue
		}
		if err := json.Unmarshal(d.Payload, &m); err != nil {
			t.Fatal(err)
		}
		if m.N > 0 && !note(b.seen, m.Boot, m.N) {
			b.twice++
		}
		for _, l := range m.Loss {
			for n := l.Lo; n <= l.Hi; n++ {
				note(b.lost, l.Boot, n)
			}
		}
		for _, c := range append(m.Before, m.Last) {
			if c.Boot != "" {
				b.closed[c.Boot] = c.N
			}
		}
	}
	return b
}

// gaps lists the numbers of a boot that are neither there nor reported.
func (b *book) gaps(boot string, last uint64) (gaps []uint64) {
	for n := uint64(1); n <= last; n++ {
		if !b.seen[boot][n] && !b.lost[boot][n] {
			gaps = append(gaps, n)
		}
	}
	return gaps
}

// TestOutageOfThreeDays is the whole promise of live first on the real store: a
// link that is down for three days, with two restarts in between and a store that
// overflows. The newest state is at the cloud one round trip after the
// connection, the retained state never goes backwards, the backlog keeps to the
// budget of the month, and the receiver's book has no gap.
func TestOutageOfThreeDays(t *testing.T) {
	interval := 5 * time.Minute
	if *full {
		interval = 10 * time.Second
	}
	synctest.Test(t, func(t *testing.T) {
		x := newOutage(t)
		meters := []string{"grid", "pumps"}
		perDay := int64(2 * 24 * time.Hour / interval)
		x.o.Limits.MaxMessages = 5 * perDay / 2 // half a day of the outage does not fit
		// A reading is about 310 bytes on its way, keep-alives are 160 kB a day. The
		// budget pays for 1.6 days of that a day, and when the link comes back for a
		// third of the backlog.
		const reading = 310
		daily := perDay*reading + 160e3
		x.cfg.BudgetMonth, x.cfg.BudgetDay = 31*daily*8/5, 1
		x.facts[factMonth] = fmt.Appendf(nil, "2000-01-01 %d", x.cfg.BudgetMonth*73/24/31+x.cfg.BudgetMonth/30-perDay*reading*5/6)
		x.up = true
		x.start()
		first := x.store.Boot()
		x.rounds(time.Hour, interval, nil, meters...)
		x.connect(false)
		x.rounds(36*time.Hour, interval, nil, meters...)
		x.stop()
		x.start()
		short := x.store.Boot()
		x.rounds(time.Hour, interval, nil, meters...)
		x.stop()
		x.start()
		second := x.store.Boot()
		x.rounds(35*time.Hour, interval, nil, meters...)

		x.connect(true)
		before := x.cloud.Connects()
		for x.cloud.Connects() == before {
			time.Sleep(time.Millisecond)
		}
		// CONNECT has arrived; CONNACK and the birth need one round trip.
		time.Sleep(2*x.line.delay + 10*time.Millisecond)
		x.arrived(meters)

		const days = 1
		waited := x.budgeted(days*24*time.Hour, interval, meters)
		time.Sleep(2 * lossEvery)
		if st := x.link.Status(); st.Pending > 0 || st.Phase != Online {
			t.Errorf("%d wait, %v", st.Pending, st.Phase)
		}
		last := x.stream.Next().N - 1
		x.stop()

		ledger := x.cloud.Ledger()
		x.forwards(ledger)
		b := read(t, ledger)
		t.Logf("%d and %d readings arrived of two boots, %d and %d are in loss reports; %d repeated; backlog waited for the budget in %d of %d rounds",
			len(b.seen[first]), len(b.seen[second]), len(b.lost[first]), len(b.lost[second]), b.twice, waited, days*24*time.Hour/interval)
		if b.closed[first] == 0 || b.closed[short] == 0 {
			t.Errorf("a boot was never closed: %v", b.closed)
		}
		if len(b.lost[first]) == 0 {
			t.Error("nothing was lost: the test proves nothing about loss reports")
		}
		for boot, n := range map[string]uint64{first: b.closed[first], short: b.closed[short], second: last} {
			if g := b.gaps(boot, n); len(g) > 0 {
				t.Errorf("boot %s: %d of %d are neither there nor reported, from %d", boot, len(g), n, g[0])
			}
		}
		x.cloud.Close()
		time.Sleep(time.Second) // until the link is empty
		if v := x.cloud.Violations(); len(v) > 0 {
			t.Errorf("violations %q", v)
		}
	})
}

// TestNoGhostOfARemovedDevice: its topic is emptied in the first lane, ahead of
// the readings that still wait; they arrive, and nothing of them stays.
func TestNoGhostOfARemovedDevice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newOutage(t)
		x.cfg.Order = "fifo"
		x.start()
		for range 5 {
			time.Sleep(time.Second)
			x.round("grid")
		}
		x.store.AppendLazy([]buffer.Record{{To: []buffer.ConsumerID{x.c.ID()}, Lane: buffer.LaneState, QoS: 1, Retain: true,
			Kind: uint8(embeddedbroker.KindStatus), Topic: "busgate/plant-a/grid/state"}})
		clear(x.newest)
		x.connect(true)
		time.Sleep(time.Minute)
		if d, ok := x.cloud.Retained("busgate/plant-a/grid/state"); ok {
			t.Errorf("a ghost: %s", d.Payload)
		}
		if b := read(t, x.cloud.Ledger()); len(b.seen[x.store.Boot()]) != 5 {
			t.Errorf("%d of 5 readings came", len(b.seen[x.store.Boot()]))
		}
		x.round("grid") // it is there again
		time.Sleep(5 * time.Second)
		if _, ok := x.cloud.Retained("busgate/plant-a/grid/state"); !ok {
			t.Error("a device that came back has no state")
		}
		x.stop()
		x.cloud.Close()
		time.Sleep(time.Second)
	})
}
