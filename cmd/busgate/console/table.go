package console

const (
	counter   = "counter"
	gauge     = "gauge"
	summary   = "summary"
	histogram = "histogram"
)

// Labels that several families share.
var (
	none     []string
	bus      = []string{"bus"}
	device   = []string{"device"}
	consumer = []string{"kind", "uplink"} // uplink, or session for all sessions of the broker together
	uplink   = []string{"uplink"}
)

// table is every name that /metrics may carry, and no other.
var table = [...]family{
	{"busgate_info", gauge, []string{"version", "gateway", "arch"}, false, "1; what runs, in its labels."},
	{"busgate_uptime_seconds", gauge, none, false, "Time since the daemon started."},
	{"busgate_clock_synced", gauge, none, false, "1: the time of day is known."},
	{"busgate_reloads_total", counter, []string{"result"}, false, "Reloads of the device map: ok or refused."},
	{"busgate_reports_total", counter, []string{"err"}, false, "Failures that were said, by their word; a lasting one is said again after 1 min, 10 min, 1 h, then daily."},
	{"busgate_published_total", counter, []string{"kind"}, false, "Messages of the gateway itself."},

	{"busgate_reads_total", counter, []string{"bus", "device", "result"}, true, "Requests to a device by how they ended: ok, timeout, damaged or exception."},
	{"busgate_read_seconds", histogram, bus, false, "Time of the bus that one poll of a device took."},
	{"busgate_late_answers_total", counter, bus, false, "Answers after their time, thrown away."},
	{"busgate_stray_bytes_total", counter, bus, false, "Bytes that stood on the line before a request, thrown away."},
	{"busgate_foreign_frames_total", counter, bus, false, "Good frames that nobody here asked for."},
	{"busgate_bus_busy_ratio", gauge, bus, false, "Share of its time that the bus needs, over the last minute; above 1 intervals are stretched."},
	{"busgate_bus_stretch_ratio", gauge, bus, false, "Factor of all intervals; 1 as configured."},
	{"busgate_bus_reopened_total", counter, bus, false, "Times that a port or connection was opened again."},
	{"busgate_bus_overrun_bytes_total", counter, bus, false, "Bytes dropped because a buffer was full."},
	{"busgate_bus_commands_refused_total", counter, bus, false, "Commands refused because too many waited."},
	{"busgate_bus_monitor_dropped_total", counter, bus, false, "Frames that a monitor did not take in time."},
	{"busgate_bus_sink_slow_total", counter, bus, false, "Rounds whose message took longer than 1 s to be taken."},
	{"busgate_device_up", gauge, device, true, "1: the device answers."},
	{"busgate_device_age_seconds", gauge, device, true, "Time since its last good answer."},
	{"busgate_device_missed_total", counter, device, true, "Polls that never had their turn."},
	{"busgate_commands_total", counter, []string{"device", "result"}, true, "Points of commands that were answered: ok, or the word of the refusal."},
	{"busgate_point", gauge, []string{"device", "point"}, true, "Newest value of a point that is a number, of devices that answer; with ?points=1."},

	{"busgate_buffer_messages", gauge, consumer, false, "Messages that wait on disk, or are under way."},
	{"busgate_buffer_bytes", gauge, consumer, false, "Bytes of them, before compression."},
	{"busgate_buffer_oldest_seconds", gauge, consumer, false, "Age of the oldest that waits."},
	{"busgate_buffer_dropped_total", counter, []string{"kind", "uplink", "reason"}, false, "Messages lost to a bound, by the reason in the loss report."},
	{"busgate_buffer_notes_failed_total", counter, none, false, "Acknowledgements of a cloud that could not be noted: kill -9 may repeat them."},
	{"busgate_commits_total", counter, none, false, "Transactions of the store."},
	{"busgate_commit_seconds", summary, none, false, "Flushes of the store, and the time that they took."},
	{"busgate_disk_free_bytes", gauge, none, false, "Free space beside the store."},

	{"busgate_uplink_up", gauge, uplink, false, "1: connected."},
	{"busgate_uplink_state", gauge, []string{"uplink", "state"}, false, "1 at the state of the link, 0 at all others."},
	{"busgate_uplink_connects_total", counter, uplink, false, "Connections that the cloud accepted."},
	{"busgate_uplink_closed_total", counter, []string{"uplink", "reason"}, false, "Connections that ended, by the reason."},
	{"busgate_uplink_session_present_total", counter, uplink, false, "Connections at which the cloud still had our session."},
	{"busgate_uplink_session_reset_total", counter, uplink, false, "Sessions begun anew on purpose."},
	{"busgate_uplink_backlog_records", gauge, uplink, false, "Records that wait or are in flight."},
	{"busgate_uplink_backlog_bytes", gauge, uplink, false, "Bytes of them."},
	{"busgate_uplink_oldest_seconds", gauge, uplink, false, "Age of the oldest that waits."},
	{"busgate_uplink_in_flight", gauge, uplink, false, "Packets without their acknowledgement."},
	{"busgate_uplink_acked_total", counter, uplink, false, "Records that the cloud acknowledged."},
	{"busgate_uplink_resent_total", counter, uplink, false, "Packets sent again."},
	{"busgate_uplink_acks_unknown_total", counter, uplink, false, "Acknowledgements of what is not in flight."},
	{"busgate_uplink_rtt_seconds", histogram, uplink, false, "Time from a publish to its acknowledgement."},
	{"busgate_uplink_bytes_total", counter, []string{"uplink", "dir"}, false, "Bytes at the socket, below TLS."},
	{"busgate_uplink_records_per_packet", gauge, uplink, false, "Mean since the start; above 1 with batches."},
	{"busgate_uplink_window_full_seconds_total", counter, uplink, false, "Time in which the window held records back."},
	{"busgate_uplink_rate_wait_seconds_total", counter, uplink, false, "Time in which a rate limit held records back."},
	{"busgate_uplink_budget_used_bytes", gauge, uplink, false, "Bytes of this month."},
	{"busgate_uplink_budget_wait_seconds_total", counter, uplink, false, "Time in which the month's bytes held records back."},
	{"busgate_uplink_oversize_total", counter, uplink, false, "Records too large for the cloud, replaced by their loss report."},
	{"busgate_uplink_poison_total", counter, uplink, false, "Records that ended the connection again and again, replaced by their loss report."},
	{"busgate_uplink_degraded", gauge, []string{"uplink", "feature"}, false, "1: a feature that is switched off for this cloud."},
	{"busgate_uplink_echo_total", counter, uplink, false, "Messages of our own that came back, dropped."},
	{"busgate_uplink_down_accepted_total", counter, uplink, false, "Messages from the cloud that were taken."},
	{"busgate_uplink_down_refused_total", counter, uplink, false, "Messages from the cloud that accept does not allow."},
	{"busgate_uplink_down_overflow_total", counter, uplink, false, "Messages from the cloud dropped because too many waited."},
	{"busgate_uplink_unfit_total", counter, uplink, false, "Records that the encoding has no form for; the cloud is not sent them."},
	{"busgate_uplink_commands_total", counter, []string{"uplink", "result"}, false, "Answers to commands that went to this cloud: ok, or the word of the refusal."},
	{"busgate_uplink_goroutines_left", gauge, uplink, false, "Goroutines of connections that are closed; above 0 for long is a fault of busgate."},
	{"busgate_uplink_cert_expires_seconds", gauge, uplink, false, "Time until the own certificate expires."},

	{"busgate_broker_clients", gauge, none, false, "Clients that are connected."},
	{"busgate_broker_sessions", gauge, none, false, "Sessions, connected or sleeping."},
	{"busgate_broker_retained", gauge, none, false, "Retained messages."},
	{"busgate_broker_messages_total", counter, []string{"direction"}, false, "PUBLISH packets from and to clients."},
	{"busgate_broker_bytes_total", counter, []string{"direction"}, false, "Bytes from and to clients."},
	{"busgate_broker_refused_total", counter, []string{"reason"}, false, "What clients were refused."},
	{"busgate_broker_dropped_total", counter, []string{"reason"}, false, "Messages that clients did not get."},
	{"busgate_broker_withheld_total", counter, none, false, "Packets whose answer waited for room in the store."},
	{"busgate_broker_slow_closed_total", counter, none, false, "Clients closed because they did not read."},
	{"busgate_broker_sessions_ended_total", counter, []string{"reason"}, false, "Sessions that ended by a rule: full or expired."},

	{"busgate_web_refused_total", counter, []string{"reason"}, false, "Requests that this console refused."},
	{"busgate_web_logins_total", counter, []string{"result"}, false, "Logins at this console: ok, wrong, or refused unseen."},
	{"busgate_metrics_truncated", gauge, none, false, "1: there are more than 10000 lines, and series of devices were left out."},
}
