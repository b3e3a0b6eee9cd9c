package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/url"
	"time"

	"busgate/config"
	"busgate/devices"
	"busgate/devices/modbus"
	"busgate/devices/uart"
)

// monitorFlags are the flags of monitor.
type monitorFlags struct {
	config, socket, baud, format string
	listen, raw, hex, json       bool
	limit                        time.Duration
}

func monitorCommand() command {
	return command{
		name: "monitor", args: "BUS|PORT", short: "live frames of a bus in words: who asks, who answers, what is damaged",
		examples: []string{"busgate monitor meters", "busgate monitor meters --listen-only", "busgate monitor /dev/ttyUSB0 --baud 19200 --format 8E1 --for 1m", "busgate monitor /dev/ttyUSB1 --raw"},
		setup: func(fs *flag.FlagSet) func(context.Context, *env, []string) int {
			var f monitorFlags
			fs.StringVar(&f.config, "config", defaultConfig, "device map `FILE` that names the buses and points")
			fs.StringVar(&f.socket, "socket", defaultSocket, "control socket `FILE` of the daemon, which is asked when it has the wire open")
			fs.StringVar(&f.baud, "baud", "", "speed `B` of the line; else that of the bus, or 9600")
			fs.StringVar(&f.format, "format", "", "format `F` of the line; else that of the bus, or 8N1")
			fs.BoolVar(&f.listen, "listen-only", false, "send nothing: the polls of the running gateway on this bus wait meanwhile, so that all that is heard comes from others")
			fs.BoolVar(&f.raw, "raw", false, "what comes is no Modbus: each burst of bytes is shown as text or hex (a UART bus of the map is known as such)")
			fs.BoolVar(&f.hex, "hex", false, "the bytes of each frame, too")
			fs.BoolVar(&f.json, "json", false, "one JSON object a line")
			fs.DurationVar(&f.limit, "for", 0, "end after `D`; else with Ctrl-C")
			return func(ctx context.Context, e *env, args []string) int {
				if len(args) != 1 {
					return misuse(e, "monitor", "takes one bus or port, as in: busgate monitor meters")
				}
				return monitorWire(ctx, e, f, args[0])
			}
		},
	}
}

// monitorWire shows the frames of one wire until Ctrl-C or --for.
func monitorWire(ctx context.Context, e *env, f monitorFlags, where string) int {
	cfg := mapAt(f.config)
	bus, code := wireOf(e, "monitor", f.config, cfg, where)
	if bus == nil {
		return code
	}
	bus = sensorWire(cfg, bus, f.raw)
	job := readJob{bus: bus}
	if err := job.line(readFlags{baud: f.baud, format: f.format}); err != nil {
		return misuse(e, "monitor", "%v", err)
	}
	w, code := reach(ctx, e, "monitor", f.socket, bus)
	if w == nil {
		return code
	}
	if w.lent == nil && bus.TCP != "" && bus.Protocol != "uart" {
		fmt.Fprintf(e.stderr, "busgate monitor: %s is a network endpoint and no running gateway asks it: there is nothing to hear\n", bus.TCP)
		return exitFailed
	}
	if w.lent != nil {
		bus.Name = w.lent.Name
	}
	m := newMonitor(e, f, cfg, bus, w.lent != nil)
	m.introduce(w)
	var screen interface {
		show(devices.Frame)
		summary(time.Duration)
	} = m
	sensors := sensorsOn(cfg, bus.Name)
	if bus.Protocol == "uart" {
		screen = newSensorMonitor(m, sensors)
	}
	run, cancel := ctx, context.CancelFunc(func() {})
	if f.limit > 0 {
		run, cancel = context.WithTimeout(ctx, f.limit)
	}
	defer cancel()
	var err error
	switch {
	case w.lent != nil:
		err = w.watch(run, f.listen, screen.show)
	case bus.Protocol == "uart":
		err = (&uart.Driver{}).Listen(run, devices.Wire{Bus: bus, Devices: sensors, Log: warnings(e)}, screen.show)
	default:
		err = w.driver.Listen(run, devices.Wire{Bus: bus, Log: warnings(e)}, screen.show)
	}
	screen.summary(time.Since(m.begin))
	switch {
	case m.gone != nil:
		return wrote(e, "monitor", m.gone)
	case run.Err() != nil && ctx.Err() == nil:
		return exitOK
	case ctx.Err() != nil:
		return exitStopped
	case err != nil:
		return wireFailed(e, "monitor", err)
	}
	fmt.Fprintln(e.stderr, "busgate monitor: the gateway stopped")
	return exitNoReply
}

// sensorWire is the UART bus that the map has on a port, or bus; raw says that
// there is one on any port.
func sensorWire(cfg *config.Config, bus *config.Bus, raw bool) *config.Bus {
	if cfg != nil && bus.Serial != "" {
		if known := cfg.Buses[busOn(cfg, bus.Serial)]; known != nil && known.Protocol == "uart" {
			b := *known
			return &b
		}
	}
	if raw {
		bus.Protocol = "uart"
	}
	return bus
}

// watch shows the frames that the daemon sees on its bus.
func (w *wire) watch(ctx context.Context, listen bool, show func(devices.Frame)) error {
	path := "/v1/monitor?bus=" + url.QueryEscape(w.lent.Name)
	if listen {
		path += "&listen=1"
	}
	body, err := w.client.stream(ctx, path, nil)
	if err != nil {
		return err
	}
	defer body.Close()
	for dec := json.NewDecoder(body); ; {
		var row struct {
			frameRow
			Error string
		}
		if err := dec.Decode(&row); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				return nil
			}
			return err
		}
		if row.Error != "" {
			return &commandError{text: row.Error}
		}
		f, err := row.frame()
		if err != nil {
			return err
		}
		show(f)
	}
}

// introduce says what is going on, and what it does to the bus.
func (m *monitor) introduce(w *wire) {
	at := fmt.Sprintf("%d %s", m.bus.Baud, m.bus.Format())
	if m.bus.TCP != "" {
		at = m.bus.TCP
	}
	switch {
	case w.lent == nil:
		fmt.Fprintf(m.e.stderr, "no running gateway has %s: only listening at %s, nothing is sent; Ctrl-C ends it\n", cmp.Or(m.bus.Serial, m.bus.TCP), at)
	case m.ours || m.bus.Protocol == "uart" && !m.flags.listen:
		fmt.Fprintf(m.e.stderr, "bus %s of the running gateway, %s; Ctrl-C ends it\n", w.lent.Name, at)
	default:
		fmt.Fprintf(m.e.stderr, "bus %s of the running gateway, %s: it polls nothing while this listens, so that all that is heard comes from others; Ctrl-C ends it\n", w.lent.Name, at)
	}
}

// deviceOf is the device of the map with that unit on the bus, or nil.
func deviceOf(cfg *config.Config, bus string, unit byte) *config.Device {
	if cfg == nil {
		return nil
	}
	for _, d := range cfg.Devices {
		if d.Bus == bus && d.UnitID == unit {
			return d
		}
	}
	return nil
}

// explainerOf reads the frames of a bus.
func explainerOf(bus *config.Bus) modbus.Explainer {
	return modbus.Explainer{TCP: bus.Protocol == "modbus-tcp" || bus.Protocol == "modbus-udp"}
}
