package main

import (
	"fmt"
	"slices"
	"testing"
)

// TestChecker: the demo proves nothing unless its checker sees each kind of fault.
func TestChecker(t *testing.T) {
	state := func(i int) []byte { return fmt.Appendf(nil, `{"ts":"2026-11-21T06:01:%02dZ","power":%d.0}`, i, i) }
	up := func(i, n int) []byte {
		return fmt.Appendf(nil, `{"ts":"2026-11-21T06:01:%02dZ","gw":"demo","boot":"abc-1","n":%d,"power":%d.0}`, i, n, i)
	}
	type sent struct{ reading, n int }
	good := []sent{{1, 1}, {2, 2}, {3, 3}, {4, 4}, {5, 5}}
	for _, c := range []struct {
		name                    string
		sent                    []sent
		lost, twice, disordered int
	}{
		{"everything once and in order", good, 0, 0, 0},
		{"one lost", slices.Delete(slices.Clone(good), 2, 3), 1, 0, 0},
		{"the last lost", good[:4], 1, 0, 0},
		{"one twice under its number", append(slices.Clone(good), sent{3, 3}), 0, 1, 0},
		{"one twice under a new number", append(slices.Clone(good), sent{3, 6}), 0, 1, 0},
		{"two swapped with their numbers", []sent{{1, 1}, {3, 3}, {2, 2}, {4, 4}, {5, 5}}, 0, 0, 3},
		{"two swapped before they were numbered", []sent{{1, 1}, {3, 2}, {2, 3}, {4, 4}, {5, 5}}, 0, 0, 2},
		{"a copy without a number is no reading", append([]sent{{5, 0}}, good...), 0, 0, 0},
	} {
		k := newChecker()
		for i := 1; i <= 5; i++ {
			k.Read("grid", state(i))
		}
		for _, s := range c.sent {
			if s.n == 0 {
				k.Arrived("grid", state(s.reading))
				continue
			}
			k.Arrived("grid", up(s.reading, s.n))
		}
		v := k.Verdict()
		if v.lost != c.lost || v.twice != c.twice || v.disordered != c.disordered || (v.first == "") != (c.lost+c.twice+c.disordered == 0) {
			t.Errorf("%s: %+v", c.name, v)
		}
	}
}

func TestCheckerSeesADamagedPayload(t *testing.T) {
	k := newChecker()
	k.Read("grid", []byte(`{"power":1}`))
	k.Arrived("grid", []byte(`{"power":`))
	if v := k.Verdict(); v.lost != 2 || v.first == "" {
		t.Errorf("%+v", v)
	}
}
