package buffer

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestKilledUplinkRepeatsNoAck takes and acknowledges at random, kills at
// random, and goes on with what the killed process left: whatever was not
// acknowledged comes once, in order in its lane, and nothing else comes but
// what was acknowledged ahead of an older open lease.
func TestKilledUplinkRepeatsNoAck(t *testing.T) {
	for seed := range uint64(20) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			rnd := rand.New(rand.NewPCG(seed, 0))
			u := &killedUplink{t: t, rnd: rnd, owed: map[string]bool{}, again: map[string]bool{}, o: ConsumerOptions{Window: 1 + rnd.IntN(30)}, inOrder: seed%2 == 0, liveFirst: seed%4 > 1}
			u.start(temp(t))
			for range 6 {
				for range rnd.IntN(60) {
					u.step()
				}
				u.start(killedCopy(t, u.s))
			}
			u.end()
		})
	}
}

// killedUplink is an uplink and what it must be given.
type killedUplink struct {
	t         *testing.T
	rnd       *rand.Rand
	o         ConsumerOptions
	inOrder   bool // acknowledges in order
	liveFirst bool

	s     *Store
	c     *Consumer
	n     int
	owed  map[string]bool // appended and not acknowledged
	open  []Record        // taken, not acknowledged
	early []Record        // acknowledged ahead of an older open lease
	again map[string]bool // acknowledged early before a kill: may come again
}

// start goes on with the store at path.
func (u *killedUplink) start(path string) {
	was := 0
	if u.s != nil {
		was, _ = u.c.Pending()
	}
	u.s = open(u.t, path, Options{sys: quiet()})
	u.c = consumer(u.t, u.s, "up", u.o)
	if n, _ := u.c.Pending(); n < was || n > was+len(u.early) || len(u.early) >= u.o.Window {
		u.t.Fatalf("%d wait after a kill, %d before it, %d were acknowledged early; window %d", n, was, len(u.early), u.o.Window)
	}
	for _, r := range u.early {
		u.again[string(r.Payload)] = true
	}
	u.open, u.early = nil, nil
}

func (u *killedUplink) step() {
	switch u.rnd.IntN(6) {
	case 0, 1:
		var rs []Record
		for range u.rnd.IntN(12) {
			u.n++
			r := Record{To: []ConsumerID{u.c.ID()}, Lane: uint8(u.rnd.IntN(lanes)), Topic: "t", Payload: fmt.Append(nil, u.n)}
			if u.rnd.IntN(4) == 0 {
				r.To = nil // nobody's: the numbers of ours have holes
			} else {
				u.owed[string(r.Payload)] = true
			}
			rs = append(rs, r)
		}
		wait(u.t, u.s.Append(rs))
	case 2, 3:
		u.take(u.rnd.IntN(3) == 0)
	case 4:
		u.ack()
	case 5:
		switch {
		case u.rnd.IntN(4) == 0:
			if err := u.s.Sync(u.t.Context()); err != nil {
				u.t.Fatal(err)
			}
		case u.rnd.IntN(2) == 0:
			u.c.Rewind()
			u.open = nil
		case u.liveFirst:
			u.c.Live()
		}
	}
}

func (u *killedUplink) take(backlog bool) {
	rs, err := poll(u.c, backlog, 1+u.rnd.IntN(20))
	if err != nil {
		u.t.Fatal(err)
	}
	for _, r := range rs {
		p := string(r.Payload)
		switch {
		case !u.owed[p] && !u.again[p]:
			u.t.Fatalf("%s came after its acknowledgement; window %d", r.Payload, u.o.Window)
		case !u.owed[p]:
			delete(u.again, p)
			u.owed[p] = true // until it is acknowledged again
		case slices.ContainsFunc(u.open, func(o Record) bool { return o.Ord == r.Ord }):
			u.t.Fatalf("%s came twice", r.Payload)
		}
		u.open = append(u.open, r)
	}
}

