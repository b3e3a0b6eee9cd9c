package main

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"busgate/config/report"
	"busgate/devices"
)

const (
	pulseEvery  = 10 * time.Second // or a quarter of the manager's limit
	busPatience = 10 * time.Minute // or three intervals, for a bus whose devices are online
)

// organ is a part of the gateway. alive returns when the part has given a sign
// of life, or says why there is none; a part that is stuck may hold it for ever.
type organ struct {
	name  string
	alive func(context.Context) error
}

// pulse tells the service manager that the gateway lives, after every organ has
// shown that it does: what restarts us is a stuck part, not a stuck main.
type pulse struct {
	log    *slog.Logger
	limit  time.Duration // of the manager; 0: it does not look
	organs []organ
	status func() string // one sentence
	tell   func(string)
	look   func() // at what else is to be seen to at each beat
	silent bool   // the last beat found an organ without a sign of life
}

// newPulse asks the committer, the router, the uplinks and the buses of g.
func newPulse(g *gateway, log *slog.Logger) *pulse {
	t := &turns{fleet: func() ([]devices.BusStatus, []devices.DeviceStatus) { return g.fleet.Status() }, intervals: g.intervals}
	return &pulse{
		log: log, limit: watchdogLimit(), status: g.sentence, tell: func(s string) { tell(log, s) },
		look: func() { besideFlushes(g.store.Stats()) },
		organs: []organ{
			{"the committer of the store", g.storeAlive},
			{"the router of the broker", func(context.Context) error { g.broker.Stats(); return nil }},
			{"the uplinks", func(context.Context) error { g.uplinks.status(); return nil }},
			{"the buses", t.alive},
		},
	}
}

// Run beats until ctx ends. It is the last stage to stop: a long drain is no
// reason to be taken for dead.
func (p *pulse) Run(ctx context.Context) error {
	every := pulseEvery
	if p.limit > 0 {
		every = min(every, p.limit/4)
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if p.beat(ctx) {
			p.tell("WATCHDOG=1\nSTATUS=" + p.status())
		}
		p.look()
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// beat asks every organ in turn. The first that gives no sign is logged once,
// after half of the manager's limit, with what follows.
func (p *pulse) beat(ctx context.Context) bool {
	for _, o := range p.organs {
		quiet := func(why string) {
			p.log.Error(fmt.Sprintf("no sign of life from %s%s: no more pings, so the service manager will restart busgate", o.name, why))
		}
		var late *time.Timer
		if p.limit > 0 && !p.silent {
			late = time.AfterFunc(p.limit/2, func() { quiet(" for " + report.Duration(p.limit/2)) })
		}
		err := o.alive(ctx)
		if late != nil {
			late.Stop()
		}
		if err != nil {
			if !p.silent {
				quiet(" (" + err.Error() + ")")
			}
			p.silent = true
			return false
		}
		if ctx.Err() != nil {
			return false
		}
	}
	p.silent = false
	return true
}

// storeAlive sends an empty transaction through the committer. It writes
// nothing. That the disk refuses is an answer, too, and so is a command of the
// operator (compact, check) for which commits wait.
func (g *gateway) storeAlive(ctx context.Context) error {
	if g.operators.Load() > 0 {
		return nil
	}
	g.store.Append(nil).Wait(ctx)
	return nil
}

// intervals are those of the enabled devices; nil while a reload is at work.
func (g *gateway) intervals() map[string]time.Duration {
	if !g.mu.TryLock() {
		return nil
	}
	defer g.mu.Unlock()
	all := make(map[string]time.Duration, len(g.cfg.Devices))
	for name, d := range g.cfg.Devices {
		all[name] = d.Interval
	}
	return all
}

// sentence is what `systemctl status` shows of the gateway.
func (g *gateway) sentence() string {
	_, list := g.fleet.Status()
	online := 0
	for _, d := range list {
		if d.Online {
			online++
		}
	}
	parts := []string{fmt.Sprintf("%d of %s online", online, count(len(list), "device", "devices"))}
	links := g.uplinks.status()
	waiting := 0
	for _, name := range slices.Sorted(maps.Keys(links)) {
		st := links[name]
		word := "up"
		if !st.Connected() {
			word = "down"
		}
		parts = append(parts, name+" "+word)
		waiting += st.Pending
	}
	if waiting > 0 {
		parts = append(parts, fmt.Sprintf("%d waiting", waiting))
	}
	return strings.Join(parts, ", ")
}

// turns sees whether each bus still takes turns: a device that is online is
// asked once an interval, or else it would be offline by now. So the picture of
// a bus with a device online changes.
type turns struct {
	fleet     func() ([]devices.BusStatus, []devices.DeviceStatus)
	intervals func() map[string]time.Duration // nil: not now
	seen      map[string]picture              // by bus
}

// picture is what was seen of a bus, and since when it has not changed.
type picture struct {
	text  string
	since time.Time
}

func (t *turns) alive(context.Context) error {
	intervals := t.intervals()
	if intervals == nil {
		return nil
	}
	buses, list := t.fleet()
	now := time.Now()
	fresh := make(map[string]picture, len(buses))
	var stuck error
	for _, b := range buses {
		text := fmt.Sprintf("%+v", b)
		patience := time.Duration(0)
		for _, d := range list {
			if d.Bus != b.Name {
				continue
			}
			text += fmt.Sprintf("%+v", d)
			if wait := max(busPatience, time.Duration(3*max(b.Stretch, 1)*float64(intervals[d.Name]))); d.Online && (patience == 0 || wait < patience) {
				patience = wait
			}
		}
		was, known := t.seen[b.Name]
		if !known || was.text != text || patience == 0 {
			was = picture{text: text, since: now}
		}
		fresh[b.Name] = was
		if still := now.Sub(was.since); patience > 0 && still > patience && stuck == nil {
			stuck = fmt.Errorf("bus %s has done nothing for %s", b.Name, report.Duration(still))
		}
	}
	t.seen = fresh
	return stuck
}
