package devices

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"time"

	"busgate/config"
	"busgate/config/report"
)

// device is the state of one device; the goroutine of its bus owns it.
type device struct {
	cfg    *config.Device
	bus    *bus
	groups []*group
	seq    uint64

	online  bool
	failed  int       // rounds without any answer, in a row
	resting bool      // quarantine: only probes
	since   time.Time // ... since
	probeAt time.Time
	delay   time.Duration // before the next probe
	missed  uint64        // rounds not asked while resting
	last    Answer        // of the newest failed round
	good    time.Time     // newest answer
	then    UnitCounts    // of this wire, when that came
	excused uint64        // damaged answers that say nothing of the wiring: two devices with one number

	problems map[string]problem // what is wrong now, by stable word
	told     string             // word of the report that Health carried last
	safes    []safe

	rounds, failures, rangeErrors, enumUnknown, rounded uint64
	lastError                                           string
	counts                                              UnitCounts
}

// problem is a finding that lasts, and the group that shows it.
type problem struct {
	report report.Report
	group  *group
}

// group is a poll group in the schedule.
type group struct {
	Group
	dev     *device
	period  time.Duration
	due     time.Time
	phased  bool // the phase of its hash is set
	urgent  bool // a refresh was asked for
	missed  uint64
	used    time.Duration // of the bus, in the running window
	ran     int           // rounds in the running window
	perTurn time.Duration // of the bus for one round, as last measured
}

func newDevice(b *bus, cfg *config.Device, now time.Time) *device {
	d := &device{cfg: cfg, bus: b, problems: map[string]problem{}}
	d.regroup(now)
	return d
}

// regroup makes the poll groups: the points with the same interval. A group
// that was there before keeps its turn.
func (d *device) regroup(now time.Time) {
	old := d.groups
	d.groups = nil
	for i := range d.cfg.Points {
		interval := d.cfg.Points[i].Interval
		if interval <= 0 {
			interval = d.cfg.Interval
		}
		at := slices.IndexFunc(d.groups, func(g *group) bool { return g.Interval == interval })
		if at < 0 {
			at = len(d.groups)
			g := &group{Group: Group{Device: d.cfg, Interval: interval}, dev: d, period: max(interval, time.Millisecond), due: now}
			if k := slices.IndexFunc(old, func(o *group) bool { return o.Interval == interval }); k >= 0 {
				g.due, g.phased, g.missed, g.perTurn = old[k].due, old[k].phased, old[k].missed, old[k].perTurn
			}
			d.groups = append(d.groups, g)
		}
		d.groups[at].Points = append(d.groups[at].Points, i)
	}
	d.resetSafes(now)
}

// become takes over a changed configuration. It is false when the device is
// another one now: another unit, profile or nature.
func (d *device) become(cfg *config.Device, now time.Time) bool {
	if reflect.DeepEqual(d.cfg, cfg) {
		return true
	}
	if d.cfg.UnitID != cfg.UnitID || d.cfg.Profile != cfg.Profile || !reflect.DeepEqual(d.cfg.Frame, cfg.Frame) {
		return false
	}
	d.cfg = cfg
	d.regroup(now)
	for word, p := range d.problems {
		if p.group != nil { // a round of the new group solves it, or finds it again
			k := slices.IndexFunc(d.groups, func(g *group) bool { return g.Interval == p.group.Interval })
			d.problems[word] = problem{p.report, d.groups[max(k, 0)]}
		}
	}
	return true
}

// phase is where in its period a device is asked, so that many devices of one
// interval do not all come at once.
func (g *group) phase() time.Duration {
	h := fnv.New64a()
	h.Write([]byte(g.Device.Name))
	return time.Duration(h.Sum64() % uint64(g.period))
}

// next sets the next turn. A missed one is counted, never made up for.
func (g *group) next(now time.Time, stretch float64, epoch time.Time) {
	period := time.Duration(float64(g.period) * stretch)
	if !g.phased {
		g.phased = true
		into := now.Sub(epoch) % g.period
		g.due = now.Add((g.phase() - into + g.period - 1) % g.period).Add(1)
		return
	}
	due := g.due.Add(period)
	if due.Before(now) {
		g.missed += uint64(now.Sub(g.due) / period)
		due = now
	}
	g.due = due
}

// deadline is when the turn that is due should be over.
func (g *group) deadline(stretch float64) time.Time {
	return g.due.Add(time.Duration(float64(g.period) * stretch))
}

