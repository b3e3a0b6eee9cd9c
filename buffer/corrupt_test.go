package buffer

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
)

// damageRecords is how many records the stores of the corruption table hold.
const damageRecords = 300

// damageStore makes a store with small and large segments in all lanes, of
// which ten records are acknowledged, and gives its bytes. With wal, the last
// commits are in the -wal file only.
func damageStore(t *testing.T, withWAL bool) (db, wal []byte) {
	path := filepath.Join(shm(t), "b.db")
	s := open(t, path, Options{sys: quiet()})
	c := consumer(t, s, "up", ConsumerOptions{Stream: "up", Window: 1024})
	f := filler{s: s, to: []*Consumer{c}, lane: LaneLive}
	f.add(t, 5, 30)
	rs := there(t, c, 10)
	for _, r := range rs {
		c.Ack(r.Ord)
	}
	wait(t, s.Append(nil, Session{Client: "x", Data: []byte("data")}, Subscription{Client: "x", Filter: "a/#", Data: []byte("o")},
		Retained{Topic: "r", Payload: []byte("p")}, Fact{Key: "f", Value: []byte("v")}, Inbound{Client: "x", ID: 5}))
	if err := s.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.checkpoint("TRUNCATE"); err != nil {
		t.Fatal(err)
	}
	f.add(t, 25, 6)
	if !withWAL {
		shut(t, s)
	}
	db = read(t, path)
	if withWAL {
		wal = read(t, path+"-wal")
	}
	return db, wal
}

