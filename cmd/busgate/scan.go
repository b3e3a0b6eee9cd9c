package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"busgate/config"
	"busgate/devices"
	"busgate/devices/modbus"
	"busgate/devices/profiles"
)

// exitStopped is the exit status of a command that Ctrl-C ended before its time.
const exitStopped = 130

// scanFlags are the flags of scan.
type scanFlags struct {
	config, socket, units, baud, format string
	timeout                             time.Duration
	fast, sensors, json                 bool
}

func scanCommand() command {
	return command{
		name: "scan", args: "[WHERE]", short: "list the serial ports; or find settings and units on a port, BUS or HOST[:PORT]",
		examples: []string{"busgate scan", "busgate scan /dev/ttyUSB0", "busgate scan /dev/ttyUSB1 --sensors", "busgate scan 192.168.1.40"},
		setup: func(fs *flag.FlagSet) func(context.Context, *env, []string) int {
			var f scanFlags
			fs.StringVar(&f.config, "config", defaultConfig, "device map `FILE` that names the buses")
			fs.StringVar(&f.socket, "socket", defaultSocket, "control socket `FILE` of the daemon, which is asked when it has the wire open")
			fs.StringVar(&f.units, "units", "", "unit numbers `A-B` or A,B,C; else 1-10 at each setting, then 1-247")
			fs.StringVar(&f.baud, "baud", "", "only these speeds, `LIST` as in 9600,19200")
			fs.StringVar(&f.format, "format", "", "only these formats, `LIST` as in 8N1,8E1")
			fs.Func("timeout", "how long an answer may take, `D`; else three times the slowest seen, at least 100ms", func(s string) (err error) {
				f.timeout, err = time.ParseDuration(s)
				if err == nil && f.timeout <= 0 {
					err = errors.New("must be more than 0")
				}
				return err
			})
			fs.BoolVar(&f.fast, "fast", false, "units 1-10 only, and the first setting that answers ends it")
			fs.BoolVar(&f.sensors, "sensors", false, "look for a UART sensor (GPS, smart meter, dust, CO2) instead of Modbus units; --timeout is how long each speed is listened to")
			fs.BoolVar(&f.json, "json", false, "one JSON object at the end")
			return func(ctx context.Context, e *env, args []string) int {
				switch len(args) {
				case 0:
					return listPorts(e, f)
				case 1:
					return scanWire(ctx, e, f, args[0])
				}
				return misuse(e, "scan", "takes one port, bus or host, and there are %d", len(args))
			}
		},
	}
}

// scanWire searches one wire.
func scanWire(ctx context.Context, e *env, f scanFlags, where string) int {
	cfg := mapAt(f.config)
	bus, code := wireOf(e, "scan", f.config, cfg, where)
	if bus == nil {
		return code
	}
	if f.sensors {
		return scanSensors(ctx, e, f, cfg, bus)
	}
	if bus.Protocol == "uart" {
		fmt.Fprintf(e.stderr, "busgate scan: bus `%s` speaks uart; a sensor is looked for with --sensors\n", bus.Name)
		return exitFailed
	}
	if err := checkScan(f, bus); err != nil {
		return misuse(e, "scan", "%v", err)
	}
	w, code := reach(ctx, e, "scan", f.socket, bus)
	if w == nil {
		return code
	}
	settings, err := settingsOf(f, bus)
	if err != nil {
		return misuse(e, "scan", "%v", err)
	}
	units, err := unitsOf(f.units, bus)
	if err != nil {
		return misuse(e, "scan", "%v", err)
	}
	if w.lent != nil {
		if settings, err = w.lentSettings(e, f, bus, settings); err != nil {
			fmt.Fprintf(e.stderr, "busgate scan: %v\n", err)
			return exitRefused
		}
	}
	r := &scanReport{e: e, flags: f, cfg: cfg, bus: bus}
	fmt.Fprintln(e.stderr, "only reads; Ctrl-C ends the search and keeps what was found")
	err = w.driver.Scan(ctx, modbus.Scan{
		Bus: bus, Settings: settings, Units: units, Timeout: f.timeout, Fast: f.fast,
		Profiles: knownProfiles(e, f.config),
		Log:      warnings(e),
		Begin:    r.begin, Found: r.found, Done: r.done,
	})
	printed := r.end(err == nil)
	switch {
	case err == nil && printed != exitOK:
		return printed
	case err == nil && len(r.units) == 0:
		return exitNoReply
	case err == nil:
		return exitOK
	case ctx.Err() != nil:
		return exitStopped
	}
	return wireFailed(e, "scan", err)
}