// ack acknowledges some of what is open.
func (u *killedUplink) ack() {
	if !u.inOrder {
		u.rnd.Shuffle(len(u.open), func(i, j int) { u.open[i], u.open[j] = u.open[j], u.open[i] })
	}
	k := u.rnd.IntN(len(u.open) + 1)
	for _, r := range u.open[:k] {
		u.c.Ack(r.Ord)
		delete(u.owed, string(r.Payload))
	}
	u.early = append(u.early, u.open[:k]...)
	u.open = u.open[k:]
	owed := u.c.Owed()
	u.early = slices.DeleteFunc(u.early, func(r Record) bool { return len(owed) == 0 || r.Ord < owed[0].Ord })
	if u.inOrder && len(u.early) > 0 {
		u.t.Fatal("the test acknowledges out of order")
	}
}

// end takes and acknowledges all.
func (u *killedUplink) end() {
	u.c.Rewind()
	u.open = nil
	for {
		n := len(u.open)
		u.take(false)
		u.take(true)
		if len(u.open) == n {
			break
		}
		for _, r := range u.open {
			u.c.Ack(r.Ord)
			delete(u.owed, string(r.Payload))
		}
		u.open = nil
	}
	if len(u.owed) > 0 {
		u.t.Errorf("%v never came", slices.Collect(maps.Keys(u.owed)))
	}
}

// TestNotes writes a note that says that all ten records are acknowledged,
// which the file itself does not know, and starts again.
func TestNotes(t *testing.T) {
	for _, tt := range []struct {
		name  string
		o     ConsumerOptions
		forge func(c *Consumer)              // before the note is made
		page  func(b []byte) []byte          // after it
		sys   func(sys *system, path string) // of the next start
		left  int
	}{
		{name: "counts after a kill"},
		{name: "does not count under another kernel", sys: func(sys *system, _ string) { sys.bootID = func() string { return "another" } }, left: 10},
		{name: "does not count when the kernel is not known", sys: func(sys *system, _ string) { sys.bootID = func() string { return "" } }, left: 10},
		{name: "does not count when a bit of a position is damaged", page: func(b []byte) []byte { b[len(b)-8+LaneLAN] ^= 1; return b }, left: 10},
		{name: "does not count when its end is missing", page: func(b []byte) []byte { return b[:len(b)-1] }, left: 10},
		{name: "does not count when it is a few bytes", page: func(b []byte) []byte { return b[:3] }, left: 10},
		{name: "does not count when it is empty", page: func([]byte) []byte { return nil }, left: 10},
		{name: "of another boot does not count", forge: func(c *Consumer) { c.s.boot.label = "aaaaaaa-1" }, left: 10},
		{name: "of a consumer of another name does not count", forge: func(c *Consumer) { c.name = "down" }, left: 10},
		{name: "of a former consumer of the name does not count", forge: func(c *Consumer) { c.start-- }, left: 10},
		{name: "about records that the file never had does not count", forge: func(c *Consumer) { c.heads[LaneLAN][0].done += 5 }, left: 10},
		{name: "counts for what is finished in the middle",
			forge: func(c *Consumer) {
				at := c.heads[LaneLAN][0].done
				c.heads[LaneLAN] = []head{{0, at - 8, at - 8, at - 6}, {at - 6, at - 3, at - 3, noEnd}}
			}, left: 7 - 2},
		{name: "is not made by an uplink whose steps are all on disk", o: ConsumerOptions{Exact: true}, left: 10},
		{name: "counts once", sys: func(_ *system, path string) {
			for range 2 { // killed and started again
				s := open(t, path, Options{sys: quiet()})
				c := consumer(t, s, "up", ConsumerOptions{})
				for n := range 5 {
					wait(t, numbered(s, c, false, 11+n))
				}
				write(t, path+".copy", read(t, path+"-notes"))
				shut(t, s)
				write(t, path+"-notes", read(t, path+".copy"))
			}
		}, left: 10},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := open(t, temp(t), Options{sys: quiet()})
			c := consumer(t, s, "up", tt.o)
			for n := range 10 {
				wait(t, s.Append([]Record{{To: []ConsumerID{c.ID()}, Lane: LaneLAN, Topic: "t", Payload: fmt.Append(nil, n)}}))
			}
			rs := there(t, c, 6) // some are open leases, in the file or not
			path := killedCopy(t, s)

			s.mu.Lock()
			label, name, start, lan := s.boot.label, c.name, c.start, c.heads[LaneLAN]
			c.heads[LaneLAN] = []head{{0, s.head, s.head, noEnd}}
			if tt.forge != nil {
				tt.forge(c)
			}
			note := slices.Clone(c.noteLocked())
			s.boot.label, c.name, c.start, c.heads[LaneLAN] = label, name, start, lan
			s.mu.Unlock()
			if tt.page != nil {
				note = tt.page(note)
			}
			write(t, path+"-notes", append(make([]byte, c.slot*notePage), note...))

			sys := quiet()
			if tt.sys != nil {
				tt.sys(sys, path)
			}
			s = open(t, path, Options{sys: sys})
			c = consumer(t, s, "up", tt.o)
			if n, _ := c.Pending(); n != tt.left {
				t.Errorf("%d wait, want %d; %d were leased", n, tt.left, len(rs))
			}
			if got := drained(t, c); len(got) != tt.left {
				t.Errorf("%v came, want %d", got, tt.left)
			}
		})
	}
}

