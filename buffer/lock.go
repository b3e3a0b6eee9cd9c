package buffer

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// Error names the process that has the store and says what to do about it.
func (e *InUseError) Error() string {
	who := "another process"
	if e.PID != 0 {
		who = fmt.Sprintf("process %d", e.PID)
	}
	return fmt.Sprintf("store %s is in use by %s: a store has one gateway at a time. Stop that one (sudo systemctl stop busgate), or give this one a data_dir of its own in [gateway]", e.Path, who)
}

// lock keeps a second process out of the store at path. On a file system that
// is read-only there is no second writer: it returns nil, nil.
func lock(path string) (*os.File, error) {
	f, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE, 0o640)
	if err != nil {
		return nil, nil
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		b, _ := io.ReadAll(io.LimitReader(f, 32))
		f.Close()
		pid, _ := strconv.Atoi(strings.TrimSpace(string(b)))
		return nil, &InUseError{Path: path, PID: pid}
	}
	if f.Truncate(0) == nil {
		fmt.Fprintln(f, os.Getpid()) // for the message of the other process only
	}
	return f, nil
}
