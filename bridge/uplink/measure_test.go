package uplink

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"busgate/buffer"
	"busgate/config"
	"busgate/embeddedbroker"
)

// TestMeasureLink prints how fast a link is on an emulated line of 10 Mbit/s, as
// ratios of one run: against a raw pipelined publisher with the same window and
// the same bytes, against mosquitto's bridge, and what a reading costs at the
// socket. The store is the real one, on disk.
func TestMeasureLink(t *testing.T) {
	if os.Getenv("BUSGATE_MEASURE") == "" {
		t.Skip("takes eight minutes and wants a quiet machine: BUSGATE_MEASURE=1 go test -v -timeout 30m -run MeasureLink ./bridge/uplink")
	}
	m := &measurement{t: t}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	row := func(what string, ours, theirs, target float64, unit string) {
		verdict := "reached"
		if ours/theirs < target {
			verdict = fmt.Sprintf("missed by %.0f %%", 100*(1-ours/theirs/target))
		}
		fmt.Fprintf(w, "%s\t%.0f\t%.0f %s\t%.3f\t>= %.2f\t%s\n", what, ours, theirs, unit, ours/theirs, target, verdict)
		_ = w.Flush()
	}
	fmt.Fprintf(w, "a flush of this disk takes %v (QoS 2 waits for one in each round trip)\n", m.flush().Round(100*time.Microsecond))
	fmt.Fprintln(w, "what\tours\ttheirs\tratio\ttarget\t")
	const rtt = 50 * time.Millisecond
	wide := func(window int) func(*config.Uplink) {
		return func(c *config.Uplink) { c.QoS, c.Window, c.WindowBytes = 1, window, 1<<20 }
	}
	batch := func(c *config.Uplink) { c.QoS, c.Encode, c.Compress, c.MaxRecords = 1, "json-batch", "deflate", 64 }
	rtts := []time.Duration{50 * time.Millisecond, 200 * time.Millisecond}
	for _, g := range []struct {
		name string
		run  func()
	}{
		{"rate", func() {
			for _, rtt := range rtts {
				for _, qos := range []byte{1, 2} {
					for _, window := range []int{20, 100, 1000} {
						n := m.enough(rtt, qos, window)
						raw := median(func() float64 { return m.raw(rtt, qos, window, n) })
						ours := median(func() float64 {
							return m.link(rtt, n, func(c *config.Uplink) { wide(window)(c); c.QoS = qos })
						})
						row(fmt.Sprintf("as-is / raw publisher, %v, QoS %d, window %d", rtt, qos, window), ours, raw, 0.90, "msg/s")
					}
				}
			}
		}},
		{"drain", func() {
			raw := median(func() float64 { return m.raw(rtt, 1, 4000, 20000) })
			row("drain as-is, window 1024 / raw window 4000, 50 ms", median(func() float64 { return m.link(rtt, 20000, wide(1024)) }), raw, 0.85, "msg/s")
		}},
		{"batch", func() {
			for _, rtt := range rtts {
				raw := median(func() float64 { return m.raw(rtt, 1, 100, m.enough(rtt, 1, 100)) })
				row(fmt.Sprintf("drain of readings, json-batch / raw one by one, window 100, %v", rtt), median(func() float64 { return m.link(rtt, 40000, batch) }), raw, 5, "reading/s")
			}
		}},
		{"bridge", func() {
			if _, err := exec.LookPath("mosquitto"); err != nil {
				t.Skip("needs mosquitto: apt-get install mosquitto")
			}
			bridge := median(func() float64 { return m.mosquitto(rtt, 20000) })
			row("as-is / mosquitto's bridge, 50 ms, QoS 1, window 1000", median(func() float64 { return m.link(rtt, 20000, wide(1000)) }), bridge, 0.85, "msg/s")
			row("json-batch / mosquitto's bridge, 50 ms", median(func() float64 { return m.link(rtt, 60000, batch) }), bridge, 3, "reading/s")
		}},
		{"bytes", func() { m.bytes(w) }},
	} {
		t.Run(g.name, func(t *testing.T) { m.t = t; g.run() })
	}
}

func median(f func() float64) float64 {
	v := []float64{f(), f(), f()}
	slices.Sort(v)
	return v[1]
}