// took deals with what one poll gave.
func (d *device) took(ctx context.Context, g *group, a Answer) {
	d.rounds++
	if d.bus.field.Unit(d.cfg).Timeouts > d.counts.Timeouts {
		d.bus.mayComeLate(d)
	}
	if !a.Heard {
		d.silent(ctx, g, a)
		return
	}
	now := time.Now()
	d.failed, d.good, d.then = 0, now, d.bus.field.Unit(d.cfg)
	d.seq++
	at := a.At
	if at.IsZero() {
		at = now
	}
	d.count(a)
	d.bus.take(ctx, Round{Device: d.cfg.Name, Seq: d.seq, At: d.bus.fleet.instant(at), Values: a.Values, Errors: a.Errors})
	d.bus.settle(ctx, now)
	said := d.judge(g, a)
	if !d.online {
		d.online = true
		d.solveSilence()
		d.tell(ctx)
		d.writeSafes()
		return
	}
	if said {
		d.tell(ctx)
	}
}

// count notes what is wrong with single points.
func (d *device) count(a Answer) {
	for _, e := range a.Errors {
		d.lastError = e.Text
		if e.Code == "out-of-range" {
			d.rangeErrors++
		}
	}
	for _, r := range a.Values {
		if !r.Value.IsNumber() {
			continue
		}
		if r.Value.Rounded() {
			d.rounded++
		}
		if i := slices.IndexFunc(d.cfg.Points, func(p config.Point) bool { return p.Name == r.Point }); i >= 0 && len(d.cfg.Points[i].Enum) > 0 {
			d.enumUnknown++
		}
	}
}

// judge puts the findings of a round on the ladder and solves those that are
// gone. It says whether the error of the device is to be told (again).
func (d *device) judge(g *group, a Answer) (said bool) {
	found := a.Found
	for _, e := range a.Errors {
		if e.Code == "out-of-range" {
			found = append(found, Finding{Err: "out-of-range", Level: slog.LevelWarn, Text: e.Text})
			break
		}
	}
	for _, f := range found {
		if _, lasts := d.problems[f.Err]; lasts && f.Once {
			continue
		}
		if file, pos, ok := d.bus.fleet.where(f.Key); ok {
			f.Text += fmt.Sprintf(" (%s:%d)", file, pos)
		}
		r, edge := d.fail(f)
		d.problems[f.Err] = problem{r, g}
		said = said || edge
	}
	for word, p := range d.problems {
		if p.group != g || slices.ContainsFunc(found, func(f Finding) bool { return f.Err == word }) {
			continue
		}
		delete(d.problems, word)
		said = true
		d.bus.fleet.o.Ladder.Solve(word, d.who(), func(lasted time.Duration, _ uint64) string {
			return "well again after " + report.Duration(lasted) + " (" + word + ")"
		})
	}
	return said
}

func (d *device) who() string { return "device " + d.cfg.Name }

func (d *device) fail(f Finding) (report.Report, bool) {
	d.lastError = f.Text
	return d.bus.fleet.o.Ladder.Fail(report.Report{Err: f.Err, Level: f.Level, Who: d.who(), Text: f.Text},
		slog.String("bus", d.bus.name), slog.String("device", d.cfg.Name))
}

// silent counts a round without any answer. After offline_after of them the
// device rests, and only probes ask for it.
func (d *device) silent(ctx context.Context, g *group, a Answer) {
	d.failures++
	d.failed++
	d.last = a
	if len(a.Errors) > 0 {
		d.lastError = a.Errors[0].Text
	}
	if d.failed < max(d.cfg.OfflineAfter, 1) || d.resting {
		return
	}
	now := time.Now()
	d.resting, d.since, d.missed = true, now, 0
	d.delay = min(time.Second, d.maxDelay())
	d.probeAt = now.Add(jitter(d.delay))
	d.online = false
	d.complain()
	d.tell(ctx)
}

func (d *device) maxDelay() time.Duration {
	if d.cfg.Backoff > 0 {
		return d.cfg.Backoff
	}
	return time.Minute
}

// jitter is d ± 10 %.
func jitter(d time.Duration) time.Duration {
	return d + time.Duration((rand.Float64()-0.5)*0.2*float64(d))
}

// complain puts the silence on the ladder, unless the whole bus is to blame or
// the evidence is too thin yet.
func (d *device) complain() (said bool) {
	if d.bus.problem.Err != "" || !d.bus.proven() {
		return false
	}
	f := Finding{Err: "no-answer", Level: slog.LevelWarn, Text: d.silenceText()}
	if late, ok := d.lateNow(); ok {
		f = late
	} else if len(d.last.Found) > 0 {
		f = d.last.Found[0]
	} else if errors.Is(d.last.Err, ErrBadFrame) || d.garbled() {
		if d.bus.othersOnline(d) == 0 {
			return false
		}
		d.excuse()
		f.Err, f.Text = "double-unit", fmt.Sprintf("the answers of unit %d are damaged, those of other units are not: do two devices have unit_id %[1]d?", d.cfg.UnitID)
	}
	if f.Err == "no-answer" && d.heardLate() {
		return false
	}
	r, edge := d.fail(f)
	d.problems[f.Err] = problem{report: r}
	return edge
}

