package buffer

import (
	"errors"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestCrashWhilePuttingAside begins with what a power cut leaves at each moment
// between a damaged file and the rescue that the new file knows of: all of its
// records come back, once.
func TestCrashWhilePuttingAside(t *testing.T) {
	const set = "b.damaged-20260102T030405Z-1.db"
	for _, c := range []struct {
		fact  string
		leave func(t *testing.T, dir string, db, wal []byte)
	}{
		{"only the -wal file was renamed", func(t *testing.T, dir string, db, wal []byte) {
			write(t, filepath.Join(dir, set+"-wal"), wal)
			write(t, filepath.Join(dir, "b.db"), db)
		}},
		{"there is no new file", func(t *testing.T, dir string, db, wal []byte) {
			write(t, filepath.Join(dir, set+"-wal"), wal)
			write(t, filepath.Join(dir, set), db)
		}},
		{"the new file knows of no rescue", func(t *testing.T, dir string, db, wal []byte) {
			shut(t, open(t, filepath.Join(dir, "b.db"), Options{sys: quiet()}))
			write(t, filepath.Join(dir, set+"-wal"), wal)
			write(t, filepath.Join(dir, set), db)
		}},
		{"the set has its old name", func(t *testing.T, dir string, db, wal []byte) {
			s := open(t, filepath.Join(dir, "b.db"), Options{sys: quiet()})
			v := &salvage{s: s, path: filepath.Join(dir, set)}
			s.io.Lock()
			if err := s.db.exec(sqlMeta, metaRescue, "rescue", v.progress()); err != nil {
				t.Fatal(err)
			}
			s.io.Unlock()
			shut(t, s)
			write(t, filepath.Join(dir, set+"-wal"), wal)
			write(t, filepath.Join(dir, set), db)
		}},
	} {
		bubble(t, c.fact, func(t *testing.T) {
			db, wal := damageStore(t, true)
			clear(db[1*pageSize:][:pageSize]) // the root of the segments
			dir := shm(t)
			c.leave(t, dir, db, wal)
			path := filepath.Join(dir, "b.db")
			for start := range 3 {
				s := open(t, path, Options{sys: quiet()})
				up := consumer(t, s, "up", ConsumerOptions{Stream: "up", Window: 1024})
				s.rescues.Wait()
				if err := s.Sync(t.Context()); err != nil {
					t.Fatal(err)
				}
				got := drained(t, up)
				if start == 0 && !slices.Equal(got, upTo(damageRecords)[10:]) || start > 0 && len(got) > 0 {
					t.Errorf("start %d: %d records: %v", start, len(got), got)
				}
				if err := s.Sync(t.Context()); err != nil {
					t.Fatal(err)
				}
				shut(t, s)
			}
			if names, _ := filepath.Glob(filepath.Join(dir, "b.corrupt-*.db")); len(names) != 1 {
				t.Errorf("%d sets are kept", len(names))
			}
			if names, _ := filepath.Glob(filepath.Join(dir, "b.damaged-*")); len(names) != 0 {
				t.Errorf("still to be rescued: %v", names)
			}
		})
	}
}

// TestNewFileFailsAfterPuttingAside: the disk takes the renaming and not the
// new file, until later. What was put aside is rescued then.
func TestNewFileFailsAfterPuttingAside(t *testing.T) {
	bubble(t, "at the start", func(t *testing.T) {
		db, _ := damageStore(t, false)
		path := filepath.Join(shm(t), "b.db")
		clear(db[1*pageSize:][:pageSize])
		write(t, path, db)
		sys := quiet()
		var broken atomic.Bool
		broken.Store(true)
		sys.exec = func(string) error {
			if sets, _ := filepath.Glob(filepath.Join(filepath.Dir(path), "b.damaged-*.db")); broken.Load() && len(sets) > 0 {
				return errors.New("the disk says no")
			}
			return nil
		}
		s := open(t, path, Options{sys: sys})
		if st := s.Stats(); st.State != "read-only" {
			t.Fatal(st.State)
		}
		broken.Store(false)
		time.Sleep(5 * time.Second) // the next try
		up := consumer(t, s, "up", ConsumerOptions{Stream: "up", Window: 1024})
		s.rescues.Wait()
		if err := s.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := drained(t, up); !slices.Equal(got, upTo(damageRecords)[10:]) {
			t.Errorf("%d records: %v", len(got), got)
		}
		shut(t, s)
	})
	bubble(t, "while running", func(t *testing.T) {
		path := filepath.Join(shm(t), "b.db")
		var broken atomic.Bool
		sys := quiet()
		sys.exec = func(string) error {
			if sets, _ := filepath.Glob(filepath.Join(filepath.Dir(path), "b.damaged-*.db")); broken.Load() && len(sets) > 0 {
				return errors.New("the disk says no")
			}
			return nil
		}
		s := open(t, path, Options{sys: sys})
		up := consumer(t, s, "up", ConsumerOptions{Stream: "up", Window: 1024})
		f := filler{s: s, to: []*Consumer{up}, lane: LaneLive}
		f.add(t, 10, 10)
		zeroRoot(t, s)
		broken.Store(true)
		k := s.Append(f.records(1))
		synctest.Wait()
		if st := s.Stats(); st.State != "read-only" {
			t.Error(st.State)
		}
		broken.Store(false)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if st := s.Stats(); st.State != "ok" {
			t.Fatal("the disk is back, and the state is ", st.State)
		}
		wait(t, k)
		s.rescues.Wait()
		if err := s.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		got := drained(t, up)
		slices.Sort(got)
		if !slices.Equal(got, upTo(f.n)) {
			t.Errorf("%d records of %d: %v", len(got), f.n, got)
		}
		shut(t, s)
	})
}
