package buffer

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// measured skips what takes minutes and asserts nothing of its own.
func measured(t *testing.T) {
	if os.Getenv("BUSGATE_MEASURE") == "" {
		t.Skip("a measurement of some minutes: BUSGATE_MEASURE=1 go test -v -run Measure ./buffer")
	}
}

// openChild makes the test binary a child of TestMeasureMonth: the path of the
// store that it opens.
const openChild = "BUFFER_TEST_OPEN"

// opened prints how long Open took and what the process occupies then, with the
// newest record taken. It never returns.
func opened(path string) {
	began := time.Now()
	s, err := Open(path, Options{Reserve: -1})
	if err != nil {
		fmt.Println(err)
		os.Exit(3)
	}
	took := time.Since(began)
	st := s.Stats()
	status, _ := os.ReadFile("/proc/self/status")
	rss := "?"
	for line := range bytes.Lines(status) {
		if name, value, _ := strings.Cut(string(line), ":"); name == "VmRSS" {
			rss = strings.TrimSpace(value)
		}
	}
	fmt.Printf("%d records in %d segments: Open %.1f ms, VmRSS %s\n", st.Records, st.Segments, float64(took.Microseconds())/1000, rss)
	s.Close(context.Background())
	os.Exit(0)
}

// TestMeasureMonth lets one round a second wait for 30 days of virtual time,
// committed and joined as in life, and opens what that left in a new process,
// beside an empty store.
func TestMeasureMonth(t *testing.T) {
	measured(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, days := range []int{0, 30} {
		path := temp(t)
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			sys := quiet()
			sys.mono = func() time.Duration { return time.Since(began) + time.Hour }
			s := open(t, path, Options{sys: sys})
			c := consumer(t, s, "up", ConsumerOptions{})
			for i := range days * 24 * 3600 {
				r := reading(i)
				r.To = []ConsumerID{c.ID()}
				s.AppendLazy([]Record{r})
				time.Sleep(time.Second)
			}
			t.Logf("%d days: %d segments, %d rewritten", days, s.Stats().Segments, s.Stats().Rewritten)
			shut(t, s)
		})
		cmd := exec.Command(exe)
		cmd.Env = append(os.Environ(), openChild+"="+path)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		t.Logf("%s", bytes.TrimSpace(out))
	}
}

// BenchmarkMerge is what joining small segments adds to the bytes that a block
// device is asked to write, for ten readings each 10 ms that nobody takes. It
// needs root.
func BenchmarkMerge(b *testing.B) {
	const commits, n = 3000, 10
	written := func(name string, d *disk, many int) float64 {
		sys := machine()
		sys.manySmall = many
		sys.mono = func() time.Duration { return bootTime() * 60 } // old after a second
		s, c := benchStore(b, filepath.Join(d.dir, name), Options{sys: sys})
		rs := batchOf(n, c.ID())
		w0, _ := d.written(b)
		for i := range commits {
			err := s.Append(rs).Wait(bg)
			if i%100 == 0 {
				err = s.Sync(bg) // with its housekeeping, as acknowledgements would cause it
			}
			if err != nil {
				b.Fatal(err)
			}
			time.Sleep(10 * time.Millisecond)
		}
		if err := s.checkpoint("TRUNCATE"); err != nil {
			b.Fatal(err)
		}
		w1, _ := d.written(b)
		b.Logf("%s: %d segments, %d rewritten", name, s.Stats().Segments, s.Stats().Rewritten)
		return float64(w1-w0) / (commits * n)
	}
	d := newDisk(b)
	for b.Loop() {
		without, with := written("without.db", d, 1<<30), written("with.db", d, 64)
		b.ReportMetric(with, "B/msg")
		b.ReportMetric(100*(with/without-1), "%-for-merging")
	}
}
