package uplink

import (
	"bytes"
	"encoding/json"
	"math"
	"math/big"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	"busgate/buffer"
	"busgate/config"
	"busgate/embeddedbroker"
)

var boardCoder = coder{gateway: "gw1", name: "cloud", base: "busgate/gw1", stream: 1}

// TestThingsBoardMessages holds the forms of ThingsBoard's documentation, with the
// names of ours: https://thingsboard.io/docs/reference/gateway-mqtt-api/
func TestThingsBoardMessages(t *testing.T) {
	const state, said = embeddedbroker.KindReading, embeddedbroker.KindStatus
	for _, c := range []struct {
		name, topic, payload string
		kind                 embeddedbroker.Kind
		want                 string // topic and payload; "" = no place for it
	}{
		{"a reading", "busgate/gw1/grid/state", `{"ts":"2026-11-21T06:01:02.123Z","power":871.1,"state":"run","relay1":true}`, state,
			`v1/gateway/telemetry {"gw1.grid":[{"ts":1795240862123,"values":{"power":871.1,"state":"run","relay1":true}}]}`},
		{"its time may be a number", "busgate/gw1/grid/state", `{"ts":1795240862123,"a":1}`, state, `v1/gateway/telemetry {"gw1.grid":[{"ts":1795240862123,"values":{"a":1}}]}`},
		{"a point that is marked invalid is left out", "busgate/gw1/grid/state", `{"ts":1,"a":null,"b":2,"c":null}`, state, `v1/gateway/telemetry {"gw1.grid":[{"ts":1,"values":{"b":2}}]}`},
		{"a reading without values shows that the device lives", "busgate/gw1/grid/state", `{"ts":1,"a":null}`, state, `v1/gateway/telemetry {"gw1.grid":[{"ts":1,"values":{}}]}`},
		{"words become one text", "busgate/gw1/grid/state", `{"ts":1,"flags":["over \"x\"","low"],"none":[]}`, state,
			`v1/gateway/telemetry {"gw1.grid":[{"ts":1,"values":{"flags":"over \"x\",low","none":""}}]}`},
		{"a time that is not known is not invented", "busgate/gw1/grid/state", `{"uptime":12.345,"boot":"k3qz7aa-12","a":1}`, state,
			`v1/gateway/telemetry {"gw1.grid":[{"uptime":12.345,"boot":"k3qz7aa-12","a":1}]}`},
		{"a device that answers", "busgate/gw1/grid/status", "online", said, `v1/gateway/connect {"device":"gw1.grid"}`},
		{"a device that does not", "busgate/gw1/grid/status", "offline", said, `v1/gateway/disconnect {"device":"gw1.grid"}`},
		{"what a device is", "busgate/gw1/grid/info", `{"label":"Grid meter","unit_id":1,"points":{"power":{"unit":"W"}},"interval":2}`, said,
			`v1/gateway/attributes {"gw1.grid":{"label":"Grid meter","unit_id":1,"interval":2}}`},
		{"what is wrong with it", "busgate/gw1/grid/error", `{"ts":"2026-11-21T06:01:02.123Z","error":"no-answer","text":"unit 1: \"no\" answer"}`, said,
			`v1/devices/me/attributes {"error_grid":"unit 1: \"no\" answer"}`},
		{"which is solved", "busgate/gw1/grid/error", "", said, `v1/devices/me/attributes {"error_grid":""}`},
		{"the answer to a call", "busgate/gw1/pumps/ack", `{"ts":"x","id":"rpc-7-1abc","point":"limit","ok":true,"value":80,"ms":41}`, said,
			`v1/gateway/rpc {"device":"gw1.pumps","id":7,"data":{"ts":"x","id":"rpc-7-1abc","point":"limit","ok":true,"value":80,"ms":41}}`},
		{"with a negative id", "busgate/gw1/pumps/ack", `{"id":"rpc--7-1abc","ok":false}`, said, `v1/gateway/rpc {"device":"gw1.pumps","id":-7,"data":{"id":"rpc--7-1abc","ok":false}}`},
		{"the numbers of the gateway", "busgate/gw1/gateway/state", `{"ts":"2026-11-21T06:01:02.123Z","uptime":86400,"queue":4310,"uplink_cloud":false,"clock":"ntp"}`, said,
			`v1/devices/me/telemetry {"ts":1795240862123,"values":{"uptime":86400,"queue":4310,"uplink_cloud":false,"clock":"ntp"}}`},
		{"without a clock", "busgate/gw1/gateway/state", `{"uptime":12,"boot":"b-1","queue":1}`, said, `v1/devices/me/telemetry {"uptime":12,"boot":"b-1","queue":1}`},
		{"what the gateway is", "busgate/gw1/gateway/info", `{"version":"1.0","last":{"boot":"b-1","n":5}}`, said, `v1/devices/me/attributes {"version":"1.0"}`},
		{"an alert", "busgate/gw1/gateway/alert/disk-full", `{"ts":"x","text":"no room"}`, said, `v1/devices/me/attributes {"alert_disk-full":"no room"}`},
		{"a loss", "busgate/gw1/gateway/loss", `{"loss":[{"boot":"b-1","lo":1,"hi":9,"n":9,"why":"bound-bytes"}]}`, said,
			`v1/devices/me/telemetry {"loss":[{"boot":"b-1","lo":1,"hi":9,"n":9,"why":"bound-bytes"}]}`},

		{"the gateway's status is that of the connection", "busgate/gw1/gateway/status", "online", said, ""},
		{"a message of the LAN", "busgate/gw1/grid/state", `{"ts":1,"a":1}`, embeddedbroker.KindLAN, ""},
		{"another topic", "lan/x", `{"ts":1,"a":1}`, state, ""},
		{"a scalar", "busgate/gw1/grid/state/power", "1", state, ""},
		{"what empties a topic", "busgate/gw1/grid/state", "", said, ""},
		{"an emptied status", "busgate/gw1/grid/status", "", said, ""},
		{"an emptied info", "busgate/gw1/grid/info", "", said, ""},
		{"the answer to a command of another", "busgate/gw1/pumps/ack", `{"id":"c-17","ok":true}`, said, ""},
		{"or to one without an id", "busgate/gw1/pumps/ack", `{"ok":true}`, said, ""},
		{"or to one that only looks alike", "busgate/gw1/pumps/ack", `{"id":"rpc-x-1","ok":true}`, said, ""},
		{"what Home Assistant is told", "homeassistant/device/x/config", "{}", said, ""},
	} {
		r := buffer.Record{Topic: c.topic, Payload: []byte(c.payload), Kind: uint8(c.kind)}
		for range 20 {
			topic, payload, ok := boardCoder.board(&r)
			if got := strings.TrimSpace(topic + " " + string(payload)); got != c.want || ok != (c.want != "") {
				t.Fatalf("%s:\n got  %s %v\n want %s", c.name, got, ok, c.want)
			}
			if ok && !json.Valid(payload) {
				t.Fatalf("%s: %s is no JSON", c.name, payload)
			}
		}
		cfg := &config.Uplink{Encode: encodeThingsBoard, Send: []string{"#"}}
		_, want := Wants(cfg, &config.Gateway{Name: "gw1", Topic: "busgate"})
		if got := want(&embeddedbroker.Message{Topic: c.topic, Payload: []byte(c.payload), Kind: c.kind}); got != (c.want != "") {
			t.Errorf("%s: wanted %v", c.name, got)
		}
	}
}

