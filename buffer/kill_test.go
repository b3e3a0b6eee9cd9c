package buffer

import (
	"bufio"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"testing"
)

var kills = flag.Int("kills", 20, "rounds of TestKill")

// killChild makes the test binary a child of TestKill: the path of its store.
const killChild = "BUFFER_TEST_KILL"

func TestMain(m *testing.M) {
	if path := os.Getenv(killChild); path != "" {
		killed(path)
	}
	if path := os.Getenv(openChild); path != "" {
		opened(path)
	}
	os.Exit(m.Run())
}

// killed appends numbered records from several goroutines and prints a number
// once its ticket fired. It acknowledges what is 300 records old. It never
// returns.
func killed(path string) {
	fail := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(3)
		}
	}
	sys := machine()
	if os.Getenv(killChild+"_NOFLUSH") != "" {
		sys.fdatasync = func(*os.File) error { return nil }
	}
	s, err := Open(path, Options{Reserve: -1, sys: sys})
	fail(err)
	c, err := s.Consumer("up", ConsumerOptions{Window: maxWindow})
	fail(err)
	n, err := strconv.Atoi(os.Getenv(killChild + "_FROM"))
	fail(err)
	var mu sync.Mutex
	var wg sync.WaitGroup
	out := bufio.NewWriter(os.Stdout)
	for g := range 4 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(g), uint64(os.Getpid())))
			for {
				mu.Lock()
				var rs []Record
				for range 1 + rnd.IntN(7) {
					n++
					body := append(fmt.Appendf(nil, "%d ", n), random(60+rnd.IntN(900))...)
					rs = append(rs, Record{To: []ConsumerID{c.ID()}, Topic: "t", Payload: body})
				}
				last := n
				k := s.Append(rs)
				mu.Unlock()
				fail(k.Wait(bg))
				mu.Lock()
				fmt.Fprintln(out, last)
				out.Flush()
				mu.Unlock()
			}
		})
	}
	wg.Go(func() {
		for {
			rs, err := c.Next(bg, 200)
			fail(err)
			for _, r := range rs {
				if r.Ord > 300 {
					c.Ack(r.Ord - 300)
				}
			}
		}
	})
	wg.Wait()
}

// TestKill kills a process that appends, at random moments: every number that
// it printed is there, in order, without a hole.
func TestKill(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := temp(t)
	rnd := rand.New(rand.NewPCG(uint64(os.Getpid()), 0))
	from, acked := 0, 0
	for round := range *kills {
		cmd := exec.Command(exe)
		cmd.Env = append(os.Environ(), killChild+"="+path, fmt.Sprint(killChild, "_FROM=", from))
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		after, printed := rnd.IntN(150), from
		in := bufio.NewScanner(out)
		for lines := 0; in.Scan(); lines++ {
			if lines == after {
				cmd.Process.Kill()
			}
			if n, err := strconv.Atoi(in.Text()); err == nil {
				printed = max(printed, n)
			}
		}
		cmd.Wait()

		last := max(checkNumbers(t, path), from)
		if last < printed {
			t.Fatalf("round %d: %d was acknowledged, the last is %d", round, printed, last)
		}
		acked += printed - from
		from = last
	}
	t.Logf("%d records acknowledged over %d kills", acked, *kills)
}
