package bridge

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"busgate/config"
	"busgate/devices"
	"busgate/embeddedbroker"
)

const ts0 = `{"ts":"2000-01-01T00:00:00.000Z",`

func ok80(id string) string {
	return `pumps/ack ` + ts0 + id + `"point":"limit","ok":true,"value":80,"ms":41}`
}

func nok(point, code, text string) string {
	if point != "" {
		point = `"point":"` + point + `",`
	}
	return `pumps/ack ` + ts0 + point + `"ok":false,"error":"` + code + `","text":"` + text + `"}`
}

// TestCommandRules walks over each rule: what is published to a command topic,
// what reaches the fleet, and which acks come back.
func TestCommandRules(t *testing.T) {
	for name, c := range commandRules {
		synctestRun(t, name, func(t *testing.T) {
			cfg, o := testConfig(), running()
			if c.setup != nil {
				c.setup(cfg, &o)
			}
			x := start(t, cfg, o)
			defer x.stop()
			x.f.take()
			topic := c.topic
			if topic == "" {
				topic = "pumps/set/limit"
			}
			x.f.deliver(&embeddedbroker.Message{Topic: "busgate/plant-a/" + topic, Payload: []byte(c.msg), QoS: 1, Retain: c.retain})
			synctest.Wait()
			wantLines(t, x.f.take(), c.acks...)
			wantLines(t, x.fleet.take(), c.fleet...)
		})
	}
}

var commandRules = map[string]struct {
	setup  func(cfg *config.Config, o *Options)
	topic  string // below the base; "" = pumps/set/limit
	msg    string
	retain bool
	fleet  []string
	acks   []string
}{
	"a bare number":                 {msg: "80", fleet: []string{"pumps limit 80", "refresh pumps"}, acks: []string{ok80("")}},
	"a number with a line end":      {msg: "42.5\n", fleet: []string{"pumps limit 42.5", "refresh pumps"}, acks: []string{ok80("")}},
	"a word":                        {msg: "on", fleet: []string{"pumps limit on", "refresh pumps"}, acks: []string{ok80("")}},
	"a JSON text":                   {msg: `"on"`, fleet: []string{"pumps limit on", "refresh pumps"}, acks: []string{ok80("")}},
	"an object with a number":       {msg: `{"value":42.50}`, fleet: []string{"pumps limit 42.50", "refresh pumps"}, acks: []string{ok80("")}},
	"an object with a truth":        {msg: `{"value":true,"id":"a1"}`, fleet: []string{"pumps limit true", "refresh pumps"}, acks: []string{ok80(`"id":"a1",`)}},
	"a 64-bit number stays exact":   {msg: `{"value":18446744073709551615}`, fleet: []string{"pumps limit 18446744073709551615", "refresh pumps"}, acks: []string{ok80("")}},
	"an expiry that has not come":   {msg: `{"value":1,"expires":"2000-01-01T00:00:01Z"}`, fleet: []string{"pumps limit 1", "refresh pumps"}, acks: []string{ok80("")}},
	"an expiry that has passed":     {msg: `{"value":1,"expires":"1999-12-31T23:59:30Z"}`, acks: []string{nok("limit", "expired", "expired: arrived 30 s too late")}},
	"an unknown clock and expires":  {setup: noClock, msg: `{"value":1,"expires":"2000-01-01T00:00:01Z"}`, acks: []string{unset(nok("limit", "clock-unknown", "the clock is not set yet: send ttl_s instead of expires"))}},
	"an unknown clock and ttl_s":    {setup: noClock, msg: `{"value":1,"ttl_s":0.5}`, fleet: []string{"pumps limit 1", "refresh pumps"}, acks: []string{unset(ok80(""))}},
	"retained is refused":           {msg: "80", retain: true, acks: []string{nok("limit", "retained", "a retained command on set/limit is ignored: it would fire at every restart. Delete it: busgate pub -t busgate/plant-a/pumps/set/limit -n -r")}},
	"retained on set is refused":    {topic: "pumps/set", msg: `{"limit":1}`, retain: true, acks: []string{nok("", "retained", "a retained command on set is ignored: it would fire at every restart. Delete it: busgate pub -t busgate/plant-a/pumps/set -n -r")}},
	"deleting a retained command":   {msg: "", retain: true},
	"an unknown point":              {topic: "pumps/set/relay9", msg: "on", acks: []string{nok("relay9", "unknown-point", "pumps has no point `relay9` (did you mean `relay1`?)")}},
	"an unknown point, none alike":  {topic: "pumps/set/voltage", msg: "on", acks: []string{nok("voltage", "unknown-point", "pumps has no point `voltage`")}},
	"a hostile point":               {topic: "pumps/set/a\"\n€", msg: "on", acks: []string{nok("", "unknown-point", `pumps has no point \"a\\\"\\n€\"`)}},
	"a point that takes none":       {topic: "pumps/set/relay2", msg: "on", acks: []string{nok("relay2", "not-writable", "relay2 takes no commands (write = false)")}},
	"an unknown device":             {topic: "pumbs/set/limit", msg: "1", acks: []string{strings.Replace(nok("limit", "unknown-point", "there is no device `pumbs` (did you mean `pumps`?)"), "pumps/ack", "pumbs/ack", 1)}},
	"the gateway":                   {topic: "gateway/set/limit", msg: "1", acks: []string{strings.Replace(nok("limit", "unknown-point", "gateway takes no commands"), "pumps/ack", "gateway/ack", 1)}},
	"a device that cannot be":       {topic: "PUMPS/set/limit", msg: "1"},
	"a device that is off":          {setup: func(cfg *config.Config, _ *Options) { cfg.Devices["pumps"].Enabled = false }, msg: "1", acks: []string{nok("limit", "refused", "pumps is switched off (enabled = false)")}},
	"more than 4 kB":                {msg: strings.Repeat("1", 4097), acks: []string{nok("limit", "bad-payload", "the payload has 4 097 bytes; at most 4 096 are taken")}},
	"not UTF-8":                     {msg: "\xff", acks: []string{nok("limit", "bad-payload", "the payload is not UTF-8")}},
	"nothing":                       {msg: " ", acks: []string{nok("limit", "bad-payload", "the payload is empty")}},
	"half an object":                {msg: `{"value":1`, acks: []string{nok("limit", "bad-payload", "the payload is not JSON: it ends too early")}},
	"an object without a value":     {msg: `{"id":"a"}`, acks: []string{nok("limit", "bad-payload", `there is no \"value\" in it`)}},
	"a key that is misspelt":        {msg: `{"value":1,"exprires":"x"}`, acks: []string{nok("limit", "bad-payload", `unknown key \"exprires\"; known: value, id, expires, ttl_s`)}},
	"a key twice":                   {msg: `{"value":1,"value":2}`, acks: []string{nok("limit", "bad-payload", `\"value\" stands twice`)}},
	"a value that is none":          {msg: `{"value":null}`, acks: []string{nok("limit", "bad-payload", `\"value\" must be a number, a text, true or false`)}},
	"a list":                        {msg: `[1]`, acks: []string{nok("limit", "bad-payload", `\"value\" must be a number, a text, true or false`)}},
	"something behind":              {msg: `{"value":1} 2`, acks: []string{nok("limit", "bad-payload", "the payload is not JSON: something stands behind it")}},
	"something behind a text":       {msg: `"on" 2`, acks: []string{nok("limit", "bad-payload", "the payload is not JSON: something stands behind it")}},
	"a ttl of none":                 {msg: `{"value":1,"ttl_s":0}`, acks: []string{nok("limit", "bad-payload", "ttl_s must be a number above 0, at most 86400")}},
	"an expiry that is no time":     {msg: `{"value":1,"expires":"soon"}`, acks: []string{nok("limit", "bad-payload", "expires must be a time such as 2026-11-21T06:02:00Z")}},
	"an id that is no text":         {msg: `{"value":1,"id":7}`, acks: []string{nok("limit", "bad-payload", "id must be a text of 1 to 128 bytes")}},
	"several that are no object":    {topic: "pumps/set", msg: "on", acks: []string{nok("", "bad-payload", `several points need a JSON object: {\"point\":value}`)}},
	"several points, none":          {topic: "pumps/set", msg: `{"id":"x"}`, acks: []string{nok("", "bad-payload", "there is no point in it")}},
	"several, in order of the file": {topic: "pumps/set", msg: `{"limit":80,"relay1":true}`, fleet: []string{"pumps relay1 true", "pumps limit 80", "refresh pumps"}, acks: []string{strings.Replace(ok80(""), "limit", "relay1", 1), ok80("")}},
	"several, each judged alone": {topic: "pumps/set", msg: `{"limit":80,"relay2":true,"relay9":1}`, fleet: []string{"pumps limit 80", "refresh pumps"},
		acks: []string{nok("relay9", "unknown-point", "pumps has no point `relay9` (did you mean `relay1`?)"), nok("relay2", "not-writable", "relay2 takes no commands (write = false)"), ok80("")}},
	"get":                   {topic: "pumps/get", fleet: []string{"refresh pumps"}},
	"a retained get":        {topic: "pumps/get", msg: "x", retain: true},
	"get of nobody":         {topic: "pumbs/get"},
	"set with an empty end": {topic: "pumps/set/", msg: "1"},
}

