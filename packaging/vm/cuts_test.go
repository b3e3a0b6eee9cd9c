package vm

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
)

// ledger is what publishers and subscribers outside know.
type ledger struct {
	mu    sync.Mutex
	acked map[string]bool
	seen  map[string]bool
}

func (l *ledger) missing() (lost []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for k := range l.acked {
		if !l.seen[k] {
			lost = append(lost, k)
		}
	}
	return lost
}

// TestPowerCuts kills the machine in mid-write, again and again. The disk with
// the store has a volatile cache that the cut empties. A sleeping session is
// owed every message whose acknowledgement a publisher outside has seen. The
// control has a disk that lies about flushes: it must lose, or this test could
// not see a loss. So that fifty rounds take minutes, there is no Debian around
// the shipped binary, only a kernel and a script, and each round resumes the
// machine as it was after the kernel's start, with the disk not yet mounted.
func TestPowerCuts(t *testing.T) {
	assets := needVM(t, "amd64")
	initrd := cutInitramfs(t, assets, buildPackage(t, "amd64"))
	t.Run("a disk with a volatile cache", func(t *testing.T) {
		lost, acked := cutOften(t, assets, initrd, *cuts, false)
		t.Logf("%d cuts: %d acknowledged, %d lost", *cuts, acked, lost)
		if lost > 0 || acked < *cuts {
			t.Errorf("lost %d of %d", lost, acked)
		}
	})
	t.Run("control: a disk that lies", func(t *testing.T) {
		lost, acked := cutOften(t, assets, initrd, 20, true)
		t.Logf("%d acknowledged, %d lost", acked, lost)
		if lost == 0 {
			t.Error("nothing was lost on a disk that lies: this test sees no loss")
		}
	})
}

// cutInit is all that runs besides the kernel and the program.
const cutInit = `#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc p /proc; $b mount -t sysfs s /sys; $b mount -t devtmpfs d /dev
for m in $($b sed -n 's/^for m in \(.*\); do.*/\1/p' /init); do $b insmod /lib/$m 2>/dev/null; done
while [ ! -b /dev/vda ]; do $b sleep 0.02; done
$b blockdev --flushbufs /dev/vda
$b ip link set lo up; $b ip addr add 10.0.2.15/24 dev eth0; $b ip link set eth0 up
echo KERNEL IS UP
read go
$b mount -t ext4 -o noatime /dev/vda /data || echo CANNOT MOUNT
/bin/busgate run --config /busgate.toml --socket /s
echo ENDED $?
$b poweroff -f
`

