package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// noFlush in the environment makes the test binary the program in its arguments,
// with an fdatasync that does nothing and says that all is well.
const noFlush = "BUSGATE_TEST_NO_FLUSH"

func init() {
	if os.Getenv(noFlush) == "" {
		return
	}
	os.Unsetenv(noFlush)
	fmt.Fprintln(os.Stderr, "without flush:", becomeUnflushed(os.Args[1:]))
	os.Exit(1)
}

// becomeUnflushed has the kernel answer fdatasync, which is the flush of the
// store, without doing it (seccomp(2)); the fsync of SQLite's checkpoints and of
// folders stays. So the control run is the built program itself, on a plain
// synchronous=NORMAL.
func becomeUnflushed(args []string) error {
	runtime.LockOSThread() // the filter is of this thread, which execs
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // seccomp_data.nr
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: unix.SYS_FDATASYNC},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO}, // with error 0
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	prog := &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, reflect.ValueOf(prog).Pointer(), 0, 0); err != nil {
		return fmt.Errorf("seccomp: %w", err)
	}
	runtime.KeepAlive(prog)
	return syscall.Exec(args[0], args, os.Environ())
}

// disk is an ext4 file system of its own, on a loop device.
type disk struct {
	dir string // where it is mounted
	dev string
}

func newDisk(t *testing.T) *disk {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("a loop device needs root: sudo -E env BUSGATE_PEERS=1 go test -run PowerCutWay ./cmd/busgate")
	}
	tmp := t.TempDir()
	img := filepath.Join(tmp, "img")
	d := &disk{dir: filepath.Join(tmp, "mnt")}
	if err := os.WriteFile(img, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(img, 256<<20); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(d.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", img).CombinedOutput(); err != nil {
		t.Skipf("mkfs.ext4: %v %s", err, out)
	}
	out, err := exec.Command("losetup", "--find", "--show", img).Output()
	if err != nil {
		t.Skipf("no loop device here: losetup: %v", err)
	}
	d.dev = strings.TrimSpace(string(out))
	t.Cleanup(func() { exec.Command("losetup", "--detach", d.dev).Run() })
	if out, err := exec.Command("mount", d.dev, d.dir).CombinedOutput(); err != nil {
		t.Skipf("mount: %v %s", err, out)
	}
	t.Cleanup(func() { syscall.Unmount(d.dir, syscall.MNT_DETACH) })
	return d
}

// cut stops all writing at once, and the file system's log with it, as a power
// cut does: EXT4_IOC_SHUTDOWN with NOLOGFLUSH. It does not model a card that
// lies about its flush.
func (d *disk) cut(t *testing.T) {
	f, err := os.Open(d.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.IoctlSetPointerInt(int(f.Fd()), 0x8004587d, 2); err != nil {
		t.Skipf("this kernel cannot shut ext4 down: %v", err)
	}
}

// freeze stops every thread of p where it is; one that waits for the disk will
// stop before it knows how that went.
func freeze(t *testing.T, p *process) {
	if err := p.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	tasks := fmt.Sprintf("/proc/%d/task/*/stat", p.cmd.Process.Pid)
	waitFor(t, "all threads of "+p.name+" to stop", waitLong, func() bool {
		stats, _ := filepath.Glob(tasks)
		for _, file := range stats {
			text, err := os.ReadFile(file)
			_, state, _ := strings.Cut(string(text), ") ") // proc(5)
			if err == nil && !strings.HasPrefix(state, "T") && !strings.HasPrefix(state, "D") {
				return false
			}
		}
		return len(stats) > 0
	})
}

// restart mounts the disk as a boot after the cut would. While the file system
// is still mounted in another mount namespace (a container that was started
// meanwhile), a mount would only give the dead one again: it is waited for.
func (d *disk) restart(t *testing.T) {
	if err := syscall.Unmount(d.dir, 0); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the file system to be let go by containers", 2*time.Minute, func() bool {
		f, err := os.OpenFile(d.dev, os.O_RDONLY|syscall.O_EXCL, 0)
		if err == nil {
			f.Close()
		}
		return err == nil
	})
	if out, err := exec.Command("mount", d.dev, d.dir).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v %s", err, out)
	}
}
