package devices

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"busgate/config"
	"busgate/config/report"
)

const (
	loadWindow    = time.Minute
	full          = 0.97 // above, all periods are stretched
	relaxed       = 0.90 // below, they are as configured again
	overloadAfter = 5    // windows until it is said
)

// load measures how much of its time a bus needs, U, and stretches all periods
// evenly when that is more than there is.
type load struct {
	end     time.Time // of the running window
	other   time.Duration
	u       float64
	stretch float64 // >= 1
	over    int     // windows in a row above full
}

func newLoad(now time.Time) load { return load{end: now.Add(loadWindow), stretch: 1} }

// measure closes a window: U is what each group took, per period as configured,
// whether or not all its turns came.
func (b *bus) measure(ctx context.Context, now time.Time) {
	l := &b.load
	if now.Before(l.end) {
		return
	}
	u := l.other.Seconds() / loadWindow.Seconds()
	round, fastest := time.Duration(0), (*group)(nil)
	for _, d := range b.devs {
		for _, g := range d.groups {
			each := g.perTurn
			if g.ran > 0 {
				each = g.used / time.Duration(g.ran)
			}
			g.used, g.ran = 0, 0
			if d.resting {
				continue
			}
			round += each
			u += each.Seconds() / g.period.Seconds()
			if fastest == nil || g.period < fastest.period {
				fastest = g
			}
		}
	}
	l.u, l.other, l.end = u, 0, now.Add(loadWindow)
	switch {
	case u > full:
		l.stretch = u / full
		l.over++
	case u < relaxed:
		l.stretch, l.over = 1, 0
		if b.problem.Err == "overload" {
			b.solve(ctx)
		}
	}
	if l.over >= overloadAfter && fastest != nil && (b.problem.Err == "" || b.problem.Err == "overload") {
		b.fail(ctx, report.Report{Err: "overload", Level: slog.LevelWarn, Text: fmt.Sprintf(
			"%s need %s a round, %s asks for %s: all intervals are stretched x%.1f",
			plural(len(b.devs)), secondsText(round), fastest.dev.cfg.Name, secondsText(fastest.period), l.stretch)})
	}
}

func plural(n int) string {
	if n == 1 {
		return "1 device"
	}
	return fmt.Sprintf("%d devices", n)
}

// secondsText is "3.1 s" or "2 s".
func secondsText(d time.Duration) string {
	return fmt.Sprintf("%g s", float64(d.Round(100*time.Millisecond)/(100*time.Millisecond))/10)
}

// Load is what a bus will have to do, from the configuration and from what was
// learned about its devices.
type Load struct {
	Bus      *config.Bus
	Devices  int
	Requests int           // of one round of all devices
	Round    time.Duration // bus time of that
	U        float64       // share of its time that the bus needs; above 1 it cannot
	Fastest  *config.Device
	Interval time.Duration // of its fastest point
	Warning  string        // "" unless U > 1
}

// Loads computes the load of each bus that has devices, in the order of their
// names. A bus without a driver is left out. With the Memory of a Fleet, answer
// times are those that were learned; it may be nil.
func Loads(cfg *config.Config, drivers map[string]Driver, learned Memory) []Load {
	by := map[string]*Load{}
	on := map[string][]*config.Device{}
	for _, name := range slices.Sorted(maps.Keys(cfg.Devices)) {
		if d := cfg.Devices[name]; d.Enabled {
			on[d.Bus] = append(on[d.Bus], d)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(cfg.Devices)) {
		d := cfg.Devices[name]
		bus := cfg.Buses[d.Bus]
		if !d.Enabled || bus == nil || drivers[bus.Protocol] == nil {
			continue
		}
		l := by[d.Bus]
		if l == nil {
			l = &Load{Bus: bus}
			by[d.Bus] = l
		}
		l.Devices++
		for _, g := range (&device{cfg: d}).planned() {
			n, t := drivers[bus.Protocol].Cost(Wire{Bus: bus, Devices: on[d.Bus], Memory: learned}, d, g.Points)
			l.Requests += n
			l.Round += t
			l.U += t.Seconds() / g.period.Seconds()
			if l.Fastest == nil || g.period < l.Interval {
				l.Fastest, l.Interval = d, g.period
			}
		}
	}
	var out []Load
	for _, name := range slices.Sorted(maps.Keys(by)) {
		l := by[name]
		l.Warning = l.warning()
		out = append(out, *l)
	}
	return out
}

// planned is the poll groups of a device that is not running.
func (d *device) planned() []*group {
	d.regroup(time.Time{})
	return d.groups
}

func (l *Load) warning() string {
	if l.U <= 1 {
		return ""
	}
	at := ""
	if l.Bus.Serial != "" {
		at = fmt.Sprintf(" at %d baud", l.Bus.Baud)
	}
	need := "need"
	if l.Devices == 1 {
		need = "needs"
	}
	return fmt.Sprintf("%s %s %s a round on bus `%s`%s; `%s` asks for %s; all intervals will be stretched x%.1f",
		plural(l.Devices), need, secondsText(l.Round), l.Bus.Name, at, l.Fastest.Name, secondsText(l.Interval), l.U/full)
}