// cutInitramfs lays the program over the initramfs of the assets: the kernel
// takes archives one after the other.
func cutInitramfs(t *testing.T, assets, deb string) string {
	t.Helper()
	dir := t.TempDir()
	sh(t, "dpkg-deb", "-x", deb, filepath.Join(dir, "deb"))
	over := filepath.Join(dir, "over")
	for name, text := range map[string]string{"cuts": cutInit, "busgate.toml": "[gateway]\nname = \"gw\"\ndata_dir = \"/data\"\n" + openToAll + "sys_interval = \"0s\"\n", "data/.keep": ""} {
		name = filepath.Join(over, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	sh(t, "install", "-D", filepath.Join(dir, "deb/usr/bin/busgate"), filepath.Join(over, "bin/busgate"))
	initrd := filepath.Join(dir, "initrd.gz")
	sh(t, "sh", "-c", fmt.Sprintf("(cat %s/initrd.gz; cd %s && find . | cpio -o -H newc --quiet | gzip -1) >%s", assets, over, initrd))
	return initrd
}

// cutOften boots, takes what the last round left, publishes, and pulls the plug.
func cutOften(t *testing.T, assets, initrd string, times int, lies bool) (lost, acked int) {
	t.Helper()
	socket := filepath.Join(shortDir(t), "disk")
	d := openDisk(t, dataDisk(t, "128M"), socket, lies)
	l := &ledger{acked: map[string]bool{}, seen: map[string]bool{}}
	dir := shortDir(t)
	saved := filepath.Join(dir, "saved")
	start := func(more ...string) (*machine, string) {
		port, card := network(t)
		return boot(t, assets, "qemu-system-x86_64", append(append(card, "-M", "q35", "-accel", "tcg", "-cpu", "max", "-m", "192", "-initrd", initrd,
			"-append", "console=ttyS0 quiet panic=-1 net.ifnames=0 rdinit=/cuts",
			"-drive", "driver=nbd,server.type=unix,server.path="+socket+",if=none,id=data,cache=writeback", "-device", "virtio-blk-pci,drive=data",
			"-object", "rng-random,filename=/dev/urandom,id=rng", "-device", "virtio-rng-pci,rng=rng", "-serial", "stdio"), more...)...), port
	}
	monitor := filepath.Join(dir, "monitor")
	m, _ := start("-monitor", "unix:"+monitor+",server=on,wait=off")
	if _, err := m.until("KERNEL IS UP", patience); err != nil {
		t.Fatal(err)
	}
	save(t, monitor, saved)
	m.kill()
	began := time.Now()
	for round := range times + 1 {
		m, port := start("-incoming", "exec:cat "+saved)
		if _, err := fmt.Fprintln(m.in, "go"); err != nil {
			t.Fatal(err)
		}
		// The session takes what the last round left for it.
		watcher := client(t, port, "watcher", false, patience, func(msg mqtt.Message) {
			l.mu.Lock()
			l.seen[string(msg.Payload()[:min(16, len(msg.Payload()))])] = true
			l.mu.Unlock()
		})
		if err := done(watcher.Subscribe("plant/#", 1, nil), patience); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		before := l.missing()
		if len(before) > 0 {
			end := time.Now().Add(time.Minute)
			for len(before) > 0 && time.Now().Before(end) {
				time.Sleep(100 * time.Millisecond)
				before = l.missing()
			}
		}
		lost += len(before)
		if len(before) > 0 {
			t.Logf("round %d: %d acknowledged messages are lost, such as %s", round, len(before), before[0])
		}
		l.mu.Lock()
		for _, k := range before { // counted once
			delete(l.acked, k)
		}
		l.mu.Unlock()
		watcher.Disconnect(100)
		if round == times || lies && lost > 0 { // one loss is enough for the control
			m.kill()
			return lost, acked
		}
		n := publish(t, m, port, round, l)
		acked += n
		m.kill()
		gone, err := d.cut()
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("round %d: %d acknowledged, %d unflushed writes lost, %.1f s a round", round, n, gone, time.Since(began).Seconds()/float64(round+1))
	}
	return lost, acked
}

// save writes the state of a machine to a file.
func save(t *testing.T, monitor, file string) {
	t.Helper()
	c, err := net.Dial("unix", monitor)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := fmt.Fprintf(c, "migrate \"exec:cat >%s\"\ninfo migrate\n", file); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	b := make([]byte, 4096)
	for !strings.Contains(said.String(), "Migration status: completed") {
		n, err := c.Read(b)
		if err != nil {
			t.Fatalf("%v: %s", err, said.String())
		}
		said.Write(b[:n])
	}
}

// publish sends at QoS 1 until the plug is pulled, and notes what was acknowledged.
func publish(t *testing.T, m *machine, port string, round int, l *ledger) (acked int) {
	t.Helper()
	c := client(t, port, "publisher", true, patience, nil)
	payload := strings.Repeat("x", 200)
	window := make(chan struct{}, 20)
	var wg sync.WaitGroup
	began := make(chan struct{}) // the first acknowledgement came
	first := began
	var once sync.Once
	var cut <-chan time.Time
	for i := 0; ; i++ {
		select {
		case window <- struct{}{}:
		case <-first:
			cut, first = time.After(time.Duration(200+rand.IntN(2000))*time.Millisecond), nil
			continue
		case <-cut:
			m.kill() // in mid-write: 20 are in flight
			c.Disconnect(0)
			wg.Wait()
			return acked
		}
		key := fmt.Sprintf("%06d-%09d", round, i)
		token := c.Publish("plant/"+strconv.Itoa(i%10), 1, false, key+payload)
		wg.Go(func() {
			defer func() { <-window }()
			if token.WaitTimeout(time.Minute) && token.Error() == nil {
				l.mu.Lock()
				l.acked[key] = true
				acked++
				l.mu.Unlock()
				once.Do(func() { close(began) })
			}
		})
	}
}
