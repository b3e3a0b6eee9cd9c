package main

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"busgate/config"
	"busgate/devices"
)

// writeFlags are the flags of write.
type writeFlags struct {
	config, socket string
	yes, json      bool
}

func writeCommand() command {
	return command{
		name: "write", args: "DEVICE.POINT VALUE", short: "write one value, read it back and print both",
		examples: []string{"busgate write inverter.limit 80", "busgate write pumps.relay1 on --yes", "busgate write heater.setpoint --yes -- -5"},
		setup: func(fs *flag.FlagSet) func(context.Context, *env, []string) int {
			var f writeFlags
			fs.StringVar(&f.config, "config", defaultConfig, "the device map, `FILE`")
			fs.StringVar(&f.socket, "socket", defaultSocket, "control socket `FILE` of the daemon, which writes when it has the wire open")
			fs.BoolVar(&f.yes, "yes", false, "do not ask")
			fs.BoolVar(&f.json, "json", false, "one JSON object")
			return func(ctx context.Context, e *env, args []string) int {
				if len(args) != 2 {
					return misuse(e, "write", "takes DEVICE.POINT and VALUE, as in: busgate write inverter.limit 80")
				}
				return writeNow(ctx, e, f, args[0], args[1])
			}
		},
	}
}

// writeNow checks, asks, writes and prints.
func writeNow(ctx context.Context, e *env, f writeFlags, what, value string) int {
	cfg, dev, points, code := pointsOf(e, "write", f.config, what)
	if dev == nil {
		return code
	}
	if !strings.Contains(what, ".") {
		return misuse(e, "write", "takes DEVICE.POINT: which point of `%s`?", what)
	}
	p := &dev.Points[points[0]]
	if text := refusedBefore(p, value); text != "" {
		fmt.Fprintln(e.stderr, "busgate write: "+text)
		return exitRefused
	}
	if ok, code := f.agreed(e, what, p, value); !ok {
		return code
	}
	bus := *cfg.Buses[dev.Bus]
	w, code := reach(ctx, e, "write", f.socket, &bus)
	if w == nil {
		return code
	}
	a, err := w.write(ctx, e, cfg, dev, p, value)
	if err != nil {
		if ctx.Err() != nil {
			fmt.Fprintln(e.stderr, "busgate write: stopped; the device may have taken the value")
			return exitStopped
		}
		return wireFailed(e, "write", err)
	}
	return printWritten(ctx, e, f, w, &bus, dev, points, value, a)
}

// refusedBefore is what can be said against a value without the wire.
func refusedBefore(p *config.Point, value string) string {
	if !p.Write {
		return p.Name + " takes no commands (write = false)"
	}
	if p.ScaleReg >= 0 {
		return ""
	}
	if _, _, err := devices.Encode(p, value, 0); err != nil {
		if r, ok := errors.AsType[*devices.Refusal](err); ok {
			return r.Text
		}
		return err.Error()
	}
	return ""
}

// agreed asks on a terminal; elsewhere --yes must say so.
func (f writeFlags) agreed(e *env, what string, p *config.Point, value string) (ok bool, code int) {
	if f.yes {
		return true, exitOK
	}
	if !isTerminal(e.stdin) {
		fmt.Fprintln(e.stderr, "busgate write: nothing written: there is no terminal to ask; say --yes")
		return false, exitUsage
	}
	if !confirmed(e, fmt.Sprintf("write %s to %s (%s)? [y/N] ", strings.TrimSpace(value+" "+p.Unit), what, rawText(p, value))) {
		fmt.Fprintln(e.stderr, "nothing written")
		return false, exitFailed
	}
	return true, exitOK
}

// isTerminal says that somebody can be asked.
func isTerminal(r io.Reader) bool {
	file, ok := r.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(file.Fd()), unix.TCGETS)
	return err == nil
}

// rawText is "holding 5007, raw 800".
func rawText(p *config.Point, value string) string {
	where := fmt.Sprintf("%s %d", p.Table, p.Addr)
	if p.ScaleReg >= 0 {
		return where
	}
	raw, _, err := devices.Encode(p, value, 0)
	switch {
	case err != nil:
		return where
	case len(raw) == 1:
		return where + ", " + [...]string{"off", "on"}[raw[0]&1]
	case len(raw) == 2:
		return fmt.Sprintf("%s, raw %d", where, binary.BigEndian.Uint16(raw))
	}
	return fmt.Sprintf("%s..%d, raw % X", where, int(p.Addr)+len(raw)/2-1, raw)
}

