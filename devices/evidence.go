package devices

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"busgate/config/report"
)

// What the counters of a bus must show before a cause is named.
const (
	evidenceEvery  = 5 * time.Second // looked at
	evidenceSample = time.Minute     // kept
	evidenceWindow = 60              // samples: an hour
	recentWindow   = 10              // samples: what says that a problem is over

	damagedLeast  = 10
	damagedShare  = 0.01
	damagedOver   = 0.005
	strayLeast    = 5
	strayShare    = 0.10
	intruderLeast = 3 // in ten minutes
	lateLeast     = 3
	lateLook      = 3 * time.Second       // after a timeout: how long is looked for the answer ...
	lateLookEvery = 50 * time.Millisecond // ... this often, so that it is known when it came
	lateAlive     = time.Minute           // who was heard so lately, be it late, is not said to be dead
	lateShare     = 0.01
	silentLeast   = 8 // probes without an answer that make a garbled unit a silent one
)

// evidence is what the counters of an open bus were minute by minute over the
// last hour, and what follows from them: problems of a bus that goes on working.
// The goroutine of the bus owns it.
type evidence struct {
	samples []sample // rising in time, the first at Open
	looked  time.Time
	notes   []report.Report // what is wrong now
	suspect *device         // that did not answer
	alert   time.Time       // until then its answer may still come
}

// sample is the counters at one moment.
type sample struct {
	at    time.Time
	bus   Counts
	units map[string]UnitCounts // by device
}

// noteWords are the problems in evidence.notes, the worst first.
var noteWords = []string{"second-master", "damaged", "stray-byte"}

// sample leaves out what came damaged of a unit and is not yet followed by a good
// answer: that may be two devices with one number.
func (b *bus) sample(now time.Time) sample {
	s := sample{at: now, bus: b.field.Counts(), units: make(map[string]UnitCounts, len(b.devs))}
	for _, d := range b.devs {
		u := b.field.Unit(d.cfg)
		aside := d.excused + less(u.Bad, d.then.Bad)
		u.Bad, s.bus.Bad = less(u.Bad, aside), less(s.bus.Bad, aside)
		s.units[d.cfg.Name] = u
	}
	return s
}

// mayComeLate has the bus look for the answer of a device that gave none.
func (b *bus) mayComeLate(d *device) {
	if b.cfg.TCP == "" && len(d.groups) > 0 {
		b.suspect, b.alert = d, time.Now().Add(lateLook)
	}
}

// lookForLate looks whether that answer has come. next is when to look again, or until.
func (b *bus) lookForLate(now, until time.Time) (next time.Time) {
	if !now.Before(b.alert) || !slices.Contains(b.devs, b.suspect) {
		return until
	}
	b.field.Wait(&b.suspect.groups[0].Group)
	if at := now.Add(lateLookEvery); at.Before(until) {
		return at
	}
	return until
}

// collectEvidence begins anew with a wire that was just opened.
func (b *bus) collectEvidence(now time.Time) {
	b.samples, b.looked = append(b.samples[:0], b.sample(now)), now
}

// weigh looks at the evidence now and then.
func (b *bus) weigh(ctx context.Context, now time.Time) {
	if len(b.samples) == 0 || now.Sub(b.looked) < evidenceEvery {
		return
	}
	b.looked = now
	s := b.sample(now)
	if now.Sub(b.samples[len(b.samples)-1].at) >= evidenceSample {
		b.samples = append(b.samples, s)
		if len(b.samples) > evidenceWindow+1 {
			b.samples = slices.Delete(b.samples, 0, len(b.samples)-evidenceWindow-1)
		}
	}
	hour, recent := b.samples[0], b.samples[max(0, len(b.samples)-1-recentWindow)]
	b.weighIntruders(ctx, &recent, &s)
	if b.cfg.Protocol == "modbus-rtu" || b.cfg.Protocol == "modbus-ascii" {
		b.weighDamage(ctx, &hour, &recent, &s)
		b.weighStray(ctx, &hour, &recent, &s)
	}
	for _, d := range b.devs {
		if d.online {
			d.weighLate(ctx, &hour, &recent, &s)
		}
	}
}

// weighDamage names the wiring when answers come damaged now and then.
func (b *bus) weighDamage(ctx context.Context, hour, recent, s *sample) {
	all, last := b.answers(hour, s), b.answers(recent, s)
	bad, good := all.Bad, all.Good
	now, was := last.Bad, last.Good
	if float64(now) <= damagedOver*float64(now+was) && now+was >= 20 {
		b.unnote(ctx, "damaged")
		return
	}
	if bad < damagedLeast || good == 0 || float64(bad) <= damagedShare*float64(bad+good) {
		return
	}
	b.note(ctx, report.Report{Err: "damaged", Level: slog.LevelWarn, Text: fmt.Sprintf(
		"%.1f %% of answers damaged in the last %s (%s of %s)%s. Wiring: 120 Ω at both ends only, twisted pair, common ground, "+
			"away from motor cables. Values are not affected: damaged answers are thrown away and asked again",
		100*float64(bad)/float64(bad+good), span(s.at.Sub(hour.at)), report.Count(bad), report.Count(bad+good), b.mostly(hour, s, all))})
}

