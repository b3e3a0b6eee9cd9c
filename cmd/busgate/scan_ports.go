package main

import (
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"

	"busgate/config"
	"busgate/devices/port"
)

// portRow is a serial port and who uses it, in JSON.
type portRow struct {
	Path    string `json:"path"`
	TTY     string `json:"tty"`
	Driver  string `json:"driver,omitempty"`
	State   string `json:"state"` // free, bus, in-use or console
	Bus     string `json:"bus,omitempty"`
	Process string `json:"process,omitempty"`
	PID     int    `json:"pid,omitempty"`
	Text    string `json:"text"`
}

// listPorts prints the serial ports of this computer and opens none.
func listPorts(e *env, f scanFlags) int {
	if f.units+f.baud+f.format != "" || f.timeout != 0 || f.fast {
		return misuse(e, "scan", "needs a port, bus or host with these flags")
	}
	ports, err := port.Ports()
	if err != nil {
		fmt.Fprintf(e.stderr, "busgate scan: %v\n", err)
		return exitFailed
	}
	cfg := mapAt(f.config)
	if _, err := os.Stat(f.config); err == nil && cfg == nil {
		fmt.Fprintf(e.stderr, "%s has mistakes, so that its buses are not marked here: busgate check %[1]s\n", f.config)
	}
	rows := portRows(ports, cfg, f.config)
	if f.json {
		return printJSON(e, "scan", struct {
			Ports []portRow `json:"ports"`
		}{rows})
	}
	return wrote(e, "scan", printPorts(e.stdout, rows))
}

func portRows(ports []port.Found, cfg *config.Config, file string) []portRow {
	rows := make([]portRow, len(ports))
	for i, p := range ports {
		r := portRow{Path: p.Path, TTY: p.TTY, Driver: p.Driver, State: "free", Text: "free"}
		switch bus := busOn(cfg, p.Path); {
		case p.Console != "":
			r.State, r.Text = "console", "in use by the Linux console ("+p.Console+")"
		case bus != "":
			r.State, r.Bus, r.Text = "bus", bus, fmt.Sprintf("bus `%s` of %s", bus, file)
		case p.Holder != "":
			r.State, r.Process, r.PID = "in-use", p.Holder, p.PID
			r.Text = fmt.Sprintf("in use by %s (pid %d)", p.Holder, p.PID)
		}
		rows[i] = r
	}
	return rows
}

// busOn is the bus of the device map on a port, "" when there is none.
func busOn(cfg *config.Config, path string) string {
	if cfg == nil {
		return ""
	}
	for _, name := range slices.Sorted(maps.Keys(cfg.Buses)) {
		if b := cfg.Buses[name]; b.Serial != "" && samePort(b.Serial, path) {
			return name
		}
	}
	return ""
}

func printPorts(w io.Writer, rows []portRow) error {
	if len(rows) == 0 {
		_, err := fmt.Fprintln(w, "no serial port on this computer; is the adapter plugged in?")
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		tty := r.TTY
		if filepath.Base(r.Path) == tty { // said already
			tty = ""
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", r.Path, tty, r.Driver, r.Text)
	}
	return t.Flush()
}
