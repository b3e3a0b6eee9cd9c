package uplink

import (
	"bytes"
	"encoding/json"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"busgate/buffer"
	"busgate/embeddedbroker"
)

// encode = "thingsboard" speaks the MQTT API that ThingsBoard has for gateways:
// fixed topics, the device in the payload.
//
//	https://thingsboard.io/docs/reference/gateway-mqtt-api/
//	https://thingsboard.io/docs/reference/gateway-api/rpc/
//
//	<device>/state          v1/gateway/telemetry     {"plant-a.grid":[{"ts":1782000000123,"values":{"power":1.5}}]}
//	<device>/status         v1/gateway/connect, v1/gateway/disconnect     {"device":"plant-a.grid"}
//	<device>/info           v1/gateway/attributes    {"plant-a.grid":{"model":"SDM630"}}
//	<device>/ack            v1/gateway/rpc           {"device":"plant-a.grid","id":1,"data":{...}}
//	gateway/state, loss     v1/devices/me/telemetry  {"ts":1782000000123,"values":{"queue":0}}
//	gateway/info, alert     v1/devices/me/attributes {"version":"1.0"}
//	<device>/error          v1/devices/me/attributes {"error_grid":"unit 1 on meters: no answer"}
//
// Names of devices are unique in a tenant there, so the name of the gateway
// stands before that of the device. Nothing else goes up: ThingsBoard has no
// place for messages of LAN clients, see Wants. Whatever is said of a device
// connects it again, so nothing is said of one that is offline but its readings:
// what is wrong with it stands among the attributes of the gateway.
//
// A message of telemetry holds readings of one device only. Releases of
// ThingsBoard acknowledge a message with several devices as soon as the first of
// them is stored, and again for each of the others: what the others lack would be
// lost. (https://github.com/thingsboard/thingsboard/issues/433) It is not numbered:
// what comes twice has the same ts and takes its own place.
const encodeThingsBoard = "thingsboard"

// Topics of ThingsBoard.
const (
	boardTelemetry  = "v1/gateway/telemetry"
	boardConnect    = "v1/gateway/connect"
	boardDisconnect = "v1/gateway/disconnect"
	boardAttributes = "v1/gateway/attributes"
	boardRPC        = "v1/gateway/rpc"

	boardOwnTelemetry  = "v1/devices/me/telemetry" // of the gateway, which is a device, too
	boardOwnAttributes = "v1/devices/me/attributes"
)

// boardEntry is more than what a batch of telemetry adds to the payload of a
// reading: time and braces, and the name of the device with the first.
const boardEntry = 192

// boardDevice is the name of a device in ThingsBoard.
func boardDevice(gateway, device string) string { return gateway + "." + device }

// telemetry is the payload of readings of one device, in order. Points that
// failed are missing, and so are those that the device marks invalid: there is no
// null there. A reading whose time is not known has none, so the platform takes
// the time of its arrival; uptime and boot stand among the values then.
func (c *coder) telemetry(device string, rs []buffer.Record) []byte {
	b := strconv.AppendQuote([]byte(`{`), boardDevice(c.gateway, device)) // [a-z0-9_.-]: no escapes
	b = append(b, ":["...)
	for i := range rs {
		if i > 0 {
			b = append(b, ',')
		}
		head, rest, _ := c.head(&rs[i])
		if ms, dated := moment(rs[i].At, head); dated {
			b = strconv.AppendInt(append(b, `{"ts":`...), ms, 10)
			b = append(b, `,"values":`...)
			b = append(appendValues(b, rest), '}')
			continue
		}
		b = appendValues(b, slices.Concat(head, rest))
	}
	return append(b, "]}"...)
}

// moment is the time of a reading in milliseconds since 1970: that of its record,
// else the one in its payload, which begins with head.
func moment(at time.Time, head []byte) (ms int64, known bool) {
	if !at.IsZero() {
		return at.UnixMilli(), true
	}
	text, ok := bytes.CutPrefix(head, []byte(`{"ts":`))
	if !ok {
		return 0, false
	}
	if t, err := time.Parse(`"`+time.RFC3339+`"`, string(text)); err == nil {
		return t.UnixMilli(), true
	}
	n, err := strconv.ParseInt(string(text), 10, 64)
	return n, err == nil
}

// appendValues appends the members of a JSON object, as they may stand in
// telemetry and attributes: numbers, texts and bools. A list of words becomes one
// text; null is left out.
func appendValues(b, object []byte) []byte {
	b = append(b, '{')
	n := 0
	members(object, func(name string, v []byte) {
		if string(v) == "null" {
			return
		}
		if n++; n > 1 {
			b = append(b, ',')
		}
		b = append(append(append(b, '"'), name...), '"', ':')
		switch {
		case v[0] == '[' || v[0] == '{':
			b = appendList(b, v)
		case v[0] == '-' || v[0] >= '0' && v[0] <= '9':
			b = appendNumber(b, v)
		default:
			b = append(b, v...)
		}
	})
	return append(b, '}')
}

// appendList makes one text of a list of words, and of anything else its JSON.
func appendList(b, list []byte) []byte {
	var words []string
	text := string(list)
	if json.Unmarshal(list, &words) == nil {
		text = strings.Join(words, ",")
	}
	quoted, err := json.Marshal(text)
	if err != nil {
		panic("uplink: a text cannot be encoded: " + err.Error())
	}
	return append(b, quoted...)
}

