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
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// plug starts a Pty, or skips where there are no pseudo terminals. unheard may be nil.
func plug(t *testing.T, b *Bus, unheard func([]byte)) *Pty {
	t.Helper()
	p, err := NewPty(b, filepath.Join(t.TempDir(), "port"))
	if err != nil {
		t.Skipf("no pseudo terminals here: %v", err)
	}
	p.unheard = unheard
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
	p := plug(t, NewBus(Line{Baud: 115200}, 1, counter(1)), nil)
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

// heard is the numbers of the lines that end in text, and what follows the last.
func heard(t *testing.T, text string) (numbers []uint64, rest string) {
	t.Helper()
	lines := strings.Split(text, "\r\n")
	for _, l := range lines[:len(lines)-1] {
		var n uint64
		if _, err := fmt.Sscanf(l, "%06d", &n); err == nil && len(l) == 6 {
			numbers = append(numbers, n)
		}
	}
	return numbers, lines[len(lines)-1]
}

// What the bus says while nobody has the terminal open is lost, and so is what a
// program left unread: the next one hears later lines only. How late the bytes are
// moved is the machine's business, so that the test waits for each thing to have
// happened, not for time.
func TestPtyDropsWhatNobodyReads(t *testing.T) {
	b := NewTalker(Line{Baud: 115200}, 1, 20*time.Millisecond, func(n uint64, _ time.Duration) []byte {
		return fmt.Appendf(nil, "%06d\r\n", n)
	})
	lost := make(chan string, 10000)
	p := plug(t, b, func(b []byte) { lost <- string(b) })
	emptied := func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return !p.filled
	}
	for range 3 {
		newest, text := uint64(0), ""
		for n := 0; n < 5 || !emptied(); {
			var numbers []uint64
			if numbers, text = heard(t, text+<-lost); len(numbers) > 0 {
				n, newest = n+len(numbers), numbers[len(numbers)-1]
			}
		}
		f := openTTY(t, p.Path())
		line := ""
		for buf := make([]byte, 1); strings.Count(line, "\n") < 2; line += string(buf) {
			if _, err := io.ReadFull(f, buf); err != nil {
				t.Fatal(err)
			}
		}
		if numbers, _ := heard(t, line); len(numbers) == 0 || slices.Min(numbers) <= newest { // the first line may have begun before
			t.Errorf("read %q, but %d was said before the terminal was opened", line, newest)
		}
		for range 3 { // left unread
			before := b.Stats().Talks
			for b.Stats().Talks == before {
				<-time.After(time.Millisecond) // on a terminal real time passes
			}
		}
		f.Close()
		for len(lost) > 0 {
			<-lost // from before it was opened
		}
	}
}

// mbpoll is a master that somebody else wrote. It gives up after half a second in
// which it is not served, which a busy machine may well bring: then it asks anew.
func TestPeerMbpollReadsTheMeter(t *testing.T) {
	if os.Getenv("BUSGATE_PEERS") == "" {
		t.Skip("runs mbpoll in real time: BUSGATE_PEERS=1 go test -run Peer ./devices/sim")
	}
	bin, err := exec.LookPath("mbpoll")
	if err != nil {
		t.Skip("needs mbpoll: apt-get install mbpoll")
	}
	p := plug(t, NewBus(Line{Baud: 19200}, 1, NewSDM630(1, 1), NewRelays(3, 4)), nil)
	poll := func(args ...string) string {
		t.Helper()
		var out []byte
		var err error
		for range 5 {
			all := append([]string{"-m", "rtu", "-b", "19200", "-P", "none", "-0", "-o", "10"}, args...)
			if out, err = exec.Command(bin, all...).CombinedOutput(); err == nil {
				return string(out)
			}
		}
		t.Fatalf("%v\n%s", err, out)
		return ""
	}
	out := poll("-a", "1", "-t", "3:float", "-B", "-r", "0", "-c", "3", "-1", p.Path())
	if n := strings.Count(out, ": \t2"); n != 3 {
		t.Errorf("%d voltages of 2xx V in:\n%s", n, out)
	}
	out = poll("-a", "3", "-t", "0", "-r", "1", p.Path(), "1", "1")
	if w, _ := p.Bus().Unit(3).Get(Coil, 2); w != 1 {
		t.Errorf("relay 3 is off after\n%s", out)
	}
}
