package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"busgate/config"
	"busgate/config/report"
	"busgate/devices"
	"busgate/devices/modbus"
)

// monitor prints frames and counts them.
type monitor struct {
	e     *env
	flags monitorFlags
	cfg   *config.Config // may be nil
	bus   *config.Bus
	ours  bool // requests are those of the running gateway
	lent  bool // the wire is that of the running gateway
	begin time.Time
	words modbus.Explainer

	gone   error // who reads us went away
	frames int
	marks  map[devices.Mark]int
	units  map[byte]*talk
}

// talk is what was heard of one unit.
type talk struct {
	asked, ours, answered, refused, silent int
	function                               byte
}

func newMonitor(e *env, f monitorFlags, cfg *config.Config, bus *config.Bus, lent bool) *monitor {
	return &monitor{e: e, flags: f, cfg: cfg, bus: bus, lent: lent, ours: lent && !f.listen, begin: time.Now(), words: explainerOf(bus), marks: map[devices.Mark]int{}, units: map[byte]*talk{}}
}

// monitorRow is one frame in JSON; times in seconds.
type monitorRow struct {
	TS       time.Time `json:"ts"`
	Gap      float64   `json:"gap"`
	Out      bool      `json:"out"`
	Kind     string    `json:"kind"`
	Mark     string    `json:"mark"`
	Unit     *byte     `json:"unit,omitempty"`
	Function *byte     `json:"function,omitempty"`
	Device   string    `json:"device,omitempty"`
	Table    string    `json:"table,omitempty"`
	Addr     *int      `json:"addr,omitempty"`
	Count    int       `json:"count,omitempty"`
	Text     string    `json:"text"`
	RTT      float64   `json:"rtt,omitempty"`
	Hex      string    `json:"hex,omitempty"`
}

// show prints one frame.
func (m *monitor) show(f devices.Frame) {
	if m.gone != nil {
		return
	}
	x := m.words.Explain(f)
	if !f.At.Before(m.begin) { // what the gateway remembers is shown, not counted
		m.count(f, x)
	}
	dev := deviceOf(m.cfg, m.bus.Name, x.Unit)
	if m.flags.json {
		m.gone = json.NewEncoder(m.e.stdout).Encode(m.row(f, x, dev))
		return
	}
	line := fmt.Sprintf("%s %9s  %s", f.At.Local().Format("15:04:05.000"), gapText(f.Gap), arrow(f, x))
	if x.Kind != "bytes" {
		line += fmt.Sprintf("  unit %3d  %02d", x.Unit, x.Function)
	}
	line += "  " + m.text(x, dev)
	if mark := m.markText(f); mark != "" {
		line += "   " + mark
	}
	if f.RTT > time.Microsecond && f.Mark == devices.MarkOK {
		line += fmt.Sprintf("   [%s]", millis(f.RTT))
	}
	if m.flags.hex && x.Kind != "bytes" && len(f.Data) > 0 {
		line += fmt.Sprintf("\n%27s%s", "", hexText(f.Data))
	}
	_, m.gone = fmt.Fprintln(m.e.stdout, line)
}

func (m *monitor) row(f devices.Frame, x modbus.Explained, dev *config.Device) monitorRow {
	r := monitorRow{TS: f.At.UTC().Truncate(time.Millisecond), Gap: f.Gap.Seconds(), Out: f.Out, Kind: x.Kind, Mark: string(f.Mark), Text: m.text(x, dev), Hex: fmt.Sprintf("%x", f.Data)}
	if f.RTT > time.Microsecond {
		r.RTT = f.RTT.Seconds()
	}
	if x.Kind != "bytes" {
		r.Unit, r.Function = &x.Unit, &x.Function
	}
	if dev != nil {
		r.Device = dev.Name
	}
	if x.N > 0 && x.Table != "" {
		r.Table, r.Addr, r.Count = x.Table, &x.Addr, x.N
	}
	return r
}

// text is what a frame says; where the map knows the points, with their values.
func (m *monitor) text(x modbus.Explained, dev *config.Device) string {
	if dev == nil {
		return x.Text
	}
	if x.Kind != "answer" {
		return dev.Name + ": " + x.Text
	}
	var values []string
	more := 0
	for i := range dev.Points {
		p := &dev.Points[i]
		raw, ok := x.Holds(p)
		if !ok || p.ScaleReg >= 0 {
			continue
		}
		if len(values) == 4 {
			more++
			continue
		}
		text := "not available"
		if v, quality, err := devices.Decode(p, raw); err != nil {
			text = "out of range"
		} else if quality == devices.Good {
			text = valueText(p, v.String())
		}
		values = append(values, p.Name+" "+text)
	}
	if len(values) == 0 {
		return dev.Name + ": " + x.Text
	}
	if more > 0 {
		values = append(values, fmt.Sprintf("and %d more", more))
	}
	return dev.Name + ": " + strings.Join(values, ", ")
}

