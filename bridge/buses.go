package bridge

import (
	"maps"
	"math"
	"slices"
	"time"

	"busgate/config/report"
	"busgate/devices"
)

func (b *Bridge) busTopic(name string) string {
	return b.gatewayTopic(kindBus) + "/" + name + "/stats"
}

// publishBuses publishes, on the LAN only, the numbers of each bus. published
// are the topics of the last time; those of buses that are gone are emptied.
func (b *Bridge) publishBuses(published map[string]bool) {
	buses, list := b.buses()
	gone := maps.Clone(published)
	for i := range buses {
		topic := b.busTopic(buses[i].Name)
		m := b.message(topic, b.busStats(&buses[i], list), true)
		m.QoS = 0
		b.board.note(m)
		published[topic] = true
		delete(gone, topic)
	}
	for _, topic := range slices.Sorted(maps.Keys(gone)) {
		b.board.empty(topic)
		delete(published, topic)
	}
}

// busStats is the payload of gateway/bus/<name>/stats. Counters are since the
// start of the gateway, answer times in milliseconds, ages in seconds.
func (b *Bridge) busStats(s *devices.BusStatus, list []devices.DeviceStatus) []byte {
	var o object
	at := b.now()
	b.header(&o, at)
	o.bool("open", s.Open)
	o.float("busy", thousandths(s.U))
	o.float("stretch", thousandths(s.Stretch))
	o.int("devices", int64(s.Devices))
	o.int("online", int64(s.Online))
	o.uint("errors_1h", s.Errors1h)
	millis(&o, "rtt_p50", s.RTT50)
	millis(&o, "rtt_p95", s.RTT95)
	wireCounters(&o, &s.Counts)
	o.uint("reopened", s.Reopened)
	o.uint("fd_high", s.FDHigh)
	o.int("commands_waiting", int64(s.Queue))
	o.uint("commands_refused", s.Refused)
	o.uint("monitor_dropped", s.Dropped)
	o.uint("sink_slow", s.SinkSlow)
	optional(&o, "guest", s.Guest)
	optional(&o, "error", s.Err)
	optional(&o, "text", report.Line(s.Text))
	o.object("units", func(o *object) {
		for i := range list {
			if list[i].Bus == s.Name {
				o.object(list[i].Name, func(o *object) { unitCounters(o, &list[i]) })
			}
		}
	})
	return o.close()
}

// wireCounters are what was seen on the wire.
func wireCounters(o *object, c *devices.Counts) {
	for _, n := range []struct {
		name  string
		value uint64
	}{
		{"bytes_in", c.BytesIn}, {"bytes_out", c.BytesOut}, {"requests", c.Requests}, {"good", c.Good}, {"damaged", c.Bad},
		{"timeouts", c.Timeouts}, {"exceptions", c.Exceptions}, {"late", c.Late}, {"foreign", c.Foreign}, {"second_master", c.Intruders},
		{"stray", c.Stray}, {"stale_bytes", c.Stale}, {"echo", c.Echo}, {"overrun_bytes", c.Overrun}, {"frames_skipped", c.Skipped}, {"unchecked", c.Unchecked},
		{"parity_errors", c.UART.Parity}, {"framing_errors", c.UART.Framing}, {"kernel_overruns", c.UART.Overrun},
	} {
		o.uint(n.name, n.value)
	}
}

// unitCounters are those of one device.
func unitCounters(o *object, d *devices.DeviceStatus) {
	o.bool("online", d.Online)
	if !d.LastGood.IsZero() {
		o.float("age", math.Round(10*time.Since(d.LastGood).Seconds())/10)
	}
	for _, n := range []struct {
		name  string
		value uint64
	}{
		{"rounds", d.Rounds}, {"failed", d.Failed}, {"missed", d.Missed}, {"requests", d.Counts.Requests}, {"good", d.Counts.Good},
		{"damaged", d.Counts.Bad}, {"timeouts", d.Counts.Timeouts}, {"exceptions", d.Counts.Exceptions}, {"late", d.Counts.Late},
		{"out_of_range", d.RangeErrors}, {"enum_unknown", d.EnumUnknown}, {"value_rounded", d.Rounded},
	} {
		o.uint(n.name, n.value)
	}
	millis(o, "rtt_p50", d.Counts.RTT50)
	millis(o, "rtt_p95", d.Counts.RTT95)
	millis(o, "turnaround", d.Counts.Turnaround)
	millis(o, "timeout", d.Counts.Timeout)
	optional(o, "error", d.Err)
}

// millis writes a duration that was measured; one that was not is left out.
func millis(o *object, k string, d time.Duration) {
	if d > 0 {
		o.float(k, math.Round(float64(d)/float64(100*time.Microsecond))/10)
	}
}

func thousandths(f float64) float64 { return math.Round(1000*f) / 1000 }