// stored is a value as ThingsBoard keeps it: a number, a text or a bool.
type stored struct {
	kind string // long, double, text, bool
	text string
	f    float64
}

// keep is how ThingsBoard reads a value of telemetry (JsonConverter of its common
// modules): whole numbers are longs, unless written with a point and without an
// exponent; others with 16 decimals at most are doubles; the rest become texts, and
// a text that is a number becomes one.
func keep(t *testing.T, v any) stored {
	t.Helper()
	switch v := v.(type) {
	case bool:
		return stored{kind: "bool", text: strconv.FormatBool(v)}
	case string:
		if _, ok := new(big.Rat).SetString(v); ok && strings.Trim(v, "0123456789.-") == "" {
			return keep(t, json.Number(v))
		}
		return stored{kind: "text", text: v}
	case json.Number:
		s := v.String()
		x, ok := new(big.Rat).SetString(s)
		if !ok {
			t.Fatalf("%s is no number", s)
		}
		simple := strings.Contains(s, ".") && !strings.ContainsAny(s, "eE")
		if x.IsInt() && !simple {
			if x.Num().IsInt64() {
				return stored{kind: "long", text: x.Num().String()}
			}
			return stored{kind: "text", text: x.Num().String()}
		}
		mantissa, exp, _ := strings.Cut(strings.ToLower(s), "e")
		_, decimals, _ := strings.Cut(mantissa, ".")
		e, _ := strconv.Atoi(exp)
		if len(decimals)-e > 16 {
			return stored{kind: "text", text: s}
		}
		f, _ := x.Float64()
		return stored{kind: "double", f: f}
	}
	t.Fatalf("%T does not stand in telemetry", v)
	return stored{}
}