// bubble runs a test in virtual time: a rescue takes its time.
func bubble(t *testing.T, fact string, fn func(t *testing.T)) {
	t.Run(fact, func(t *testing.T) { synctest.Test(t, fn) })
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// pageWith finds a page of a database by its type and a part of its content.
func pageWith(db []byte, kind byte, part string) int {
	for no := 1; no < len(db)/pageSize; no++ {
		page := db[no*pageSize : (no+1)*pageSize]
		if (kind == 0 || page[0] == kind) && bytes.Contains(page, []byte(part)) {
			return no
		}
	}
	panic("no such page")
}

func TestCorruption(t *testing.T) {
	const first = damageRecords - 10 // what is not acknowledged
	overflow := func(db []byte) int {
		leaf := pageWith(db, leafTable, segMagic)
		for no := leaf + 1; ; no++ {
			if !bytes.Contains(db[no*pageSize:(no+1)*pageSize], []byte(segMagic)) && db[no*pageSize] == 0 {
				return no
			}
		}
	}
	for _, c := range []struct {
		fact    string
		wal     bool
		edit    func(db, wal []byte) ([]byte, []byte)
		aside   bool // a new file was begun
		minimum int  // records that must be there
		tables  bool // sessions and retained messages must be there
	}{
		{"nothing is damaged", true, func(db, wal []byte) ([]byte, []byte) { return db, wal }, false, first, true},
		{"the -wal file is cut", true, func(db, wal []byte) ([]byte, []byte) { return db, wal[:len(wal)/2] }, false, 140 + 50, true},
		{"a byte of the -wal file is flipped", true, func(db, wal []byte) ([]byte, []byte) { wal[len(wal)/2] ^= 1; return db, wal }, false, 140 + 50, true},
		{"the -wal file is gone", true, func(db, wal []byte) ([]byte, []byte) { return db, nil }, false, 140, true},
		{"a byte of a payload is flipped", false, func(db, _ []byte) ([]byte, []byte) {
			db[bytes.Index(db, []byte(segMagic))+100] ^= 1
			return db, nil
		}, false, first - 30, true},
		{"an overflow page is zeroed", false, func(db, _ []byte) ([]byte, []byte) {
			clear(db[overflow(db)*pageSize:][:pageSize])
			return db, nil
		}, true, first - 30, true},
		{"an overflow page has other content", false, func(db, _ []byte) ([]byte, []byte) {
			copy(db[overflow(db)*pageSize+4:], random(1000))
			return db, nil
		}, false, first - 30, true},
		{"a leaf of the segments is zeroed", false, func(db, _ []byte) ([]byte, []byte) {
			clear(db[pageWith(db, leafTable, segMagic)*pageSize:][:pageSize])
			return db, nil
		}, true, first / 2, true},
		{"the root of the segments is zeroed", false, func(db, _ []byte) ([]byte, []byte) {
			clear(db[1*pageSize:][:pageSize])
			return db, nil
		}, true, first, true},
		{"page 1 is zeroed", false, func(db, _ []byte) ([]byte, []byte) { clear(db[:pageSize]); return db, nil }, true, first, true},
		{"page 1 is zeroed, and stands in the -wal file", true, func(db, wal []byte) ([]byte, []byte) { clear(db[:pageSize]); return db, wal }, false, first, true},
		{"page 1 is zeroed here and there", true, func(db, wal []byte) ([]byte, []byte) {
			clear(db[:pageSize])
			for at := walHeader + frameHeader; at < len(wal); at += frameHeader + pageSize {
				if wal[at-frameHeader+3] == 1 { // the frame's page is 1; the sums are mended
					clear(wal[at:][:pageSize])
				}
			}
			return db, resum(wal)
		}, true, first, true},
		{"the file is cut to half", false, func(db, _ []byte) ([]byte, []byte) { return db[:len(db)/2/pageSize*pageSize], nil }, true, 100, true},
		{"the file is empty", false, func(db, _ []byte) ([]byte, []byte) { return nil, nil }, false, 0, false},
		{"random bytes", false, func(db, _ []byte) ([]byte, []byte) { return random(20000), nil }, true, 0, false},
		{"another application", false, func(db, _ []byte) ([]byte, []byte) { copy(db[68:], "ABCD"); return db, nil }, true, first, true},
		{"a newer schema", false, func(db, _ []byte) ([]byte, []byte) { db[63] = 99; return db, nil }, true, 0, false},
	} {
		bubble(t, c.fact, func(t *testing.T) {
			db, wal := c.edit(damageStore(t, c.wal))
			path := filepath.Join(shm(t), "b.db")
			write(t, path, db)
			if wal != nil {
				write(t, path+"-wal", wal)
			}
			s := open(t, path, Options{sys: quiet()})
			up := consumer(t, s, "up", ConsumerOptions{Stream: "up", Window: 1024})
			wait(t, s.Append([]Record{{To: []ConsumerID{up.ID()}, Lane: LaneBulk, Payload: fmt.Append(nil, damageRecords+1)}})) // at once
			s.rescues.Wait()
			var got []int
			for range 2 { // a segment that cannot be deleted takes the file with it
				if err := s.Sync(t.Context()); err != nil {
					t.Fatal(err)
				}
				s.rescues.Wait()
				if err := s.Sync(t.Context()); err != nil {
					t.Fatal(err)
				}
				got = append(got, drained(t, up)...)
			}
			if c.aside { // what was under way when the file went comes twice
				slices.Sort(got)
				got = slices.Compact(got)
			}
			if n := len(s.Stats().Asides); (n > 0) != c.aside {
				t.Errorf("%d files were put aside", n)
			}
			lost := 0
			for _, l := range s.Losses(up) {
				if l.Reason != reasonCorrupt {
					t.Errorf("%+v", l)
				}
				lost += int(l.Dropped)
			}
			if !slices.Contains(got, damageRecords+1) {
				t.Error("what was appended afterwards is missing")
			}
			got = slices.DeleteFunc(got, func(n int) bool { return n == damageRecords+1 })
			if len(got) < c.minimum || len(got) > damageRecords || !slices.IsSorted(got) {
				t.Errorf("%d records, at least %d must be there: %v", len(got), c.minimum, got)
			}
			if !c.aside && c.wal == false && c.minimum > 0 && len(got)+lost != first {
				t.Errorf("%d records and %d in the ledger are not %d", len(got), lost, first)
			}
			shut(t, s)
			s = open(t, path, Options{sys: quiet()})
			defer shut(t, s)
			var rows []Change
			s.Load(func(c Change) error { rows = append(rows, c); return nil })
			if want := 4; c.tables && len(rows) < want {
				t.Errorf("of the small tables only %+v", rows)
			}
		})
	}
}

// resum computes the checksums of a -wal file again.
func resum(wal []byte) []byte {
	var order binary.ByteOrder = binary.LittleEndian
	if wal[3]&1 != 0 {
		order = binary.BigEndian
	}
	sum := walSum(order, [2]uint32{}, wal[:24])
	for at := walHeader; at+frameHeader+pageSize <= len(wal) && bytes.Equal(wal[at+8:at+16], wal[16:24]); at += frameHeader + pageSize {
		sum = walSum(order, walSum(order, sum, wal[at:at+8]), wal[at+frameHeader:at+frameHeader+pageSize])
		binary.BigEndian.PutUint32(wal[at+16:], sum[0])
		binary.BigEndian.PutUint32(wal[at+20:], sum[1])
	}
	return wal
}

// TestRescueGoesOnAfterARestart ends the store in the middle of a rescue.
func TestRescueGoesOnAfterARestart(t *testing.T) { synctest.Test(t, testRescueGoesOn) }

func testRescueGoesOn(t *testing.T) {
	path := filepath.Join(shm(t), "b.db")
	s := open(t, path, Options{sys: quiet()})
	c := consumer(t, s, "up", ConsumerOptions{Stream: "up", Window: 1024})
	f := filler{s: s, to: []*Consumer{c}, lane: LaneLive}
	f.add(t, 60, 50)
	shut(t, s)
	db := read(t, path)
	clear(db[:pageSize])
	write(t, path, db)
	var got []int
	for starts := 0; len(got) < f.n; starts++ {
		s := open(t, path, Options{sys: quiet()})
		c := consumer(t, s, "up", ConsumerOptions{Stream: "up", Window: 1024})
		if starts > 0 { // at the first start the pages are only counted
			for range 5 {
				ctx, cancel := context.WithCancel(t.Context())
				rs, err := c.Next(ctx, 100)
				cancel()
				if err != nil {
					t.Fatal(err)
				}
				for _, r := range rs {
					var n int
					fmt.Sscan(string(r.Payload), &n)
					got = append(got, n)
					c.Ack(r.Ord)
				}
				if len(got) >= f.n {
					break
				}
			}
		}
		shut(t, s)
		if starts > 100 {
			t.Fatal("no end")
		}
	}
	if !slices.Equal(got, upTo(f.n)) {
		t.Errorf("%d records came back, out of order or twice", len(got))
	}
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o640); err != nil {
		t.Fatal(err)
	}
}