// mostDecimals is how many decimals a number may have in ThingsBoard; one with
// more becomes a text there, and no chart shows it.
const mostDecimals = 16

// appendNumber appends a number so that ThingsBoard takes it for one: with 16
// decimals at most, and without an exponent when it is beyond the integers of 64
// bits. An integer beyond those is a text there, and so it is one here.
func appendNumber(b, v []byte) []byte {
	if !bytes.ContainsAny(v, ".eE") {
		if _, err := strconv.ParseInt(string(v), 10, 64); err != nil {
			return append(append(append(b, '"'), v...), '"')
		}
		return append(b, v...)
	}
	f, err := strconv.ParseFloat(string(v), 64)
	switch {
	case err != nil: // beyond a float64: no reading of ours
		return append(append(append(b, '"'), v...), '"')
	case math.Abs(f) >= 1<<63:
		return strconv.AppendFloat(b, f, 'f', 1, 64)
	}
	plain := strconv.AppendFloat(nil, f, 'f', -1, 64)
	if i := bytes.IndexByte(plain, '.'); i >= 0 && len(plain)-i-1 > mostDecimals {
		plain = bytes.TrimRight(strconv.AppendFloat(plain[:0], f, 'f', mostDecimals, 64), "0")
		return append(b, bytes.TrimSuffix(plain, []byte("."))...)
	}
	return append(b, v...)
}

// board translates a message of ours that is no batch; ok is false for what
// ThingsBoard has no place for.
func (c *coder) board(r *buffer.Record) (topic string, payload []byte, ok bool) {
	rest, ours := strings.CutPrefix(r.Topic, c.base+"/")
	device, kind, _ := strings.Cut(rest, "/")
	switch {
	case !ours || device == "" || embeddedbroker.Kind(r.Kind) != embeddedbroker.KindReading && embeddedbroker.Kind(r.Kind) != embeddedbroker.KindStatus:
		return "", nil, false
	case device == "gateway":
		return boardOwn(r, kind)
	}
	name := boardDevice(c.gateway, device)
	switch p := string(r.Payload); {
	case kind == "state":
		if _, _, ok := c.head(r); !ok {
			return "", nil, false
		}
		return boardTelemetry, c.telemetry(device, []buffer.Record{*r}), true
	case kind == "status" && p == "online":
		return boardConnect, []byte(`{"device":"` + name + `"}`), true
	case kind == "status" && p == "offline":
		return boardDisconnect, []byte(`{"device":"` + name + `"}`), true
	case kind == "info" && flat(r.Payload) != nil:
		return boardAttributes, []byte(`{"` + name + `":` + string(flat(r.Payload)) + `}`), true
	case kind == "error":
		return boardOwnAttributes, note("error_"+device, r.Payload), true
	case kind == "ack":
		return c.boardAnswer(name, r.Payload)
	}
	return "", nil, false
}

// takes tells whether a message has a place in ThingsBoard. Scalars are those of
// the states that go up already.
func (c *coder) takes(m *embeddedbroker.Message) bool {
	if m.Kind == embeddedbroker.KindReading { // most are
		device, point, ok := stateOf(c.base, m.Topic)
		return ok && device != "" && point == "" && bytes.HasPrefix(m.Payload, []byte("{"))
	}
	_, _, ok := c.board(&buffer.Record{Topic: m.Topic, Payload: m.Payload, Kind: uint8(m.Kind)})
	return ok
}

// boardOwn translates what the gateway says of itself. Its status is that of the
// connection.
func boardOwn(r *buffer.Record, kind string) (topic string, payload []byte, ok bool) {
	word, alert := strings.CutPrefix(kind, "alert/")
	switch {
	case kind == "loss" && bytes.HasPrefix(r.Payload, []byte("{")):
		return boardOwnTelemetry, r.Payload, true
	case kind == "state":
		end := valueEnd(r.Payload, len(`{"ts":`))
		if ms, dated := moment(time.Time{}, r.Payload[:max(end, 0)]); dated {
			b := strconv.AppendInt([]byte(`{"ts":`), ms, 10)
			return boardOwnTelemetry, append(appendValues(append(b, `,"values":`...), r.Payload[end:]), '}'), true
		}
		if p := flat(r.Payload); p != nil {
			return boardOwnTelemetry, p, true
		}
	case kind == "info" && flat(r.Payload) != nil:
		return boardOwnAttributes, flat(r.Payload), true
	case alert:
		return boardOwnAttributes, note("alert_"+word, r.Payload), true
	}
	return "", nil, false
}

// flat is a JSON object without the members that are objects themselves; nil when
// it is none.
func flat(p []byte) []byte {
	b := []byte(`{`)
	ok := members(p, func(name string, v []byte) {
		if v[0] != '{' {
			b = append(append(append(append(b, '"'), name...), `":`...), v...)
			b = append(b, ',')
		}
	})
	if !ok {
		return nil
	}
	return appendValues(nil, append(bytes.TrimSuffix(b, []byte(",")), '}'))
}

// note is the attribute that says what is wrong; its text is empty when nothing is.
func note(attribute string, p []byte) []byte {
	b, err := json.Marshal(map[string]string{attribute: member(p, "text")})
	if err != nil {
		panic("uplink: a text cannot be encoded: " + err.Error())
	}
	return b
}

// member is a text or number of a JSON object; "" when it has none of that name.
func member(p []byte, name string) (s string) {
	members(p, func(n string, v []byte) {
		if n == name {
			s = scalar(v)
		}
	})
	return s
}
