package buffer

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

const (
	pageSize = 4096
	walLimit = 8 << 20
)

// wal flushes the -wal file by itself. SQLite's own flush (synchronous=FULL)
// is an fsync, which also commits the file system's journal for the changed
// mtime: twice the bytes. Its owner is the committer.
type wal struct {
	path string
	sys  *system
	f    *os.File
	dev  uint64
	ino  uint64
}

// flush makes every committed transaction durable. After an error the
// descriptor is gone: the kernel may have dropped the dirty pages and would
// report success the next time.
func (w *wal) flush() error {
	if err := w.follow(); err != nil {
		return fmt.Errorf("flush %s: %w", w.path, err)
	}
	if err := w.sys.fdatasync(w.f); err != nil {
		w.close()
		return fmt.Errorf("flush %s: %w", w.path, err)
	}
	return nil
}

// follow opens the -wal file, or opens it again when it is another file now.
func (w *wal) follow() error {
	st, err := stat(w.path)
	if err != nil {
		return err
	}
	if w.f != nil && st.Dev == w.dev && st.Ino == w.ino {
		return nil
	}
	w.close()
	f, err := os.Open(w.path)
	if err != nil {
		return err
	}
	if err := w.sys.syncDir(filepath.Dir(w.path)); err != nil {
		f.Close()
		return err
	}
	w.f, w.dev, w.ino = f, st.Dev, st.Ino
	return nil
}

// stat is os.Stat without its allocations: it runs once a commit.
func stat(path string) (st syscall.Stat_t, err error) {
	if err := syscall.Stat(path, &st); err != nil {
		return st, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return st, nil
}

func (w *wal) close() {
	if w.f != nil {
		w.f.Close() // opened for reading: nothing to lose
		w.f = nil
	}
}