func noClock(_ *config.Config, o *Options) {
	o.Clock = func() (time.Time, bool) { return time.Time{}, false }
}

// unset is an ack while the clock is not known.
func unset(ack string) string {
	return strings.Replace(ack, `"ts":"2000-01-01T00:00:00.000Z"`, `"uptime":86400.000,"boot":"k3qz7aa-12"`, 1)
}

func TestResultsOfTheFleetAreAnsweredAsTheyAre(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := start(t, testConfig(), running())
		defer x.stop()
		x.f.take()
		for _, r := range []devices.Result{
			{Code: "out-of-range", Text: "limit must be 0 to 100 %"},
			{Code: "timeout", Text: "no answer: whether it was done is unknown"},
			{Code: "exception-2", Text: "exception 2, illegal data address"},
			{Code: "differs", Text: "wrote 80, reads 75"},
		} {
			x.fleet.write = func(context.Context, devices.Command) (devices.Result, error) { return r, nil }
			x.f.client("busgate/plant-a/pumps/set/limit", "80")
			x.want(nok("limit", r.Code, r.Text))
			wantLines(t, x.fleet.take(), "pumps limit 80") // nothing was written, nothing is read
		}
		x.fleet.write = func(context.Context, devices.Command) (devices.Result, error) {
			return devices.Result{}, errors.New("the fleet does not run")
		}
		x.f.client("busgate/plant-a/pumps/set/limit", "80")
		x.want(nok("limit", "refused", "the fleet does not run"))
		s := x.Stats()
		for _, code := range []string{"out-of-range", "timeout", "exception-2", "differs", "refused"} {
			if n := s.Commands[CommandResult{"pumps", code}]; n != 1 {
				t.Errorf("%d commands counted as %s", n, code)
			}
		}
	})
}
