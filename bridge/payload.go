package bridge

import (
	"encoding/json"
	"maps"
	"math"
	"slices"
	"strconv"
	"time"

	"busgate/config"
	"busgate/config/report"
	"busgate/devices"
)

// GatewayNumbers are the numbers of gateway/state that other rooms know. All of
// them are gauges but Dropped.
type GatewayNumbers struct {
	Queue       int           // messages that wait for an uplink
	QueueBytes  int64         // of them
	QueueOldest time.Duration // age of the oldest
	Dropped     uint64        // messages, since the start
	Clients     int           // connected to the broker
	Clock       string        // ntp, rtc or unset; "" = as Options.Clock says
}

// UplinkNumbers are the payload of gateway/uplink/<name>/stats.
type UplinkNumbers struct {
	Queue     int
	Bytes     int64
	Oldest    time.Duration
	In, Out   float64       // messages a second
	ETA       time.Duration // until the queue is empty; negative: never at this rate
	Sent      uint64
	Repeated  uint64
	Dropped   uint64
	LastError string
	Since     time.Time // of the state that the uplink is in
}

// scalar is the payload of state/<point> for a value in JSON: a text stands
// without quotes.
func scalar(text []byte) []byte {
	if len(text) > 0 && text[0] == '"' {
		var s string
		if err := json.Unmarshal(text, &s); err == nil { // always: we wrote it
			return []byte(s)
		}
	}
	return slices.Clone(text)
}

// info is what the device is. A key that says nothing is left out: a type of
// uint16, digits as the type has them, write = false, the interval of the device.
func (d *device) info() []byte {
	var o object
	o.str("label", d.cfg.Label)
	optional(&o, "profile", d.cfg.Profile)
	optional(&o, "maker", d.cfg.Maker)
	optional(&o, "model", d.cfg.Model)
	o.str("bus", d.cfg.Bus)
	if d.bus == nil || d.bus.Protocol != "uart" {
		o.int("unit_id", int64(d.cfg.UnitID))
	}
	o.float("interval", d.cfg.Interval.Seconds())
	o.object("points", func(o *object) {
		for i := range d.cfg.Points {
			p := &d.cfg.Points[i]
			o.object(p.Name, func(o *object) { pointInfo(o, p, d.cfg.Interval) })
		}
	})
	return o.close()
}

func pointInfo(o *object, p *config.Point, interval time.Duration) {
	optional(o, "unit", p.Unit)
	switch {
	case p.Bit >= 0:
		o.str("type", "bool")
	case p.Type != "uint16":
		optional(o, "type", p.Type)
	}
	if p.Digits >= 0 {
		o.int("digits", int64(p.Digits))
	}
	if !p.Write || p.Kind != "measurement" { // what is set is not measured
		optional(o, "kind", p.Kind)
	}
	if p.Interval > 0 && p.Interval != interval {
		o.float("interval", p.Interval.Seconds())
	}
	if p.Write {
		o.bool("write", true)
	}
	if p.Min != nil {
		o.float("min", *p.Min)
	}
	if p.Max != nil {
		o.float("max", *p.Max)
	}
	if len(p.Enum) > 0 {
		o.object("enum", func(o *object) {
			for _, w := range p.Enum {
				o.str(strconv.FormatInt(w.N, 10), w.Text)
			}
		})
	}
}

func optional(o *object, k, v string) {
	if v != "" {
		o.str(k, v)
	}
}

// gatewayInfo is what this gateway is: version, computer, boot, and the last
// number of each stream of the boot before, which closes it.
func (b *Bridge) gatewayInfo() []byte {
	var o object
	o.str("version", b.version)
	optional(&o, "model", b.model)
	o.str("boot", b.boot)
	if len(b.closing) > 0 {
		o.object("closed", func(o *object) {
			for _, c := range b.closing {
				o.object(c.Uplink, func(o *object) {
					o.str("boot", c.Boot)
					o.uint("n", c.N)
				})
			}
		})
	}
	return o.close()
}

