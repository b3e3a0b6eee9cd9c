package uplink

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"busgate/config"
	"busgate/embeddedbroker"

	"busgate/bridge/uplink/cloudtest"
)

// rig is a link with a fake store and a test cloud over pipes, in virtual time.
type rig struct {
	t     *testing.T
	cfg   config.Uplink
	gw    config.Gateway
	o     Options
	st    *fakeStore
	cloud *cloudtest.Broker
	link  *Link
	log   *syncBuffer
	dials []time.Time

	mu      sync.Mutex
	refuse  error // of dialling
	states  []string
	conns   []net.Conn
	cancel  context.CancelFunc
	ended   chan error
	wrap    func(net.Conn) net.Conn // our end
	accept  func(net.Conn) net.Conn // the cloud's
	dialled []string
	kept    map[string][]byte
}

// syncBuffer is a buffer for two goroutines.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func newRig(t *testing.T, o cloudtest.Options) *rig {
	r := &rig{
		t: t, gw: config.Gateway{Name: "plant-a", Topic: "busgate", Time: "rfc3339"}, st: newFakeStore(0, 1024),
		cfg: config.Uplink{
			Name: "cloud", Addresses: []string{"mqtt://iot.example.com:1883"}, Profile: "generic", ClientID: "plant-a", QoS: 1,
			KeepAlive: time.Minute, Send: []string{"#"}, Will: true, Retain: true, Encode: "as-is", Order: "fifo", LiveAge: time.Minute,
		},
		cloud: cloudtest.New(o), log: &syncBuffer{}, ended: make(chan error, 1),
	}
	r.o = Options{
		Log:   slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Usage: func() (int, int64, time.Duration) { return r.store().usage() },
		Notify: func(s State) {
			r.mu.Lock()
			r.states = append(r.states, s.Phase.String())
			r.mu.Unlock()
		},
		Dial: r.dial, Stream: 1, Boot: "k3qz7aa-12", Grace: time.Second,
	}
	return r
}

func (r *rig) store() *fakeStore {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.st
}

func (r *rig) dial(_ context.Context, _, address string) (net.Conn, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dials = append(r.dials, time.Now())
	r.dialled = append(r.dialled, address)
	if r.refuse != nil {
		return nil, r.refuse
	}
	a, b := bufferedPipe()
	if r.accept != nil {
		b = r.accept(b)
	}
	go r.cloud.ServeConn(b)
	r.conns = append(r.conns, a)
	if r.wrap != nil {
		return r.wrap(a), nil
	}
	return a, nil
}

// tries are the moments of dialling, and where.
func (r *rig) tries() ([]time.Time, []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.dials), slices.Clone(r.dialled)
}

// remember gives the link a memory over restarts.
func (r *rig) remember(kept map[string][]byte) {
	r.kept = kept
	r.o.Fact = r.fact
	r.o.Keep = func(k string, v []byte, then func(error)) {
		r.mu.Lock()
		r.kept[k] = v
		r.mu.Unlock()
		then(nil)
	}
}

func (r *rig) fact(k string) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.kept[k]
}

func (r *rig) setRefuse(err error) {
	r.mu.Lock()
	r.refuse = err
	r.mu.Unlock()
}

// start runs the link until stop.
func (r *rig) start() {
	r.t.Helper()
	l, err := New(&r.cfg, &r.gw, nil, r.o)
	if err != nil {
		r.t.Fatal(err)
	}
	l.src = r.st
	if r.cfg.Order == "live_first" {
		l.old = r.st
	}
	r.link = l
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	go func() { r.ended <- l.Run(ctx) }()
}

// halt ends the link and leaves the cloud.
func (r *rig) halt() {
	r.t.Helper()
	r.cancel()
	if err := <-r.ended; err != nil {
		r.t.Errorf("Run returned %v, want nil", err)
	}
}

// stop ends everything; the cloud must have had no complaint.
func (r *rig) stop() {
	r.t.Helper()
	r.halt()
	r.cloud.Close()
	if v := r.cloud.Violations(); len(v) > 0 {
		r.t.Errorf("violations of MQTT 3.1.1: %q", v)
	}
}

// payloads are those delivered at the cloud on topics with the prefix.
func (r *rig) payloads(prefix string) []string {
	var out []string
	for _, d := range r.cloud.Ledger() {
		if strings.HasPrefix(d.Topic, prefix) {
			out = append(out, string(d.Payload))
		}
	}
	return out
}

// said are the texts of the log, without debug lines.
var said = regexp.MustCompile(`level=(\w+) msg="((?:[^"\\]|\\.)*)"`)

func (r *rig) lines() []string {
	var out []string
	for _, m := range said.FindAllStringSubmatch(r.log.String(), -1) {
		if m[1] != "DEBUG" {
			out = append(out, m[1]+" "+strings.ReplaceAll(m[2], `\"`, `"`))
		}
	}
	return out
}

func (r *rig) wantLine(want string) {
	r.t.Helper()
	for _, l := range r.lines() {
		if l == want {
			return
		}
	}
	r.t.Errorf("log does not hold\n  %s\nbut\n  %s", want, strings.Join(r.lines(), "\n  "))
}

// virtual runs fn in virtual time with a rig.
func virtual(t *testing.T, o cloudtest.Options, fn func(r *rig)) {
	synctest.Test(t, func(t *testing.T) { fn(newRig(t, o)) })
}

func numbers(n int) []string {
	var out []string
	for i := range n {
		out = append(out, fmt.Sprint(i))
	}
	return out
}

func status(topic, payload string) *embeddedbroker.Message {
	return &embeddedbroker.Message{Topic: topic, Payload: []byte(payload), QoS: 1, Retain: true, Kind: embeddedbroker.KindStatus}
}
