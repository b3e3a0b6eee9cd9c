package buffer

import (
	"fmt"
	"path/filepath"
	"slices"
	"testing"
)

// TestHostileRows: no row of the file, whatever stands in it, ends the process,
// and what is beside it comes.
func TestHostileRows(t *testing.T) {
	leases := func(ords ...uint64) []byte {
		var open []lease
		for i, ord := range ords {
			open = append(open, lease{ord: ord, seq: uint64(i + 1), lane: LaneLive})
		}
		return appendLeases(nil, open)
	}
	for _, tt := range []struct {
		fact  string
		query string
		args  []any
		lost  int // of four records
	}{
		{"a rescue that goes on in a lane that is none", sqlMeta, []any{metaRescue, "rescue", fmt.Sprintf("%d 1 %q", int64(9)<<laneShift, "x.db")}, 0},
		{"a rescue that goes on before the first lane", sqlMeta, []any{metaRescue, "rescue", `-1 1 "x.db"`}, 0},
		{"deliveries with a hole in their numbers", "UPDATE consumer SET open=?", []any{leases(1, 100)}, 0},
		{"deliveries with falling numbers", "UPDATE consumer SET open=?", []any{leases(100, 1)}, 0},
		{"a last delivery below the open ones", "UPDATE consumer SET open=?,ord=0", []any{leases(7, 8)}, 0},
		{"a last delivery above the open ones", "UPDATE consumer SET open=?,ord=1000", []any{leases(7, 8)}, 0},
		{"a segment of gigabytes", "UPDATE seg SET raw=4294967295", nil, 0},
		{"a segment of less than nothing", "UPDATE seg SET raw=-1", nil, 0},
		{"a segment of too many records", "UPDATE seg SET n=4294967295 WHERE id=(SELECT max(id) FROM seg)", nil, 2},
		{"a segment that ends far behind the next", "UPDATE seg SET last=last+1000 WHERE id=(SELECT min(id) FROM seg)", nil, 0},
		{"all numbers are used up", sqlMeta, []any{metaNextSeq, "next_seq", uint64(maxSeq)}, 0},
	} {
		bubble(t, tt.fact, func(t *testing.T) {
			path := temp(t)
			s := open(t, path, Options{sys: quiet()})
			c := consumer(t, s, "c", ConsumerOptions{Stream: "c"})
			wait(t, numbered(s, c, false, 1))
			wait(t, numbered(s, c, false, 2, 3))
			s.io.Lock()
			err := s.db.exec(tt.query, tt.args...)
			s.io.Unlock()
			if err != nil {
				t.Fatal(err)
			}
			path = killedCopy(t, s)
			write(t, filepath.Join(filepath.Dir(path), "x.db"), read(t, path))
			shut(t, s)
			s = open(t, path, Options{sys: quiet()})
			s.mu.Lock()
			if s.nextSeq > maxSeq/2 {
				t.Error("the next number is ", s.nextSeq)
			}
			for l := range s.lanes {
				for _, h := range s.lanes[l].segs {
					if h.raw > maxRaw {
						t.Errorf("a reader makes room for %d bytes", h.raw)
					}
				}
			}
			s.mu.Unlock()
			c = consumer(t, s, "c", ConsumerOptions{Stream: "c"})
			c.Ack(50)
			s.rescues.Wait()
			wait(t, numbered(s, c, false, 4))
			seen := map[int]bool{}
			var ords []uint64
			for rs := there(t, c, 9); len(rs) > 0; rs = there(t, c, 9) {
				for _, r := range rs {
					var n int
					fmt.Sscan(string(r.Payload), &n)
					seen[n] = true
					ords = append(ords, r.Ord)
				}
			}
			slices.Reverse(ords)
			c.Ack(ords...)
			if n, _ := c.Pending(); n != 0 || len(c.Owed()) != 0 {
				t.Errorf("%d wait, %v are owed", n, c.Owed())
			}
			if len(seen) != 4-tt.lost || !seen[4] {
				t.Error(seen)
			}
			shut(t, s)
		})
	}
}
