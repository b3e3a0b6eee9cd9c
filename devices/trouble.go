package devices

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"time"

	"busgate/config"
	"busgate/config/report"
)

const (
	provenAfter = 100 * time.Millisecond // a port that lives so long is back
	deadQuick   = 5                      // times a port died sooner: then only every 10 s
	quickDelay  = 10 * time.Second
)

// trouble is what is wrong with a bus as a whole, and when it is opened again.
// The goroutine of the bus owns it.
type trouble struct {
	problem report.Report // Err "" when nothing is
	opened  time.Time
	ever    bool // it was open once
	tries   int  // failed openings in a row
	quick   int  // openings in a row that died within provenAfter
	nextTry time.Time
	losses  []time.Time // in the last hour
	judged  uint64      // requests that the evidence was judged after
	reopens uint64
	fdHigh  uint64 // openings that got a descriptor above 1023
}

// open opens the wire, or waits until it is time to try.
func (b *bus) open(ctx context.Context) {
	if wait := time.Until(b.nextTry); wait > 0 {
		b.turnAway(&Closed{b.problem})
		next := b.nextTry
		if t := b.nextJob(); !t.IsZero() && t.Before(next) {
			next = t
		}
		b.sleep(ctx, next)
		b.expire(time.Now())
		return
	}
	cfgs := make([]*config.Device, len(b.devs))
	for i, d := range b.devs {
		cfgs[i] = d.cfg
	}
	f, err := b.driver.Open(ctx, Wire{Bus: b.cfg, Devices: cfgs, Memory: b.fleet.o.Memory, Log: b.log, Tap: b.tap})
	now := time.Now()
	if err != nil {
		b.tries++
		b.nextTry = now.Add(b.delay())
		if ctx.Err() == nil {
			b.blame(ctx, err)
		}
		return
	}
	b.field, b.opened, b.tries, b.judged = f, now, 0, 0
	if b.ever {
		b.reopens++
	}
	b.ever = true
	for _, d := range b.devs {
		d.restart(now)
	}
	b.collectEvidence(now)
}

// restart asks everything at once, as after the start.
func (d *device) restart(now time.Time) {
	d.resting, d.failed, d.then, d.excused = false, 0, UnitCounts{}, 0
	for _, g := range d.groups {
		g.due, g.phased, g.Plan = now, false, nil
	}
}

// delay is how long to wait before the next opening: serial 1 s to 5 s, TCP
// 0.5 s to 30 s with jitter, and 10 s for a port that opens and dies at once.
func (b *bus) delay() time.Duration {
	if b.quick >= deadQuick {
		return quickDelay
	}
	n := min(max(b.tries-1, 0), 10)
	if b.cfg.TCP == "" {
		return min(time.Second<<n, 5*time.Second)
	}
	d := min(500*time.Millisecond<<n, 30*time.Second)
	return d - time.Duration(rand.Float64()*0.2*float64(d))
}

// down closes the wire after an error and takes the devices offline.
func (b *bus) down(ctx context.Context, err error) {
	now := time.Now()
	b.close()
	if now.Sub(b.opened) < provenAfter {
		b.quick++
	} else {
		b.quick = 0
	}
	b.tries++
	b.nextTry = now.Add(b.delay())
	var offline []*device
	for _, d := range b.devs {
		if d.online {
			d.online = false
			offline = append(offline, d)
		}
	}
	if !b.blame(ctx, err) {
		for _, d := range offline {
			d.tell(ctx)
		}
	}
	b.lost(now)
}

// blame puts an error of the wire on the ladder. It says whether the devices
// were told.
func (b *bus) blame(ctx context.Context, err error) bool {
	r := report.Report{Err: "bus-gone", Text: "the wire failed: " + err.Error()}
	if t, ok := errors.AsType[Trouble](err); ok {
		r.Err, r.Text = t.Word(), t.Text()
	}
	if r.Err == "port-fd" {
		b.fdHigh++
	}
	r.Level = slog.LevelError
	if r.Err == "port-missing" && b.problem.Err == "port-gone" {
		r.Err, r.Text = b.problem.Err, b.problem.Text // it was there: it is still gone
	}
	return b.fail(ctx, r, slog.String("cause", err.Error()))
}

// fail reports a problem of the bus and, on the edges, tells all devices.
func (b *bus) fail(ctx context.Context, r report.Report, attrs ...slog.Attr) bool {
	if b.problem.Err != "" && b.problem.Err != r.Err {
		b.solve(ctx)
	}
	r.Who = "bus " + b.name
	said, edge := b.fleet.o.Ladder.Fail(r, append(attrs, slog.String("bus", b.name))...)
	b.problem = said
	if edge {
		for _, d := range b.devs {
			d.tell(ctx)
		}
	}
	return edge
}

