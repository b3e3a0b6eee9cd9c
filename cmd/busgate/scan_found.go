package main

import (
	"fmt"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"busgate/config"
	"busgate/devices"
	"busgate/devices/modbus"
	"busgate/devices/port"
)

// scanReport prints a search while it runs, and its harvest at the end.
type scanReport struct {
	e     *env
	flags scanFlags
	cfg   *config.Config // may be nil
	bus   *config.Bus

	units    []modbus.Sighting
	outcomes []settingRow
}

// settingRow is a setting in JSON; baud and format are absent for a network endpoint.
type settingRow struct {
	Baud    int    `json:"baud,omitempty"`
	Format  string `json:"format,omitempty"`
	Outcome string `json:"outcome"` // answers, silence, noise or impossible
}

// unitRow is a unit in JSON.
type unitRow struct {
	Baud     int      `json:"baud,omitempty"`
	Format   string   `json:"format,omitempty"`
	Unit     uint8    `json:"unit"`
	Answer   string   `json:"answer"`
	Seconds  float64  `json:"answer_time,omitempty"`
	Profiles []string `json:"profiles"`
	Point    string   `json:"point,omitempty"`
	Value    any      `json:"value,omitempty"`
	Measure  string   `json:"value_unit,omitempty"`
	Damaged  bool     `json:"damaged,omitempty"`
	EveryID  bool     `json:"every_unit,omitempty"`
}

// at is the column of the setting.
func (r *scanReport) at(s modbus.Setting) string {
	if s.Baud == 0 {
		return r.bus.TCP
	}
	return fmt.Sprintf("%d %s", s.Baud, s.Format)
}

func (r *scanReport) begin(s modbus.Setting, units []uint8) {
	fmt.Fprintf(r.e.stderr, "trying %s, %s\n", r.at(s), unitRange(units))
}

// unitRange is "units 1 to 10", "unit 17" or "12 units".
func unitRange(units []uint8) string {
	for i, u := range units {
		if int(u) != int(units[0])+i {
			return fmt.Sprintf("%d units", len(units))
		}
	}
	if len(units) == 1 {
		return fmt.Sprintf("unit %d", units[0])
	}
	return fmt.Sprintf("units %d to %d", units[0], units[len(units)-1])
}

func (r *scanReport) found(x modbus.Sighting) {
	r.units = append(r.units, x)
	if !r.flags.json {
		fmt.Fprintf(r.e.stdout, "%-10s unit %3d   %s\n", r.at(x.Setting), x.Unit, sightingText(x))
	}
}

func sightingText(x modbus.Sighting) string {
	text := "answers, no profile known (" + x.Answer + ")"
	switch {
	case x.Damaged:
		return "only damaged answers: two units with this number?"
	case len(x.Fits) > 0:
		text = fmt.Sprintf("%-16s %s", strings.Join(profileNames(x), " or "), fitText(x.Fits[0]))
	}
	if x.EveryID {
		text += "; it answers to every unit number"
	}
	return strings.TrimSpace(text)
}

func profileNames(x modbus.Sighting) []string {
	names := make([]string, len(x.Fits))
	for i, f := range x.Fits {
		names[i] = f.Profile.Name
	}
	return names
}

// fitText is "L1 230.4 V" or "18.4 °C".
func fitText(f modbus.Fit) string {
	if f.Point == nil {
		return ""
	}
	text := strings.TrimSpace(shortNumber(f.Value) + " " + f.Point.Unit)
	if last := f.Point.Label[strings.LastIndexByte(f.Point.Label, ' ')+1:]; len(last) == 2 && last[0] == 'L' {
		text = last + " " + text
	}
	return text
}

// shortNumber has four figures.
func shortNumber(v devices.Value) string {
	if !v.IsNumber() {
		return v.String()
	}
	return strconv.FormatFloat(v.Float(), 'g', 4, 64)
}

