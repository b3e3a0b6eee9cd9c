package main

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	addedFlush   = 10 * time.Millisecond
	idleSettles  = 15 * time.Second // after the last client came
	mostPerIdle  = 12.0             // KiB
	leastOfBound = 0.85
	leastBeside  = 0.9 // of the rate, beside a subscriber that does not read
)

// TestMeasureBrokerSlowFlush: with a flush of 10 ms the rate is to come
// close to a window per flush, which no broker that acknowledges what is on
// disk can pass.
func TestMeasureBrokerSlowFlush(t *testing.T) {
	needMeasure(t)
	bin := measuredProgram(t)
	conditions(t)
	for _, c := range []struct {
		name         string
		pubs, window int
	}{{"1 publisher, window 100", 1, 100}, {"100 publishers, window 1", 100, 1}, {"10 publishers, window 10", 10, 10}} {
		var rates, shares []float64
		perFlush := 0.0
		for range rounds() {
			d := newSlowDisk(t, addedFlush)
			b := startBusgate(t, bin, memoryDir(t), d.launcher()...)
			l := newLoad(t, b.port, traffic{pubs: c.pubs, subs: 1, qos: 1, window: c.window, durable: true})
			d.reset()
			f := l.run(t, loadCore, measureWarm, measureSpan, b.cpu(t))
			added, flushes := d.mean()
			rates = append(rates, f.rate())
			shares = append(shares, f.rate()*added.Seconds()/float64(c.pubs*c.window))
			perFlush = f.rate() * (measureWarm + measureSpan).Seconds() / float64(flushes)
			l.close()
			b.proc.end(os.Kill)
		}
		rate, spread := median(rates)
		share, _ := median(shares)
		t.Logf("%-24s %6.0f/s (±%.0f %%): %.0f %% of window/flush, asked >= %.0f %%: %s; about %.0f messages a flush", c.name, rate, 50*spread,
			100*share, 100*leastOfBound, asked(share >= leastOfBound), perFlush)
	}
	conditions(t)
}

// TestMeasureBrokerStalled: a subscriber that does not read may not cost a
// publisher of its topic more than a tenth. A flush takes 0.1 ms.
func TestMeasureBrokerStalled(t *testing.T) {
	needMeasure(t)
	bin := measuredProgram(t)
	conditions(t)
	for _, c := range []struct {
		name string
		tr   traffic
	}{
		{"QoS 0", traffic{pubs: 1, subs: 1, window: 100}},
		{"QoS 1 durable", traffic{pubs: 1, subs: 1, qos: 1, window: 100, durable: true}},
	} {
		var rate, cpu [2][]float64
		for range rounds() {
			for stalled := range 2 {
				b := startBusgate(t, bin, memoryDir(t), newSlowDisk(t, steadyTime).launcher()...)
				for i := range stalled {
					fd, err := dial(b.port, fmt.Sprintf("stalled-%d", i), !c.tr.durable, "bench/#", c.tr.qos)
					if err != nil {
						t.Fatal(err)
					}
					defer unix.Close(fd)
				}
				l := newLoad(t, b.port, c.tr)
				f := l.run(t, loadCore, measureWarm, measureSpan, b.cpu(t))
				rate[stalled] = append(rate[stalled], f.rate())
				cpu[stalled] = append(cpu[stalled], f.perMillion())
				l.close()
				b.proc.end(os.Kill)
			}
		}
		alone, spread0 := median(rate[0])
		beside, spread1 := median(rate[1])
		cpu0, _ := median(cpu[0])
		cpu1, _ := median(cpu[1])
		t.Logf("%-14s alone %.0f/s (±%.0f %%), beside a stalled subscriber %.0f/s (±%.0f %%): %.0f %%, asked >= %.0f %%: %s; CPU s per million %.2f and %.2f",
			c.name, alone, 50*spread0, beside, 50*spread1, 100*beside/alone, 100*leastBeside, asked(beside/alone >= leastBeside), cpu0, cpu1)
	}
	conditions(t)
}

// TestMeasureBrokerIdle: what a client that is subscribed and says nothing
// costs in resident memory.
func TestMeasureBrokerIdle(t *testing.T) {
	needMeasure(t)
	for _, n := range []int{1000, 10_000} {
		for _, m := range brokers(t) {
			b := m.start(t)
			time.Sleep(3 * time.Second)
			before := residentMB(t, b.proc)
			var fds []int
			for i := range n {
				fd, err := dial(b.port, fmt.Sprintf("idle-%05d", i), true, fmt.Sprintf("idle/%05d/value", i), 1)
				if err != nil {
					t.Fatal(err)
				}
				fds = append(fds, fd)
			}
			time.Sleep(idleSettles)
			each := (residentMB(t, b.proc) - before) * 1e6 / 1024 / float64(n)
			t.Logf("%-9s %5d clients: %.1f KiB each (%.1f MB empty), asked of busgate <= %.0f KiB: %s", m.name, n, each, before, mostPerIdle, asked(each <= mostPerIdle))
			for _, fd := range fds {
				unix.Close(fd)
			}
			b.proc.end(os.Kill)
		}
	}
}

// measuredProgram is the busgate under measurement: BUSGATE_MEASURE names one,
// or it is built as it is released.
func measuredProgram(t *testing.T) string {
	t.Helper()
	bin := os.Getenv("BUSGATE_MEASURE")
	if _, err := os.Stat(bin); err != nil {
		return shipped(t, runtime.GOARCH)
	}
	return bin
}

func asked(ok bool) string {
	if ok {
		return "reached"
	}
	return "MISSED"
}

// flushOf is how long the disk of dir takes to flush four pages that were there
// before: the median and the 99th of a hundred.
func flushOf(t *testing.T, dir string) (mid, worst time.Duration) {
	t.Helper()
	f, err := os.CreateTemp(dir, "flush-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	var took []time.Duration
	for i := range 200 {
		began := time.Now()
		if _, err := f.WriteAt(make([]byte, 16<<10), int64(i%4)*16<<10); err != nil {
			t.Fatal(err)
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			t.Fatal(err)
		}
		if i >= 100 {
			took = append(took, time.Since(began))
		}
	}
	slices.Sort(took)
	return took[len(took)/2], took[len(took)*99/100]
}

// conditions prints what rates and latencies depend on beside the programs.
func conditions(t *testing.T) {
	t.Helper()
	mid, worst := flushOf(t, t.TempDir())
	t.Logf("load average %s: with much more than 2 rates and latencies mean little; a flush of this disk takes %v (p50), %v (p99)",
		loadAverage(t), mid.Round(10*time.Microsecond), worst.Round(10*time.Microsecond))
}
