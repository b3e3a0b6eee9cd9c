package main

import (
	"runtime"
	"slices"
	"testing"
	"time"
)

// TestHeapGrowsFurtherWhileItIsCollectedOften walks through a day of a heap:
// what was set, and when.
func TestHeapGrowsFurtherWhileItIsCollectedOften(t *testing.T) {
	var set []int
	h := &heapPace{often: 100 * time.Millisecond, rare: time.Second, grow: func(p int) { set = append(set, p) }}
	now := time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		fact  string
		after time.Duration
		set   []int
	}{
		{"the first has none before it", time.Minute, nil},
		{"now and then is quiet", 100 * time.Millisecond, nil},
		{"often is busy", 99 * time.Millisecond, []int{busyGrowth}},
		{"it is said once", time.Millisecond, []int{busyGrowth}},
		{"rarer, as it must be from then on", 999 * time.Millisecond, []int{busyGrowth}},
		{"rare is quiet", time.Second, []int{busyGrowth, quietGrowth}},
		{"and stays so", time.Second, []int{busyGrowth, quietGrowth}},
		{"until the next load", time.Millisecond, []int{busyGrowth, quietGrowth, busyGrowth}},
	} {
		now = now.Add(c.after)
		if !h.collected(now) || !slices.Equal(set, c.set) {
			t.Fatalf("%s: set %v, want %v", c.fact, set, c.set)
		}
	}
	h.stop()
	if h.collected(now.Add(time.Millisecond)) || !slices.Equal(set, []int{busyGrowth, quietGrowth, busyGrowth, quietGrowth}) {
		t.Fatalf("after the end: set %v", set)
	}
}

// TestHeapPaceHearsOfCollections collects until it is told of two.
func TestHeapPaceHearsOfCollections(t *testing.T) {
	told := make(chan int, 1)
	h := &heapPace{often: time.Hour, rare: 2 * time.Hour, grow: func(p int) {
		select {
		case told <- p:
		default:
		}
	}}
	h.last = time.Now()
	h.follow()
	for {
		runtime.GC()
		select {
		case p := <-told:
			if p != busyGrowth {
				t.Fatalf("set %d, want %d", p, busyGrowth)
			}
			h.stop()
			return
		default:
			runtime.Gosched()
		}
	}
}

// TestOneCoreHasTwoProcessors: what the daemon starts with is enough for a
// flush and somebody beside it, unless GOMAXPROCS says otherwise.
func TestOneCoreHasTwoProcessors(t *testing.T) {
	was := runtime.GOMAXPROCS(0)
	defer runtime.GOMAXPROCS(was)
	for _, c := range []struct {
		fact      string
		env       string
		has, want int
	}{
		{"one core", "", 1, 2},
		{"two cores", "", 2, 2},
		{"four cores", "", 4, 4},
		{"somebody wants one", "1", 1, 1},
	} {
		t.Setenv("GOMAXPROCS", c.env)
		runtime.GOMAXPROCS(c.has)
		if besideFlushes(); runtime.GOMAXPROCS(0) != c.want {
			t.Errorf("%s: %d processors, want %d", c.fact, runtime.GOMAXPROCS(0), c.want)
		}
	}
}