// gatewayState is the numbers of the gateway.
func (b *Bridge) gatewayState() []byte {
	n, at := b.numbers(), b.now()
	b.mu.RLock()
	ds, uplinks := sortDevices(b.devices), maps.Clone(b.uplinks)
	b.mu.RUnlock()
	online := 0
	for _, d := range ds {
		if m := b.board.get(d.topics.status); m != nil && string(m.Payload) == wordOnline {
			online++
		}
	}
	if n.Clock == "" {
		n.Clock = "unset"
		if !at.Wall.IsZero() {
			n.Clock = "ntp"
		}
	}
	var o object
	if !at.Wall.IsZero() {
		b.header(&o, at)
	}
	o.int("uptime", int64(at.Mono/time.Second))
	if at.Wall.IsZero() {
		o.str("boot", b.boot)
	}
	o.int("devices", int64(len(ds)))
	o.int("online", int64(online))
	o.int("queue", int64(n.Queue))
	o.int("queue_bytes", n.QueueBytes)
	o.int("queue_oldest", int64(n.QueueOldest/time.Second))
	o.uint("dropped", n.Dropped)
	for _, name := range slices.Sorted(maps.Keys(uplinks)) {
		o.bool("uplink_"+name, uplinks[name] != wordOffline)
	}
	errors := uint64(0)
	buses, _ := b.buses()
	for i := range buses {
		o.float("busy_"+buses[i].Name, thousandths(buses[i].U))
		errors += buses[i].Errors1h
	}
	o.int("clients", int64(n.Clients))
	o.str("clock", n.Clock)
	o.uint("bus_errors_1h", errors)
	return o.close()
}

// failure is the payload of an error topic.
func (b *Bridge) failure(r report.Report) []byte {
	var o object
	at := b.now()
	b.header(&o, at)
	o.str("error", r.Err)
	o.str("text", report.Line(r.Text))
	b.moment(&o, "since", r.Since, at)
	o.uint("count", max(r.Count, 1))
	return o.close()
}

// alert is the payload of gateway/alert/<err>.
func (b *Bridge) alert(r report.Report) []byte {
	var o object
	at := b.now()
	b.header(&o, at)
	b.moment(&o, "since", r.Since, at)
	o.str("text", report.Line(r.Text))
	o.uint("count", max(r.Count, 1))
	return o.close()
}

// uplinkStats is the payload of gateway/uplink/<name>/stats. Rates have one decimal.
func (b *Bridge) uplinkStats(n UplinkNumbers) []byte {
	var o object
	o.int("queue", int64(n.Queue))
	o.int("bytes", n.Bytes)
	o.int("oldest", int64(n.Oldest/time.Second))
	o.float("in_per_s", math.Round(n.In*10)/10)
	o.float("out_per_s", math.Round(n.Out*10)/10)
	o.key("eta")
	if n.ETA < 0 {
		o = append(o, "null"...)
	} else {
		o = strconv.AppendInt(o, int64((n.ETA+time.Second/2)/time.Second), 10)
	}
	o.uint("sent", n.Sent)
	o.uint("repeated", n.Repeated)
	o.uint("dropped", n.Dropped)
	o.str("last_error", report.Line(n.LastError))
	b.moment(&o, "since", n.Since, b.now())
	return o.close()
}

// ackPayload is the answer to one point of a command. point and id may be "".
func (b *Bridge) ackPayload(id, point string, digits int, r devices.Result) []byte {
	var o object
	b.header(&o, b.now())
	optional(&o, "id", id)
	optional(&o, "point", point)
	o.bool("ok", r.Code == "")
	if r.Code != "" {
		o.str("error", r.Code)
		o.str("text", report.Line(r.Text))
		return o.close()
	}
	o.key("value")
	o = r.Value.AppendJSON(o, digits)
	o.int("ms", r.Took.Milliseconds())
	return o.close()
}
