package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"busgate/config"
	"busgate/config/report"
	"busgate/devices"
	"busgate/devices/uart"
)

// sensorsOn are the enabled UART sensors of a bus, in the order of their names.
func sensorsOn(cfg *config.Config, bus string) (list []*config.Device) {
	if cfg == nil {
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(cfg.Devices)) {
		if d := cfg.Devices[name]; d.Bus == bus && d.Enabled && d.Frame != nil {
			list = append(list, d)
		}
	}
	return list
}

// sensorMonitor prints what UART sensors say. Of the monitor it uses the flags
// and the screen.
type sensorMonitor struct {
	*monitor
	words *uart.Explainer
	heard map[string]int // good frames by device; "" those of nobody
}

func newSensorMonitor(m *monitor, devs []*config.Device) *sensorMonitor {
	return &sensorMonitor{monitor: m, words: uart.NewExplainer(devs), heard: map[string]int{}}
}

// show prints one frame, or a piece of what is none.
func (m *sensorMonitor) show(f devices.Frame) {
	if m.gone != nil {
		return
	}
	var dev *config.Device
	var readings []devices.Reading
	if !f.Out && f.Mark == devices.MarkOK {
		dev, readings = m.words.Explain(f.Data)
	}
	if !f.At.Before(m.begin) {
		m.marks[f.Mark]++
		if len(f.Data) > 0 && !f.Out {
			m.frames++
		}
		if f.Mark == devices.MarkOK && !f.Out {
			m.heard[nameOf(dev)]++
		}
	}
	text := m.sensorText(f, dev, readings)
	if m.flags.json {
		r := monitorRow{TS: f.At.UTC().Truncate(time.Millisecond), Gap: f.Gap.Seconds(), Out: f.Out, Kind: sensorKind(f), Mark: string(f.Mark),
			Device: nameOf(dev), Text: text, RTT: f.RTT.Seconds(), Hex: fmt.Sprintf("%x", f.Data)}
		m.gone = json.NewEncoder(m.e.stdout).Encode(r)
		return
	}
	line := fmt.Sprintf("%s %9s  %s  %s", f.At.Local().Format("15:04:05.000"), gapText(f.Gap), sensorArrow(f), text)
	if mark := m.markText(f); mark != "" {
		line += "   " + mark
	}
	if f.RTT > 0 && f.Mark == devices.MarkOK {
		line += fmt.Sprintf("   [%s]", millis(f.RTT))
	}
	if m.flags.hex && len(f.Data) > 0 {
		line += fmt.Sprintf("\n%27s%s", "", hexText(f.Data))
	}
	_, m.gone = fmt.Fprintln(m.e.stdout, line)
}

func nameOf(d *config.Device) string {
	if d == nil {
		return ""
	}
	return d.Name
}

// sensorKind is frame, request, bytes or silence.
func sensorKind(f devices.Frame) string {
	switch {
	case f.Mark == devices.MarkSilence:
		return "silence"
	case f.Out:
		return "request"
	case f.Mark == devices.MarkOK:
		return "frame"
	}
	return "bytes"
}

func sensorArrow(f devices.Frame) string {
	switch sensorKind(f) {
	case "frame", "silence":
		return "<-"
	case "request":
		return "->"
	}
	return "??"
}

// sensorText is the values of a frame; of one without values what it is made of.
func (m *sensorMonitor) sensorText(f devices.Frame, dev *config.Device, readings []devices.Reading) string {
	if len(readings) == 0 {
		text := plainText(f.Data)
		if dev != nil {
			text = dev.Name + ": " + text
		}
		return text
	}
	var values []string
	for i, r := range readings {
		if i == mostValues {
			values = append(values, fmt.Sprintf("and %d more", len(readings)-mostValues))
			break
		}
		text := "not available"
		if r.Quality == devices.Good {
			text = r.Value.String()
			if k := slices.IndexFunc(dev.Points, func(p config.Point) bool { return p.Name == r.Point }); k >= 0 {
				text = valueText(&dev.Points[k], text)
			}
		}
		values = append(values, r.Point+" "+text)
	}
	return dev.Name + ": " + strings.Join(values, ", ")
}

// mostValues of a frame are printed.
const mostValues = 6

// plainText shows bytes as text in quotes where they are text, else in hex.
func plainText(b []byte) string {
	if len(b) == 0 {
		return ""
	}
	if !slices.ContainsFunc(b, func(c byte) bool { return c >= 0x7f || c < 0x20 && c != '\r' && c != '\n' && c != '\t' }) {
		text := strconv.Quote(string(b))
		if len(text) > 160 {
			text = fmt.Sprintf("%s… %d bytes", text[:160], len(b))
		}
		return text
	}
	return hexText(b)
}

// summary says who talked, and what it means.
func (m *sensorMonitor) summary(took time.Duration) {
	if m.flags.json {
		return
	}
	w := m.e.stdout
	good := m.frames - m.marks[devices.MarkCRC] - m.marks[devices.MarkStray]
	fmt.Fprintf(w, "\n%s: %s", report.Duration(took.Round(time.Second)), count(good, "frame", "frames"))
	for _, x := range []struct {
		mark devices.Mark
		word string
	}{{devices.MarkCRC, "damaged"}, {devices.MarkStray, "pieces that are no frame"}, {devices.MarkSilence, "without answer"}} {
		if n := m.marks[x.mark]; n > 0 {
			fmt.Fprintf(w, ", %d %s", n, x.word)
		}
	}
	fmt.Fprintln(w)
	for _, name := range slices.Sorted(maps.Keys(m.heard)) {
		fmt.Fprintf(w, "%-16s %s\n", cmp.Or(name, "(no sensor of the map)"), count(m.heard[name], "frame", "frames"))
	}
	switch {
	case m.frames == 0:
		fmt.Fprintln(w, "nothing was heard: the sensor is silent or waits to be asked, its TX is not on our RX, or this is the wrong port")
	case good == 0 && m.bus.TCP == "":
		fmt.Fprintf(w, "bytes, but no frame: wrong baud or format, or another kind of frame? Heard at %d %s\n", m.bus.Baud, m.bus.Format())
	}
}