// checkScan refuses flags that make no sense on this wire.
func checkScan(f scanFlags, bus *config.Bus) error {
	_, err := settingsOf(f, bus)
	_, unitErr := unitsOf(f.units, bus)
	return errors.Join(err, unitErr)
}

// lentSettings is what a search of a bus of the running gateway may try: the
// setting that it has.
func (w *wire) lentSettings(e *env, f scanFlags, bus *config.Bus, all []modbus.Setting) ([]modbus.Setting, error) {
	if bus.Serial == "" {
		fmt.Fprintf(e.stderr, "bus %s of the running gateway is searched between its polls, in a quarter of its time\n", w.lent.Name)
		return all, nil
	}
	own := modbus.Setting{Baud: bus.Baud, Format: bus.Format()}
	if (f.baud != "" || f.format != "") && (len(all) != 1 || all[0] != own) {
		return nil, fmt.Errorf("bus %s is in use at %s (%s); stop the service to scan other speeds: sudo systemctl stop busgate", w.lent.Name, w.lent.setting(), w.lent.answering())
	}
	fmt.Fprintf(e.stderr, "bus %s of the running gateway is searched between its polls, in a quarter of its time, at %s only (%s); stop the service to scan other speeds\n",
		w.lent.Name, w.lent.setting(), w.lent.answering())
	return []modbus.Setting{own}, nil
}

// mapAt is the device map, nil when it is not there or not right.
func mapAt(file string) *config.Config {
	cfg, _ := config.Load(file, profiles.FS)
	return cfg
}

// wireFailed says why a wire cannot be used.
func wireFailed(e *env, name string, err error) int {
	t, ok := errors.AsType[devices.Trouble](err)
	if !ok {
		fmt.Fprintf(e.stderr, "busgate %s: %v\n", name, err)
		return exitFailed
	}
	text, _, _ := strings.Cut(t.Text(), ". 0 devices offline") // of a gateway that runs
	fmt.Fprintf(e.stderr, "busgate %s: %s\n", name, text)
	if t.Word() == "unreachable" || t.Word() == "tcp-limit" {
		return exitNoReply
	}
	return exitFailed
}

// wireOf finds out what a word means: the path of a port, the name of one in
// /dev, a bus of the device map, or a host. With no bus it gives the exit status.
func wireOf(e *env, name, file string, cfg *config.Config, where string) (*config.Bus, int) {
	bus := &config.Bus{Name: "wire", Protocol: "modbus-rtu", Baud: 9600, DataBits: 8, Parity: 'N', StopBits: 1,
		Timeout: 500 * time.Millisecond, Retries: 1, RS485: "auto", Exclusive: true, MaxRead: 125, MaxHole: 124}
	if strings.HasPrefix(where, "/") {
		bus.Serial = where
		return bus, exitOK
	}
	if cfg != nil && cfg.Buses[where] != nil {
		known := *cfg.Buses[where]
		if !strings.HasPrefix(known.Protocol, "modbus-") && name != "monitor" && name != "scan" {
			fmt.Fprintf(e.stderr, "busgate %s: bus `%s` speaks %s; this works with Modbus\n", name, where, known.Protocol)
			return nil, exitFailed
		}
		return &known, exitOK
	}
	if strings.HasPrefix(where, "tty") {
		bus.Serial = "/dev/" + where
		return bus, exitOK
	}
	if !strings.ContainsAny(where, ".:") && where != "localhost" { // a name, and of no bus
		if _, err := os.Stat(file); err == nil && cfg == nil {
			fmt.Fprintf(e.stderr, "busgate %s: %s has mistakes, so that it is not known whether `%s` is a bus: busgate check %s\n", name, file, where, file)
			return nil, exitConfig
		}
		if cfg != nil {
			var names []string
			for n := range cfg.Buses {
				names = append(names, n)
			}
			slices.Sort(names)
			if hint := meant(where, names); hint != "" {
				fmt.Fprintf(e.stderr, "busgate %s: there is no bus `%s` in %s%s\n", name, where, file, hint)
				return nil, exitFailed
			}
		}
	}
	host, port, err := net.SplitHostPort(where)
	if err != nil {
		host, port = strings.Trim(where, "[]"), "502"
	}
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 || host == "" || strings.ContainsAny(host, " /@") {
		return nil, misuse(e, name, "cannot use %q; write /dev/ttyUSB0, a bus of %s, or host:port", where, file)
	}
	bus.Protocol, bus.TCP, bus.Timeout = "modbus-tcp", net.JoinHostPort(host, port), 2*time.Second
	return bus, exitOK
}

