package main

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
)

func TestLog(t *testing.T) {
	var b bytes.Buffer
	var lv slog.LevelVar
	for _, c := range []struct {
		name    string
		journal bool
		log     func(*slog.Logger)
		want    string
	}{
		{"the text is first and unquoted", true, func(l *slog.Logger) { l.Warn("bus meters: 2 devices offline", "err", "port-gone") }, "<4>WARN bus meters: 2 devices offline err=port-gone\n"},
		{"values with blanks are quoted", true, func(l *slog.Logger) { l.Error("x", "err", errors.New("no route")) }, "<3>ERROR x err=\"no route\"\n"},
		{"a text cannot forge a line", true, func(l *slog.Logger) { l.Info("a\nERROR b", "client", "c\nd") }, "<6>INFO a\\nERROR b client=\"c\\nd\"\n"},
		{"attributes and groups are kept", true, func(l *slog.Logger) { l.With("bus", "a").WithGroup("g").Info("x", "k", 1) }, "<6>INFO x bus=a g.k=1\n"},
		{"below the level nothing", true, func(l *slog.Logger) { l.Debug("x") }, ""},
	} {
		b.Reset()
		c.log(slog.New(&lineHandler{level: &lv, journal: c.journal, out: &lockedWriter{w: &b}}))
		if b.String() != c.want {
			t.Errorf("%s: %q, want %q", c.name, b.String(), c.want)
		}
	}
	b.Reset()
	slog.New(&lineHandler{level: &lv, out: &lockedWriter{w: &b}}).Info("x")
	if s := b.String(); !strings.HasSuffix(s, " INFO x\n") || s[2] != ':' {
		t.Errorf("with its own time: %q", s)
	}
}
