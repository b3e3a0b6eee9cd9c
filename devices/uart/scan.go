package uart

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"busgate/config"
	"busgate/devices"
)

// Scan is a search for the sensor on a line.
type Scan struct {
	Bus      *config.Bus       // its port; speed and format are those of the profiles
	Profiles []*config.Profile // those with a frame and a probe are tried
	Listen   time.Duration     // to each setting
	Log      *slog.Logger

	Begin func(baud int, format string, profiles []string) // before each setting; may be nil
	Found func(Sighting)
}

// Sighting is a sensor that a profile knows: its frame was good, and the point of
// its probe had a value in the probe's range.
type Sighting struct {
	Profile *config.Profile
	Baud    int
	Format  string
	Point   *config.Point
	Value   devices.Value
}

// patient is how long a sensor that is asked has to answer.
const patient = 2 * time.Second

// candidate is a profile that may be on the line, as a device.
type candidate struct {
	profile *config.Profile
	dev     *config.Device
	probe   int  // index of the point
	sure    bool // its frames have a check; a line of text may be anybody's
	found   bool
	value   devices.Value
}

// Scan listens at each setting that a profile says, and then asks as the sensors
// of that setting want to be asked, until one was found whose frames have a check.
// Only requests for values are sent. The error is the context's or a devices.Trouble.
func (d *Driver) Scan(ctx context.Context, s Scan) error {
	for _, group := range settings(s.Profiles) {
		bus := *s.Bus
		bus.Baud, bus.DataBits, bus.Parity, bus.StopBits = line(group[0].profile)
		bus.Timeout = max(bus.Timeout, patient)
		if s.Begin != nil {
			var names []string
			for _, c := range group {
				names = append(names, c.profile.Name)
			}
			s.Begin(bus.Baud, bus.Format(), names)
		}
		if err := d.overhear(ctx, &s, &bus, group); err != nil {
			return err
		}
		for _, c := range group {
			if len(c.dev.Frame.Request) == 0 || certain(group) {
				continue
			}
			if err := d.inquire(ctx, &s, &bus, c); err != nil {
				return err
			}
		}
		for _, c := range group {
			if c.found && (c.sure || !certain(group)) {
				s.Found(Sighting{Profile: c.profile, Baud: bus.Baud, Format: bus.Format(), Point: &c.dev.Points[c.probe], Value: c.value})
			}
		}
		if certain(group) {
			return nil // one sensor has a line for itself
		}
	}
	return nil
}

// certain says that a sensor was found whose frames have a check.
func certain(group []*candidate) bool {
	return slices.ContainsFunc(group, func(c *candidate) bool { return c.found && c.sure })
}

// settings groups the profiles of sensors by speed and format.
func settings(profiles []*config.Profile) (groups [][]*candidate) {
	for _, p := range profiles {
		if p.Frame == nil || p.Probe == nil || p.Probe.Point == "" {
			continue
		}
		c := &candidate{profile: p, dev: &config.Device{Name: p.Name, Frame: p.Frame, Points: p.Points, Interval: time.Second}}
		c.probe = slices.IndexFunc(p.Points, func(q config.Point) bool { return q.Name == p.Probe.Point })
		if _, err := newStation(c.dev); err != nil || c.probe < 0 {
			continue
		}
		switch p.Frame.Kind {
		case "nmea", "p1", "sml":
			c.sure = true
		default:
			c.sure = p.Frame.Check != "" && p.Frame.Check != "none"
		}
		k := slices.IndexFunc(groups, func(g []*candidate) bool { return setting(g[0].profile) == setting(p) })
		if k < 0 {
			k, groups = len(groups), append(groups, nil)
		}
		groups[k] = append(groups[k], c)
	}
	return groups
}

func setting(p *config.Profile) string {
	baud, data, parity, stop := line(p)
	return fmt.Sprint(baud, data, parity, stop)
}

// line is the speed and format that the maker delivers, 9600 8N1 where the
// profile says nothing.
func line(p *config.Profile) (baud, data int, parity byte, stop int) {
	format := cmp.Or(p.Defaults.Format, "8N1")
	return cmp.Or(p.Defaults.Baud, 9600), int(format[0] - '0'), format[1], int(format[2] - '0')
}

// overhear listens for the sensors that talk by themselves, until one was heard
// for certain or the time is over.
func (d *Driver) overhear(ctx context.Context, s *Scan, bus *config.Bus, group []*candidate) error {
	var devs []*config.Device
	for _, c := range group {
		devs = append(devs, c.dev)
	}
	x := NewExplainer(devs)
	part, cancel := context.WithTimeout(ctx, s.Listen)
	defer cancel()
	err := d.Listen(part, devices.Wire{Bus: bus, Devices: devs, Log: s.Log}, func(f devices.Frame) {
		if f.Mark != devices.MarkOK {
			return
		}
		for i, st := range x.stations { // of the same order as group: settings has left out what makes none
			if c := group[i]; !c.found && st.whole(f.Data) {
				v, q, ok, err := st.picks[c.probe](newFrame(st.dev.Frame, f.Data))
				if ok && err == nil && q == devices.Good {
					c.judge(v)
				}
			}
		}
		if certain(group) {
			cancel()
		}
	})
	if part.Err() != nil && ctx.Err() == nil {
		return nil
	}
	return err
}

// inquire asks for a value as a sensor of this kind wants to be asked.
func (d *Driver) inquire(ctx context.Context, s *Scan, bus *config.Bus, c *candidate) error {
	field, err := d.Open(ctx, devices.Wire{Bus: bus, Devices: []*config.Device{c.dev}, Log: s.Log})
	if err != nil {
		return err
	}
	defer field.Close()
	a, err := field.Poll(ctx, &devices.Group{Device: c.dev, Points: []int{c.probe}, Interval: time.Second}, nil)
	if err != nil {
		return err
	}
	for _, r := range a.Values {
		if r.Quality == devices.Good {
			c.judge(r.Value)
		}
	}
	return nil
}

// judge notes the sensor when its value is in the range of the probe.
func (c *candidate) judge(v devices.Value) {
	p := c.profile.Probe
	if f := v.Float(); !v.IsNumber() || p.Min == nil || p.Max == nil || f < *p.Min || f > *p.Max {
		return
	}
	c.found, c.value = true, v
}
