package main

import (
	"flag"
	"fmt"
	"os"
	"testing"
	"time"
)

var (
	powerCuts = flag.Int("powercuts", 3, "rounds of TestPeerPowerCutWay")
	kills     = flag.Int("kills", 3, "rounds of TestPeerKillWay")
)

// TestPeerPowerCutWay cuts the power under the built gateway while clients that
// are not ours publish: what was acknowledged before is there, in order, and at
// QoS 2 once, at the subscriber that slept and at both clouds. The same program
// without its flush must lose, or the cut does not cut.
func TestPeerPowerCutWay(t *testing.T) {
	needPeers(t, "/usr/bin/python3")
	t.Parallel()
	t.Run("flushed", func(t *testing.T) {
		w := newWay(t, newDisk(t), program(t))
		w.cuts(*powerCuts)
		w.judge()
	})
	t.Run("control without flush", func(t *testing.T) {
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		w := newWay(t, newDisk(t), "env", noFlush+"=1", exe, program(t))
		w.control = true
		w.cuts(min(*powerCuts, 50))
		if t.Logf("%v", &w.result); w.lost == 0 {
			t.Errorf("without a flush %d cuts lost nothing: the cut does not cut", w.rounds)
		}
	})
}

// TestPeerKillWay is the same with kill -9 alone.
func TestPeerKillWay(t *testing.T) {
	needPeers(t, "/usr/bin/python3")
	t.Parallel()
	w := newWay(t, nil, program(t))
	w.cuts(*kills)
	w.judge()
}

// arrivals are the numbers of one publisher as they came somewhere.
type arrivals struct {
	times                 map[int]int
	top, twice, overtaken int
}

func (a *arrivals) add(n int) {
	if a.times == nil {
		a.times = map[int]int{}
	}
	if a.times[n]++; a.times[n] > 1 {
		a.twice++
	} else if n < a.top {
		a.overtaken++
	}
	a.top = max(a.top, n)
}

// result counts what the rounds came to.
type result struct {
	rounds, hurt     int    // hurt: checks that found something lost
	ends             int    // of the gateway, those while it starts among them
	acked            [3]int // by QoS
	lost             int
	repeated         [3]int // arrivals beyond the first, by QoS
	overtaken        int
	stale            int // a retained value was older than one acknowledged
	absent           int // the subscriber's session was not there
	cloudLost        int
	cloudRepeated    int // at QoS 2
	cloudAgain       int // at QoS 1, of what was published once
	cloudOvertaken   int
	cloud1, cloud2   int // arrivals
	cloudConnections int
	took             time.Duration
}

func (r *result) String() string {
	return fmt.Sprintf("%d rounds in %.0f s: acknowledged %d at QoS 1 and %d at QoS 2; %d lost (in %d checks), at QoS 2 %d came twice (QoS 1: %d), %d overtaken, %d retained values stale, %d sessions gone; "+
		"clouds: %d and %d arrived over %d connections, %d lost, %d twice at QoS 2 (QoS 1: %d), %d overtaken",
		r.rounds, r.took.Seconds(), r.acked[1], r.acked[2], r.lost, r.hurt, r.repeated[2], r.repeated[1], r.overtaken, r.stale, r.absent,
		r.cloud1, r.cloud2, r.cloudConnections, r.cloudLost, r.cloudRepeated, r.cloudAgain, r.cloudOvertaken)
}

// judge says whether every promise was kept.
func (w *way) judge() {
	w.t.Logf("%v", &w.result)
	if w.lost+w.repeated[2]+w.overtaken+w.stale+w.absent+w.cloudLost+w.cloudRepeated+w.cloudOvertaken > 0 {
		w.t.Error("promises were broken")
	}
	if most := w.ends * cloudWindow; w.disk == nil && w.cloudAgain > most {
		w.t.Errorf("%d came twice at QoS 1, want at most a window a kill, %d", w.cloudAgain, most)
	}
	for _, l := range w.ledgers {
		if len(l.promised) < w.rounds {
			w.t.Errorf("too little happened on %s for a verdict: %d acknowledged in %d rounds", l.topic, len(l.promised), w.rounds)
		}
	}
}