// solve says that the problem of the bus is over.
func (b *bus) solve(ctx context.Context) {
	word := b.problem.Err
	b.problem = report.Report{}
	b.fleet.o.Ladder.Solve(word, "bus "+b.name, func(lasted time.Duration, _ uint64) string {
		return solved(word) + report.Duration(lasted)
	})
	for _, d := range b.devs {
		d.tell(ctx)
	}
}

// solved is the sentence of a recovery, without the time.
func solved(word string) string {
	switch word {
	case "port-gone":
		return "the adapter is back after "
	case "port-missing":
		return "the port is there after "
	case "port-busy":
		return "the port is free again after "
	case "unreachable", "tcp-limit":
		return "connected again after "
	case "bus-silent", "bad-frames":
		return "answers come again after "
	case "overload":
		return "no longer overloaded, after "
	case "damaged":
		return "answers come whole again after "
	case "stray-byte":
		return "no more stray bytes, after "
	case "second-master":
		return "nobody else talks on this bus any more, after "
	}
	return "works again after "
}

// settle judges the evidence of an open bus: is a problem over, or is there one?
func (b *bus) settle(ctx context.Context, now time.Time) {
	c := b.field.Counts()
	b.weigh(ctx, now)
	switch word := b.problem.Err; {
	case word == "" || word == "overload":
	case word == "bus-silent":
		if c.BytesIn > 0 {
			b.solve(ctx)
		}
	case word == "bad-frames" || word == "tcp-limit":
		if c.Good > 0 {
			b.solve(ctx)
		}
	case c.Good > 0 || now.Sub(b.opened) >= provenAfter:
		b.quick = 0
		b.solve(ctx)
	}
	if b.cfg.Serial == "" || b.problem.Err != "" && b.problem.Err != "bus-silent" && b.problem.Err != "bad-frames" {
		return
	}
	if c.Requests == b.judged && b.problem.Err != "" {
		return // said once for each request
	}
	b.judged = c.Requests
	up := now.Sub(b.opened)
	switch {
	case c.BytesIn == 0 && c.Requests >= 3 && up >= silentAfter && b.noneOnline():
		b.fail(ctx, report.Report{Err: "bus-silent", Level: slog.LevelError, Text: fmt.Sprintf(
			"not one byte in %s from %s. Usually A and B swapped, no power, or the wrong port. Try: busgate scan %s",
			seconds(up), units(len(b.devs)), b.name)})
	case c.Good == 0 && c.Bad >= 20:
		b.fail(ctx, report.Report{Err: "bad-frames", Level: slog.LevelError, Text: fmt.Sprintf(
			"bytes arrive but none form a frame (%s of %s bad) at %d %s: baud or format is wrong. Try: busgate scan %s%s",
			report.Count(c.Bad), report.Count(c.Bad+c.Good), b.cfg.Baud, b.cfg.Format(), b.name, kernelCounts(c.UART))})
	}
}

// kernelCounts adds what the driver of the port has seen, where it counts.
func kernelCounts(e UARTErrors) string {
	switch {
	case e.Parity > 0 && e.Parity >= e.Framing:
		return fmt.Sprintf("; the kernel counts %s parity errors", report.Count(e.Parity))
	case e.Framing > 0:
		return fmt.Sprintf("; the kernel counts %s framing errors", report.Count(e.Framing))
	}
	return ""
}

// proven says that the wire carries something: a byte came. TCP is proven by its connection.
func (b *bus) proven() bool {
	return b.cfg.Serial == "" || b.field != nil && b.field.Counts().BytesIn > 0
}

func (b *bus) noneOnline() bool {
	return !slices.ContainsFunc(b.devs, func(d *device) bool { return d.online })
}

// lost counts how often an adapter went.
func (b *bus) lost(now time.Time) {
	if b.problem.Err != "port-gone" {
		return
	}
	b.losses = slices.DeleteFunc(b.losses, func(t time.Time) bool { return now.Sub(t) > time.Hour })
	if len(b.losses) < 1000 {
		b.losses = append(b.losses, now)
	}
	if n := len(b.losses); n > 3 {
		b.fleet.o.Ladder.Fail(report.Report{Err: "port-flapping", Level: slog.LevelWarn, Who: "bus " + b.name,
			Text: fmt.Sprintf("the adapter was lost %d times in an hour: weak supply or cable?", n)}, slog.String("bus", b.name))
	}
}

func seconds(d time.Duration) string {
	if d < 2*time.Minute {
		return fmt.Sprintf("%d s", int(d.Seconds()))
	}
	return report.Duration(d)
}

func units(n int) string {
	if n == 1 {
		return "1 unit"
	}
	return fmt.Sprintf("%d units", n)
}
