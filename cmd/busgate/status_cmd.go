package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"busgate/config/report"
)

// statusEach is how often --watch looks again.
const statusEach = time.Second

// shownValues are the points of a device that fit into a line.
const shownValues = 3

func statusCommand() command {
	return command{
		name: "status", short: "is all well: devices, buses, uplinks and what waits, in 20 lines",
		examples: []string{"busgate status", "busgate status --watch", "busgate status --json"},
		setup: func(fs *flag.FlagSet) func(context.Context, *env, []string) int {
			socket := fs.String("socket", defaultSocket, "the daemon's socket, `FILE`")
			watch := fs.Bool("watch", false, "look again each second, until Ctrl-C")
			asJSON := fs.Bool("json", false, "one JSON object, each second with --watch")
			return func(ctx context.Context, e *env, _ []string) int {
				c := newControlClient(*socket)
				for {
					var s gatewayStatus
					if err := c.call(ctx, "/v1/status", nil, &s); err != nil {
						if ctx.Err() != nil {
							return exitOK
						}
						return controlExit(e, "status", err)
					}
					switch {
					case *asJSON:
						json.NewEncoder(e.stdout).Encode(s)
					case *watch:
						fmt.Fprint(e.stdout, "\x1b[H\x1b[J") // home, and clear to the end
						s.print(e.stdout)
					default:
						s.print(e.stdout)
					}
					if !*watch {
						return exitOK
					}
					select {
					case <-time.After(statusEach):
					case <-ctx.Done():
						return exitOK
					}
				}
			}
		},
	}
}

// sec is a number of seconds as a duration.
func sec(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

func (s *gatewayStatus) print(w io.Writer) {
	fmt.Fprintf(w, "%s  %s\n", s.Gateway, s.about())
	fmt.Fprintln(w, s.sentence())
	for _, table := range s.tables() {
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		for _, row := range append([][]string{table.Head}, table.Rows...) {
			fmt.Fprintln(t, strings.Join(row, "\t"))
		}
		t.Flush()
	}
}

// statusTable is one table of the status. The first column names the row.
type statusTable struct {
	Head []string
	Rows [][]string // as long as Head
}

// tables are those of devices, buses and uplinks, as far as there are any.
func (s *gatewayStatus) tables() (all []statusTable) {
	add := func(rows [][]string, head ...string) {
		if len(rows) > 0 {
			all = append(all, statusTable{head, rows})
		}
	}
	var rows [][]string
	for _, d := range s.Devices {
		rows = append(rows, []string{d.Name, d.State, d.age(), d.values(), dash(d.trouble())})
	}
	add(rows, "DEVICE", "STATE", "AGE", "VALUES", "ERROR")
	rows = nil
	for _, b := range s.Buses {
		rows = append(rows, []string{b.Name, b.load(), report.Count(b.Requests), share(b.Timeouts, b.Requests), share(b.Damaged, b.Requests),
			report.Count(b.Late), report.Count(b.Foreign), fmt.Sprintf("%.0f / %.0f ms", b.RTT50*1e3, b.RTT95*1e3), dash(b.Error)})
	}
	add(rows, "BUS", "LOAD", "REQUESTS", "NO ANSWER", "DAMAGED", "LATE", "FOREIGN", "RTT p50/p95", "ERROR")
	rows = nil
	for _, u := range s.Uplinks {
		oldest := "-"
		if u.Queue > 0 {
			oldest = report.Duration(sec(u.Oldest))
		}
		rows = append(rows, []string{u.Name, u.State, report.Duration(sec(u.Since)), report.Count(u.Queue), size(u.Bytes), oldest, dash(u.trouble())})
	}
	add(rows, "UPLINK", "STATE", "FOR", "QUEUE", "SIZE", "OLDEST", "ERROR")
	return all
}

// sentence says what a person wants to know first.
func (s *gatewayStatus) sentence() string {
	online := 0
	for _, d := range s.Devices {
		if d.State == "online" {
			online++
		}
	}
	parts := []string{fmt.Sprintf("%d of %s online", online, count(len(s.Devices), "device", "devices"))}
	if len(s.Devices) == 0 {
		parts = []string{"no devices yet: busgate scan"}
	}
	for _, u := range s.Uplinks {
		p := u.Name + " " + u.State
		if u.State == "offline" {
			p = fmt.Sprintf("%s down for %s", u.Name, report.Duration(sec(u.Since)))
		}
		if u.Queue > 0 {
			p += fmt.Sprintf(", %s wait", count(u.Queue, "message", "messages"))
		}
		if u.ETA != nil && u.Queue > 0 {
			p += ", drained in " + report.Duration(sec(*u.ETA))
		}
		parts = append(parts, p)
	}
	return strings.Join(parts, "; ")
}

func (d *deviceStatus) age() string {
	if d.Age == nil {
		return "never"
	}
	return report.Duration(sec(*d.Age))
}

// values are the first points of a device; an offline one has none that count.
func (d *deviceStatus) values() string {
	var out []string
	for _, v := range d.Values {
		if v.Value != nil && len(out) < shownValues {
			out = append(out, strings.TrimSpace(fmt.Sprintf("%v %s", v.Value, v.Unit)))
		}
	}
	if d.State != "online" || len(out) == 0 {
		return "-"
	}
	if n := len(d.Values) - len(out); n > 0 {
		out = append(out, fmt.Sprintf("+%d", n))
	}
	return strings.Join(out, "  ")
}

// trouble is what is wrong now.
func (d *deviceStatus) trouble() string {
	if d.Err == "" {
		return ""
	}
	return d.LastError
}

func (b *busStatus) load() string {
	text := fmt.Sprintf("%.0f %%", b.Load*100)
	if b.Stretch > 1.005 {
		text += fmt.Sprintf(", intervals x %.1f", b.Stretch)
	}
	if b.Guest != "" {
		text += ", lent to " + b.Guest
	}
	return text
}

// share is n of all, in per cent.
func share(n, all uint64) string {
	if all == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f %%", float64(n)/float64(all)*100)
}

func (u *uplinkStatus) trouble() string {
	if u.State != "offline" {
		return ""
	}
	return u.Error
}
