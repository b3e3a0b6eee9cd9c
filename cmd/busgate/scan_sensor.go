package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"busgate/config"
	"busgate/devices/uart"
)

// sensorPatience is how long each setting is listened to for a sensor that talks
// by itself; a meter of DSMR 2 and 3 does so each 10 s.
const sensorPatience = 11 * time.Second

// sensorRow is a sensor in JSON.
type sensorRow struct {
	Baud    int     `json:"baud"`
	Format  string  `json:"format"`
	Profile string  `json:"profile"`
	Point   string  `json:"point"`
	Value   float64 `json:"value"`
	Measure string  `json:"value_unit,omitempty"`
}

// scanSensors searches a port for the UART sensors that profiles know.
func scanSensors(ctx context.Context, e *env, f scanFlags, cfg *config.Config, bus *config.Bus) int {
	if bus.Serial == "" {
		return misuse(e, "scan", "looks for sensors on a serial port, not on %s", bus.TCP)
	}
	if f.baud != "" || f.format != "" || f.units != "" {
		return misuse(e, "scan", "--sensors takes no --baud, --format and --units: each profile says what its sensor has")
	}
	w, code := reach(ctx, e, "scan", f.socket, bus)
	if w == nil {
		return code
	}
	if w.lent != nil {
		fmt.Fprintf(e.stderr, "busgate scan: bus %s is in use at %s (%s); stop the service to look for sensors: sudo systemctl stop busgate\n", w.lent.Name, w.lent.setting(), w.lent.answering())
		return exitRefused
	}
	r := &scanReport{e: e, flags: f, cfg: cfg, bus: bus}
	patience := f.timeout
	if patience == 0 {
		patience = sensorPatience
	}
	bus.Protocol = "uart"
	rows := []sensorRow{}
	fmt.Fprintln(e.stderr, "listens, and asks only for values; Ctrl-C ends the search")
	err := (&uart.Driver{}).Scan(ctx, uart.Scan{Bus: bus, Profiles: knownProfiles(e, f.config), Listen: patience, Log: warnings(e),
		Begin: func(baud int, format string, profiles []string) {
			fmt.Fprintf(e.stderr, "listening at %d %s for %s: %s\n", baud, format, strings.Join(profiles, ", "), patience)
		},
		Found: func(x uart.Sighting) {
			rows = append(rows, sensorRow{x.Baud, x.Format, x.Profile.Name, x.Point.Name, x.Value.Float(), x.Point.Unit})
			if !f.json {
				fmt.Fprintf(e.stdout, "%-10s %-18s %s %s\n", fmt.Sprintf("%d %s", x.Baud, x.Format), x.Profile.Name, x.Point.Name, valueText(x.Point, shortNumber(x.Value)))
			}
		}})
	if err != nil && ctx.Err() == nil {
		return wireFailed(e, "scan", err)
	}
	code = exitOK
	switch {
	case ctx.Err() != nil:
		code = exitStopped
	case len(rows) == 0:
		code = exitNoReply
	}
	if f.json {
		return max(code, printJSON(e, "scan", rows))
	}
	return max(code, wrote(e, "scan", r.sensorBlock(rows)))
}

// sensorBlock prints what to add to the device map.
func (r *scanReport) sensorBlock(rows []sensorRow) error {
	switch {
	case len(rows) == 0:
		_, err := fmt.Fprintf(r.e.stdout, "no sensor of a known profile; what comes shows: busgate monitor %s --raw\n", r.bus.Serial)
		return err
	case len(rows) > 1:
		_, err := fmt.Fprintln(r.e.stdout, "\n# more than one profile fits; which, its type plate says")
		return err
	}
	if have := r.existing(); have != nil {
		_, err := fmt.Fprintf(r.e.stdout, "\n# the port is in %s already: `%s`\n", r.flags.config, have.Name)
		return err
	}
	taken := func(name string) bool {
		return r.cfg != nil && (r.cfg.Devices[name] != nil || r.cfg.Buses[name] != nil)
	}
	_, err := fmt.Fprintf(r.e.stdout, "\n# add to %s:\n[device.%s]\nserial  = %q\nprofile = %q\n", r.flags.config, r.free(rows[0].Profile, taken), r.stablePath(), rows[0].Profile)
	return err
}
