package buffer

import (
	"errors"
	"fmt"
	"path/filepath"

	"busgate/config/report"
)

// startSalvage begins the rescue from a set that was put aside. It is noted in
// the new file, so that a restart goes on with it, and only then the set gets
// the name of those that are done with. The caller owns the connection.
func (s *Store) startSalvage(path string, known map[int]*Consumer) {
	v := &salvage{s: s, path: s.kept(path), known: known}
	err := s.db.exec(sqlMeta, metaRescue, "rescue", v.progress())
	if err == nil {
		err = s.wal.flush()
	}
	if err == nil {
		err = s.renameSet(path, v.path)
	}
	if err != nil { // whatever it is, the next transaction meets it, too
		v.path = path
	}
	s.rescue(v)
}

// resumeSalvage goes on with what a former process began, or was about to.
func (s *Store) resumeSalvage() error {
	sets, _ := filepath.Glob(s.beside(asideRescue + "*.db"))
	value, err := s.db.value("SELECT value FROM meta WHERE id=?", metaRescue)
	if err != nil {
		return err
	}
	if value == nil {
		if len(sets) > 0 {
			s.startSalvage(sets[0], nil)
		}
		return nil
	}
	v := &salvage{s: s}
	var name string
	if _, err := fmt.Sscanf(text(value), "%d %d %q", &v.last, &v.lastSeq, &name); err != nil || v.last < 0 || v.last>>laneShift >= lanes {
		return nil // not ours: leave it
	}
	v.path = filepath.Join(s.dir(), filepath.Base(name))
	for _, set := range sets {
		if s.kept(set) == v.path {
			if err := s.renameSet(set, v.path); err != nil {
				return err
			}
		}
	}
	s.rescue(v)
	return nil
}

// progress names the file and the last segment that is done.
func (v *salvage) progress() string {
	return fmt.Sprintf("%d %d %q", v.last, v.lastSeq, filepath.Base(v.s.kept(v.path)))
}

func (s *Store) rescue(v *salvage) {
	*v = salvage{s: s, path: v.path, known: v.known, last: v.last, lastSeq: v.lastSeq, buf: make([]byte, pageSize),
		streams: map[StreamID]string{}, boots: map[int64]*boot{}, sessions: map[int64]Session{},
		ids: map[int]ConsumerID{}, bootIDs: map[int64]int64{}, rescued: map[int]int{}, damaged: map[int]int{}}
	s.rescues.Go(func() {
		err := v.run()
		if errors.Is(err, ErrClosed) {
			return
		}
		s.AppendLazy(nil, rescued{})
		s.mu.Lock()
		s.count.rescued += uint64(v.appended)
		s.mu.Unlock()
		text := fmt.Sprintf("%s of %s messages rescued from %s", report.Count(v.appended), report.Count(v.found), filepath.Base(v.path))
		if err != nil {
			text += fmt.Sprintf(" (ended early: %v)", err)
		}
		s.solve("buffer-damaged", text)
	})
}

// account writes into the ledger what is known to be lost.
func (v *salvage) account() {
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	for slot, old := range v.known {
		lost := max(v.damaged[slot], old.n-v.rescued[slot])
		if c := v.s.byIDLocked(v.ids[slot]); c != nil && lost > 0 {
			v.s.loseLocked(c, v.s.boot.id, 0, 0, uint64(lost), 0, 0, reasonCorrupt)
		}
	}
}

// rescued is the change that ends a rescue.
type rescued struct{}

func (rescued) change() {}

// appendOld is AppendLazy for records of another boot. Their boot must be on
// disk before them, so it goes with them, as does the progress.
func (v *salvage) appendOld(rs []Record, bootID int64) error {
	if len(rs) == 0 {
		return nil
	}
	s := v.s
	s.mu.Lock()
	defer s.mu.Unlock()
	for !s.closing && s.batch.full() {
		s.room.Wait()
	}
	if s.closing {
		return ErrClosed
	}
	if b := s.boots[bootID]; b.dirty {
		s.batch.do(sqlBoot, b.row()...)
		b.dirty = false
	}
	for i := range rs {
		s.addLocked(&rs[i], s.setLocked(rs[i].To), bootID)
	}
	s.batch.do(sqlMeta, metaRescue, "rescue", v.progress())
	s.batch.last = s.nextSeq - 1
	s.queuedLocked(len(rs), false)
	return nil
}
