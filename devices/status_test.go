package devices

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"busgate/config"
	"busgate/config/report"
)

func TestErrorsOfTheLastHour(t *testing.T) {
	var h hourly
	for _, step := range []struct {
		at    time.Duration
		total uint64
		want  uint64
	}{
		{0, 0, 0},
		{time.Second, 3, 3},
		{59 * time.Second, 5, 5},
		{30 * time.Minute, 6, 6},
		{59*time.Minute + 59*time.Second, 6, 6},
		{60 * time.Minute, 7, 2}, // those of the first minute are out
		{89 * time.Minute, 7, 2},
		{90 * time.Minute, 7, 1},
		{48 * time.Hour, 7, 0}, // nobody looked for two days
		{48 * time.Hour, 9, 2},
	} {
		if got := h.lastHour(step.at, step.total); got != step.want {
			t.Errorf("at %v with %d in all: %d, want %d", step.at, step.total, got, step.want)
		}
	}
}

// One topic serves the alerts of all buses: it is empty only when all are well.
func TestAlertStandsAsLongAsOneBusHasIt(t *testing.T) {
	var said []string
	f, err := New(&config.Config{}, nil, Options{Alert: func(r report.Report) {
		said = append(said, strings.TrimSpace(fmt.Sprintf("%s %v %s", r.Err, r.Solved, r.Text)))
	}})
	if err != nil {
		t.Fatal(err)
	}
	second := func(bus string) report.Report {
		return report.Report{Err: "second-master", Who: "bus " + bus, Text: "somebody"}
	}
	f.alarm("b", second("b"), false) // never stood
	f.alarm("a", report.Report{Err: "damaged", Who: "bus a"}, true)
	f.alarm("a", second("a"), true)
	f.alarm("b", second("b"), true)
	f.alarm("a", report.Report{Err: "second-master"}, false)
	f.alarm("a", report.Report{Err: "second-master"}, false)
	f.alarm("b", report.Report{Err: "second-master"}, false)
	want := []string{"second-master false bus a: somebody", "second-master false bus b: somebody", "second-master false bus b: somebody", "second-master true"}
	if !slices.Equal(said, want) {
		t.Errorf("said %q, want %q", said, want)
	}
}

// TestPollTimes: a bound belongs to its class, and a poll without the bus to none.
func TestPollTimes(t *testing.T) {
	var p PollTimes
	for _, d := range []time.Duration{0, 1, 5 * time.Millisecond, 5*time.Millisecond + 1, 5 * time.Second, 5*time.Second + 1, time.Hour} {
		p.note(d)
	}
	if p.Counts != [11]uint64{2, 1, 0, 0, 0, 0, 0, 0, 0, 1, 2} || p.Sum != time.Hour+10*time.Second+10*time.Millisecond+3 {
		t.Errorf("%v", p)
	}
}