// TestNoteThatCannotBeWritten is counted, and harms nothing.
func TestNoteThatCannotBeWritten(t *testing.T) {
	path := temp(t)
	if err := os.Symlink("/dev/full", path+"-notes"); err != nil {
		t.Skip(err)
	}
	s := open(t, path, Options{sys: quiet()})
	c := consumer(t, s, "up", ConsumerOptions{})
	wait(t, numbered(s, c, false, 1, 2, 3))
	if got := drained(t, c); len(got) != 3 {
		t.Error(got)
	}
	if n := s.Stats().NotesFailed; n != 3 {
		t.Errorf("%d notes failed, want 3", n)
	}
	shut(t, s)
	s = open(t, path, Options{sys: quiet()})
	if n, _ := consumer(t, s, "up", ConsumerOptions{}).Pending(); n != 0 {
		t.Errorf("%d wait after a clean stop", n)
	}
}

// FuzzNote: whatever stands in the page, positions rise in their lane, and an
// uplink that has taken them over stands in order, too.
func FuzzNote(f *testing.F) {
	path := filepath.Join(f.TempDir(), "b.db")
	s := open(f, path, Options{sys: quiet()})
	c := consumer(f, s, "up", ConsumerOptions{})
	s.mu.Lock()
	label := s.boot.label
	for _, hs := range [][]head{c.heads[LaneLive], {{0, 3, 3, 8}, {8, 12, 12, 20}, {20, 25, 25, noEnd}}} {
		c.heads[LaneLive] = hs
		note := slices.Clone(c.noteLocked()[noteHead:])
		if heads, err := c.parseNote(note, label); err != nil || len(heads[LaneLive]) != len(hs) {
			f.Fatal(heads, err)
		}
		f.Add(note)
	}
	c.beginLocked(c.start)
	start := c.start
	s.mu.Unlock()
	f.Fuzz(func(t *testing.T, b []byte) {
		c := newConsumer(s, c.slot, "up", Uplink)
		s.mu.Lock()
		defer s.mu.Unlock()
		c.beginLocked(start)
		heads, err := c.parseNote(b, label)
		if err != nil || !below(&heads, maxSeq) {
			return
		}
		c.catchUp(&heads)
		for l := range lanes {
			for _, hs := range [][]head{heads[l], c.heads[l]} {
				for i, h := range hs {
					if h.lo > h.done || h.done > h.hi || i > 0 && hs[i-1].hi != h.lo {
						t.Fatalf("lane %d: %v", l, hs)
					}
				}
			}
		}
	})
}