type measurement struct{ t *testing.T }

// flush is the median of what fdatasync takes after a page was written.
func (m *measurement) flush() time.Duration {
	f, err := os.CreateTemp("", "uplink-flush-")
	if err != nil {
		m.t.Fatal(err)
	}
	defer func() { _ = f.Close(); _ = os.Remove(f.Name()) }()
	var all []time.Duration
	for range 51 {
		if _, err := f.Write(make([]byte, 4096)); err != nil {
			m.t.Fatal(err)
		}
		began := time.Now()
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			m.t.Fatal(err)
		}
		all = append(all, time.Since(began))
	}
	slices.Sort(all)
	return all[len(all)/2]
}

// enough is a number of messages that takes about three seconds.
func (m *measurement) enough(rtt time.Duration, qos byte, window int) int {
	rate := min(float64(window)/(rtt.Seconds()*float64(qos)), 5000)
	return int(3 * rate)
}

// line is an emulated link to a gauge.
func (m *measurement) line(rtt time.Duration) (*gauge, string, func()) {
	g := newGauge(m.t)
	e := &emulator{delay: rtt / 2, rate: 10e6 / 8}
	ln, err := e.listen(g.addr())
	if err != nil {
		m.t.Fatal(err)
	}
	return g, ln.Addr().String(), func() { _ = ln.Close(); _ = g.ln.Close() }
}

// asSent is the payload of benchPayload as it goes up.
func asSent() []byte {
	co := coder{gateway: "plant-a", stream: 1}
	return co.payload(&buffer.Record{Payload: benchPayload, Kind: uint8(embeddedbroker.KindReading), Boot: "k3qz7aa-12", Numbers: []buffer.Number{{Stream: 1, N: 10000}}}, false)
}

func (m *measurement) raw(rtt time.Duration, qos byte, window, n int) float64 {
	_, addr, end := m.line(rtt)
	defer end()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		m.t.Fatal(err)
	}
	took, err := rawPublish(c, qos, window, n, asSent())
	if err != nil {
		m.t.Fatal(err)
	}
	return float64(n) / took.Seconds()
}

// link drains n readings of a store on disk and returns how many a second: from
// the first that is leased to the last that is acknowledged.
func (m *measurement) link(rtt time.Duration, n int, set func(*config.Uplink)) float64 {
	_, addr, end := m.line(rtt)
	defer end()
	return float64(n) / m.drain("mqtt://"+addr, n, set).Seconds()
}