// answers counts those between two samples. A unit whose answers are mostly
// damaged while others' are not has a fault of its own.
func (b *bus) answers(from, to *sample) Share {
	all := Share{to.bus.Good - from.bus.Good, less(to.bus.Bad, from.bus.Bad)}
	for _, d := range b.devs {
		was, is := from.units[d.cfg.Name], to.units[d.cfg.Name]
		if own := (Share{is.Good - was.Good, less(is.Bad, was.Bad)}); own.Bad > own.Good && all.Good > own.Good {
			all = Share{all.Good - own.Good, less(all.Bad, own.Bad)}
		}
	}
	return all
}

// mostly says whose answers suffer, as far as the numbers show it: one unit with
// more than half of them, or the longer half, and with more than twice the share
// of the rest.
func (b *bus) mostly(hour, s *sample, all Share) string {
	var parts []string
	if len(b.devs) > 1 {
		for _, d := range b.devs {
			was, is := hour.units[d.cfg.Name], s.units[d.cfg.Name]
			own := Share{is.Good - was.Good, less(is.Bad, was.Bad)}
			rest := Share{less(all.Good, own.Good), less(all.Bad, own.Bad)}
			if 2*own.Bad > all.Bad && oftener(own, rest) {
				parts = append(parts, fmt.Sprintf("mostly unit %d", d.cfg.UnitID))
			}
		}
	}
	if longer(hour.bus.Sizes, s.bus.Sizes) {
		word := "the long ones"
		if parts == nil {
			word = "mostly the long ones"
		}
		parts = append(parts, word)
	}
	if parts == nil {
		return ""
	}
	return ", " + strings.Join(parts, ", ")
}

// longer says that the longer half of the answers is damaged more than twice as
// often as the shorter half.
func longer(from, to [6]Share) bool {
	var all uint64
	var each [6]Share
	for i := range to {
		each[i] = Share{to[i].Good - from[i].Good, to[i].Bad - from[i].Bad}
		all += each[i].Good + each[i].Bad
	}
	var short, long Share
	seen := uint64(0)
	for _, e := range each {
		half, n := &short, e.Good+e.Bad
		if 2*seen+n > all { // its middle lies beyond that of all
			half = &long
		}
		seen += n
		half.Good += e.Good
		half.Bad += e.Bad
	}
	return oftener(long, short)
}

// oftener says that a is damaged more than twice as often as b.
func oftener(a, b Share) bool {
	return a.Bad > 0 && b.Good+b.Bad > 0 && float64(a.Bad)*float64(b.Good+b.Bad) > 2*float64(b.Bad)*float64(a.Good+a.Bad)
}

// weighStray names missing bias when a byte stands before many answers.
func (b *bus) weighStray(ctx context.Context, hour, recent, s *sample) {
	n, good := s.bus.Stray-hour.bus.Stray, s.bus.Good-hour.bus.Good
	if s.bus.Stray == recent.bus.Stray && s.bus.Good-recent.bus.Good >= 20 {
		b.unnote(ctx, "stray-byte")
		return
	}
	if n < strayLeast || float64(n) < strayShare*float64(good) {
		return
	}
	b.note(ctx, report.Report{Err: "stray-byte", Level: slog.LevelWarn, Text: fmt.Sprintf(
		"a stray byte %02X stands before the answers (accepted without it). The idle line floats: bias resistors are missing, or there is termination without bias",
		s.bus.StrayByte)})
}

// weighIntruders names a second master.
func (b *bus) weighIntruders(ctx context.Context, recent, s *sample) {
	switch n := s.bus.Intruders - recent.bus.Intruders; {
	case n == 0 && s.at.Sub(recent.at) >= recentWindow*evidenceSample:
		b.unnote(ctx, "second-master")
	case n >= intruderLeast:
		what := fmt.Sprintf("an answer of unit %d that we did not ask for", s.bus.Intruder.Unit)
		if s.bus.Intruder.Request {
			what = fmt.Sprintf("a request to unit %d that is not ours", s.bus.Intruder.Unit)
		}
		b.note(ctx, report.Report{Err: "second-master", Level: slog.LevelError, Text: fmt.Sprintf(
			"somebody else talks on this bus (%s). RS-485 allows one master. See who: busgate monitor %s --listen-only", what, b.name)})
	}
}

// weighLate names a timeout that is too short for a device that answers.
func (d *device) weighLate(ctx context.Context, hour, recent, s *sample) {
	f, ok := d.lateness(hour, s)
	switch {
	case ok && s.units[d.cfg.Name].TooLate > recent.units[d.cfg.Name].TooLate:
		r, edge := d.fail(f)
		d.problems[f.Err] = problem{report: r}
		if edge {
			d.tell(ctx)
		}
	case s.units[d.cfg.Name].TooLate == recent.units[d.cfg.Name].TooLate && s.at.Sub(recent.at) >= evidenceSample:
		d.inTime(ctx)
	}
}