// write has the value written, by the daemon or directly.
func (w *wire) write(ctx context.Context, e *env, cfg *config.Config, dev *config.Device, p *config.Point, value string) (a commandAnswer, err error) {
	if w.lent != nil {
		q := struct{ Device, Point, Value string }{dev.Name, p.Name, value}
		err = w.client.call(ctx, "/v1/write", q, &a)
		return a, err
	}
	res, err := writeDirectly(ctx, e, cfg, dev, p, value)
	return commandOf(res), err
}

// writeDirectly opens the wire for one command and goes the daemon's own way: a
// fleet of one device with one point, which validates, writes and reads back.
func writeDirectly(ctx context.Context, e *env, cfg *config.Config, dev *config.Device, p *config.Point, value string) (devices.Result, error) {
	alone, point := *dev, *p
	point.Safe, point.SafeFor = nil, 0 // that is for the daemon
	alone.Points, alone.Interval, alone.Enabled = []config.Point{point}, 24*time.Hour, true
	one := *cfg
	one.Devices = map[string]*config.Device{dev.Name: &alone}
	sink := &wireSink{broken: make(chan error, 1)}
	fleet, err := devices.New(&one, sink, devices.Options{Drivers: drivers(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return devices.Result{}, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil)
	wg.Go(func() { fleet.Run(ctx) })
	wg.Go(func() {
		select {
		case err := <-sink.broken:
			cancel(err)
		case <-ctx.Done():
		}
	})
	res, err := fleet.Write(ctx, devices.Command{Device: dev.Name, Point: p.Name, Text: value, Until: fleet.Now().Mono + commandLife})
	// The news of the wire ends the fleet, which then refuses what waits: the
	// news is the reason.
	if cause := context.Cause(ctx); cause != nil && (err != nil || res.Code == "refused") {
		err = cause
	}
	return res, err
}

// wireSink waits for the news that the wire cannot be had.
type wireSink struct{ broken chan error }

func (s *wireSink) Take(context.Context, devices.Round) error { return nil }

func (s *wireSink) Health(_ context.Context, h devices.Health) {
	if h.Report.Err == "" || h.Online || !strings.HasPrefix(h.Report.Who, "bus ") {
		return
	}
	select {
	case s.broken <- &commandError{h.Report.Text, h.Report.Err}:
	default:
	}
}

// writtenRow is what --json prints.
type writtenRow struct {
	Device string  `json:"device"`
	Point  string  `json:"point"`
	Wrote  string  `json:"wrote"`
	Reads  string  `json:"reads,omitempty"`
	Code   string  `json:"code,omitempty"`
	Text   string  `json:"text,omitempty"`
	Took   float64 `json:"took"`
}

// printWritten prints what was written and what the device has now.
func printWritten(ctx context.Context, e *env, f writeFlags, w *wire, bus *config.Bus, dev *config.Device, points []int, value string, a commandAnswer) int {
	p := &dev.Points[points[0]]
	code := exitRefused
	switch a.Code {
	case "":
		code = exitOK
	case "timeout", "unknown", "expired":
		code = exitNoReply
	}
	row := writtenRow{Device: dev.Name, Point: p.Name, Wrote: value, Reads: a.Value, Code: a.Code, Text: a.Text, Took: a.Took}
	after := ""
	if a.Code == "timeout" || a.Code == "unknown" {
		row.Text += ": the device may have taken it"
		after = "and does not answer a read either"
		if got, err := w.readPoints(ctx, e, bus, dev, points); err == nil && len(got.Points) == 1 && !got.Points[0].Wrong {
			after, row.Reads = "it reads "+got.Points[0].Text+" now", got.Points[0].Text
		}
	}
	if f.json {
		return max(code, printJSON(e, "write", row))
	}
	name := dev.Name + "." + p.Name
	if a.Code == "" {
		took := time.Duration(a.Took * float64(time.Second)).Round(time.Millisecond)
		_, err := fmt.Fprintf(e.stdout, "%s: wrote %s, reads %s (%v)\n", name, valueText(p, value), valueText(p, a.Value), took)
		return wrote(e, "write", err)
	}
	text := row.Text
	if after != "" {
		text += "; " + after
	}
	fmt.Fprintf(e.stderr, "busgate write: %s: %s\n", name, text)
	return code
}