// TestThingsBoardKeepsWhatWasMeasured: random readings, as the bridge writes them,
// are kept by ThingsBoard as the numbers, texts and bools that they are.
func TestThingsBoardKeepsWhatWasMeasured(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	float := func() float64 {
		switch rng.IntN(5) {
		case 0:
			return math.Float64frombits(rng.Uint64())
		case 1:
			return float64(rng.IntN(1e6)) / 1000
		case 2:
			return rng.Float64() * math.Pow(10, float64(rng.IntN(40)-20))
		case 3:
			return float64(math.Float32frombits(rng.Uint32()))
		}
		return float64(rng.Int64())
	}
	for i := range 4000 {
		f := float()
		if math.IsNaN(f) || math.IsInf(f, 0) {
			continue // null in a state
		}
		n := rng.Int64()
		for _, c := range []struct{ text, kind string }{
			{string(formatState(f)), "number"}, {strconv.FormatInt(n, 10), "long"}, {strconv.FormatUint(1<<63+rng.Uint64()>>1, 10), "text"},
			{strconv.FormatBool(n > 0), "bool"}, {`"run ` + strconv.Itoa(i) + `"`, "text"},
		} {
			r := reading(1, "m", `{"ts":"x","v":`+c.text+`}`)
			var doc map[string][]struct {
				Ts     int64
				Values map[string]any
			}
			d := json.NewDecoder(bytes.NewReader(boardCoder.telemetry("m", []buffer.Record{r})))
			d.UseNumber()
			if err := d.Decode(&doc); err != nil {
				t.Fatalf("%s: %v", c.text, err)
			}
			e := doc["gw1.m"][0]
			got := keep(t, e.Values["v"])
			same := got.kind == c.kind && got.text == strings.Trim(c.text, `"`)
			if c.kind == "number" {
				x, _ := strconv.ParseFloat(c.text, 64)
				if got.kind == "long" {
					got.f, _ = strconv.ParseFloat(got.text, 64)
				}
				same = got.kind != "text" && math.Abs(got.f-x) <= 5e-17+math.Nextafter(math.Abs(x), math.Inf(1))-math.Abs(x) // 16 decimals
			}
			if _, text := e.Values["v"].(string); text != (c.kind == "text") { // where texts are not cast, such a number is refused
				t.Fatalf("%s was sent as %v (%T)", c.text, e.Values["v"], e.Values["v"])
			}
			if !same || e.Ts != r.At.UnixMilli() {
				t.Fatalf("%s (%s) was sent as %v at %d and is kept as %+v", c.text, c.kind, e.Values["v"], e.Ts, got)
			}
		}
	}
}

// formatState is a float as states have it: the shortest that reads back, with an
// exponent outside of 1e-6 to 1e15.
func formatState(f float64) []byte {
	form := byte('f')
	if a := math.Abs(f); a != 0 && (a < 1e-6 || a >= 1e15) {
		form = 'e'
	}
	return strconv.AppendFloat(nil, f, form, -1, 64)
}

