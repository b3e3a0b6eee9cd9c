package main

import (
	"encoding/json"
	"maps"
	"runtime"
	"slices"
	"strconv"
	"time"

	"busgate/bridge"
	"busgate/bridge/uplink"
	"busgate/buffer"
	"busgate/cmd/busgate/console"
	"busgate/devices"
	"busgate/embeddedbroker"
)

// metrics adds every number of the gateway. The names and their help stand in the
// table of the console.
func (g *gateway) metrics(m *console.Metrics, points bool) {
	s := g.status()
	m.Gauge("busgate_info", 1, s.Version, s.Gateway, runtime.GOARCH)
	m.Gauge("busgate_uptime_seconds", s.Uptime)
	m.Flag("busgate_clock_synced", g.clock.known())
	m.Count("busgate_reloads_total", g.reloads.ok.Load(), "ok")
	m.Count("busgate_reloads_total", g.reloads.refused.Load(), "refused")
	g.said.mu.Lock()
	words := maps.Clone(g.said.by)
	g.said.mu.Unlock()
	counts(m, "busgate_reports_total", words)
	buses, devs := g.fleet.Status()
	busMetrics(m, buses)
	deviceMetrics(m, devs)
	bridgeMetrics(m, g.bridge.Stats())
	storeMetrics(m, g.store.Stats())
	for _, st := range sorted(g.uplinks.status()) {
		uplinkMetrics(m, &st)
	}
	brokerMetrics(m, g.broker.Stats())
	if points {
		pointMetrics(m, s.Devices)
	}
}

// sorted are the values of a map in the order of the keys.
func sorted[V any](all map[string]V) []V {
	out := make([]V, 0, len(all))
	for _, k := range slices.Sorted(maps.Keys(all)) {
		out = append(out, all[k])
	}
	return out
}

// counts adds one counter for each key, the label behind the others.
func counts(m *console.Metrics, name string, by map[string]uint64, labels ...string) {
	for _, k := range slices.Sorted(maps.Keys(by)) {
		m.Count(name, by[k], append(slices.Clone(labels), k)...)
	}
}

func busMetrics(m *console.Metrics, buses []devices.BusStatus) {
	for i := range buses {
		b := &buses[i]
		c := &b.Counts
		m.Histogram("busgate_read_seconds", devices.PollBounds[:], b.Polls.Counts[:], b.Polls.Sum, b.Name)
		m.Count("busgate_late_answers_total", c.Late, b.Name)
		m.Count("busgate_stray_bytes_total", c.Stale, b.Name)
		m.Count("busgate_foreign_frames_total", c.Foreign, b.Name)
		m.Gauge("busgate_bus_busy_ratio", b.U, b.Name)
		m.Gauge("busgate_bus_stretch_ratio", b.Stretch, b.Name)
		m.Count("busgate_bus_reopened_total", b.Reopened, b.Name)
		m.Count("busgate_bus_overrun_bytes_total", c.Overrun, b.Name)
		m.Count("busgate_bus_commands_refused_total", b.Refused, b.Name)
		m.Count("busgate_bus_monitor_dropped_total", b.Dropped, b.Name)
		m.Count("busgate_bus_sink_slow_total", b.SinkSlow, b.Name)
	}
}

func deviceMetrics(m *console.Metrics, devs []devices.DeviceStatus) {
	for i := range devs {
		d := &devs[i]
		c := &d.Counts
		m.Count("busgate_reads_total", c.Good-min(c.Good, c.Exceptions), d.Bus, d.Name, "ok")
		m.Count("busgate_reads_total", c.Timeouts, d.Bus, d.Name, "timeout")
		m.Count("busgate_reads_total", c.Bad, d.Bus, d.Name, "damaged")
		m.Count("busgate_reads_total", c.Exceptions, d.Bus, d.Name, "exception")
		m.Flag("busgate_device_up", d.Online, d.Name)
		m.Count("busgate_device_missed_total", d.Missed, d.Name)
		if !d.LastGood.IsZero() {
			m.Gauge("busgate_device_age_seconds", time.Since(d.LastGood).Seconds(), d.Name)
		}
	}
}

// pointMetrics adds the numbers of devices that answer; true is 1.
func pointMetrics(m *console.Metrics, devs []deviceStatus) {
	for _, d := range devs {
		if d.State != "online" {
			continue
		}
		for _, r := range d.Values {
			switch v := r.Value.(type) {
			case bool:
				m.Flag("busgate_point", v, d.Name, r.Point)
			case json.Number:
				if f, err := strconv.ParseFloat(v.String(), 64); err == nil {
					m.Gauge("busgate_point", f, d.Name, r.Point)
				}
			}
		}
	}
}

func bridgeMetrics(m *console.Metrics, s bridge.Stats) {
	counts(m, "busgate_published_total", s.Published)
	for _, k := range slices.SortedFunc(maps.Keys(s.Commands), func(a, b bridge.CommandResult) int {
		return slices.Compare([]string{a.Device, a.Result}, []string{b.Device, b.Result})
	}) {
		m.Count("busgate_commands_total", s.Commands[k], k.Device, k.Result)
	}
}

// waiting is what waits for one consumer, or for several together.
type waiting struct {
	records int
	bytes   int64
	oldest  time.Duration
	lost    map[string]uint64
}

func (w *waiting) add(c *buffer.ConsumerStats) {
	w.records += c.Records
	w.bytes += c.Bytes
	if !c.Oldest.IsZero() {
		w.oldest = max(w.oldest, time.Since(c.Oldest))
	}
	for reason, n := range c.Lost {
		if w.lost == nil {
			w.lost = map[string]uint64{}
		}
		w.lost[reason] += n
	}
}

