package main

import (
	"runtime"
	"slices"
	"testing"
	"time"

	"busgate/buffer"
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
	h.follow()
	for range 5000 {
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
	t.Fatal("nobody was told")
}

// TestSlowDiskOnOneCoreGetsASecondProcessor: one for the flush and one for
// whoever needs no disk, unless GOMAXPROCS says otherwise.
func TestSlowDiskOnOneCoreGetsASecondProcessor(t *testing.T) {
	was := runtime.GOMAXPROCS(0)
	defer runtime.GOMAXPROCS(was)
	for _, c := range []struct {
		fact      string
		env       string
		flush     time.Duration // on average
		has, want int
	}{
		{"one core, a card", "", time.Millisecond, 1, 2},
		{"one core, a fast disk", "", time.Millisecond - 1, 1, 1},
		{"two cores", "", time.Second, 2, 2},
		{"four cores", "", time.Second, 4, 4},
		{"somebody wants one", "1", time.Second, 1, 1},
	} {
		t.Setenv("GOMAXPROCS", c.env)
		runtime.GOMAXPROCS(c.has)
		if besideFlushes(buffer.Stats{Flushes: 7, FlushTime: 7 * c.flush}); runtime.GOMAXPROCS(0) != c.want {
			t.Errorf("%s: %d processors, want %d", c.fact, runtime.GOMAXPROCS(0), c.want)
		}
	}
	runtime.GOMAXPROCS(1)
	t.Setenv("GOMAXPROCS", "")
	if besideFlushes(buffer.Stats{}); runtime.GOMAXPROCS(0) != 1 {
		t.Error("before the first flush nothing is known of the disk")
	}
}
