package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"busgate/config"
	"busgate/devices"
	"busgate/devices/modbus"
)

// readDevice reads the points of a device of the map, or one of them.
func readDevice(ctx context.Context, e *env, f readFlags, what string) int {
	if f.typ != "" || f.try || f.hex || f.baud+f.format != "" || f.order != "ABCD" {
		return misuse(e, "read", "knows only --json for a device of the map")
	}
	cfg, dev, points, code := pointsOf(e, "read", f.config, what)
	if dev == nil {
		return code
	}
	bus := *cfg.Buses[dev.Bus]
	w, code := reach(ctx, e, "read", f.socket, &bus)
	if w == nil {
		return code
	}
	a, err := w.readPoints(ctx, e, &bus, dev, points)
	if err != nil {
		return readFailed(ctx, e, &bus, dev.UnitID, err)
	}
	return printAnswer(e, f, a)
}

// pointsOf finds DEVICE or DEVICE.POINT in the device map. Without a device it
// gives the exit status.
func pointsOf(e *env, name, file, what string) (cfg *config.Config, dev *config.Device, points []int, code int) {
	if cfg = mapAt(file); cfg == nil {
		fmt.Fprintf(e.stderr, "busgate %s: %s cannot be used: busgate check %[2]s\n", name, file)
		return nil, nil, nil, exitConfig
	}
	device, point, _ := strings.Cut(what, ".")
	dev = cfg.Devices[device]
	if dev == nil {
		fmt.Fprintf(e.stderr, "busgate %s: there is no device `%s` in %s%s\n", name, device, file, meant(device, slices.Sorted(maps.Keys(cfg.Devices))))
		return nil, nil, nil, exitFailed
	}
	names := make([]string, len(dev.Points))
	for i := range dev.Points {
		if names[i] = dev.Points[i].Name; point == "" || names[i] == point {
			points = append(points, i)
		}
	}
	if len(points) == 0 {
		fmt.Fprintf(e.stderr, "busgate %s: device `%s` has no point `%s`%s\n", name, device, point, meant(point, names))
		return nil, nil, nil, exitFailed
	}
	return cfg, dev, points, exitOK
}

// readPoints reads points of a device, through the daemon or directly.
func (w *wire) readPoints(ctx context.Context, e *env, bus *config.Bus, dev *config.Device, points []int) (a readAnswer, err error) {
	if w.lent != nil {
		q := struct {
			Device string
			Points []int
		}{dev.Name, points}
		err = w.client.call(ctx, "/v1/read", q, &a)
		return a, err
	}
	field, err := drivers()[bus.Protocol].Open(ctx, devices.Wire{Bus: bus, Devices: []*config.Device{dev}, Log: warnings(e)})
	if err != nil {
		return a, err
	}
	defer field.Close()
	g := &devices.Group{Device: dev, Points: points, Interval: dev.Interval}
	got, err := field.Poll(ctx, g, func(ctx context.Context) error { return ctx.Err() })
	if err != nil {
		return a, err
	}
	return answerOf(bus, dev, got), nil
}

// answerOf is what a read of a device gave, in words.
func answerOf(bus *config.Bus, dev *config.Device, got devices.Answer) readAnswer {
	a := readAnswer{Device: dev.Name}
	if len(got.Values) == 0 && got.Err != nil {
		a.Silent, _ = modbus.Refusal(bus, dev.UnitID, got.Err)
		if len(got.Found) > 0 {
			a.Silent = got.Found[0].Text
		}
		return a
	}
	points := map[string]*config.Point{}
	for i := range dev.Points {
		points[dev.Points[i].Name] = &dev.Points[i]
	}
	for _, r := range got.Values {
		row := pointRow{Point: r.Point, Text: "not available", Value: json.RawMessage("null")}
		if r.Quality == devices.Good {
			row.Text = valueText(points[r.Point], r.Value.String())
			row.Value = r.Value.AppendJSON(nil, -1)
		}
		a.Points = append(a.Points, row)
	}
	for _, x := range got.Errors {
		a.Points = append(a.Points, pointRow{Point: x.Point, Text: x.Text, Wrong: true})
	}
	return a
}

// printAnswer prints the points of a device.
func printAnswer(e *env, f readFlags, a readAnswer) int {
	if a.Silent != "" {
		fmt.Fprintln(e.stderr, "busgate read: "+a.Silent)
		return exitNoReply
	}
	out := struct {
		Device string                     `json:"device"`
		Values map[string]json.RawMessage `json:"values"`
		Errors map[string]string          `json:"errors,omitempty"`
	}{a.Device, map[string]json.RawMessage{}, map[string]string{}}
	t := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	for _, r := range a.Points {
		if r.Wrong {
			out.Errors[r.Point] = r.Text
		} else {
			out.Values[r.Point] = r.Value
		}
		fmt.Fprintf(t, "%s\t%s\n", r.Point, r.Text)
	}
	code := exitOK
	if len(out.Values) == 0 {
		code = exitRefused
	}
	if f.json {
		return max(code, printJSON(e, "read", out))
	}
	return max(code, wrote(e, "read", t.Flush()))
}