func (r *scanReport) done(s modbus.Setting, o modbus.Outcome) {
	row := settingRow{Baud: s.Baud, Format: s.Format}
	text := ""
	switch o {
	case modbus.Silence:
		row.Outcome, text = "silence", "silence"
	case modbus.Noise:
		row.Outcome, text = "noise", "bytes, but no frame: wrong setting"
		if s.Baud == 0 {
			text = "what answers does not speak " + r.bus.Protocol
		}
	case modbus.Impossible:
		row.Outcome, text = "impossible", "not possible on this port"
	default:
		row.Outcome = "answers"
	}
	r.outcomes = append(r.outcomes, row)
	if text != "" && !r.flags.json {
		fmt.Fprintf(r.e.stdout, "%-10s %s\n", r.at(s), text)
	}
}

// end prints what to add to the device map.
func (r *scanReport) end(complete bool) int {
	block := r.block()
	if !r.flags.json {
		if block == "" {
			return exitOK
		}
		_, err := fmt.Fprintf(r.e.stdout, "\n%s", block)
		return wrote(r.e, "scan", err)
	}
	out := struct {
		Wire     string       `json:"wire"`
		Complete bool         `json:"complete"`
		Units    []unitRow    `json:"units"`
		Settings []settingRow `json:"settings"`
		TOML     string       `json:"toml,omitempty"`
	}{r.bus.Serial + r.bus.TCP, complete, []unitRow{}, r.outcomes, block}
	if out.Settings == nil {
		out.Settings = []settingRow{}
	}
	for _, x := range r.units {
		row := unitRow{Baud: x.Setting.Baud, Format: x.Setting.Format, Unit: x.Unit, Answer: x.Answer, Seconds: x.Took.Seconds(),
			Profiles: profileNames(x), Damaged: x.Damaged, EveryID: x.EveryID}
		if len(x.Fits) > 0 && x.Fits[0].Point != nil {
			row.Point, row.Value, row.Measure = x.Fits[0].Point.Name, x.Fits[0].Value.Float(), x.Fits[0].Point.Unit
		}
		out.Units = append(out.Units, row)
	}
	return printJSON(r.e, "scan", out)
}

// block is the piece of a device map for what was found: the bus at the setting
// at which most units answer, and a device for each unit whose model is certain.
func (r *scanReport) block() string {
	if len(r.units) == 0 {
		return ""
	}
	best := r.bestSetting()
	var b strings.Builder
	fmt.Fprintf(&b, "# add to %s:\n", r.flags.config)
	bus := r.busBlock(&b, best)
	have := r.existing()
	own := have != nil && have.Own
	for _, x := range r.units {
		switch {
		case x.Setting != best && r.seenAt(best, x.Unit): // parity does not matter to everyone
		case x.Setting != best:
			fmt.Fprintf(&b, "# unit %d answers at %s: a bus has one setting, give it %s first\n", x.Unit, r.at(x.Setting), r.at(best))
		case x.Damaged:
			fmt.Fprintf(&b, "# unit %d: give each of the two a number of its own\n", x.Unit)
		case r.known(bus, x.Unit) != "":
			fmt.Fprintf(&b, "# unit %d is there already: device `%s`\n", x.Unit, r.known(bus, x.Unit))
		case own:
			fmt.Fprintf(&b, "# unit %d: this wire is that of device `%s` alone; give it a [bus.NAME] for both\n", x.Unit, bus)
		case len(x.Fits) == 0:
			fmt.Fprintf(&b, "# unit %d: no profile known; it needs points of its own\n", x.Unit)
		case len(x.Fits) > 1:
			fmt.Fprintf(&b, "# unit %d: %s; which, its type plate says\n", x.Unit, strings.Join(profileNames(x), " or "))
		default:
			fmt.Fprintf(&b, "[device.%s]\nbus     = %q\nunit_id = %d\nprofile = %q\n", r.deviceName(x, bus), bus, x.Unit, x.Fits[0].Profile.Name)
		}
	}
	return b.String()
}

// seenAt says that a unit was found at a setting.
func (r *scanReport) seenAt(s modbus.Setting, unit uint8) bool {
	return slices.ContainsFunc(r.units, func(x modbus.Sighting) bool { return x.Setting == s && x.Unit == unit })
}

// bestSetting is the setting of most units; of equals the first.
func (r *scanReport) bestSetting() modbus.Setting {
	count := map[modbus.Setting]int{}
	best := r.units[0].Setting
	for _, x := range r.units {
		count[x.Setting]++
	}
	for _, x := range r.units {
		if count[x.Setting] > count[best] {
			best = x.Setting
		}
	}
	return best
}

