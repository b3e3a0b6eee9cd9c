package uplink

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
	"golang.org/x/sys/unix"

	"busgate/bridge/uplink/cloudtest"
	"busgate/buffer"
	"busgate/config"
	"busgate/embeddedbroker"
)

// idle is a link of a rig that does not run.
func (r *rig) idle() *Link {
	r.t.Helper()
	l, err := New(&r.cfg, &r.gw, nil, r.o)
	if err != nil {
		r.t.Fatal(err)
	}
	return l
}

// TestClosingNumbersStayUntilTheCloudHasThem: told is not acknowledged.
func TestClosingNumbersStayUntilTheCloudHasThem(t *testing.T) {
	var muted atomic.Bool
	muted.Store(true)
	mute := func(p *packets.PublishPacket) bool {
		return muted.Load() && strings.HasSuffix(p.TopicName, "/gateway/info")
	}
	virtual(t, cloudtest.Options{Mute: mute}, func(r *rig) {
		r.remember(map[string][]byte{factClosing: []byte("e-1 5\n")})
		r.o.Closing = func() (string, uint64) { return "e-2", 7 }
		r.o.Birth = func() []*embeddedbroker.Message {
			return []*embeddedbroker.Message{status("busgate/plant-a/gateway/info", `{}`)}
		}
		r.start()
		time.Sleep(10 * time.Second)
		if got := r.payloads("busgate/plant-a/gateway/info"); len(got) != 1 {
			t.Fatalf("the cloud was told %q", got)
		}
		r.halt()
		if got := string(r.fact(factClosing)); got != "e-1 5\ne-2 7\n" {
			t.Errorf("before the acknowledgement %q is remembered", got)
		}
		muted.Store(false)
		r.start()
		time.Sleep(10 * time.Second)
		r.halt()
		if got := string(r.fact(factClosing)); got != "" {
			t.Errorf("after the acknowledgement %q is remembered", got)
		}
		r.stopCloud()
	})
}

// stopCloud ends the cloud of a rig whose link has ended.
func (r *rig) stopCloud() {
	r.t.Helper()
	r.cloud.Close()
	if v := r.cloud.Violations(); len(v) > 0 {
		r.t.Errorf("violations of MQTT 3.1.1: %q", v)
	}
}

func TestClosingNumbersAreBounded(t *testing.T) {
	r := newRig(t, cloudtest.Options{})
	var noted strings.Builder
	for i := range maxClosing {
		fmt.Fprintf(&noted, "e-%d %d\n", i+1, i+1)
	}
	r.remember(map[string][]byte{factClosing: []byte(noted.String())})
	r.o.Closing = func() (string, uint64) { return "e-17", 17 }
	l := r.idle()
	l.loadClosing()
	if n := len(l.unclosed); n != 16 || l.unclosed[0].Boot != "e-2" || l.unclosed[15].Boot != "e-17" {
		t.Errorf("%d are remembered: %v", n, l.unclosed)
	}
	r.wantLine("WARN too many starts without the cloud: it will not learn where the oldest ended")
}

func TestEmptiedTopicsAreBounded(t *testing.T) {
	r := newRig(t, cloudtest.Options{})
	l := r.idle()
	for seq := range uint64(300) {
		l.removed(&buffer.Record{Topic: fmt.Sprint("t", seq), Seq: seq + 1, Retain: true})
	}
	if n := len(l.emptied); n != 256 {
		t.Errorf("%d topics are remembered, want 256", n)
	}
	if l.emptied["t43"] != 0 || l.emptied["t44"] == 0 || l.emptied["t299"] == 0 {
		t.Error("those that were emptied last are not the ones remembered")
	}
}

func TestHubTopics(t *testing.T) {
	h := hubTopics{"gw-1"}
	for _, c := range []struct{ topic, want string }{
		{"devices/gw-1/messages/devicebound/%24.mid=1&topic=a%2Fb%20c", "a/b c"},
		{"devices/gw-1/messages/devicebound/?topic=a", "a"},
		{"devices/gw-1/messages/devicebound/%24.mid=1", ""},
		{"devices/gw-1/messages/devicebound/topic=%zz", ""},
		{"devices/gw-2/messages/devicebound/topic=a", ""},
		{"a", ""},
	} {
		if got := h.local(c.topic); got != c.want {
			t.Errorf("%s is here %q, want %q", c.topic, got, c.want)
		}
	}
	if got := h.remote("a/b c"); got != "devices/gw-1/messages/events/topic=a%2Fb%20c" {
		t.Errorf("a/b c is there %s", got)
	}
}

// TestSuspects: a close within five seconds after a feature was used first, and
// before anything that used it was acknowledged.
func TestSuspects(t *testing.T) {
	now := time.Now()
	ago := func(d time.Duration) use { return use{at: now.Add(-d)} }
	for _, c := range []struct {
		name  string
		u     [features]use
		alive bool
		want  string
	}{
		{"within five seconds", [features]use{qos2: ago(5 * time.Second)}, true, "[qos2]"},
		{"later", [features]use{qos2: ago(5*time.Second + 1)}, true, "[]"},
		{"without a sign of life", [features]use{qos2: ago(time.Second), retain: ago(time.Second)}, false, "[]"},
		{"CONNECT without a sign of life", [features]use{will: ago(time.Second), private: ago(time.Second)}, false, "[private will]"},
		{"CONNECT after one", [features]use{will: ago(time.Second), large: ago(time.Second)}, true, "[large]"},
		{"what was acknowledged", [features]use{retain: {at: now, proven: true}}, true, "[]"},
		{"what was not used", [features]use{}, true, "[]"},
	} {
		var names []string
		for _, f := range suspects(&c.u, c.alive, now) {
			names = append(names, featureNames[f])
		}
		if got := fmt.Sprint(names); got != c.want {
			t.Errorf("%s: suspected %s, want %s", c.name, got, c.want)
		}
	}
}

