package uplink

import (
	"bytes"
	"encoding/json"
	"strconv"
	"strings"
	"time"
)

// A command comes from ThingsBoard as a remote procedure call: the method names
// the point, params is the value, alone or as {"value":...}.
//
//	v1/gateway/rpc  {"device":"plant-a.pumps","data":{"id":7,"method":"relay1","params":true}}
//	here            busgate/plant-a/pumps/set/relay1  {"value":true,"id":"rpc-7-dn1xqz"}
//	its ack         {"id":"rpc-7-dn1xqz","point":"relay1","ok":true,"value":true,"ms":41}
//	v1/gateway/rpc  {"device":"plant-a.pumps","id":7,"data":{"id":...,"ok":true,...}}
//
// The id of the call travels in that of the command, so nothing need be
// remembered. It begins anew when ThingsBoard restarts: the moment of arrival
// stands beside it, or a new call would be answered with the result of an old one.

const rpcPrefix = "rpc-"

// rpc is a call as it comes down.
type rpc struct {
	Device string `json:"device"`
	Data   struct {
		ID     *json.Number    `json:"id"`
		Method string          `json:"method"`
		Params json.RawMessage `json:"params"`
	} `json:"data"`
}

// boardCommand translates a call into a command; ok is false for what is none: the
// answers of our own, or methods that can be no point.
func (c *coder) boardCommand(payload []byte, now time.Time) (topic string, command []byte, ok bool) {
	var call rpc
	if json.Unmarshal(payload, &call) != nil || call.Data.ID == nil {
		return "", nil, false
	}
	id, err := strconv.ParseInt(call.Data.ID.String(), 10, 64)
	device, ours := strings.CutPrefix(call.Device, c.gateway+".")
	if err != nil || !ours || !name(device) || !name(call.Data.Method) {
		return "", nil, false
	}
	value := bytes.TrimSpace(call.Data.Params)
	if bytes.HasPrefix(value, []byte("{")) {
		var inner struct {
			Value json.RawMessage `json:"value"`
		}
		if json.Unmarshal(value, &inner) != nil {
			return "", nil, false
		}
		value = bytes.TrimSpace(inner.Value)
	}
	if len(value) == 0 || value[0] == '{' || value[0] == '[' || string(value) == "null" {
		return "", nil, false
	}
	command = append([]byte(`{"value":`), value...)
	command = strconv.AppendInt(append(command, `,"id":"`+rpcPrefix...), id, 10)
	command = strconv.AppendInt(append(command, '-'), now.UnixNano(), 36)
	return c.base + "/" + device + "/set/" + call.Data.Method, append(command, `"}`...), true
}

// boardAnswer is the answer to a call, made of the ack of its command. Commands of
// others have no call to be answered.
func (c *coder) boardAnswer(device string, ack []byte) (topic string, payload []byte, ok bool) {
	rest, ours := strings.CutPrefix(member(ack, "id"), rpcPrefix)
	at := strings.LastIndexByte(rest, '-') // the id may be negative
	if !ours || at < 0 {
		return "", nil, false
	}
	id, err := strconv.ParseInt(rest[:at], 10, 64)
	if err != nil {
		return "", nil, false
	}
	b := strconv.AppendInt([]byte(`{"device":"`+device+`","id":`), id, 10)
	b = append(append(b, `,"data":`...), ack...)
	return boardRPC, append(b, '}'), true
}

// name says that s can be the name of a device or point.
func name(s string) bool {
	return s != "" && len(s) <= 64 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789_-") == ""
}
