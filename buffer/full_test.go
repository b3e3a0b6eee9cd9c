package buffer

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func TestFullDiskMakesRoom(t *testing.T) { synctest.Test(t, testFullDiskMakesRoom) }

func testFullDiskMakesRoom(t *testing.T) {
	path := temp(t)
	var said alerts
	s := open(t, path, Options{sys: quiet(), Reserve: 1 << 20, Alert: said.add, Limits: Limits{MinFreeDisk: -1}})
	c := consumer(t, s, "c", ConsumerOptions{Stream: "c", Window: 1024})
	s.io.Lock()
	_, err := s.db.value("PRAGMA max_page_count=300") // SQLite answers 13 beyond it
	s.io.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	var last Ticket
	for range 60 {
		var rs []Record
		for range 30 {
			n++
			rs = append(rs, Record{To: []ConsumerID{c.ID()}, Lane: LaneLive, Payload: append(fmt.Append(nil, n, " "), random(1000)...), Numbers: []Number{s.Stream("c").Next()}})
		}
		last = s.Append(rs)
		wait(t, last)
	}
	if !said.has("disk-full: the disk is full (") || !said.has(" MiB left in "+filepath.Dir(path)+"): the oldest") || said.has("read-only") {
		t.Error(said.text)
	}
	synctest.Wait() // while it still drops, the oldest that nobody holds goes: not the first that is read
	got := drained(t, c)
	var lost uint64
	for _, l := range s.Losses(c) {
		if l.Reason != reasonFree || l.Stream != "c" {
			t.Errorf("%+v", l)
		}
		lost += l.Dropped
	}
	if int(lost)+len(got) != n || got[len(got)-1] != n || lost == 0 {
		t.Errorf("%d kept, %d in the ledger, %d were appended", len(got), lost, n)
	}
	for i := 1; i < len(got); i++ {
		if got[i] != got[i-1]+1 {
			t.Fatalf("%d follows %d", got[i], got[i-1])
		}
	}
	time.Sleep(2 * time.Second)
	if err := s.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(s.beside(".reserve")); err != nil || st.Size() != 1<<20 || s.Stats().State != "ok" {
		t.Error("the reserve was not written again", err, s.Stats().State)
	}
	shut(t, s)
}

// TestFullFileSystem fills a real one of 8 MiB.
func TestFullFileSystem(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=8m"); err != nil {
		t.Skip("mounting a small file system needs root:", err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	path := filepath.Join(dir, "b.db")
	s := open(t, path, Options{Reserve: 2 << 20, Limits: Limits{MinFreeDisk: -1}})
	c := consumer(t, s, "c", ConsumerOptions{Stream: "c", Window: 1024})
	n := 0
	for range 500 {
		var rs []Record
		for range 30 {
			n++
			rs = append(rs, Record{To: []ConsumerID{c.ID()}, Lane: LaneLive, Payload: append(fmt.Append(nil, n, " "), random(1000)...), Numbers: []Number{s.Stream("c").Next()}})
		}
		wait(t, s.Append(rs))
	}
	shut(t, s)
	s = open(t, path, Options{Reserve: 2 << 20, Limits: Limits{MinFreeDisk: -1}})
	c = consumer(t, s, "c", ConsumerOptions{Stream: "c", Window: 1024})
	got := drained(t, c)
	var lost uint64
	for _, l := range s.Losses(c) {
		lost += l.Dropped
	}
	if int(lost)+len(got) != n || got[len(got)-1] != n || lost == 0 {
		t.Errorf("%d kept, %d in the ledger, %d were appended", len(got), lost, n)
	}
}

// TestStartOnAFullDisk: others have taken the last byte of the file system. It
// is said so, and what waits is there when there is room.
func TestStartOnAFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Skip("mounting a small file system needs root:", err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	path := filepath.Join(dir, "b.db")
	var said alerts
	o := Options{Limits: Limits{MinFreeDisk: -1}, Alert: said.add}
	s := open(t, path, o)
	c := consumer(t, s, "c", ConsumerOptions{Stream: "c"})
	wait(t, numbered(s, c, false, 1, 2, 3))
	shut(t, s)
	others := fill(t, dir)
	s = open(t, path, o)
	if !said.has("read-only: the disk is full, ") {
		t.Error(said.text)
	}
	consumer(t, s, "c", ConsumerOptions{Stream: "c"})
	if err := os.Remove(others); err != nil {
		t.Fatal(err)
	}
	shut(t, s)
	s = open(t, path, o)
	c = consumer(t, s, "c", ConsumerOptions{Stream: "c"})
	s.rescues.Wait()
	if err := s.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := drained(t, c); fmt.Sprint(got) != "[1 2 3]" {
		t.Error(got, s.Losses(c))
	}
}

// TestStartGivesTheReserveUp: others have taken the last byte of the disk. What
// the store has set aside for that is enough to start on it.
func TestStartGivesTheReserveUp(t *testing.T) {
	for _, tt := range []struct {
		fact string
		dir  func(t *testing.T) string
	}{
		{"ext4", func(t *testing.T) string { return newDisk(t).dir }},
		{"tmpfs", func(t *testing.T) string {
			dir := t.TempDir()
			if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=16m"); err != nil {
				t.Skip("mounting a small file system needs root:", err)
			}
			t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
			return dir
		}},
	} {
		t.Run(tt.fact, func(t *testing.T) {
			dir := tt.dir(t)
			path := filepath.Join(dir, "b.db")
			var said alerts
			o := Options{Limits: Limits{MinFreeDisk: -1}, Reserve: 2 << 20, Alert: said.add}
			s := open(t, path, o)
			c := consumer(t, s, "c", ConsumerOptions{Stream: "c", Window: 1024})
			f := filler{s: s, to: []*Consumer{c}, lane: LaneLive}
			f.add(t, 20, 20)
			if !s.Stats().ReserveKept {
				t.Fatal("no reserve was written")
			}
			shut(t, s)
			others := fill(t, dir)
			s = open(t, path, o)
			if st := s.Stats().State; st != "disk-full" || !said.has("disk-full: the disk is full (") || said.has("read-only") {
				t.Fatal(st, said.text)
			}
			c = consumer(t, s, "c", ConsumerOptions{Stream: "c", Window: 1024})
			for range f.n { // the numbers of the stream go on
				s.Stream("c").Next()
			}
			f.s, f.to = s, []*Consumer{c}
			f.add(t, 20, 20) // on disk
			if err := os.Remove(others); err != nil {
				t.Fatal(err)
			}
			shut(t, s)
			s = open(t, path, o)
			if st := s.Stats(); st.State != "ok" || !st.ReserveKept {
				t.Error("the reserve was not written again: ", st.State)
			}
			c = consumer(t, s, "c", ConsumerOptions{Stream: "c", Window: 1024})
			got, lost := drained(t, c), 0
			for _, l := range s.Losses(c) {
				lost += int(l.Dropped)
			}
			if len(got)+lost != f.n || len(got) == 0 || got[len(got)-1] != f.n || !slices.IsSorted(got) {
				t.Errorf("%d came and %d are in the ledger, not %d: %v", len(got), lost, f.n, got)
			}
		})
	}
}

// fill takes the last byte of a file system and gives the file that has it.
func fill(t *testing.T, dir string) string {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "others"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, size := range []int{1 << 20, 4096, 1} {
		block := make([]byte, size)
		for err = nil; err == nil; {
			_, err = f.Write(block)
		}
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}
