package uplink

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"busgate/bridge/uplink/cloudtest"
	"busgate/buffer"
	"busgate/config"
)

// The child of the kill test is this test binary with a command in its environment.
const childEnv = "BUSGATE_UPLINK_CHILD"

func TestMain(m *testing.M) {
	if cmd := os.Getenv(childEnv); cmd != "" {
		if err := child(strings.Fields(cmd)); err != nil {
			fmt.Println("child:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// child is a gateway without anything but a store and an uplink: it puts n
// messages into the store and relays until it is killed or nothing waits.
// Arguments: path, address, QoS, n.
func child(args []string) error {
	qos, _ := strconv.Atoi(args[2])
	n, _ := strconv.Atoi(args[3])
	st, err := buffer.Open(args[0], buffer.Options{})
	if err != nil {
		return err
	}
	cfg := &config.Uplink{
		Name: "cloud", Addresses: []string{"mqtt://" + args[1]}, ClientID: "gw", QoS: byte(qos), Window: 20, KeepAlive: time.Minute,
		Send: []string{"#"}, Will: true, Retain: true,
	}
	c, err := st.Consumer("cloud", ConsumerOptions(cfg, "cloud"))
	if err != nil {
		return err
	}
	if n > 0 {
		stream := st.Stream("cloud")
		var rs []buffer.Record
		for i := range n {
			rs = append(rs, buffer.Record{To: []buffer.ConsumerID{c.ID()}, Lane: buffer.LaneLAN, Topic: "t", QoS: 1,
				Payload: strconv.AppendInt(nil, int64(i), 10), Numbers: []buffer.Number{stream.Next()}})
		}
		if err := st.Append(rs).Wait(context.Background()); err != nil {
			return err
		}
	}
	l, err := New(cfg, &config.Gateway{Name: "gw", Topic: "busgate"}, c, Options{
		Usage: func() (int, int64, time.Duration) { n, b := c.Pending(); return n, b, 0 },
		Grace: time.Second, Boot: st.Boot(),
	})
	if err != nil {
		return err
	}
	l.timing = fast
	fmt.Println("ready")
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()
	tick := time.NewTicker(20 * time.Millisecond)
	for range tick.C {
		if n, _ := c.Pending(); n == 0 {
			break
		}
	}
	cancel()
	if err := <-ended; err != nil {
		return err
	}
	return st.Close(context.Background())
}

// TestKilledGatewayIsExact kills a process with the real store with SIGKILL, and
// the connection with it, at random moments.
func TestKilledGatewayIsExact(t *testing.T) {
	n, kills := 1500, 4
	if *full {
		n, kills = 20000, 50
	}
	for _, qos := range []int{1, 2} {
		t.Run(fmt.Sprint("qos ", qos), func(t *testing.T) {
			t.Parallel()
			cloud, err := cloudtest.Listen(cloudtest.Options{AckDelay: 5 * time.Millisecond, AtPublish: true})
			if err != nil {
				t.Fatal(err)
			}
			defer cloud.Close()
			path := filepath.Join(t.TempDir(), "busgate.db")
			rnd := rand.New(rand.NewPCG(1, uint64(qos)))
			at := make([]int, kills)
			for i := range at {
				at[i] = rnd.IntN(n * qos * 9 / 10)
			}
			slices.Sort(at)
			for i := range kills + 1 {
				fill := n
				if i > 0 {
					fill = 0
				}
				cmd := exec.Command(os.Args[0])
				cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s %d %d", childEnv, path, cloud.Addr(), qos, fill))
				out, err := cmd.StdoutPipe()
				if err != nil {
					t.Fatal(err)
				}
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				lines := bufio.NewScanner(out)
				lines.Scan()
				if lines.Text() != "ready" {
					t.Fatalf("child says %q", lines.Text())
				}
				if i < kills {
					await(t, cloud, at[i])
					_ = cmd.Process.Kill()
				}
				for lines.Scan() {
					t.Error(lines.Text())
				}
				_ = cmd.Wait()
			}
			var ledger []string
			for _, d := range cloud.Ledger() {
				if d.Topic == "t" {
					ledger = append(ledger, string(d.Payload))
				}
			}
			lost, twice, reordered := tally(n, ledger)
			t.Logf("lost %d, twice %d, reordered %d", lost, twice, reordered)
			if lost != 0 || reordered != 0 || qos == 2 && twice != 0 || twice > kills*20 {
				t.Errorf("lost %d, twice %d, reordered %d", lost, twice, reordered)
			}
			if v := cloud.Violations(); len(v) > 0 {
				t.Errorf("violations %q", v)
			}
		})
	}
}
