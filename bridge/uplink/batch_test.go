package uplink

import (
	"bytes"
	"compress/zlib"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"busgate/bridge/uplink/cloudtest"
	"busgate/buffer"
	"busgate/embeddedbroker"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func reading(n uint64, dev, payload string) buffer.Record {
	return buffer.Record{
		Ord: n, Topic: "busgate/gw1/" + dev + "/state", Payload: []byte(payload), Kind: uint8(embeddedbroker.KindReading), Lane: 2,
		Numbers: []buffer.Number{{Stream: 1, N: n}}, Boot: "k3qz7aa-12", At: time.UnixMilli(1782000000123 + int64(n)*1000), Clock: buffer.Clocked,
	}
}

// inflate undoes what a batch may be packed in.
func inflate(t *testing.T, p []byte) []byte {
	t.Helper()
	switch {
	case len(p) > 0 && p[0] == '{':
		return p
	case len(p) > 0 && p[0] == 0x78:
		r, err := zlib.NewReader(bytes.NewReader(p))
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	t.Fatalf("a batch begins with % x", p[:min(len(p), 4)])
	return nil
}

// unpacked is a batch as a receiver reads it.
type unpacked struct {
	V    int
	Gw   string
	Boot string
	S    string
	N    [2]uint64
	D    map[string][]struct {
		N   uint64
		Ts  int64
		Up  float64
		Clk string
		V   map[string]any
	}
}

func TestBatchGolden(t *testing.T) {
	co := coder{gateway: "gw1", name: "cloud", base: "busgate/gw1", stream: 1}
	redated := reading(3, "meter1", `{"uptime":12.345,"boot":"k3qz7aa-12","energy":10.4}`)
	redated.Clock = buffer.Redated
	undated := reading(4, "a", `{"uptime":13.5,"boot":"k3qz7aa-12","on":true}`)
	undated.At, undated.Clock = time.Time{}, buffer.NoTime
	rs := []buffer.Record{
		reading(1, "meter1", `{"ts":"2026-06-20T22:40:01.123Z","energy":10.2}`), reading(2, "a", `{"ts":"2026-06-20T22:40:02.123Z"}`), redated, undated,
	}
	got := co.batch(rs)
	file := filepath.Join("testdata", "batch.json")
	if *update {
		if err := os.WriteFile(file, append(got, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(got)+"\n" != string(want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	for range 100 {
		if again := co.batch(rs); !bytes.Equal(again, got) || !bytes.Equal(new(deflater).deflate(again), new(deflater).deflate(got)) {
			t.Fatal("the same records give other bytes")
		}
	}
	var u unpacked
	if err := json.Unmarshal(got, &u); err != nil {
		t.Fatal(err)
	}
	if u.N != [2]uint64{1, 4} || len(u.D["meter1"]) != 2 || u.D["meter1"][1].Clk != "redated" || u.D["a"][1].Up != 13.5 || u.D["meter1"][0].V["energy"] != 10.2 {
		t.Errorf("read back %+v", u)
	}
}

func TestDeflateOnlyWhenSmaller(t *testing.T) {
	short := []byte(`{"v":1}`)
	if got := new(deflater).deflate(short); !bytes.Equal(got, short) {
		t.Errorf("a short batch became % x", got)
	}
	long := []byte(`{"v":1,` + strings.Repeat(`"a":1,`, 100) + `"b":2}`)
	if got := new(deflater).deflate(long); got[0] != 0x78 || len(got) >= len(long) || !bytes.Equal(inflate(t, got), long) {
		t.Errorf("a long batch of %d bytes became %d", len(long), len(got))
	}
}

// TestBatchCutting: which readings travel together.
func TestBatchCutting(t *testing.T) {
	lan := buffer.Record{Topic: "other", Payload: []byte("x")}
	boot := reading(9, "m", `{"ts":"x"}`)
	boot.Boot = "k3qz7aa-13"
	r := func(n uint64) buffer.Record { return reading(n, "m", `{"ts":"x","v":1}`) }
	big := reading(8, "m", `{"ts":"x","v":"`+strings.Repeat("x", 3000)+`"}`)
	for _, c := range []struct {
		name   string
		rs     []buffer.Record
		n      int
		closed bool
	}{
		{"open while there is room", []buffer.Record{r(1), r(2)}, 2, false},
		{"full at max_records", []buffer.Record{r(1), r(2), r(3), r(4), r(5)}, 4, true},
		{"full exactly", []buffer.Record{r(1), r(2), r(3), r(4)}, 4, true},
		{"ended by another boot", []buffer.Record{r(1), r(2), boot}, 2, true},
		{"ended by a message of the LAN", []buffer.Record{r(1), lan}, 1, true},
		{"which goes by itself", []buffer.Record{lan, r(1)}, 1, true},
		{"ended by max_bytes", []buffer.Record{r(1), big}, 1, true},
		{"one record may be larger", []buffer.Record{big, r(1)}, 1, true},
	} {
		virtual(t, cloudtest.Options{}, func(rig *rig) {
			rig.gw.Name = "gw1"
			rig.cfg.Encode, rig.cfg.MaxRecords, rig.cfg.MaxBytes = "json-batch", 4, 2000
			l, err := New(&rig.cfg, &rig.gw, nil, rig.o)
			if err != nil {
				t.Fatal(err)
			}
			var lots []lot
			for _, x := range c.rs {
				lots = append(lots, lot{Record: x})
			}
			if n, closed := l.extent(lots); n != c.n || closed != c.closed {
				t.Errorf("%s: %d, closed %v; want %d, %v", c.name, n, closed, c.n, c.closed)
			}
			rig.cloud.Close()
		})
	}
}

func TestBatchesOverTheLink(t *testing.T) {
	virtual(t, cloudtest.Options{AckDelay: 50 * time.Millisecond}, func(r *rig) {
		r.gw.Name = "gw1"
		r.cfg.Encode, r.cfg.Compress, r.cfg.MaxRecords, r.cfg.MaxAge = "json-batch", "deflate", 64, 10*time.Second
		for i := range 1000 {
			r.st.put("busgate/gw1/m/state", fmt.Appendf(nil, `{"ts":"x","i":%d}`, i), embeddedbroker.KindReading)
		}
		r.st.put("busgate/gw1/m/status", []byte("online"), embeddedbroker.KindStatus)
		r.start()
		time.Sleep(5 * time.Second)
		if n, _, _ := r.st.usage(); n != 0 {
			t.Errorf("%d wait: the status behind them closes the last batch", n)
		}
		r.st.put("busgate/gw1/m/state", []byte(`{"ts":"x","i":1000}`), embeddedbroker.KindReading)
		time.Sleep(8 * time.Second)
		if n, _, _ := r.st.usage(); n != 1 {
			t.Errorf("%d wait, want the one that is younger than max_age", n)
		}
		time.Sleep(4 * time.Second)
		var seen []uint64
		packets := 0
		for _, d := range r.cloud.Ledger() {
			if d.Topic != "busgate/gw1/gateway/history" {
				continue
			}
			packets++
			if d.Retain {
				t.Error("a batch is retained")
			}
			var u unpacked
			if err := json.Unmarshal(inflate(t, d.Payload), &u); err != nil {
				t.Fatal(err)
			}
			for _, e := range u.D["m"] {
				seen = append(seen, e.N)
			}
		}
		if len(seen) != 1001 || packets != 17 {
			t.Errorf("%d readings in %d packets, want 1001 in 17", len(seen), packets)
		}
		for i, n := range seen[:min(len(seen), 1000)] {
			if n != uint64(i+1) {
				t.Fatalf("reading %d has n %d", i, n)
			}
		}
		if s := r.link.Status(); s.Sent != 1002 {
			t.Errorf("sent %d records", s.Sent)
		}
		r.stop()
	})
}

func TestBatchRespectsMaxPacket(t *testing.T) {
	virtual(t, cloudtest.Options{}, func(r *rig) {
		r.gw.Name = "gw1"
		r.cfg.Encode, r.cfg.MaxRecords, r.cfg.MaxPacket = "json-batch", 1000, 4096
		rnd := rand.New(rand.NewPCG(1, 1))
		for range 300 {
			r.st.put("busgate/gw1/m/state", []byte(`{"ts":"x","f":`+strconv.FormatFloat(rnd.NormFloat64(), 'g', -1, 64)+`}`), embeddedbroker.KindReading)
		}
		r.st.put("busgate/gw1/m/state", []byte(`{"ts":"x","f":"`+strings.Repeat("x", 5000)+`"}`), embeddedbroker.KindReading)
		r.st.put("busgate/gw1/m/status", []byte("online"), embeddedbroker.KindStatus)
		r.start()
		time.Sleep(5 * time.Second)
		n := 0
		for _, d := range r.cloud.Ledger() {
			if len(d.Payload)+len(d.Topic)+maxHeader > 4096 {
				t.Errorf("a packet of %d bytes left", len(d.Payload))
			}
			if d.Topic == "busgate/gw1/gateway/history" {
				var u unpacked
				if err := json.Unmarshal(d.Payload, &u); err != nil {
					t.Fatal(err)
				}
				n += len(u.D["m"])
			}
		}
		loss := r.payloads("busgate/gw1/gateway/loss")
		if n != 300 || len(loss) != 1 || loss[0] != `{"loss":[{"boot":"k3qz7aa-12","lo":301,"hi":301,"n":1,"why":"oversize"}]}` {
			t.Errorf("%d readings came, loss reports %q", n, loss)
		}
		if s := r.link.Status(); s.Oversize != 1 {
			t.Errorf("oversize %d", s.Oversize)
		}
		r.stop()
	})
}

// TestABatchIsCutTheSameAfterACrash: a packet id that is in doubt must not come
// with other readings. The cloud complains when it does.
func TestABatchIsCutTheSameAfterACrash(t *testing.T) {
	var mute atomic.Bool
	mute.Store(true)
	virtual(t, cloudtest.Options{AtPublish: true, Mute: func(*packets.PublishPacket) bool { return mute.Load() }}, func(r *rig) {
		r.gw.Name = "gw1"
		r.cfg.Encode, r.cfg.QoS, r.cfg.MaxAge = "json-batch", 2, time.Second
		r.remember(map[string][]byte{})
		put := func(n int) {
			for range n {
				r.st.put("busgate/gw1/m/state", []byte(`{"ts":"x"}`), embeddedbroker.KindReading)
			}
			time.Sleep(3 * time.Second)
		}
		r.start()
		put(3)
		put(4)
		old := r.store()
		next := old.kill()
		r.cancel()
		<-r.ended
		mute.Store(false)
		r.mu.Lock()
		r.st = next
		r.mu.Unlock()
		r.start()
		put(2)
		var seen []uint64
		for _, d := range r.cloud.Ledger() {
			if d.Topic == "busgate/gw1/gateway/history" {
				var u unpacked
				if err := json.Unmarshal(d.Payload, &u); err != nil {
					t.Fatal(err)
				}
				for _, e := range u.D["m"] {
					seen = append(seen, e.N)
				}
			}
		}
		if fmt.Sprint(seen) != "[1 2 3 4 5 6 7 8 9]" {
			t.Errorf("readings came as %v", seen)
		}
		r.stop()
	})
}

func TestBatchesAreExactOverKills(t *testing.T) {
	for _, qos := range []byte{1, 2} {
		t.Run(fmt.Sprint("qos ", qos), func(t *testing.T) {
			t.Parallel()
			tr := trial{messages: 2500, faults: 8, window: 10, seed: 3, qos: qos, atPublish: true, kind: "kill+cut", ackDelay: 10 * time.Millisecond, batch: 7}
			r := tr.run(t)
			if r.lost != 0 || r.reordered != 0 || len(r.violations) > 0 || qos == 2 && r.twice != 0 {
				t.Errorf("lost %d, twice %d, reordered %d, violations %q", r.lost, r.twice, r.reordered, r.violations)
			}
			if r.packets > tr.messages/3 {
				t.Errorf("%d packets for %d readings: not batched", r.packets, tr.messages)
			}
		})
	}
}