// FuzzMembers: an object of compact JSON is taken apart as encoding/json does, and
// anything else does no harm.
func FuzzMembers(f *testing.F) {
	for _, s := range []string{`{}`, `{"a":1,"b":"x\"y,}","c":[1,{"d":2}],"e":{"f":null}}`, `,"a":1}`, `}`, `{"a"}`, `{"a":}`, `{"a":1,}`, `{"a":1}x`, `{"a":"`, `{,}`, `{"a":1:2}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		var names []string
		ok := members(p, func(name string, v []byte) {
			names = append(names, name)
			if len(v) == 0 {
				t.Fatalf("%q: a member without a value", p)
			}
		})
		var compact bytes.Buffer
		if len(p) == 0 || p[0] != '{' || json.Compact(&compact, p) != nil || !bytes.Equal(compact.Bytes(), p) {
			return
		}
		if !ok {
			t.Fatalf("%q is an object", p)
		}
		if out := appendValues(nil, p); !json.Valid(out) {
			t.Fatalf("%q became %q", p, out)
		}
		d := json.NewDecoder(bytes.NewReader(p))
		n := 0
		for depth := 0; ; {
			tok, err := d.Token()
			if err != nil {
				break
			}
			switch tok {
			case json.Delim('{'), json.Delim('['):
				if depth++; depth == 2 {
					n++ // the value of a member
				}
				continue
			case json.Delim('}'), json.Delim(']'):
				depth--
				continue
			}
			if depth == 1 {
				n++
			}
		}
		if n != 2*len(names) {
			t.Fatalf("%q: %d members, want %d", p, len(names), n/2)
		}
	})
}

func TestThingsBoardCalls(t *testing.T) {
	now := time.Unix(0, 36*36+1)
	for _, c := range []struct{ name, call, want string }{
		{"a value", `{"device":"gw1.pumps","data":{"id":7,"method":"relay1","params":true}}`, `busgate/gw1/pumps/set/relay1 {"value":true,"id":"rpc-7-101"}`},
		{"a number", `{"device":"gw1.pumps","data":{"id":0,"method":"limit","params":42.5}}`, `busgate/gw1/pumps/set/limit {"value":42.5,"id":"rpc-0-101"}`},
		{"a word", `{"device":"gw1.a-b","data":{"id":-1,"method":"mode_2","params":"auto \"x\""}}`, `busgate/gw1/a-b/set/mode_2 {"value":"auto \"x\"","id":"rpc--1-101"}`},
		{"a value in an object", `{"device":"gw1.pumps","data":{"id":7,"method":"relay1","params":{"value": 1}}}`, `busgate/gw1/pumps/set/relay1 {"value":1,"id":"rpc-7-101"}`},
		{"our own answer", `{"device":"gw1.pumps","id":7,"data":{"ok":true}}`, ""},
		{"no id", `{"device":"gw1.pumps","data":{"method":"relay1","params":true}}`, ""},
		{"an id that is none", `{"device":"gw1.pumps","data":{"id":1.5,"method":"relay1","params":true}}`, ""},
		{"no value", `{"device":"gw1.pumps","data":{"id":7,"method":"relay1"}}`, ""},
		{"an empty one", `{"device":"gw1.pumps","data":{"id":7,"method":"relay1","params":null}}`, ""},
		{"several", `{"device":"gw1.pumps","data":{"id":7,"method":"relay1","params":{"pin":1,"on":true}}}`, ""},
		{"a list", `{"device":"gw1.pumps","data":{"id":7,"method":"relay1","params":[1]}}`, ""},
		{"another gateway", `{"device":"gw2.pumps","data":{"id":7,"method":"relay1","params":true}}`, ""},
		{"a method that reaches elsewhere", `{"device":"gw1.pumps","data":{"id":7,"method":"a/b","params":true}}`, ""},
		{"or everywhere", `{"device":"gw1.+","data":{"id":7,"method":"#","params":true}}`, ""},
		{"no JSON", `on`, ""},
	} {
		topic, command, ok := boardCoder.boardCommand([]byte(c.call), now)
		if got := strings.TrimSpace(topic + " " + string(command)); got != c.want || ok != (c.want != "") {
			t.Errorf("%s: %s %v, want %s", c.name, got, ok, c.want)
		}
	}
}

// FuzzThingsBoardCall: whatever comes down becomes a command on a topic of a point,
// in JSON, or nothing.
func FuzzThingsBoardCall(f *testing.F) {
	f.Add([]byte(`{"device":"gw1.pumps","data":{"id":7,"method":"relay1","params":true}}`))
	f.Add([]byte(`{"device":"gw1.pumps","data":{"id":7,"method":"relay1","params":{"value":"x"}}}`))
	f.Fuzz(func(t *testing.T, p []byte) {
		topic, command, ok := boardCoder.boardCommand(p, time.Unix(1, 2))
		if !ok {
			return
		}
		if levels := strings.Split(topic, "/"); len(levels) != 5 || levels[3] != "set" || strings.ContainsAny(topic, "+#\x00") || !json.Valid(command) {
			t.Errorf("%q became %q on %q", p, command, topic)
		}
	})
}
