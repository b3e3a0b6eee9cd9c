//go:build linux

package sim

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// plug starts a Pty, or skips where there are no pseudo terminals.
func plug(t *testing.T, b *Bus) *Pty {
	t.Helper()
	p, err := NewPty(b, filepath.Join(t.TempDir(), "port"))
	if err != nil {
		t.Skipf("no pseudo terminals here: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(p.Path()); !os.IsNotExist(err) {
			t.Errorf("the link is still there: %v", err)
		}
	})
	return p
}

func openTTY(t *testing.T, path string) *os.File {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), path)
	t.Cleanup(func() { f.Close() })
	// a master listens for t3.5 before it speaks
	f.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
	f.Read(make([]byte, 1))
	f.SetDeadline(time.Now().Add(10 * time.Second))
	return f
}

func TestPtyCarriesBothWaysAndSurvivesUnplugging(t *testing.T) {
	p := plug(t, NewBus(Line{Baud: 115200}, 1, counter(1)))
	ask, want := Line{}.Seal(1, []byte{3, 0, 7, 0, 1}), Line{}.Seal(1, []byte{3, 2, 3, 0xEF})
	for round := range 3 {
		f := openTTY(t, p.Path())
		if _, err := f.Write(ask); err != nil {
			t.Fatal(err)
		}
		var got []byte
		buf := make([]byte, 64)
		for len(got) < len(want) {
			n, err := f.Read(buf)
			if err != nil {
				t.Fatalf("round %d: after % x: %v", round, got, err)
			}
			got = append(got, buf[:n]...)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("round %d: % x", round, got)
		}
		p.Unplug()
		if _, err := os.Stat(p.Path()); !os.IsNotExist(err) {
			t.Errorf("the path is still there: %v", err)
		}
		if n, err := f.Read(buf); n > 0 || err == nil {
			t.Errorf("read %d bytes of an adapter that is gone", n)
		}
		if err := p.Replug(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestPtyDropsWhatNobodyReads(t *testing.T) {
	b := NewTalker(Line{Baud: 115200}, 1, 20*time.Millisecond, func(n uint64, _ time.Duration) []byte {
		return fmt.Appendf(nil, "%06d\r\n", n)
	})
	p := plug(t, b)
	for range 2 {
		for before := b.Stats().Talks; b.Stats().Talks < before+5; {
			<-time.After(5 * time.Millisecond) // on a terminal real time passes
		}
		next := b.Stats().Talks
		f := openTTY(t, p.Path())
		line := ""
		for buf := make([]byte, 1); strings.Count(line, "\n") < 2; line += string(buf) {
			if _, err := io.ReadFull(f, buf); err != nil {
				t.Fatal(err)
			}
		}
		line = strings.Split(line, "\r\n")[1] // the first one may have begun before
		var n uint64
		if _, err := fmt.Sscanf(line, "%06d", &n); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if n+1 < next {
			t.Errorf("read %q, which was sent before the terminal was opened (next %d)", line, next)
		}
		f.Close()
		<-time.After(30 * time.Millisecond) // long enough for the terminal to see it
	}
}

// mbpoll is a master that somebody else wrote.
func TestMbpollReadsTheMeter(t *testing.T) {
	bin, err := exec.LookPath("mbpoll")
	if err != nil {
		t.Skip("mbpoll is not installed")
	}
	p := plug(t, NewBus(Line{Baud: 19200}, 1, NewSDM630(1, 1), NewRelays(3, 4)))
	out, err := exec.Command(bin, "-m", "rtu", "-a", "1", "-b", "19200", "-P", "none", "-t", "3:float", "-B", "-0", "-r", "0", "-c", "3", "-1", "-o", "2", p.Path()).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if n := strings.Count(string(out), ": \t2"); n != 3 {
		t.Errorf("%d voltages of 2xx V in:\n%s", n, out)
	}
	out, err = exec.Command(bin, "-m", "rtu", "-a", "3", "-b", "19200", "-P", "none", "-t", "0", "-0", "-r", "1", "-o", "2", p.Path(), "1", "1").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if w, _ := p.Bus().Unit(3).Get(Coil, 2); w != 1 {
		t.Errorf("relay 3 is off after\n%s", out)
	}
}