// settingsOf are the settings to try: that of the bus, then the usual ones, of
// these only the speeds and formats of the flags.
func settingsOf(f scanFlags, bus *config.Bus) ([]modbus.Setting, error) {
	if bus.TCP != "" {
		if f.baud != "" || f.format != "" {
			return nil, errors.New("knows no --baud and --format for a network endpoint")
		}
		return nil, nil
	}
	bauds, err := baudsOf(f.baud)
	if err != nil {
		return nil, err
	}
	formats, err := formatsOf(f.format)
	if err != nil {
		return nil, err
	}
	all := append([]modbus.Setting{{Baud: bus.Baud, Format: bus.Format()}}, modbus.DefaultSettings()...)
	for _, baud := range bauds {
		for _, format := range formats {
			all = append(all, modbus.Setting{Baud: baud, Format: format})
		}
	}
	var list []modbus.Setting
	for _, s := range all {
		wanted := (f.baud == "" || slices.Contains(bauds, s.Baud)) && (f.format == "" || slices.Contains(formats, s.Format))
		if wanted && !slices.Contains(list, s) {
			list = append(list, s)
		}
	}
	return list, nil
}

// baudsOf reads a list of speeds; the usual ones for "".
func baudsOf(text string) ([]int, error) {
	if text == "" {
		return []int{9600, 19200, 38400, 57600, 115200, 4800, 2400}, nil
	}
	var list []int
	for word := range strings.SplitSeq(text, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(word))
		if err != nil || n < 50 || n > 4000000 {
			return nil, fmt.Errorf("cannot use --baud %s; write speeds as in 9600,19200", text)
		}
		list = append(list, n)
	}
	return list, nil
}

// formatsOf reads a list of formats; the usual ones for "". RTU has 8 data bits
// (Modbus over serial line v1.02, 2.5.1).
func formatsOf(text string) ([]string, error) {
	if text == "" {
		return []string{"8N1", "8E1"}, nil
	}
	var list []string
	for word := range strings.SplitSeq(strings.ToUpper(text), ",") {
		word = strings.TrimSpace(word)
		if len(word) != 3 || word[0] != '8' || !strings.Contains("NEO", word[1:2]) || !strings.Contains("12", word[2:]) {
			return nil, fmt.Errorf("cannot use --format %s; write formats as in 8N1,8E1,8N2", text)
		}
		list = append(list, word)
	}
	return list, nil
}

// unitsOf reads "1-10", "1,2,17" or both mixed; nil for "".
func unitsOf(text string, bus *config.Bus) ([]uint8, error) {
	if text == "" {
		return nil, nil
	}
	low, high := 1, 247
	if bus.Protocol == "modbus-tcp" {
		low, high = 0, 255
	}
	var list []uint8
	for word := range strings.SplitSeq(text, ",") {
		a, b, ranged := strings.Cut(strings.TrimSpace(word), "-")
		if !ranged {
			b = a
		}
		from, err1 := strconv.Atoi(a)
		to, err2 := strconv.Atoi(b)
		if err1 != nil || err2 != nil || from < low || to > high || from > to {
			return nil, fmt.Errorf("cannot use --units %s; write numbers from %d to %d, as in 1-10 or 1,17", text, low, high)
		}
		for n := from; n <= to; n++ {
			if !slices.Contains(list, uint8(n)) {
				list = append(list, uint8(n))
			}
		}
	}
	return list, nil
}

// wrote is the exit status after writing: a reader that went away is no error.
func wrote(e *env, name string, err error) int {
	if err == nil || errors.Is(err, syscall.EPIPE) {
		return exitOK
	}
	fmt.Fprintf(e.stderr, "busgate %s: %v\n", name, err)
	return exitFailed
}

// samePort says that two paths lead to one port.
func samePort(a, b string) bool {
	ra, errA := filepath.EvalSymlinks(a)
	rb, errB := filepath.EvalSymlinks(b)
	return a == b || errA == nil && errB == nil && ra == rb
}