// garbled says that what was asked since the last good answer was answered, for
// the most part, and came damaged. Once it is known, some probes without an answer
// say nothing else: a unit with so much open is not even asked for half a minute.
func (d *device) garbled() bool {
	c := d.bus.field.Unit(d.cfg)
	bad, silent := c.Bad-d.then.Bad, c.Timeouts-d.then.Timeouts
	if _, known := d.problems["double-unit"]; known {
		return bad > 0 || silent <= silentLeast
	}
	return bad > silent
}

// excuse takes what came damaged since the last good answer from the evidence
// against the wiring.
func (d *device) excuse() {
	now := d.bus.field.Unit(d.cfg)
	if bad := now.Bad - d.then.Bad; bad > 0 {
		d.excused += bad
		d.then = now
	}
}

func (d *device) silenceText() string {
	t := fmt.Sprintf("unit %d on %s gives no answer (%d rounds, %s each)", d.cfg.UnitID, d.bus.name, d.failed, Tries(d.last.Tries, d.last.Waited))
	others, all := d.bus.othersOnline(d), len(d.bus.devs)-1
	switch {
	case others == 1 && all == 1:
		t += "; the other unit of this bus does"
	case others == 1:
		t += "; 1 other unit of this bus does"
	case others > 1 && others == all:
		t += fmt.Sprintf("; the %d other units of this bus do", others)
	case others > 1:
		t += fmt.Sprintf("; %d other units of this bus do", others)
	}
	t += ". Powered? unit_id right? Asked again "
	if d.delay < d.maxDelay() {
		t += fmt.Sprintf("in %g s, later ", d.delay.Round(100*time.Millisecond).Seconds())
	}
	t += "every " + report.Duration(d.maxDelay())
	if d.good.IsZero() {
		return t + "; no good reading yet"
	}
	return t + "; last good reading " + report.Duration(time.Since(d.good)) + " ago"
}

// probed deals with the end of a probe.
func (d *device) probed(ctx context.Context, err error) {
	now := time.Now()
	if err == nil {
		d.wakeUp(now)
		return
	}
	d.delay = min(2*d.delay, d.maxDelay())
	d.probeAt = now.Add(jitter(d.delay))
	if d.complain() {
		d.tell(ctx)
	}
}

// wakeUp ends the quarantine: its rounds are asked again, at once.
func (d *device) wakeUp(now time.Time) {
	for _, g := range d.groups {
		d.missed += uint64(now.Sub(d.since) / g.period)
		g.due = now
	}
	d.resting, d.failed = false, 0
}

// solveSilence says that the device answers again.
func (d *device) solveSilence() {
	for _, word := range []string{"gateway-path", "no-answer", "no-data", "double-unit"} { // late: see weighLate
		delete(d.problems, word)
		d.bus.fleet.o.Ladder.Solve(word, d.who(), func(lasted time.Duration, _ uint64) string {
			return fmt.Sprintf("answers again after %s (%s rounds missed)", report.Duration(lasted), report.Count(d.missed))
		})
	}
}

// precedence of what the error topic of a device carries; other words come after.
var precedence = []string{"gateway-path", "no-answer", "no-data", "late", "double-unit", "illegal-function", "illegal-address", "device-failure", "out-of-range"}

// worst is the report that the error topic carries: of the bus, else the one
// with the highest precedence.
func (d *device) worst() report.Report {
	if d.bus.problem.Err != "" && d.bus.problem.Level >= slog.LevelError {
		return d.bus.problem
	}
	if r, ok := d.bus.noted(slog.LevelError); ok {
		return r
	}
	for _, word := range precedence {
		if p, ok := d.problems[word]; ok {
			return p.report
		}
	}
	for _, word := range slices.Sorted(maps.Keys(d.problems)) {
		return d.problems[word].report
	}
	if r, ok := d.bus.noted(slog.LevelDebug); ok {
		return r
	}
	return d.bus.problem
}

// tell says how the device is.
func (d *device) tell(ctx context.Context) {
	r := d.worst()
	d.told = r.Err
	d.bus.fleet.sink.Health(ctx, Health{Device: d.cfg.Name, Online: d.online, Report: r})
}