func (w *waiting) metrics(m *console.Metrics, kind, uplink string) {
	m.Gauge("busgate_buffer_messages", float64(w.records), kind, uplink)
	m.Gauge("busgate_buffer_bytes", float64(w.bytes), kind, uplink)
	m.Gauge("busgate_buffer_oldest_seconds", w.oldest.Seconds(), kind, uplink)
	counts(m, "busgate_buffer_dropped_total", w.lost, kind, uplink)
}

// storeMetrics adds up the sessions, whose names clients choose.
func storeMetrics(m *console.Metrics, st buffer.Stats) {
	var sessions waiting
	uplinks := map[string]*waiting{}
	for i := range st.Consumers {
		c := &st.Consumers[i]
		w := &sessions
		if c.Kind == buffer.Uplink {
			w = &waiting{}
			uplinks[c.Name] = w
		}
		w.add(c)
	}
	for _, name := range slices.Sorted(maps.Keys(uplinks)) {
		uplinks[name].metrics(m, "uplink", name)
	}
	sessions.metrics(m, "session", "")
	m.Count("busgate_buffer_notes_failed_total", st.NotesFailed)
	m.Count("busgate_commits_total", st.Commits)
	m.Summary("busgate_commit_seconds", st.Flushes, st.FlushTime.Seconds())
	if st.FreeDisk >= 0 {
		m.Gauge("busgate_disk_free_bytes", float64(st.FreeDisk))
	}
}

func uplinkMetrics(m *console.Metrics, st *uplink.Status) {
	name := st.Name
	m.Flag("busgate_uplink_up", st.Connected(), name)
	for _, p := range uplink.Phases() {
		m.Flag("busgate_uplink_state", p == st.Phase.String(), name, p)
	}
	for _, f := range uplink.Features() {
		m.Flag("busgate_uplink_degraded", slices.Contains(st.Degraded, f), name, f)
	}
	m.Gauge("busgate_uplink_backlog_records", float64(st.Pending), name)
	m.Gauge("busgate_uplink_backlog_bytes", float64(st.Bytes), name)
	m.Gauge("busgate_uplink_oldest_seconds", st.Oldest.Seconds(), name)
	m.Gauge("busgate_uplink_in_flight", float64(st.InFlight), name)
	m.Gauge("busgate_uplink_records_per_packet", st.RecordsPerPacket(), name)
	m.Gauge("busgate_uplink_budget_used_bytes", float64(st.BudgetUsed), name)
	m.Gauge("busgate_uplink_goroutines_left", float64(st.GoroutinesLeft), name)
	if !st.CertExpires.IsZero() {
		m.Gauge("busgate_uplink_cert_expires_seconds", time.Until(st.CertExpires).Seconds(), name)
	}
	m.Histogram("busgate_uplink_rtt_seconds", uplink.RTTBuckets, st.RTTCounts, st.RTTSum, name)
	m.Count("busgate_uplink_bytes_total", st.BytesIn, name, "in")
	m.Count("busgate_uplink_bytes_total", st.BytesOut, name, "out")
	counts(m, "busgate_uplink_closed_total", st.Closed, name)
	counts(m, "busgate_uplink_commands_total", st.Commands, name)
	for _, x := range []struct {
		name string
		n    uint64
	}{
		{"acked", st.Sent}, {"resent", st.Repeated}, {"oversize", st.Oversize}, {"poison", st.Poison}, {"unfit", st.Unfit}, {"connects", st.Connects},
		{"session_present", st.SessionPresent}, {"session_reset", st.SessionReset}, {"acks_unknown", st.AcksUnknown}, {"echo", st.Echo},
		{"down_accepted", st.DownAccepted}, {"down_refused", st.DownRefused}, {"down_overflow", st.DownOverflow},
	} {
		m.Count("busgate_uplink_"+x.name+"_total", x.n, name)
	}
	m.Gauge("busgate_uplink_window_full_seconds_total", st.WindowFull.Seconds(), name)
	m.Gauge("busgate_uplink_rate_wait_seconds_total", st.RateWait.Seconds(), name)
	m.Gauge("busgate_uplink_budget_wait_seconds_total", st.BudgetWait.Seconds(), name)
}

func brokerMetrics(m *console.Metrics, s embeddedbroker.Stats) {
	m.Gauge("busgate_broker_clients", float64(s.Clients))
	m.Gauge("busgate_broker_sessions", float64(s.Sessions))
	m.Gauge("busgate_broker_retained", float64(s.Retained))
	m.Count("busgate_broker_messages_total", s.Received, "in")
	m.Count("busgate_broker_messages_total", s.Sent, "out")
	m.Count("busgate_broker_bytes_total", s.BytesReceived, "in")
	m.Count("busgate_broker_bytes_total", s.BytesSent, "out")
	counts(m, "busgate_broker_refused_total", map[string]uint64{
		"full": s.RefusedFull, "reserved": s.RefusedReserved, "acl": s.RefusedACL, "connect": s.RefusedConnects, "alias": s.RefusedAliases, "login": s.FailedLogins})
	counts(m, "busgate_broker_dropped_total", map[string]uint64{
		"qos0": s.Dropped, "quota": s.DroppedQuota, "full": s.DroppedFull, "local": s.DroppedLocal, "expired": s.Expired, "oversize": s.Oversize})
	m.Count("busgate_broker_withheld_total", s.Withheld)
	m.Count("busgate_broker_slow_closed_total", s.SlowClosed)
	counts(m, "busgate_broker_sessions_ended_total", map[string]uint64{"full": s.SessionsEndedFull, "expired": s.SessionsExpired})
}
