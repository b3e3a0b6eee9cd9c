package main

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"os"
	"strconv"
	"sync"
	"time"
)

// levelTrace prints bytes on the wire.
const levelTrace = slog.LevelDebug - 4

// level maps the words of [gateway] log.
func level(word string) slog.Level {
	switch word {
	case "error":
		return slog.LevelError
	case "warn":
		return slog.LevelWarn
	case "debug":
		return slog.LevelDebug
	case "trace":
		return levelTrace
	}
	return slog.LevelInfo
}

// lineHandler writes one line a record: LEVEL text key=value ... The text comes
// first and unquoted, because people read it. Under the journal, which stamps
// lines itself, a priority stands in front instead of the time (sd-daemon(3)).
type lineHandler struct {
	level   *slog.LevelVar
	journal bool
	attrs   []byte // of With, ready to print
	group   string

	out *lockedWriter
}

type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func newLog(w io.Writer, level *slog.LevelVar) *slog.Logger {
	return slog.New(&lineHandler{level: level, journal: os.Getenv("JOURNAL_STREAM") != "", out: &lockedWriter{w: w}})
}

func (h *lineHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level.Level() }

func (h *lineHandler) Handle(_ context.Context, r slog.Record) error {
	var b bytes.Buffer
	name := r.Level.String()
	if r.Level <= levelTrace {
		name = "TRACE"
	}
	if h.journal {
		b.WriteString(priority(r.Level))
	} else {
		b.WriteString(r.Time.Format(time.TimeOnly) + " ")
	}
	b.WriteString(name)
	b.WriteByte(' ')
	b.WriteString(oneLine(r.Message))
	b.Write(h.attrs)
	r.Attrs(func(a slog.Attr) bool {
		appendAttr(&b, h.group, a)
		return true
	})
	b.WriteByte('\n')
	h.out.mu.Lock()
	defer h.out.mu.Unlock()
	_, err := h.out.w.Write(b.Bytes())
	return err
}

// priority is the level as the journal wants it: syslog(3) numbers.
func priority(l slog.Level) string {
	switch {
	case l >= slog.LevelError:
		return "<3>"
	case l >= slog.LevelWarn:
		return "<4>"
	case l >= slog.LevelInfo:
		return "<6>"
	}
	return "<7>"
}

func (h *lineHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *h
	b := bytes.NewBuffer(bytes.Clone(h.attrs))
	for _, a := range attrs {
		appendAttr(b, h.group, a)
	}
	c.attrs = b.Bytes()
	return &c
}

func (h *lineHandler) WithGroup(name string) slog.Handler {
	c := *h
	c.group += name + "."
	return &c
}

func appendAttr(b *bytes.Buffer, group string, a slog.Attr) {
	v := a.Value.Resolve()
	if v.Kind() == slog.KindGroup {
		if a.Key != "" {
			group += a.Key + "."
		}
		for _, m := range v.Group() {
			appendAttr(b, group, m)
		}
		return
	}
	s := v.String()
	if s == "" && a.Key == "" {
		return
	}
	if needsQuotes(s) {
		s = strconv.Quote(s)
	}
	b.WriteString(" " + group + a.Key + "=" + s)
}

func needsQuotes(s string) bool {
	for _, r := range s {
		if r <= ' ' || r == '"' || r == '=' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return true
		}
	}
	return s == ""
}

// oneLine keeps a hostile text from forging a second line.
func oneLine(s string) string {
	for _, r := range s {
		if r < ' ' || r == 0x7f {
			q := strconv.Quote(s)
			return q[1 : len(q)-1]
		}
	}
	return s
}
