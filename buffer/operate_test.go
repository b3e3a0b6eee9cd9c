package buffer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestExport(t *testing.T) {
	s := open(t, temp(t), Options{sys: quiet()})
	c := consumer(t, s, "c", ConsumerOptions{Window: 1024})
	other := consumer(t, s, "other", ConsumerOptions{Kind: SessionLog})
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for i := range 100 {
		r := Record{Lane: LaneLAN, Payload: fmt.Append(nil, i), To: []ConsumerID{c.ID()}, At: at.Add(time.Duration(i) * time.Minute)}
		if i%10 == 0 {
			r.To = append(r.To, other.ID())
			r.At = time.Time{}
		}
		wait(t, s.Append([]Record{r}))
	}
	for len(s.names["c"].open) < 30 {
		there(t, c, 30-len(c.open))
	}
	for i := range uint64(20) {
		c.Ack(i + 1)
	}
	for _, k := range []struct {
		name     string
		from, to time.Time
		n        int
		first    string
	}{
		{"c", time.Time{}, time.Time{}, 80, "20"},
		{"other", time.Time{}, time.Time{}, 10, "0"},
		{"c", at.Add(50 * time.Minute), at.Add(60 * time.Minute), 9, "51"},
		{"c", at.Add(95 * time.Minute), time.Time{}, 5, "95"},
	} {
		var got []string
		err := s.Export(t.Context(), k.name, k.from, k.to, func(r *Record) error { got = append(got, string(r.Payload)); return nil })
		if err != nil || len(got) != k.n || got[0] != k.first {
			t.Errorf("%+v: %d %v %v", k, len(got), got, err)
		}
	}
	all := 0
	s.Export(t.Context(), "", time.Time{}, time.Time{}, func(*Record) error { all++; return nil })
	if all < 80 || all > 100 {
		t.Errorf("%d of anybody", all)
	}
	if err := s.Export(t.Context(), "nobody", time.Time{}, time.Time{}, nil); err == nil {
		t.Error("a consumer that does not exist was exported")
	}
	stop := errors.New("stop")
	if err := s.Export(t.Context(), "c", time.Time{}, time.Time{}, func(*Record) error { return stop }); err != stop {
		t.Error(err)
	}
}

func TestDropPending(t *testing.T) {
	s := open(t, temp(t), Options{sys: quiet()})
	c := consumer(t, s, "c", ConsumerOptions{Stream: "c", Window: 1024})
	other := consumer(t, s, "other", ConsumerOptions{})
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for i := range 100 {
		wait(t, s.Append([]Record{{Lane: LaneLive, Payload: fmt.Append(nil, i+1), To: []ConsumerID{c.ID(), other.ID()},
			At: at.Add(time.Duration(i) * time.Minute), Numbers: []Number{s.Stream("c").Next()}}}))
	}
	there(t, c, 1) // leased: it stays
	n, err := s.DropPending(t.Context(), "c", at.Add(50*time.Minute))
	if err != nil || n != 49 {
		t.Error(n, err)
	}
	n, err = s.DropPending(t.Context(), "c", time.Time{})
	if err != nil || n != 50 {
		t.Error(n, err)
	}
	ls := s.Losses(c)
	if len(ls) != 1 || ls[0].Lo != 2 || ls[0].Hi != 100 || ls[0].Dropped != 99 || ls[0].Reason != reasonOperator {
		t.Errorf("%+v", ls)
	}
	if n, _ := c.Pending(); n != 1 {
		t.Error(n)
	}
	if n, _ := other.Pending(); n != 100 {
		t.Error("the other consumer lost some:", n)
	}
	if _, err := s.DropPending(t.Context(), "nobody", time.Time{}); err == nil {
		t.Error("a consumer that does not exist was dropped")
	}
}

func TestCompactAndBackup(t *testing.T) {
	path := temp(t)
	s := open(t, path, Options{sys: quiet()})
	c := consumer(t, s, "c", ConsumerOptions{Window: 1024})
	f := filler{s: s, to: []*Consumer{c}, lane: LaneLive}
	f.add(t, 100, 50)
	took := 0
	for took < 4800 {
		for _, r := range there(t, c, 100) {
			c.Ack(r.Ord)
			took++
		}
	}
	if err := s.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	done := make(chan int)
	go func() { // commits go on, and none is lost; so many, that the file stays small however long the rest takes
		n := 0
		for range 1000 {
			select {
			case <-stop:
				done <- n
				return
			default:
				n++
				if err := s.Append([]Record{{To: []ConsumerID{c.ID()}, Lane: LaneBulk, Payload: fmt.Append(nil, 100000+n)}}).Wait(bg); err != nil {
					t.Error(err)
				}
			}
		}
		<-stop
		done <- n
	}()
	before, after, err := s.Compact(t.Context())
	if err != nil || before < 4<<20 || after > 1<<20 {
		t.Errorf("%d became %d: %v", before, after, err)
	}
	if st, err := os.Stat(path); err != nil || st.Size() > 1<<20 {
		t.Error(st.Size(), err)
	}
	file := filepath.Join(t.TempDir(), "copy.db")
	if err := s.Backup(t.Context(), file); err != nil {
		t.Fatal(err)
	}
	if err := s.Backup(t.Context(), file); err == nil {
		t.Error("a backup went over another file")
	}
	close(stop)
	more := <-done
	checked, err := s.Check(t.Context())
	if err != nil || len(checked.Problems) != 0 || checked.Segments == 0 {
		t.Error(checked, err)
	}
	shut(t, s)
	s = open(t, path, Options{sys: quiet()})
	c = consumer(t, s, "c", ConsumerOptions{Window: 1024})
	if n, _ := c.Pending(); n != f.n-took+more {
		t.Errorf("%d wait, not %d", n, f.n-took+more)
	}
	copied := open(t, file, Options{sys: quiet()})
	if n, _ := consumer(t, copied, "c", ConsumerOptions{Window: 1024}).Pending(); n < f.n-took {
		t.Errorf("the copy has %d", n)
	}
}

func TestCompactNeedsRoom(t *testing.T) {
	sys := quiet()
	sys.free = func(string) (int64, error) { return 1000, nil }
	s := open(t, temp(t), Options{sys: sys, Limits: Limits{MinFreeDisk: -1}})
	c := consumer(t, s, "c", ConsumerOptions{})
	f := filler{s: s, to: []*Consumer{c}}
	f.add(t, 5, 50)
	_, _, err := s.Compact(t.Context())
	if err == nil || !strings.Contains(err.Error(), "needs 1 MiB of free disk, there are 0 MiB") {
		t.Error(err)
	}
	wait(t, s.Append(f.records(1)))
}

func TestCheckFindsDamage(t *testing.T) {
	path := temp(t)
	s := open(t, path, Options{sys: quiet()})
	c := consumer(t, s, "c", ConsumerOptions{})
	f := filler{s: s, to: []*Consumer{c}}
	f.add(t, 20, 50)
	s.io.Lock()
	err := s.db.run("UPDATE seg SET data=zeroblob(length(data)) WHERE id=(SELECT min(id) FROM seg)")
	s.io.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	checked, err := s.Check(t.Context())
	if err != nil || len(checked.Problems) != 1 || !strings.Contains(checked.Problems[0], "checksum") || checked.Records != f.n {
		t.Error(checked, err)
	}
	drained(t, c) // takes the damaged one away
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Check(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
