package buffer

import (
	"bufio"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

var powerCuts = flag.Int("powercuts", 6, "rounds of TestPowerCut")

// disk is an ext4 file system of its own, on a loop device.
type disk struct {
	dir string // where it is mounted
	dev string
}

func newDisk(t testing.TB) *disk {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("a loop device needs root")
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
		t.Skip("losetup:", err)
	}
	d.dev = strings.TrimSpace(string(out))
	t.Cleanup(func() { exec.Command("losetup", "--detach", d.dev).Run() })
	if out, err := exec.Command("mount", d.dev, d.dir).CombinedOutput(); err != nil {
		t.Skipf("mount: %v %s", err, out)
	}
	t.Cleanup(func() { syscall.Unmount(d.dir, syscall.MNT_DETACH) })
	return d
}

// cut stops all writing at once, without the file system's log, as a power cut
// does: EXT4_IOC_SHUTDOWN with NOLOGFLUSH.
func (d *disk) cut(t testing.TB) {
	f, err := os.Open(d.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	flags := uint32(2)
	if _, _, e := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), 0x8004587d, uintptr(unsafe.Pointer(&flags))); e != 0 {
		t.Skip("this kernel cannot shut ext4 down:", e)
	}
}

// restart mounts the disk as a boot after the cut would. While a container that
// was started meanwhile still holds the file system, a mount would only give the
// dead one again: it is waited for.
func (d *disk) restart(t testing.TB) {
	if err := syscall.Unmount(d.dir, 0); err != nil {
		t.Fatal(err)
	}
	for limit := time.Now().Add(2 * time.Minute); ; time.Sleep(10 * time.Millisecond) {
		f, err := os.OpenFile(d.dev, os.O_RDONLY|syscall.O_EXCL, 0)
		if err == nil {
			f.Close()
			break
		}
		if time.Now().After(limit) {
			t.Fatal("another mount namespace does not let go of the file system: ", err)
		}
	}
	if out, err := exec.Command("mount", d.dev, d.dir).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v %s", err, out)
	}
}

// written is what the device was asked to write so far, in bytes and flushes.
func (d *disk) written(t testing.TB) (bytes, flushes int64) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(d.dev), "stat"))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(b)) // Documentation/block/stat.rst
	if len(f) < 16 {
		t.Skip("this kernel does not count flushes")
	}
	sectors, _ := strconv.ParseInt(f[6], 10, 64)
	flushes, _ = strconv.ParseInt(f[15], 10, 64)
	return sectors * 512, flushes
}

// TestPowerCut cuts the power of a process that appends: every number that it
// printed before is there. The control run, without our flush, must lose, or
// this proves nothing. It does not model a card that lies about its flush.
func TestPowerCut(t *testing.T) {
	d := newDisk(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(uint64(os.Getpid()), 0))
	rounds := func(name string, n int, env ...string) (lost int) {
		path := filepath.Join(d.dir, name)
		from := 0
		for range n {
			cmd := exec.Command(exe)
			cmd.Env = append(append(os.Environ(), killChild+"="+path, fmt.Sprint(killChild, "_FROM=", from)), env...)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			after := 20 + rnd.IntN(100)
			var printed atomic.Int64
			in := bufio.NewScanner(out)
			before := int64(from)
			for lines := 0; in.Scan(); lines++ {
				if n, err := strconv.ParseInt(in.Text(), 10, 64); err == nil {
					printed.Store(max(printed.Load(), n))
				}
				if lines == after {
					before = printed.Load()
					d.cut(t)
					cmd.Process.Kill()
				}
			}
			cmd.Wait()
			d.restart(t)
			last := checkNumbers(t, path)
			if int64(last) < before {
				lost++
				t.Logf("%s: %d was acknowledged before the cut, the last is %d", name, before, last)
			}
			from = max(last, int(before))
		}
		return lost
	}
	if lost := rounds("b.db", *powerCuts); lost > 0 {
		t.Errorf("%d of %d cuts lost acknowledged records", lost, *powerCuts)
	}
	tries := 0 // a cut right after a checkpoint loses nothing
	for lost := 0; lost == 0; lost = rounds(fmt.Sprint("control", tries, ".db"), 1, killChild+"_NOFLUSH=1") {
		if tries++; tries > 60 {
			t.Fatalf("without a flush %d cuts lost nothing: the cut does not cut", tries-1)
		}
	}
}

// checkNumbers opens a store that a child left, takes all that is in it and
// returns the last number.
func checkNumbers(t *testing.T, path string) int {
	t.Helper()
	s := open(t, path, Options{})
	defer shut(t, s)
	if err := audit(s); err != nil {
		t.Fatal(err)
	}
	c := consumer(t, s, "up", ConsumerOptions{Window: maxWindow})
	last, first := 0, true
	for {
		rs := there(t, c, 500)
		if len(rs) == 0 {
			return last
		}
		for _, r := range rs {
			var n int
			fmt.Sscan(string(r.Payload), &n)
			if !first && n != last+1 {
				t.Fatalf("number %d (ord %d) follows %d", n, r.Ord, last)
			}
			last, first = n, false
			c.Ack(r.Ord)
		}
	}
}