func (m *measurement) drain(addr string, n int, set func(*config.Uplink)) time.Duration {
	t := m.t
	cfg := &config.Uplink{Name: "cloud", Addresses: []string{addr}, ClientID: "g", QoS: 1, KeepAlive: time.Minute, Send: []string{"#"}, MaxAge: time.Second}
	set(cfg)
	dir, err := os.MkdirTemp("", "uplink-measure-")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	st, err := buffer.Open(filepath.Join(dir, "busgate.db"), buffer.Options{Reserve: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = st.Close(context.Background()) }()
	c, err := st.Consumer("cloud", ConsumerOptions(cfg, "cloud"))
	if err != nil {
		t.Fatal(err)
	}
	stream := st.Stream("cloud")
	for left := n; left > 0; left -= 500 {
		rs := make([]buffer.Record, min(left, 500))
		for i := range rs {
			rs[i] = buffer.Record{To: []buffer.ConsumerID{c.ID()}, Lane: buffer.LaneLive, Topic: "busgate/plant-a/grid/state", Payload: meterState(left + i), QoS: 1,
				Kind: uint8(embeddedbroker.KindReading), At: time.Now(), Numbers: []buffer.Number{stream.Next()}}
		}
		if err := st.Append(rs).Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	src := &timed{Source: c, n: n, over: make(chan struct{})}
	l, err := New(cfg, &config.Gateway{Name: "plant-a", Topic: "busgate"}, src, Options{
		Boot: st.Boot(), Stream: stream.ID(), Usage: func() (int, int64, time.Duration) { n, b := c.Pending(); return n, b, 0 },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()
	select {
	case <-src.over:
	case err := <-ended:
		t.Fatal(err)
	}
	cancel()
	<-ended
	return src.took
}

// meterState is a state whose values change as those of a meter do.
func meterState(i int) []byte {
	return fmt.Appendf(nil, `{"ts":"2026-11-21T06:%02d:%02d.123Z","voltage_l1":%d.%d,"power":%d.%d,"state":"run","relay1":true}`,
		i/60%60, i%60, 229+i%3, i%10, 860+i*7%23, i*3%10)
}

// timed notes when the first record is leased and when the nth is acknowledged.
type timed struct {
	Source
	n, acked int
	began    time.Time
	took     time.Duration
	over     chan struct{}
}

func (s *timed) Next(ctx context.Context, max int) ([]buffer.Record, error) {
	if s.began.IsZero() {
		s.began = time.Now()
	}
	return s.Source.Next(ctx, max)
}

func (s *timed) Ack(ords ...uint64) {
	s.Source.Ack(ords...)
	before := s.acked
	if s.acked += len(ords); before < s.n && s.acked >= s.n {
		s.took = time.Since(s.began)
		close(s.over)
	}
}

// mosquitto is the rate of a bridge of mosquitto with n messages.
func (m *measurement) mosquitto(rtt time.Duration, n int) float64 {
	t := m.t
	g, addr, end := m.line(rtt)
	defer end()
	port := freePort(t)
	conf := writeConf(t, fmt.Sprintf("listener %d 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\nmax_inflight_messages 1000\n"+
		"connection cloud\naddress %s\ntopic # out 1\nbridge_protocol_version mqttv311\ncleansession false\nnotifications false\ntry_private false\nkeepalive_interval 60\nremote_clientid b\n", port, addr))
	cmd := exec.Command("mosquitto", "-c", conf)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	var c net.Conn
	for range 500 {
		var err error
		if c, err = net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond) // another process: there is nothing to wait on
	}
	over := g.expect(n)
	if _, err := rawPublish(c, 1, 100, n, asSent()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-over:
	case <-time.After(5 * time.Minute):
		t.Fatalf("mosquitto's bridge brought %d of %d messages in 5 minutes", g.seen(), n)
	}
	return float64(n-1) / g.took().Seconds()
}

// bytes prints what a reading costs at the socket below TLS, both ways.
func (m *measurement) bytes(w *tabwriter.Writer) {
	t := m.t
	ca := newAuthority(t)
	cert, key := ca.issue("localhost", time.Now().Add(-time.Hour), time.Now().Add(time.Hour), "localhost")
	cost := func(set func(*config.Uplink)) (bytes, packets float64) {
		measure := func(n int) (int64, int64) {
			ln, err := tls.Listen("tcp", "127.0.0.1:0", serverTLS(t, cert, key))
			if err != nil {
				t.Fatal(err)
			}
			g := serveGauge(t, ln)
			e := &emulator{delay: time.Millisecond}
			near, err := e.listen(g.addr())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = near.Close() }()
			_, port, _ := net.SplitHostPort(near.Addr().String())
			m.drain("mqtts://localhost:"+port, n, func(c *config.Uplink) { c.CA = ca.file; set(c) })
			return e.up.Load() + e.down.Load(), e.sent.Load()
		}
		b1, s1 := measure(280) // handshake, birth and the end cancel out
		b2, s2 := measure(2380)
		return float64(b2-b1) / 2100, float64(s2-s1) / 2100
	}
	one, oneP := cost(func(c *config.Uplink) { c.Window = 1 }) // each in a segment of its own
	many, manyP := cost(func(c *config.Uplink) { c.Encode, c.Compress, c.MaxRecords = "json-batch", "deflate", 70 })
	const header = 52 // IP and TCP with time stamps, a segment
	fmt.Fprintf(w, "bytes a reading at the socket, TLS 1.3, both ways: batch 70 + deflate / one by one\t%.1f\t%.1f byte\t%.4f\t<= 0.05\t%s\n",
		many, one, many/one, strings.Repeat("reached", b2i(many/one <= 0.05))+strings.Repeat("missed", b2i(many/one > 0.05)))
	mw, ow := many+header*manyP, one+header*oneP
	fmt.Fprintf(w, "the same with IP and TCP headers\t%.1f\t%.1f byte\t%.4f\t<= 0.05\t\n", mw, ow, mw/ow)
	_ = w.Flush()
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}
