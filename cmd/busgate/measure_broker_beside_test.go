package main

import (
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	mostBeside = 1.5
	tripEvery  = 700 * time.Microsecond // at no fixed moment of a flush
)

// TestMeasureBrokerBeside: a client that needs no disk may not feel that another
// one waits for it, on one core and with a flush of 10 ms. The second row is
// the same with one processor of Go, which a flush would keep for itself.
func TestMeasureBrokerBeside(t *testing.T) {
	needMeasure(t)
	bin := measuredProgram(t)
	conditions(t)
	for _, c := range []struct{ name, processors string }{{"as it is", ""}, {"GOMAXPROCS=1", "1"}} {
		t.Setenv("GOMAXPROCS", c.processors)
		var p50, p99 [2][]float64
		for range rounds() {
			for beside := range 2 {
				b := startBusgate(t, bin, memoryDir(t), newSlowDisk(t, addedFlush).launcher()...)
				l := newLoad(t, b.port, traffic{pubs: 1, subs: 1, qos: 1, window: 1, durable: true})
				done := make(chan struct{})
				go func() {
					defer close(done)
					if beside == 1 {
						l.run(t, loadCore, measureWarm, measureSpan, b.cpu(t))
					}
				}()
				trips := roundTrips(t, b.port, measureWarm+measureSpan)
				<-done
				p50[beside] = append(p50[beside], trips[len(trips)/2].Seconds()*1e3)
				p99[beside] = append(p99[beside], trips[len(trips)*99/100].Seconds()*1e3)
				l.close()
				b.proc.end(os.Kill)
			}
		}
		alone, spread0 := median(p99[0])
		beside, spread1 := median(p99[1])
		mid0, _ := median(p50[0])
		mid1, _ := median(p50[1])
		t.Logf("%-14s QoS 0 there and back: alone %.2f ms (p50) %.2f ms (p99, ±%.0f %%), beside a durable publisher %.2f ms, %.2f ms (±%.0f %%): p99 %.2f x, asked <= %.1f: %s",
			c.name, mid0, alone, 50*spread0, mid1, beside, 50*spread1, beside/alone, mostBeside, asked(beside/alone <= mostBeside))
	}
	conditions(t)
}

// roundTrips publishes to itself at QoS 0 for span and gives how long each
// message took, sorted.
func roundTrips(t *testing.T, port int, span time.Duration) (took []time.Duration) {
	t.Helper()
	fd, err := dial(port, "witness", true, "witness", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	body := append(append([]byte{0, 7}, "witness"...), make([]byte, 32)...)
	for until := time.Now().Add(span); time.Now().Before(until); time.Sleep(tripEvery) {
		began := time.Now()
		if err := exchange(fd, 0x30, body, len(body)+2); err != nil {
			t.Fatal(err)
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	return took
}
