package main

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"busgate/cmd/busgate/console"
	"busgate/config"
	"busgate/config/report"
	"busgate/embeddedbroker"
)

// newConsole makes the console of the gateway. It is opened when the other rooms
// are, and shows them by functions only.
func (g *gateway) newConsole(cfg *config.Config, o gatewayOptions) *console.Console {
	t := &turns{fleet: g.fleet.Status, intervals: g.intervals}
	return console.New(cfg.Web, console.Options{
		Log: g.log, Ladder: g.ladder, Listener: o.web,
		Status: func() console.Status { s := g.status(); return s.shown() }, Metrics: g.metrics,
		Rooms: []console.Room{
			{Name: "buffer", Alive: g.storeAlive},
			{Name: "broker", Alive: func(context.Context) error { g.broker.Stats(); return nil }},
			{Name: "bridge", Alive: func(context.Context) error { g.bridge.Birth(); g.bridge.Stats(); return nil }}, // takes the locks of all its devices and of its commands
			{Name: "devices", Alive: t.alive},
		},
		Users: func(path string) (console.Users, error) {
			u, err := embeddedbroker.LoadUsers(path)
			if err != nil {
				return nil, err
			}
			return u, nil
		},
	})
}

// shown is the status as the console shows it.
func (s *gatewayStatus) shown() console.Status {
	c := console.Status{Gateway: s.Gateway, About: s.about(), Summary: s.sentence()}
	for _, t := range s.tables() {
		c.Tables = append(c.Tables, console.Table(t))
	}
	return c
}

// about is what runs, since when.
func (s *gatewayStatus) about() string {
	return fmt.Sprintf("busgate %s  up %s  clock %s  %s on the broker", s.Version, report.Duration(sec(s.Uptime)), s.Clock, count(s.Clients, "client", "clients"))
}

// reloads counts the reloads of a gateway.
type reloads struct{ ok, refused atomic.Uint64 }

// maxWords bounds the words of reports that are counted; more are "other".
const maxWords = 128

// reports counts, on their way to the log, the failures that were said: those are
// warnings and errors with a stable word in the attribute err.
type reports struct {
	slog.Handler
	said *said
}

type said struct {
	mu sync.Mutex
	by map[string]uint64
}

func countReports(log *slog.Logger) (*slog.Logger, *said) {
	s := &said{by: map[string]uint64{}}
	return slog.New(reports{log.Handler(), s}), s
}

// Enabled lets failures through that the log leaves out, for Handle to count.
func (r reports) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelWarn || r.Handler.Enabled(ctx, l)
}

func (r reports) Handle(ctx context.Context, rec slog.Record) error {
	if rec.Level >= slog.LevelWarn {
		rec.Attrs(func(a slog.Attr) bool {
			if a.Key == "err" && a.Value.Kind() == slog.KindString {
				r.said.note(a.Value.String())
			}
			return true
		})
	}
	if !r.Handler.Enabled(ctx, rec.Level) {
		return nil
	}
	return r.Handler.Handle(ctx, rec)
}

func (r reports) WithAttrs(attrs []slog.Attr) slog.Handler {
	return reports{r.Handler.WithAttrs(attrs), r.said}
}

func (r reports) WithGroup(name string) slog.Handler {
	return reports{r.Handler.WithGroup(name), r.said}
}

func (s *said) note(word string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.by[word]; !known && (len(s.by) >= maxWords || !stable(word)) {
		word = "other"
	}
	s.by[word]++
}

// stable tells a word like no-answer from the text of an error.
func stable(word string) bool {
	for _, c := range []byte(word) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return word != "" && len(word) <= 40
}
