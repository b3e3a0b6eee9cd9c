package vm

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
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

// keySize is how long the keys of messages are, which begin their payload.
const keySize = 18

// key names a message: its round, its QoS and its number.
func key(round int, qos byte, n int) string { return fmt.Sprintf("%06d-%d-%09d", round, qos, n) }

// note notes a message whose acknowledgement was seen.
func (l *ledger) note(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.acked[key] = true
}

// missing forgets what was acknowledged and gives those that were not seen.
func (l *ledger) missing() (lost []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for k := range l.acked {
		if !l.seen[k] {
			lost = append(lost, k)
		}
	}
	l.acked, l.seen = map[string]bool{}, map[string]bool{}
	return lost
}

// plant is a gateway with a meter in a Debian on a disk with a volatile cache.
type plant struct {
	*testing.T
	assets, drive string
	disk          *disk
	ledger        ledger
}

// TestPowerCuts pulls the plug of an installed Debian in mid-write, again and
// again: the package installed by apt, busgate started by systemd, everything on
// one ext4 whose disk has a volatile cache that the cut empties, and the same
// disk from round to round. A sleeping session is owed every message whose
// PUBACK or PUBCOMP a publisher outside has seen. The control has a disk that
// begins to lie about flushes before the publisher begins: it must lose all, or
// this test could not see a loss.
func TestPowerCuts(t *testing.T) {
	assets := needVM(t, "amd64")
	root := installed(t, assets)
	control := filepath.Join(t.TempDir(), "control.img")
	sh(t, "cp", "--sparse=always", root, control)

	t.Run("a disk with a volatile cache", func(t *testing.T) {
		p := newPlant(t, assets, root)
		began, acked, lost := time.Now(), [3]int{}, 0
		for round := range *cuts {
			m, port := p.boot()
			lost += p.collect(port, round)
			up := time.Since(m.began)
			n, gone := p.publish(m, port, round)
			acked[1], acked[2] = acked[1]+n[1], acked[2]+n[2]
			t.Logf("round %d: collected %.0f s after power on, %d and %d acknowledged at QoS 1 and 2, %s unflushed writes lost, %.1f s a round",
				round, up.Seconds(), n[1], n[2], gone, time.Since(began).Seconds()/float64(round+1))
		}
		m, port := p.boot()
		lost += p.collect(port, *cuts)
		t.Logf("%d cuts: %d acknowledged at QoS 1, %d at QoS 2, %d lost", *cuts, acked[1], acked[2], lost)
		if lost > 0 || acked[1] < *cuts || acked[2] < *cuts {
			t.Errorf("lost %d of %v", lost, acked)
		}
		t.Log("outside: " + stateFrom(t, port, patience))
		m.ready()
		if got := m.run("cat /sys/block/vda/queue/write_cache"); got != "write back" {
			t.Errorf("the machine believes that its disk has no volatile cache, and flushes nothing: %s", got)
		}
		t.Log(m.run("findmnt -n -o SOURCE,FSTYPE,OPTIONS -T /var/lib/busgate; " +
			"systemctl show busgate -p FragmentPath -p ActiveState -p NRestarts -p StatusText; dpkg -V busgate && busgate buffer check"))
	})
	t.Run("control: a disk that lies", func(t *testing.T) {
		p := newPlant(t, assets, control)
		m, port := p.boot()
		p.collect(port, 0) // makes the session
		p.disk.lie()
		n, gone := p.publish(m, port, 0)
		_, port = p.boot()
		lost := p.collect(port, 1)
		t.Logf("%d acknowledged at QoS 1, %d at QoS 2, %d lost; %s writes lost", n[1], n[2], lost, gone)
		if lost == 0 || lost != n[1]+n[2] {
			t.Error("a disk that lies has not lost everything: this test does not see each loss")
		}
	})
}

// installed gives a disk with a Debian on which apt has installed the package,
// and on which the meter was read once.
func installed(t *testing.T, assets string) string {
	t.Helper()
	root := rootDisk(t, assets, buildPackage(t, "amd64"), nil)
	port, card := network(t)
	usb := newAdapter(t)
	m := pc(t, assets, image(root), append(card, usb.args(true)...)...)
	connectMeter(t, usb.line)
	m.ready()
	m.put("/etc/busgate/conf.d/plant.toml", openToAll+"[device.meter]\nserial = \"/dev/ttyUSB0\"\nprofile = \"eastron-sdm630\"\n")
	m.run("DEBIAN_FRONTEND=noninteractive apt-get install -y /home/pi/busgate_*.deb >/tmp/apt.log 2>&1 || { cat /tmp/apt.log; false; }")
	t.Log("outside: " + stateFrom(t, port, patience))
	if _, err := fmt.Fprintln(m.in, "systemctl poweroff"); err != nil {
		t.Fatal(err)
	}
	select {
	case <-m.ended:
	case <-time.After(patience):
		t.Fatal("the machine does not switch itself off")
	}
	return root
}