// busBlock writes the bus, unless the device map has it, and gives its name.
func (r *scanReport) busBlock(b *strings.Builder, s modbus.Setting) string {
	if have := r.existing(); have != nil {
		if s.Baud != 0 && (s.Baud != have.Baud || s.Format != have.Format()) {
			fmt.Fprintf(b, "# bus `%s` is set to %d %s; what answers needs: baud = %d, format = %q\n", have.Name, have.Baud, have.Format(), s.Baud, s.Format)
		}
		return have.Name
	}
	name := r.busName()
	fmt.Fprintf(b, "[bus.%s]\n", name)
	if r.bus.TCP != "" {
		fmt.Fprintf(b, "tcp = %q\n", r.bus.TCP)
		return name
	}
	fmt.Fprintf(b, "serial = %q\n", r.stablePath())
	if s.Baud != 9600 {
		fmt.Fprintf(b, "baud   = %d\n", s.Baud)
	}
	if s.Format != "8N1" {
		fmt.Fprintf(b, "format = %q\n", s.Format)
	}
	return name
}

// existing is the bus of the device map on this wire, or nil.
func (r *scanReport) existing() *config.Bus {
	if r.cfg == nil {
		return nil
	}
	if r.bus.TCP == "" {
		return r.cfg.Buses[busOn(r.cfg, r.bus.Serial)]
	}
	for _, name := range slices.Sorted(maps.Keys(r.cfg.Buses)) {
		if b := r.cfg.Buses[name]; b.TCP == r.bus.TCP {
			return b
		}
	}
	return nil
}

// stablePath is the link in /dev/serial/by-id to the port, where there is one:
// ttyUSB0 may be another adapter after the next start.
func (r *scanReport) stablePath() string {
	ports, err := port.Ports()
	if err != nil {
		return r.bus.Serial
	}
	for _, p := range ports {
		if r.bus.Serial == "/dev/"+p.TTY {
			return p.Path
		}
	}
	return r.bus.Serial
}

// busName is usb1 for ttyUSB1 and 192-168-1-40 for 192.168.1.40.
func (r *scanReport) busName() string {
	base := "bus"
	if host, _, err := net.SplitHostPort(r.bus.TCP); err == nil {
		base = host
	} else if real, err := filepath.EvalSymlinks(r.bus.Serial); err == nil {
		base = strings.TrimPrefix(strings.ReplaceAll(strings.TrimPrefix(real, "/dev/"), "/", ""), "tty")
	}
	base = strings.Trim(strings.Map(func(c rune) rune {
		switch {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '-', c == '_':
			return c
		case c >= 'A' && c <= 'Z':
			return c + 'a' - 'A'
		}
		return '-'
	}, base), "-")
	if len(base) > 48 || base == "" {
		base = "bus"
	}
	return r.free(base, func(name string) bool { return r.cfg != nil && r.cfg.Buses[name] != nil })
}

// deviceName is sdm630-1 for unit 1 of profile eastron-sdm630.
func (r *scanReport) deviceName(x modbus.Sighting, bus string) string {
	name := x.Fits[0].Profile.Name
	if _, model, ok := strings.Cut(name, "-"); ok && model[0] > '9' {
		name = model
	}
	taken := func(name string) bool { return r.cfg != nil && r.cfg.Devices[name] != nil }
	name = fmt.Sprintf("%s-%d", name, x.Unit)
	if taken(name) {
		name += "-" + bus
	}
	return r.free(name, taken)
}

// free is the name, or the name with the first number from 2 on that is not taken.
func (r *scanReport) free(name string, taken func(string) bool) string {
	try := name
	for n := 2; taken(try); n++ {
		try = fmt.Sprintf("%s-%d", name, n)
	}
	return try
}

// known is the device of the map with that unit on the bus, "" when there is none.
func (r *scanReport) known(bus string, unit uint8) string {
	if r.cfg == nil {
		return ""
	}
	for _, name := range slices.Sorted(maps.Keys(r.cfg.Devices)) {
		if d := r.cfg.Devices[name]; d.Bus == bus && d.UnitID == unit {
			return name
		}
	}
	return ""
}