// TestPoisonTakesThreeDeathsOfOneMessage, and all features off.
func TestPoisonTakesThreeDeathsOfOneMessage(t *testing.T) {
	s := newSuspicion()
	for i, c := range []struct {
		head uint64
		bare bool
		want bool
	}{{7, false, false}, {7, false, false}, {7, false, false}, {8, true, false}, {8, true, false}, {9, true, false}, {9, true, false}, {9, true, true}} {
		s.bare = c.bare
		if got := s.died(c.head); got != c.want {
			t.Errorf("death %d, of message %d: set aside %v, want %v", i, c.head, got, c.want)
		}
	}
}

// TestAnotherConfigurationPardons: what was switched off is tried again.
func TestAnotherConfigurationPardons(t *testing.T) {
	var bears atomic.Bool
	virtual(t, cloudtest.Options{Publish: func(p *packets.PublishPacket) bool { return bears.Load() || !p.Retain }}, func(r *rig) {
		r.st.fill(5)
		r.start()
		time.Sleep(30 * time.Minute)
		if s := r.link.Status(); !slices.Equal(s.Degraded, []string{"retain"}) {
			t.Fatalf("switched off %v, want retain", s.Degraded)
		}
		bears.Store(true)
		cfg := r.cfg
		cfg.KeepAlive = 2 * time.Minute
		if err := r.link.Update(&cfg); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if s := r.link.Status(); len(s.Degraded) != 0 || s.Phase != Online {
			t.Errorf("after another configuration %v, still off: %v", s.Phase, s.Degraded)
		}
		r.stop()
	})
}

// TestWhatWasLearnedOfAnotherBrokerIsForgotten, and of the same one it is not.
func TestWhatWasLearnedOfAnotherBrokerIsForgotten(t *testing.T) {
	for id, want := range map[string]string{"plant-a qos=1 as-is other.example.com:1883": "[]", "plant-a qos=1 as-is iot.example.com:1883": "[retain]"} {
		r := newRig(t, cloudtest.Options{})
		r.remember(map[string][]byte{factDegraded: []byte(id + "\nretain\nqos2")})
		l := r.idle()
		l.loadDegraded()
		if got := fmt.Sprint(l.suspect.names()); got != want || l.set.retain != (want == "[]") {
			t.Errorf("learned of %s: off %s, retain %v; want %s", id, got, l.set.retain, want)
		}
	}
}

// TestSocketOptions: what the configuration says reaches the socket of a connection.
func TestSocketOptions(t *testing.T) {
	cloud, err := cloudtest.Listen(cloudtest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer cloud.Close()
	for _, c := range []struct {
		keepAlive time.Duration
		want      int
	}{{time.Minute, 60000}, {5 * time.Second, 10000}} { // never below 10 s
		r := newRig(t, cloudtest.Options{})
		r.cfg.Addresses, r.cfg.KeepAlive, r.cfg.Congestion = []string{"mqtt://" + cloud.Addr()}, c.keepAlive, "reno" // every kernel has it
		r.o.Dial = nil
		l := r.idle()
		o, err := l.open(context.Background(), l.set.addresses[0], false)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := o.w.raw.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var timeout int
		var name string
		err = raw.Control(func(fd uintptr) {
			timeout, _ = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT)
			name, _ = unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION)
		})
		if err != nil || timeout != c.want || name != "reno" {
			t.Errorf("keep-alive %v: TCP_USER_TIMEOUT %d ms, congestion control %q, %v; want %d, reno", c.keepAlive, timeout, name, err, c.want)
		}
		_ = o.w.raw.Close()
	}
}

// TestConsumerOptions: at QoS 2 a lease is on disk before its PUBLISH leaves.
func TestConsumerOptions(t *testing.T) {
	for _, c := range []struct {
		cfg  config.Uplink
		want buffer.ConsumerOptions
	}{
		{config.Uplink{QoS: 0}, buffer.ConsumerOptions{Kind: buffer.Uplink, Window: 200, Stream: "s"}},
		{config.Uplink{QoS: 1}, buffer.ConsumerOptions{Kind: buffer.Uplink, Window: 200, Stream: "s"}},
		{config.Uplink{QoS: 2}, buffer.ConsumerOptions{Kind: buffer.Uplink, Window: 50, Stream: "s", Exact: true}},
		{config.Uplink{QoS: 1, Window: 5000}, buffer.ConsumerOptions{Kind: buffer.Uplink, Window: 2048, Stream: "s"}},
		{config.Uplink{QoS: 1, Window: 10, Encode: "json-batch", MaxRecords: 7}, buffer.ConsumerOptions{Kind: buffer.Uplink, Window: 84, Stream: "s"}},
		{config.Uplink{QoS: 1, Window: 10, Encode: "thingsboard", MaxRecords: 7}, buffer.ConsumerOptions{Kind: buffer.Uplink, Window: 84, Stream: "s"}},
		{config.Uplink{QoS: 2, Window: 1000, Encode: "json-batch"}, buffer.ConsumerOptions{Kind: buffer.Uplink, Window: 8192, Stream: "s", Exact: true}},
	} {
		if got := ConsumerOptions(&c.cfg, "s"); got != c.want {
			t.Errorf("QoS %d, window %d, %s: %+v, want %+v", c.cfg.QoS, c.cfg.Window, c.cfg.Encode, got, c.want)
		}
	}
}