// TestDamageWhileRunning zeroes pages under a running store, so that a commit
// meets them.
func TestDamageWhileRunning(t *testing.T) { synctest.Test(t, testDamageWhileRunning) }

func testDamageWhileRunning(t *testing.T) {
	path := filepath.Join(shm(t), "b.db")
	var said alerts
	s := open(t, path, Options{sys: quiet(), Alert: said.add})
	c := consumer(t, s, "up", ConsumerOptions{Stream: "up", Window: 1024})
	f := filler{s: s, to: []*Consumer{c}, lane: LaneLive}
	f.add(t, 20, 30)
	wait(t, s.Append(nil, Session{Client: "x", Data: []byte("1")}, Session{Client: "y", Data: []byte("1")}))
	for _, r := range there(t, c, 10) {
		c.Ack(r.Ord)
	}
	if err := s.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	zeroRoot(t, s)
	wait(t, s.Append(f.records(5), Session{Client: "y", Data: []byte("2")}))
	if !said.has("buffer-damaged: b.db is damaged") {
		t.Error(said.text)
	}
	s.io.Lock()
	name, err := s.db.value("SELECT name FROM stream WHERE id=?", uint32(s.Stream("up").ID()))
	s.io.Unlock()
	if err != nil || text(name) != "up" { // a kill now would give its number to another
		t.Errorf("records are in the new file, and their stream is %q: %v", text(name), err)
	}
	s.rescues.Wait()
	if err := s.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := drained(t, c)
	slices.Sort(got)
	if len(got) != 595 || got[0] != 11 || got[594] != 605 {
		t.Errorf("%d records: %v", len(got), got)
	}
	shut(t, s)
	s = open(t, path, Options{sys: quiet()})
	sessions := map[string]string{}
	s.Load(func(c Change) error {
		if c, ok := c.(Session); ok {
			sessions[c.Client] = string(c.Data)
		}
		return nil
	})
	if fmt.Sprint(sessions) != "map[x:1 y:2]" {
		t.Error(sessions)
	}
	shut(t, s)
}

// zeroRoot damages the root of the segments under a running store.
func zeroRoot(t *testing.T, s *Store) {
	t.Helper()
	if err := s.checkpoint("TRUNCATE"); err != nil {
		t.Fatal(err)
	}
	file, err := os.OpenFile(s.path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() }) // after the store has left the file: its locks are per process
	if _, err := file.WriteAt(make([]byte, pageSize), pageSize); err != nil {
		t.Fatal(err)
	}
	s.io.Lock()
	defer s.io.Unlock()
	if err := s.db.run("PRAGMA shrink_memory"); err != nil { // forget the page
		t.Fatal(err)
	}
}

// FuzzPages: no file makes the salvage panic or run away.
func FuzzPages(f *testing.F) {
	page := make([]byte, pageSize)
	copy(page, []byte{leafTable, 0, 0, 0, 1, 0, 0, 0, 0x0f, 0xf0})
	copy(page[0xff0:], []byte{5, 1, 3, 1, 1, 7, 9})
	f.Add(page, []byte{})
	f.Add(append(bytes.Clone(page), page...), bytes.Repeat([]byte{0x37, 0x7f, 6, 0x82}, 2000))
	f.Fuzz(func(t *testing.T, db, wal []byte) {
		path := filepath.Join(t.TempDir(), "x.db")
		write(t, path, db)
		write(t, path+"-wal", wal)
		p, err := openPages(path)
		if err != nil {
			t.Fatal(err)
		}
		defer p.close()
		buf := make([]byte, pageSize)
		for no := uint32(1); no <= min(p.n, 64); no++ {
			for _, c := range p.cells(no, buf) {
				if _, cols, err := p.row(c, buf); err == nil {
					shape(cols)
				}
			}
		}
	})
}