// markText is what is wrong with a frame, "" when nothing is.
func (m *monitor) markText(f devices.Frame) string {
	switch f.Mark {
	case devices.MarkCRC:
		return "DAMAGED"
	case devices.MarkForeign:
		return "NOT OURS"
	case devices.MarkLate:
		return fmt.Sprintf("TOO LATE (%s), thrown away", millis(f.RTT))
	case devices.MarkStray:
		return "STRAY"
	case devices.MarkEcho:
		return "ECHO of what was sent"
	case devices.MarkSilence:
		return fmt.Sprintf("SILENCE for %s", millis(f.RTT))
	}
	return ""
}

// arrow is > for who asks and < for who answers.
func arrow(f devices.Frame, x modbus.Explained) string {
	switch {
	case f.Out || x.Kind == "request":
		return "->"
	case x.Kind == "bytes":
		return "??"
	}
	return "<-"
}

// gapText is the silence before a frame.
func gapText(d time.Duration) string {
	switch {
	case d <= 0:
		return ""
	case d < 10*time.Second:
		return "+" + millis(d)
	}
	return "+" + report.Duration(d)
}

// millis is "28 ms" or "0.4 ms".
func millis(d time.Duration) string {
	if d < 10*time.Millisecond {
		return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
	}
	return fmt.Sprintf("%d ms", d.Round(time.Millisecond)/time.Millisecond)
}

func hexText(p []byte) string {
	if len(p) > 64 {
		return fmt.Sprintf("% X and %d bytes more", p[:64], len(p)-64)
	}
	return fmt.Sprintf("% X", p)
}

// count notes who was heard.
func (m *monitor) count(f devices.Frame, x modbus.Explained) {
	m.marks[f.Mark]++
	if len(f.Data) > 0 {
		m.frames++
	}
	if x.Kind == "bytes" || f.Mark == devices.MarkEcho {
		return
	}
	t := m.units[x.Unit]
	if t == nil {
		t = &talk{}
		m.units[x.Unit] = t
	}
	t.function = x.Function
	switch x.Kind {
	case "request":
		t.asked++
		if f.Out {
			t.ours++
		}
	case "answer":
		t.answered++
	case "exception":
		t.refused++
	case "silence":
		t.silent++
	}
}

// summary says who talked, and what it means.
func (m *monitor) summary(took time.Duration) {
	if m.flags.json {
		return
	}
	w := m.e.stdout
	fmt.Fprintf(w, "\n%s: %s", report.Duration(took.Round(time.Second)), count(m.frames, "frame", "frames"))
	for _, x := range []struct {
		mark devices.Mark
		word string
	}{{devices.MarkCRC, "damaged"}, {devices.MarkForeign, "not ours"}, {devices.MarkLate, "too late"}, {devices.MarkStray, "stray"}, {devices.MarkEcho, "echoes"}, {devices.MarkSilence, "without answer"}} {
		if n := m.marks[x.mark]; n > 0 {
			fmt.Fprintf(w, ", %d %s", n, x.word)
		}
	}
	fmt.Fprintln(w)
	strangers := 0
	for _, unit := range slices.Sorted(maps.Keys(m.units)) {
		t := m.units[unit]
		line := fmt.Sprintf("unit %3d  asked %s, answered %d", unit, times(t.asked), t.answered)
		if t.refused > 0 {
			line += fmt.Sprintf(", refused %d", t.refused)
		}
		if d := deviceOf(m.cfg, m.bus.Name, unit); d != nil {
			line += "   device " + d.Name
		}
		if n := t.asked - t.ours; n > 0 && (m.ours || m.bus.TCP == "") {
			strangers += n
			if m.ours {
				line += fmt.Sprintf("   %s by another master", times(n))
			}
		}
		fmt.Fprintln(w, line)
	}
	fmt.Fprint(w, m.verdict(strangers))
}

// verdict is what the installer may conclude.
func (m *monitor) verdict(strangers int) string {
	switch {
	case m.frames == 0 && m.ours:
		return "" // nothing was due
	case m.frames == 0 && m.lent:
		return "nothing was heard: nobody else talks on this bus\n"
	case m.frames == 0:
		return "nothing was heard: nobody talks, or A and B are swapped, or this is the wrong port\n"
	case !m.ours && m.marks[devices.MarkOK] == 0:
		return fmt.Sprintf("bytes, but no frame: wrong baud or format? Heard at %d %s. Try: busgate scan %s\n", m.bus.Baud, m.bus.Format(), m.bus.Serial)
	case !m.ours && strangers > 0:
		return fmt.Sprintf("a master asks on this bus (%s), and it is not busgate: RS-485 allows one master\n", times(strangers))
	case strangers > 0:
		return "somebody else talks on this bus: RS-485 allows one master\n"
	}
	return ""
}

// valueText is a value with its unit of measurement; of a bit on or off.
func valueText(p *config.Point, v string) string {
	if word := map[string]string{"true": "on", "false": "off"}[v]; word != "" && (p.Table == "coil" || p.Table == "discrete" || p.Type == "bool") {
		return word
	}
	return strings.TrimSpace(v + " " + p.Unit)
}

func times(n int) string { return count(n, "time", "times") }
