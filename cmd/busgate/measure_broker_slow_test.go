package main

import (
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A disk that takes longer: the kernel asks this process before each fdatasync
// of the daemon (seccomp user notification), which waits and lets it go on. The
// daemon is the released program and knows nothing of it.

// slowVariable is the path of the socket on which the launcher hands over what
// the kernel asks through.
const slowVariable = "BUSGATE_SLOW_FLUSH"

// From linux/seccomp.h; package unix has the rest.
const (
	notifyReceive  = 0xc0502100 // SECCOMP_IOCTL_NOTIF_RECV
	notifySend     = 0xc0182101 // SECCOMP_IOCTL_NOTIF_SEND
	notifyContinue = 1          // SECCOMP_USER_NOTIF_FLAG_CONTINUE
)

type (
	notification struct {
		id         uint64
		pid, flags uint32
		nr         int32
		arch       uint32
		ip         uint64
		args       [6]uint64
	}
	response struct {
		id    uint64
		val   int64
		err   int32
		flags uint32
	}
)

// slowDisk delays flushes of a process that TestSlowFlushLauncher started.
type slowDisk struct {
	socket string
	added  time.Duration
	wg     sync.WaitGroup

	mu      sync.Mutex
	flushes int
	waited  time.Duration // what was added to them
}

// newSlowDisk waits for the launcher on a socket.
func newSlowDisk(t *testing.T, added time.Duration) *slowDisk {
	t.Helper()
	d := &slowDisk{socket: filepath.Join(t.TempDir(), "launcher"), added: added}
	ln, err := net.Listen("unix", d.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.wg.Wait)
	d.wg.Go(func() {
		defer ln.Close()
		defer anyCore()() // a disk is none of the load's business
		fd, err := receiveDescriptor(ln)
		if err != nil {
			t.Error(err)
			return
		}
		defer unix.Close(fd)
		d.serve(fd)
	})
	return d
}

// anyCore lets the thread of the calling goroutine run where there is room,
// until back is called. The thread does not end then: see load.run.
func anyCore() (back func()) {
	runtime.LockOSThread()
	var all, was unix.CPUSet
	for i := range runtime.NumCPU() {
		all.Set(i)
	}
	unix.SchedGetaffinity(0, &was)
	unix.SchedSetaffinity(0, &all) // not allowed: where it was
	return func() {
		unix.SchedSetaffinity(0, &was)
		runtime.UnlockOSThread()
	}
}

// launcher is what stands in front of the program on the command line.
func (d *slowDisk) launcher() []string {
	return []string{"env", slowVariable + "=" + d.socket, os.Args[0], "-test.run=^TestSlowFlushLauncher$", "--"}
}

// reset begins to count anew.
func (d *slowDisk) reset() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.flushes, d.waited = 0, 0
}

// mean is how much was added to a flush on average, and to how many.
func (d *slowDisk) mean() (time.Duration, int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.waited / time.Duration(max(d.flushes, 1)), d.flushes
}

// serve answers the kernel until the process is gone.
func (d *slowDisk) serve(fd int) {
	for {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(poll, -1); err == unix.EINTR {
			continue
		}
		if poll[0].Revents&unix.POLLIN == 0 {
			return
		}
		var n notification
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), notifyReceive, uintptr(unsafe.Pointer(&n))); e != 0 {
			continue // the caller was killed while it waited
		}
		began := time.Now()
		wait := unix.NsecToTimespec(int64(d.added))
		unix.Nanosleep(&wait, nil) // time.Sleep is not that exact; the store flushes one at a time
		r := response{id: n.id, flags: notifyContinue}
		for {
			if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), notifySend, uintptr(unsafe.Pointer(&r))); e != unix.EINTR {
				break // answered, or the caller is gone
			}
		}
		d.mu.Lock()
		d.flushes++
		d.waited += time.Since(began)
		d.mu.Unlock()
	}
}

func receiveDescriptor(ln net.Listener) (int, error) {
	c, err := ln.Accept()
	if err != nil {
		return -1, err
	}
	defer c.Close()
	oob := make([]byte, 64)
	_, n, _, _, err := c.(*net.UnixConn).ReadMsgUnix(make([]byte, 1), oob)
	if err != nil {
		return -1, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) == 0 {
		return -1, fmt.Errorf("no descriptor from the launcher: %v", err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return -1, err
	}
	return fds[0], nil
}

// TestSlowFlushLauncher is not a test: it becomes the program that is named
// behind "--", whose fdatasync calls are announced on the socket.
func TestSlowFlushLauncher(t *testing.T) {
	socket := os.Getenv(slowVariable)
	if socket == "" {
		t.Skip("the child of TestMeasureBroker")
	}
	runtime.LockOSThread() // the filter belongs to this thread, which becomes the program
	fd, err := announceFlushes()
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.(*net.UnixConn).WriteMsgUnix([]byte{1}, unix.UnixRights(fd), nil); err != nil {
		t.Fatal(err)
	}
	args := flag.Args()
	var env []string
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, slowVariable) {
			env = append(env, v)
		}
	}
	t.Fatal(syscall.Exec(args[0], args, env))
}

// announceFlushes installs a filter that asks the holder of the descriptor
// before each fdatasync of this thread and its children.
func announceFlushes() (int, error) {
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // the number of the call
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_FDATASYNC, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_USER_NOTIF},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return -1, err
	}
	// Once the wait has begun the signals of the Go runtime do not cut it short.
	const flags = unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
	fd, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&program)))
	if e != 0 {
		return -1, fmt.Errorf("seccomp: %w", e)
	}
	return int(fd), nil
}
