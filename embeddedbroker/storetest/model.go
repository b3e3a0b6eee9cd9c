package storetest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"busgate/embeddedbroker"
)

// model runs random operations against slices.
func model(t *testing.T, h Harness) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	s, _ := open(t, h, "x")
	const clients = 3
	type waiting struct {
		seq embeddedbroker.Seq
		ord uint64
	}
	var ids [clients]embeddedbroker.ConsumerID
	var want [clients][]waiting
	var next [clients]uint64
	for i := range ids {
		ids[i] = register(t, s, fmt.Sprint(i), embeddedbroker.ConsumerOptions{})
	}
	for range 600 {
		switch op := rnd.IntN(10); {
		case op < 6:
			e := embeddedbroker.Entry{Msg: msg(fmt.Sprint("t", rnd.IntN(5)), fmt.Sprint(rnd.IntN(1000))), Wait: rnd.IntN(3) == 0}
			e.Msg.Kind = embeddedbroker.Kind(rnd.IntN(4))
			for i := range ids {
				if rnd.IntN(2) == 0 {
					next[i]++
					e.Targets = append(e.Targets, to(ids[i], next[i])...)
				}
			}
			if err := s.Append(&e); err != nil && !errors.Is(err, embeddedbroker.ErrBusy) {
				t.Fatal(err)
			}
			for _, x := range e.Targets {
				i := slices.Index(ids[:], x.Consumer)
				want[i] = append(want[i], waiting{e.Seq, x.Ord})
			}
		case op < 9:
			i := rnd.IntN(clients)
			if len(want[i]) < 4 {
				continue
			}
			n := rnd.IntN(3)
			far := n + 1 + rnd.IntN(len(want[i])-n-1)
			s.Settle(ids[i], want[i][n].seq, []embeddedbroker.Seq{want[i][far].seq})
			want[i] = slices.Delete(want[i], far, far+1)
			want[i] = slices.Delete(want[i], 0, n)
		default:
			put(t, s, embeddedbroker.Entry{})
			for i := range ids {
				w := []uint64{}
				for _, x := range want[i] {
					w = append(w, x.ord)
				}
				same(t, fmt.Sprint("client ", i), ords(read(t, s, ids[i], 0)), w)
			}
		}
	}
}