// inTime says that the answers of a device come in time again.
func (d *device) inTime(ctx context.Context) {
	if _, ok := d.problems["late"]; !ok {
		return
	}
	delete(d.problems, "late")
	d.bus.fleet.o.Ladder.Solve("late", d.who(), func(lasted time.Duration, _ uint64) string {
		return "answers in time again after " + report.Duration(lasted)
	})
	d.tell(ctx)
}

// lateness is what is said of a device whose answers come after twice the timeout.
func (d *device) lateness(from, to *sample) (f Finding, ok bool) {
	a, b := from.units[d.cfg.Name], to.units[d.cfg.Name]
	n, asked := b.TooLate-a.TooLate, b.Requests-a.Requests
	if n < lateLeast || float64(n) <= lateShare*float64(asked) {
		return f, false
	}
	return Finding{Err: "late", Level: slog.LevelWarn, Text: fmt.Sprintf(
		"answers after %s, later than timeout = %s allows (%d in %s). Give it timeout = %q",
		secondsText(b.Latest), timeText(d.bus.cfg.Timeout), n, anHour(to.at.Sub(from.at)), timeText(enough(b.Latest)))}, true
}

// lateNow is lateness for a device that seems to be dead: it answers, but nobody
// waits for so long.
func (d *device) lateNow() (f Finding, ok bool) {
	e := &d.bus.evidence
	if len(e.samples) == 0 || d.bus.field == nil {
		return f, false
	}
	s := d.bus.sample(time.Now())
	if _, ok := d.lateness(&e.samples[max(0, len(e.samples)-2)], &s); !ok {
		return f, false // not of late
	}
	return d.lateness(&e.samples[0], &s)
}

// heardLate says that a device which gives no answer in time was heard lately.
func (d *device) heardLate() bool {
	if d.bus.field == nil {
		return false
	}
	heard := d.bus.field.Unit(d.cfg).Heard
	return heard.After(d.good) && time.Since(heard) < lateAlive
}

// enough is a round timeout in which an answer that took d comes for certain.
func enough(d time.Duration) time.Duration {
	for _, t := range []time.Duration{1, 2, 3, 5, 10, 20, 30} {
		if t*time.Second >= d*3/2 {
			return t * time.Second
		}
	}
	return time.Minute
}

// timeText is a duration as the configuration writes it: 500ms, 2s.
func timeText(d time.Duration) string {
	if d%time.Minute == 0 {
		return fmt.Sprintf("%dm", d/time.Minute)
	}
	return d.String()
}

// note puts a problem of a bus that goes on working on the ladder and, when it is
// new and on the edges, tells all devices.
func (b *bus) note(ctx context.Context, r report.Report) {
	r.Who = "bus " + b.name
	said, edge := b.fleet.o.Ladder.Fail(r, slog.String("bus", b.name))
	n := len(b.notes)
	b.notes = append(slices.DeleteFunc(b.notes, func(n report.Report) bool { return n.Err == r.Err }), said)
	fresh := len(b.notes) > n
	slices.SortFunc(b.notes, func(x, y report.Report) int {
		return slices.Index(noteWords, x.Err) - slices.Index(noteWords, y.Err)
	})
	if edge || fresh {
		b.fleet.alarm(b.name, said, true)
		for _, d := range b.devs {
			d.tell(ctx)
		}
	}
}

// unnote says that a problem of the bus is over.
func (b *bus) unnote(ctx context.Context, word string) {
	n := len(b.notes)
	b.notes = slices.DeleteFunc(b.notes, func(r report.Report) bool { return r.Err == word })
	if len(b.notes) == n {
		return
	}
	b.fleet.o.Ladder.Solve(word, "bus "+b.name, func(lasted time.Duration, _ uint64) string {
		return solved(word) + report.Duration(lasted)
	})
	b.fleet.alarm(b.name, report.Report{Err: word}, false)
	for _, d := range b.devs {
		d.tell(ctx)
	}
}

// noted is the worst problem of the bus of at least that level.
func (e *evidence) noted(least slog.Level) (report.Report, bool) {
	for _, r := range e.notes {
		if r.Level >= least {
			return r, true
		}
	}
	return report.Report{}, false
}

// less is a - b, and 0 where b is more: what was excused later than it was counted.
func less(a, b uint64) uint64 { return a - min(a, b) }

// span is "hour", or how long it has been when that is less.
func span(d time.Duration) string {
	if d >= time.Hour-evidenceSample {
		return "hour"
	}
	return seconds(d)
}

// anHour is "an hour", or how long it has been when that is less.
func anHour(d time.Duration) string {
	if span(d) == "hour" {
		return "an hour"
	}
	return seconds(d)
}
