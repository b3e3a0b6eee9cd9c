package uplink

import (
	"encoding/json"
	"testing"
	"time"

	"busgate/buffer"
	"busgate/embeddedbroker"
)

func TestPayloadAsIs(t *testing.T) {
	at := time.Date(2026, 11, 21, 6, 1, 2, 123e6, time.UTC)
	number := []buffer.Number{{Stream: 9, N: 1}, {Stream: 7, N: 84211}}
	reading := uint8(embeddedbroker.KindReading)
	for _, c := range []struct {
		name     string
		r        buffer.Record
		unixMS   bool
		history  bool
		in, want string
	}{
		{"gw, boot and n follow ts", buffer.Record{Kind: reading, Numbers: number, Boot: "k3qz7aa-12", At: at}, false, false,
			`{"ts":"2026-11-21T06:01:02.123Z","voltage_l1":230.1,"relay1":true}`,
			`{"ts":"2026-11-21T06:01:02.123Z","gw":"plant-a","boot":"k3qz7aa-12","n":84211,"voltage_l1":230.1,"relay1":true}`},
		{"ts may be a number", buffer.Record{Kind: reading, Numbers: number, Boot: "b-1", At: at}, true, false,
			`{"ts":1782000000123,"a":1}`, `{"ts":1782000000123,"gw":"plant-a","boot":"b-1","n":84211,"a":1}`},
		{"no points", buffer.Record{Kind: reading, Numbers: number, Boot: "b-1", At: at}, false, false,
			`{"ts":"x"}`, `{"ts":"x","gw":"plant-a","boot":"b-1","n":84211}`},
		{"history is marked", buffer.Record{Kind: reading, Numbers: number, Boot: "b-1", At: at}, false, true,
			`{"ts":"x","a":null}`, `{"ts":"x","gw":"plant-a","boot":"b-1","n":84211,"h":1,"a":null}`},
		{"without a clock they follow uptime and boot", buffer.Record{Kind: reading, Numbers: number, Boot: "k3qz7aa-12"}, false, false,
			`{"uptime":12.345,"boot":"k3qz7aa-12","a":1}`, `{"uptime":12.345,"boot":"k3qz7aa-12","gw":"plant-a","n":84211,"a":1}`},
		{"a time that became known replaces uptime", buffer.Record{Kind: reading, Numbers: number, Boot: "k3qz7aa-12", At: at}, false, false,
			`{"uptime":12.345,"boot":"k3qz7aa-12","a":1}`, `{"ts":"2026-11-21T06:01:02.123Z","gw":"plant-a","boot":"k3qz7aa-12","n":84211,"a":1}`},
		{"and as a number", buffer.Record{Kind: reading, Numbers: number, Boot: "b-1", At: at}, true, false,
			`{"uptime":12.345,"boot":"b-1"}`, `{"ts":1795240862123,"gw":"plant-a","boot":"b-1","n":84211}`},
		{"a message of the LAN is untouched", buffer.Record{Numbers: number, Boot: "b-1"}, false, false, `{"ts":"x","a":1}`, `{"ts":"x","a":1}`},
		{"a reading without a number of ours is untouched", buffer.Record{Kind: reading, Numbers: number[:1], Boot: "b-1"}, false, false, `{"ts":"x"}`, `{"ts":"x"}`},
		{"a scalar is untouched", buffer.Record{Kind: reading, Numbers: number, Boot: "b-1"}, false, false, `230.1`, `230.1`},
		{"broken JSON is untouched", buffer.Record{Kind: reading, Numbers: number, Boot: "b-1"}, false, false, `{"ts":"x`, `{"ts":"x`},
		{"other keys first: untouched", buffer.Record{Kind: reading, Numbers: number, Boot: "b-1"}, false, false, `{"a":1,"ts":"x"}`, `{"a":1,"ts":"x"}`},
	} {
		co := coder{gateway: "plant-a", unixMS: c.unixMS, stream: 7}
		c.r.Payload = []byte(c.in)
		for range 100 {
			if got := string(co.payload(&c.r, c.history)); got != c.want {
				t.Fatalf("%s:\n got  %s\n want %s", c.name, got, c.want)
			}
		}
		if string(c.r.Payload) != c.in {
			t.Errorf("%s: the record was changed to %s", c.name, c.r.Payload)
		}
	}
}

// FuzzPayload: what goes up of valid JSON is valid JSON, and says who and which.
func FuzzPayload(f *testing.F) {
	for _, s := range []string{`{"ts":"x","a":1}`, `{"uptime":1,"boot":"b"}`, `{"ts":1}`, `{"ts":"a\"b","c":{}}`, `[]`, `{"ts":[1,2],"a":1}`, `{"ts":{"a":1}}`} {
		f.Add([]byte(s), true)
	}
	co := coder{gateway: "g", stream: 1}
	f.Fuzz(func(t *testing.T, p []byte, dated bool) {
		r := buffer.Record{Kind: uint8(embeddedbroker.KindReading), Payload: p, Boot: "b-1", Numbers: []buffer.Number{{Stream: 1, N: 5}}}
		if dated {
			r.At = time.Unix(1, 0)
		}
		got := co.payload(&r, false)
		if json.Valid(p) && !json.Valid(got) {
			t.Errorf("%s became %s", p, got)
		}
	})
}
