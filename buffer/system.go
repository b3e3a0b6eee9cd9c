package buffer

import (
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// system is what the store asks of the machine. Tests replace fields to break
// them; each must be safe for concurrent use.
type system struct {
	fdatasync func(*os.File) error
	syncDir   func(dir string) error
	free      func(dir string) (int64, error) // bytes that a non-root process may still write
	mono      func() time.Duration            // CLOCK_BOOTTIME
	bootID    func() string                   // changes with each start of the kernel
	query     string                          // more parameters of the database URI
	exec      func(query string) error        // asked before each statement
	youngest  int                             // segments at the end of a lane that are not rewritten
	manySmall int                             // old small segments that start the joining
}

func machine() *system {
	return &system{
		fdatasync: func(f *os.File) error { return syscall.Fdatasync(int(f.Fd())) },
		syncDir:   syncDir,
		free:      freeSpace,
		mono:      bootTime,
		bootID:    kernelBootID,
		exec:      func(string) error { return nil },
		youngest:  16,
		manySmall: 1024,
	}
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func freeSpace(dir string) (int64, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return int64(st.Bavail) * int64(st.Bsize), nil
}

// bootTime is the time since the kernel started, suspended time included.
func bootTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

func kernelBootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "" // never equal to another start, see sameKernel
	}
	return strings.TrimSpace(string(b))
}