func newPlant(t *testing.T, assets, root string) *plant {
	t.Helper()
	socket := filepath.Join(shortDir(t), "disk")
	return &plant{T: t, assets: assets, disk: openDisk(t, root, socket),
		drive:  "driver=nbd,server.type=unix,server.path=" + socket + ",cache=writeback",
		ledger: ledger{acked: map[string]bool{}, seen: map[string]bool{}}}
}

// boot switches the machine on.
func (p *plant) boot() (m *machine, port string) {
	p.Helper()
	port, card := network(p.T)
	usb := newAdapter(p.T)
	m = pc(p.T, p.assets, p.drive, append(card, usb.args(true)...)...)
	connectMeter(p.T, usb.line)
	return m, port
}

// collect takes what the session is owed, which it makes in the first round, and
// gives how many of the messages acknowledged in the last round were not there.
func (p *plant) collect(port string, round int) (lost int) {
	p.Helper()
	var ends [3]chan struct{} // of each QoS: what is published now has come
	ends[1], ends[2] = make(chan struct{}, 1), make(chan struct{}, 1)
	c := client(p.T, port, "watcher", false, patience, func(m mqtt.Message) {
		k := string(m.Payload()[:min(keySize, len(m.Payload()))])
		p.ledger.mu.Lock()
		p.ledger.seen[k] = true
		p.ledger.mu.Unlock()
		if k == key(round, m.Qos(), 0) {
			select {
			case ends[m.Qos()] <- struct{}{}:
			default: // once more, as QoS 1 may
			}
		}
	})
	if err := done(c.Subscribe("plant/#", 2, nil), patience); err != nil {
		p.Fatalf("round %d: %v", round, err)
	}
	// What a topic was owed comes before what is published to it now.
	for qos := byte(1); qos <= 2; qos++ {
		if err := done(c.Publish(topic(qos), qos, false, key(round, qos, 0)), patience); err != nil {
			p.Fatalf("round %d: %v", round, err)
		}
		select {
		case <-ends[qos]:
		case <-time.After(patience):
			p.Fatalf("round %d: the session does not get what is published now", round)
		}
	}
	c.Disconnect(100)
	missing := p.ledger.missing()
	if len(missing) > 0 {
		p.Logf("round %d: %d acknowledged messages are lost, such as %s", round, len(missing), missing[0])
	}
	return len(missing)
}

func topic(qos byte) string { return fmt.Sprintf("plant/%d", qos) }

// publish sends at QoS 1 and 2 in turn until it pulls the plug, and notes what
// was acknowledged: how many of each QoS. gone says how many writes the disk lost.
func (p *plant) publish(m *machine, port string, round int) (acked [3]int, gone string) {
	p.Helper()
	c := client(p.T, port, "publisher", true, patience, nil)
	payload := strings.Repeat("x", 200)
	window := make(chan struct{}, 20)
	var wg sync.WaitGroup
	var count sync.Mutex
	var began [3]chan struct{} // the first acknowledgement of each QoS came
	began[1], began[2] = make(chan struct{}), make(chan struct{})
	first := began
	var cut <-chan time.Time
	for i := 1; ; i++ {
		select {
		case window <- struct{}{}:
		case <-first[1]:
			first[1] = nil
			continue
		case <-first[2]:
			first[2] = nil
			continue
		case <-cut:
			lost, of, err := p.disk.cut(m.kill)
			if err != nil {
				p.Fatal(err)
			}
			c.Disconnect(0)
			wg.Wait()
			return acked, fmt.Sprintf("%d of %d", lost, of)
		}
		if cut == nil && first[1] == nil && first[2] == nil {
			cut = time.After(time.Duration(200+rand.IntN(2000)) * time.Millisecond)
		}
		if !c.IsConnectionOpen() {
			p.Fatalf("round %d: the publisher lost its connection before the cut", round)
		}
		qos := byte(1 + i%2)
		k := key(round, qos, i)
		token := c.Publish(topic(qos), qos, false, k+payload)
		wg.Go(func() {
			defer func() { <-window }()
			if done(token, patience) != nil {
				return
			}
			p.ledger.note(k)
			count.Lock()
			defer count.Unlock()
			if acked[qos]++; acked[qos] == 1 {
				close(began[qos])
			}
		})
	}
}
