package devices

import (
	"testing"
	"time"
)

func TestTapRemembersTheNewestAndDropsForTheSlow(t *testing.T) {
	var tap Tap
	for i := range 300 {
		tap.Note(Frame{Data: []byte{byte(i)}, Gap: time.Duration(i)})
	}
	past, coming, stop := tap.Watch()
	if len(past) != 256 || past[0].Gap != 44 || past[255].Data[0] != 299-256 {
		t.Errorf("%d frames, the first %v", len(past), past[0])
	}
	for i := range 300 {
		tap.Note(Frame{Data: []byte{byte(i)}})
	}
	if tap.Dropped() != 300-256 || len(coming) != 256 {
		t.Errorf("%d dropped, %d wait", tap.Dropped(), len(coming))
	}
	if past[0].Data[0] != 44 {
		t.Error("a frame that was given away has changed")
	}
	stop()
	stop()
	tap.Note(Frame{})
	if tap.Dropped() != 300-256 {
		t.Error("who left is still written to")
	}
	var none *Tap
	none.Note(Frame{})
}

func TestTapCostsNoMemoryPerFrame(t *testing.T) {
	var tap Tap
	data := make([]byte, 109)
	for range 256 {
		tap.Note(Frame{Data: data})
	}
	if n := testing.AllocsPerRun(100, func() { tap.Note(Frame{Data: data}) }); n != 0 {
		t.Errorf("%v allocations a frame", n)
	}
}

func TestSizeClass(t *testing.T) {
	for n, want := range map[int]int{0: 0, 8: 0, 9: 1, 16: 1, 17: 2, 64: 3, 65: 4, 128: 4, 129: 5, 255: 5} {
		if got := SizeClass(n); got != want {
			t.Errorf("%d bytes: class %d, want %d", n, got, want)
		}
	}
}
