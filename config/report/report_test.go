package report

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func newTestLadder() (*Ladder, *bytes.Buffer) {
	var b bytes.Buffer
	return NewLadder(slog.New(slog.NewTextHandler(&b, nil))), &b
}

func lines(b *bytes.Buffer) int { return strings.Count(b.String(), "\n") }

func lasted(time.Duration, uint64) string { return "answers again" }

func TestLadder(t *testing.T) {
	dead := Report{Err: "no-answer", Who: "device pumps", Level: slog.LevelWarn, Text: "no answer"}

	t.Run("a device dead for a day costs 5 lines and its recovery one", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l, b := newTestLadder()
			for range 24*360 + 1 { // every 10 s, both ends included
				l.Fail(dead)
				time.Sleep(10 * time.Second)
			}
			if n := lines(b); n != 5 { // at once, 1 min, 10 min, 1 h, 1 d
				t.Errorf("%d lines, want 5:\n%s", n, b)
			}
			if r, ok := l.Solve("no-answer", "device pumps", lasted); !ok || r.Count != 24*360+1 {
				t.Errorf("solved %v with count %d", ok, r.Count)
			}
			if n := lines(b); n != 6 {
				t.Errorf("%d lines after the recovery, want 6", n)
			}
		})
	})
	t.Run("a device that comes and goes each 30 s for an hour stays below 12 lines", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l, b := newTestLadder()
			for range 120 {
				l.Fail(dead)
				time.Sleep(15 * time.Second)
				l.Solve("no-answer", "device pumps", lasted)
				time.Sleep(15 * time.Second)
			}
			if n := lines(b); n > 12 || n < 4 {
				t.Errorf("%d lines:\n%s", n, b)
			}
		})
	})
	t.Run("a failure that returns and lasts is said within a minute", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l, b := newTestLadder()
			for range 12 * 6 { // 12 minutes: the next step is at 1 h
				l.Fail(dead)
				time.Sleep(10 * time.Second)
			}
			l.Solve("no-answer", "device pumps", lasted)
			before := lines(b)
			time.Sleep(time.Second)
			for range 7 {
				l.Fail(dead)
				time.Sleep(10 * time.Second)
			}
			if n := lines(b) - before; n != 1 {
				t.Errorf("%d lines, want 1", n)
			}
		})
	})
	t.Run("what was never wrong is not solved", func(t *testing.T) {
		l, b := newTestLadder()
		if _, ok := l.Solve("no-answer", "device pumps", lasted); ok || lines(b) != 0 {
			t.Error("solved something")
		}
	})
	t.Run("the table is bounded and solved entries go first", func(t *testing.T) {
		l := NewLadder(nil)
		l.Fail(Report{Err: "a", Who: "first"})
		l.Fail(Report{Err: "a", Who: "second"})
		l.Solve("a", "second", lasted)
		for i := range maxEntries - 1 {
			l.Fail(Report{Err: "b", Who: Count(i)})
		}
		if len(l.entries) != maxEntries || l.Forgotten() != 1 || !l.Lasts("a", "first") || l.Lasts("a", "second") {
			t.Errorf("%d entries, %d forgotten", len(l.entries), l.Forgotten())
		}
	})
}

func TestLine(t *testing.T) {
	for in, want := range map[string]string{
		"a\nERROR forged":        "a ERROR forged",
		"bell \a esc \x1b[31m":   "bell   esc  [31m",
		"bad \xff utf-8":         "bad ? utf-8",
		"line\u2028separator":    "line separator",
		strings.Repeat("é", 300): strings.Repeat("é", 254) + "…",
	} {
		if got := Line(in); got != want {
			t.Errorf("Line(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzLine(f *testing.F) {
	f.Add("a\r\nb")
	f.Fuzz(func(t *testing.T, s string) {
		for _, out := range []string{Line(s), Line(Name(s))} {
			if len(out) > maxText || strings.ContainsAny(out, "\r\n\x00\x1b") {
				t.Errorf("Line(%q) = %q", s, out)
			}
		}
	})
}

func TestWords(t *testing.T) {
	for d, want := range map[time.Duration]string{
		400 * time.Millisecond:         "400ms",
		4 * time.Second:                "4s",
		3*time.Minute + 12*time.Second: "3m12s",
		12 * time.Minute:               "12m",
		5*time.Hour + 2*time.Minute:    "5h02m",
		76 * time.Hour:                 "3d04h",
	} {
		if got := Duration(d); got != want {
			t.Errorf("Duration(%v) = %q, want %q", d, got, want)
		}
	}
	for n, want := range map[int]string{0: "0", 999: "999", 1204: "1 204", -4310: "-4 310", 1234567: "1 234 567"} {
		if got := Count(n); got != want {
			t.Errorf("Count(%d) = %q, want %q", n, got, want)
		}
	}
}
