package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"

	"busgate/bridge/uplink/cloudtest"
)

// way is everything around the gateway: publishers and a subscriber with
// sessions, a disk that can fail, and a cloud for each QoS.
type way struct {
	t       *testing.T
	disk    *disk    // nil: kill -9 alone
	command []string // starts the gateway
	control bool     // losses are expected
	port    int
	gw      *process
	rnd     *rand.Rand
	power   power

	ledgers    []*ledger
	publishers []publisher
	sub        *script
	there      bool                 // the subscriber is connected
	clouds     [3]*cloudtest.Broker // by QoS
	away       atomic.Bool          // they refuse everybody
	marks      int

	mu     sync.Mutex
	inbox  map[string]*arrivals // of the subscriber, by topic
	marked map[string]int       // the last mark of each topic
	news   chan struct{}
	result
}

const cloudWindow = 20

func newWay(t *testing.T, d *disk, command ...string) *way {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	w := &way{t: t, disk: d, port: freePort(t), rnd: rand.New(rand.NewPCG(seed, 0)),
		inbox: map[string]*arrivals{}, marked: map[string]int{}, news: make(chan struct{}, 1)}
	tmp := t.TempDir()
	data := filepath.Join(tmp, "data")
	if d != nil {
		data = filepath.Join(d.dir, "data")
	}
	text := fmt.Sprintf("[gateway]\nname = \"t\"\ndata_dir = %q\n[web]\nlisten = \"\"\n[broker]\nlisten = \"127.0.0.1:%d\"\n[buffer]\nmin_free_disk = \"1MB\"\n", data, w.port)
	for qos := 1; qos <= 2; qos++ {
		c, err := cloudtest.Listen(cloudtest.Options{AckDelay: time.Millisecond, Login: func(*packets.ConnectPacket) byte {
			if w.away.Load() {
				return packets.ErrRefusedServerUnavailable
			}
			return packets.Accepted
		}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		w.clouds[qos] = c
		text += fmt.Sprintf("[uplink.cloud%d]\naddresses = [\"mqtt://%s\"]\nqos = %d\nwindow = %d\nsend = [\"cut/#\"]\n", qos, c.Addr(), qos, cloudWindow)
	}
	file := filepath.Join(tmp, "busgate.toml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	w.command = append(command, "run", "--config", file, "--socket", filepath.Join(tmp, "s"))
	w.sub = startScript(t, w.heard, "sub", "sleeper", "cut/#")
	for qos := byte(1); qos <= 2; qos++ {
		goes, python := newLedger(&w.power, fmt.Sprintf("cut/go%d", qos), qos), newLedger(&w.power, fmt.Sprintf("cut/python%d", qos), qos)
		w.ledgers = append(w.ledgers, goes, python)
		w.publishers = append(w.publishers, newGoPublisher(goes, 20), newPythonPublisher(t, python, 20))
	}
	return w
}

// heard takes what the subscriber got.
func (w *way) heard(word, rest string) bool {
	if word != "got" {
		return false
	}
	topic, payload, _ := strings.Cut(rest, " ")
	number, more, _ := strings.Cut(payload, " ")
	n, err := strconv.Atoi(number)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		w.marked[topic], _ = strconv.Atoi(more)
	} else {
		if w.inbox[topic] == nil {
			w.inbox[topic] = &arrivals{}
		}
		w.inbox[topic].add(n)
	}
	select {
	case w.news <- struct{}{}:
	default:
	}
	return true
}

// cuts runs the rounds, and then brings everything to its end.
func (w *way) cuts(rounds int) {
	began := time.Now()
	for i := range rounds {
		w.away.Store(i%3 == 1)
		if w.rnd.IntN(5) == 0 {
			w.stumble()
		}
		w.begin()
		w.check()
		if i%2 == 0 {
			w.leave()
		}
		acks := w.rnd.IntN(400)
		if w.rnd.IntN(10) == 0 {
			acks += 2000 // far enough for a checkpoint
		}
		w.publish(acks)
		w.rounds++
	}
	w.away.Store(false)
	w.begin()
	w.check()
	w.finish()
	w.check()
	if !w.control {
		w.checkClouds()
	}
	w.gw.end(syscall.SIGTERM)
	w.took = time.Since(began)
}

// begin starts the gateway as a boot does.
func (w *way) begin() {
	w.power.mu.Lock()
	w.power.off, w.power.acks = false, make(chan struct{}, 1<<16)
	w.power.mu.Unlock()
	w.gw = start(w.t, nil, w.command[0], w.command[1:]...)
	w.gw.until(w.t, "that it runs", has("running"))
}

// stumble cuts the power of a gateway that is still starting.
func (w *way) stumble() {
	w.gw = start(w.t, nil, w.command[0], w.command[1:]...)
	select {
	case <-time.After(time.Duration(w.rnd.IntN(150)) * time.Millisecond):
	case <-w.gw.done:
		w.t.Fatalf("round %d: the gateway ended:\n%s", w.rounds, strings.Join(w.gw.lines(), "\n"))
	}
	w.cut()
}

// cut ends the gateway, and its disk before it. The gateway is held first: a
// machine without power acknowledges nothing, and a flush that is under way
// when the file system is shut down may succeed and be lost all the same.
func (w *way) cut() {
	w.ends++
	w.power.mu.Lock()
	w.power.off = true
	w.power.mu.Unlock()
	if w.disk != nil {
		freeze(w.t, w.gw)
		w.disk.cut(w.t)
	}
	w.gw.end(syscall.SIGKILL)
	if w.disk != nil {
		w.disk.restart(w.t)
	}
}

// publish has the clients publish until the given number of acknowledgements
// came, the first of them for what the last cut left open; then the power is cut.
func (w *way) publish(acks int) {
	var wg sync.WaitGroup
	for i, p := range w.publishers {
		wg.Go(func() {
			err := p.run(w.port, false)
			w.power.mu.Lock()
			defer w.power.mu.Unlock()
			if !w.power.off {
				w.t.Errorf("round %d: the publisher of %s was disconnected before the cut: %v", w.rounds, w.ledgers[i].topic, err)
			}
		})
	}
	limit := time.NewTimer(waitLong)
	defer limit.Stop()
	for range acks {
		select {
		case <-w.power.acks:
			continue
		case <-w.gw.done:
		case <-limit.C:
		}
		w.t.Errorf("round %d: not even %d acknowledgements came; the gateway says:\n%s", w.rounds, acks, strings.Join(w.gw.lines(), "\n"))
		break
	}
	w.cut()
	wg.Wait()
	if w.there {
		w.expect("gone")
		w.there = false
	}
	if w.t.Failed() {
		w.t.FailNow()
	}
}

// finish lets the publishers bring to an end what the last cut left open.
func (w *way) finish() {
	var wg sync.WaitGroup
	for i, p := range w.publishers {
		wg.Go(func() {
			if err := p.run(w.port, true); err != nil {
				w.t.Errorf("the publisher of %s: %v", w.ledgers[i].topic, err)
			}
		})
	}
	wg.Wait()
}

// expect waits for the subscriber to say one of the words, and returns it.
func (w *way) expect(words ...string) string {
	w.t.Helper()
	said, err := w.sub.hear()
	if err != nil {
		w.t.Fatalf("%v\nthe gateway says:\n%s", err, strings.Join(w.gw.lines(), "\n"))
	}
	for _, word := range words {
		if said == word {
			return word
		}
	}
	w.t.Fatalf("round %d: the subscriber says %q instead of %q; the gateway says:\n%s", w.rounds, said, words, strings.Join(w.gw.lines(), "\n"))
	return ""
}

func (w *way) leave() {
	w.sub.tell("leave")
	w.expect("left")
	w.there = false
}

// check connects the subscriber and holds what comes against the ledgers. What
// came before a mark that is published now is all that was stored.
func (w *way) check() {
	if !w.there {
		w.sub.tell("connect %d", w.port)
		if w.expect("connected 0", "connected 1") == "connected 0" {
			if w.rounds > 0 {
				w.absent++
				w.logf("round %d: the subscriber's session is gone; the gateway says:\n%s", w.rounds, strings.Join(w.gw.lines(), "\n"))
			}
			w.sub.tell("subscribe")
			w.expect("subscribed")
		}
		w.there = true
	}
	kept := w.mark()
	limit := time.NewTimer(waitLong)
	defer limit.Stop()
	for !w.allMarked() {
		select {
		case <-w.news:
		case said := <-w.sub.said:
			w.t.Fatalf("round %d: the subscriber says %q", w.rounds, said)
		case <-limit.C:
			w.t.Fatalf("round %d: mark %d did not come on every topic: %v; the gateway says:\n%s", w.rounds, w.marks, w.marked, strings.Join(w.gw.lines(), "\n"))
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	lost := w.lost
	for _, l := range w.ledgers {
		in := w.inbox[l.topic]
		if in == nil {
			in = &arrivals{}
		}
		if l.qos == 2 && in.twice > 0 {
			w.logf("round %d: %d numbers came twice on %s", w.rounds, in.twice, l.topic)
		}
		if l.settle(in, &w.result); kept[l.topic] < l.kept {
			w.logf("round %d: %s is retained with %d; %d was acknowledged", w.rounds, l.topic, kept[l.topic], l.kept)
			w.stale++
		}
	}
	if w.lost > lost {
		w.logf("round %d: %d acknowledged messages are lost", w.rounds, w.lost-lost)
		w.hurt++
	}
}

// logf tells what is wrong, except where it is meant to be.
func (w *way) logf(format string, args ...any) {
	if !w.control {
		w.t.Logf(format, args...)
	}
}

func (w *way) allMarked() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, l := range w.ledgers {
		if w.marked[l.topic] != w.marks {
			return false
		}
	}
	return true
}

// mark reads the retained messages and then publishes the next mark on each
// topic, at the QoS of its numbers.
func (w *way) mark() map[string]int {
	w.t.Helper()
	w.marks++
	kept := map[string]int{}
	done := make(chan struct{})
	missing := len(w.ledgers)
	o := mqtt.NewClientOptions().AddBroker(fmt.Sprintf("tcp://127.0.0.1:%d", w.port)).SetClientID("marker").SetAutoReconnect(false)
	c := mqtt.NewClient(o)
	do := func(what string, tok mqtt.Token) {
		if !tok.WaitTimeout(waitLong) || tok.Error() != nil {
			w.t.Fatalf("round %d: marker: %s: %v; the gateway says:\n%s", w.rounds, what, tok.Error(), strings.Join(w.gw.lines(), "\n"))
		}
	}
	do("connect", c.Connect())
	defer c.Disconnect(0)
	do("subscribe", c.Subscribe("cut/#", 1, func(_ mqtt.Client, m mqtt.Message) {
		word, _, _ := strings.Cut(string(m.Payload()), " ")
		if m.Retained() {
			kept[m.Topic()], _ = strconv.Atoi(word)
		} else if missing--; missing == 0 {
			close(done)
		}
	}))
	for _, l := range w.ledgers {
		do("publish", c.Publish(l.topic, l.qos, false, fmt.Sprintf("mark %d", w.marks)))
	}
	select {
	case <-done:
	case <-time.After(waitLong):
		w.t.Fatalf("round %d: the marks did not come back", w.rounds)
	}
	return kept
}

// checkClouds waits until both clouds have the last number of each publisher.
func (w *way) checkClouds() {
	for qos := 1; qos <= 2; qos++ {
		c := w.clouds[qos]
		var came map[string]*arrivals
		waitFor(w.t, fmt.Sprintf("the cloud of QoS %d to have everything", qos), 5*time.Minute, func() bool {
			came = map[string]*arrivals{}
			for _, d := range c.Ledger() {
				word, _, _ := strings.Cut(string(d.Payload), " ")
				if n, err := strconv.Atoi(word); err == nil {
					if came[d.Topic] == nil {
						came[d.Topic] = &arrivals{}
					}
					came[d.Topic].add(n)
				}
			}
			for _, l := range w.ledgers {
				if came[l.topic] == nil || came[l.topic].top < l.last() {
					return false
				}
			}
			return true
		})
		for _, l := range w.ledgers {
			a := came[l.topic]
			for _, n := range l.promised {
				if a.times[n] == 0 {
					w.cloudLost++
				}
			}
			w.cloudOvertaken += a.overtaken
			switch {
			case l.qos < 2: // the publishers themselves repeat
			case qos == 2:
				w.cloudRepeated += a.twice
			default:
				w.cloudAgain += a.twice
			}
		}
		for _, v := range c.Violations() {
			w.t.Errorf("cloud of QoS %d: %s", qos, v)
		}
		w.cloudConnections += c.Connects()
	}
	w.cloud1, w.cloud2 = w.clouds[1].Len(), w.clouds[2].Len()
}
