package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"
)

// power is that of the machine under the gateway.
type power struct {
	mu   sync.Mutex
	off  bool
	acks chan struct{} // one for each acknowledgement, as far as there is room
}

// ledger is what one publisher sent on its topic and what it was promised.
type ledger struct {
	topic   string
	qos     byte
	power   *power
	changed chan struct{} // an acknowledgement came

	mu    sync.Mutex
	open  map[uint16]int // packet id -> number, of a client in this process
	sent  int            // the last number of such a client
	acked []int          // PUBACK or PUBCOMP came; not checked yet

	promised []int // acked before the last check
	kept     int   // the last of them that is retained
}

func newLedger(p *power, topic string, qos byte) *ledger {
	return &ledger{topic: topic, qos: qos, power: p, changed: make(chan struct{}, 1), open: map[uint16]int{}}
}

// ack notes that the client takes number n for delivered.
func (l *ledger) ack(n int) {
	l.mu.Lock()
	l.acked = append(l.acked, n)
	l.mu.Unlock()
	l.power.mu.Lock()
	defer l.power.mu.Unlock()
	select {
	case l.power.acks <- struct{}{}:
	default:
	}
}

var errLost = errors.New("the connection is lost")

// room waits until fewer than limit messages are open.
func (l *ledger) room(limit int, lost <-chan struct{}) error {
	t := time.NewTimer(waitLong)
	defer t.Stop()
	for {
		l.mu.Lock()
		n := len(l.open)
		l.mu.Unlock()
		select {
		case <-lost:
			return errLost
		default:
		}
		if n < limit {
			return nil
		}
		select {
		case <-l.changed:
		case <-lost:
		case <-t.C:
			return fmt.Errorf("%d messages stay without an answer for %v", n, waitLong)
		}
	}
}

// settle holds what was acknowledged since the last time against what came. A
// number that a resend brings later was lost all the same.
func (l *ledger) settle(came *arrivals, r *result) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, n := range l.acked {
		if came.times[n] == 0 {
			r.lost++
		}
		if n%3 == 0 {
			l.kept = max(l.kept, n)
		}
	}
	r.acked[l.qos] += len(l.acked)
	l.promised = append(l.promised, l.acked...)
	l.acked = nil
	r.repeated[l.qos] += came.twice
	r.overtaken += came.overtaken
	came.twice, came.overtaken = 0, 0
}

// last is the highest number that was acknowledged.
func (l *ledger) last() int { return slices.Max(append(l.promised, 0)) }

// publisher is a client with a session that outlives every cut.
type publisher interface {
	// run resumes the session and brings what is open to its end; then it
	// publishes until the connection is lost or, with last, leaves.
	run(port int, last bool) error
}

// notebook is the session store of a Go client, in the order of sending. It is
// what that client goes by: a message stands in it from its PUBLISH to PUBACK or
// PUBCOMP, and longer than the client lives.
type notebook struct {
	l *ledger

	mu    sync.Mutex
	pages []page
}

type page struct {
	key string // o.ID
	p   packets.ControlPacket
}

func (s *notebook) Open()  {}
func (s *notebook) Close() {}
func (s *notebook) Reset() {}

func (s *notebook) findLocked(key string) int {
	return slices.IndexFunc(s.pages, func(g page) bool { return g.key == key })
}

func (s *notebook) Put(key string, p packets.ControlPacket) {
	s.mu.Lock()
	if i := s.findLocked(key); i >= 0 {
		s.pages[i].p = p
	} else {
		s.pages = append(s.pages, page{key, p})
	}
	s.mu.Unlock()
	if m, ok := p.(*packets.PublishPacket); ok {
		word, _, _ := strings.Cut(string(m.Payload), " ")
		n, _ := strconv.Atoi(word)
		s.l.mu.Lock()
		s.l.open[m.MessageID] = n
		s.l.mu.Unlock()
	}
}

func (s *notebook) Get(key string) packets.ControlPacket {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := s.findLocked(key); i >= 0 {
		return s.pages[i].p
	}
	return nil
}

func (s *notebook) All() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var keys []string
	for _, g := range s.pages {
		keys = append(keys, g.key)
	}
	return keys
}

func (s *notebook) Del(key string) {
	s.mu.Lock()
	s.pages = slices.DeleteFunc(s.pages, func(g page) bool { return g.key == key })
	s.mu.Unlock()
	id, _ := strconv.Atoi(strings.TrimPrefix(key, "o."))
	s.l.mu.Lock()
	n, ok := s.l.open[uint16(id)]
	delete(s.l.open, uint16(id))
	s.l.mu.Unlock()
	if ok {
		s.l.ack(n)
	}
	select {
	case s.l.changed <- struct{}{}:
	default:
	}
}

// pubrecs is a connection that enters each PUBREC into the notebook. The client
// itself does not (v1.5.1): it would send the PUBLISH again where only PUBREL is
// due, and its broker would have to take that for a new message [MQTT-4.3.3-1].
type pubrecs struct {
	net.Conn
	notes *notebook
	part  []byte // of a packet
}

// Read relies on a publisher being sent packets of at most 129 bytes only.
func (c *pubrecs) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.part = append(c.part, b[:n]...)
	for len(c.part) >= 2 && len(c.part) >= 2+int(c.part[1]) {
		if c.part[0]>>4 == packets.Pubrec {
			p := packets.NewControlPacket(packets.Pubrel).(*packets.PubrelPacket)
			p.MessageID = uint16(c.part[2])<<8 | uint16(c.part[3])
			c.notes.Put(fmt.Sprintf("o.%d", p.MessageID), p)
		}
		c.part = c.part[2+int(c.part[1]):]
	}
	return n, err
}

// goPublisher is paho.mqtt.golang. It is made anew for each connection, as when
// its process starts again, so that packet ids of the last one come again soon.
type goPublisher struct {
	l      *ledger
	notes  *notebook
	window int
}

func newGoPublisher(l *ledger, window int) *goPublisher {
	return &goPublisher{l: l, notes: &notebook{l: l}, window: window}
}

func (p *goPublisher) dial(port int) (mqtt.Client, <-chan struct{}, error) {
	lost := make(chan struct{})
	o := mqtt.NewClientOptions().AddBroker(fmt.Sprintf("tcp://127.0.0.1:%d", port)).SetClientID(strings.ReplaceAll(p.l.topic, "/", "-"))
	o.SetCleanSession(false).SetAutoReconnect(false).SetStore(p.notes).SetWriteTimeout(time.Second).SetConnectTimeout(waitLong)
	o.SetConnectionLostHandler(func(mqtt.Client, error) { close(lost) })
	o.SetCustomOpenConnectionFn(func(u *url.URL, o mqtt.ClientOptions) (net.Conn, error) {
		c, err := net.DialTimeout("tcp", u.Host, o.ConnectTimeout)
		if err != nil {
			return nil, err
		}
		return &pubrecs{Conn: c, notes: p.notes}, nil
	})
	c := mqtt.NewClient(o)
	t := c.Connect()
	t.Wait()
	return c, lost, t.Error()
}

func (p *goPublisher) run(port int, last bool) error {
	c, lost, err := p.dial(port)
	if err != nil {
		return err
	}
	err = p.l.room(1, lost)
	c.Disconnect(0)
	if err != nil || last {
		return err
	}
	if c, lost, err = p.dial(port); err != nil {
		return err
	}
	defer c.Disconnect(0)
	for {
		if err := p.l.room(p.window, lost); err != nil {
			return err
		}
		p.l.mu.Lock()
		p.l.sent++
		n := p.l.sent
		p.l.mu.Unlock()
		c.Publish(p.l.topic, p.l.qos, n%3 == 0, fmt.Sprintf("%d %s", n, strings.Repeat("x", n*7919%900)))
	}
}

// script is testdata/mqtt_client.py: a client that lives on while the gateway
// dies, and keeps its session in its memory.
type script struct {
	in   io.Writer
	said chan string // what heard does not want
}

// startScript gives each line that the client says to heard first.
func startScript(t *testing.T, heard func(word, rest string) bool, args ...string) *script {
	t.Helper()
	cmd := exec.Command("/usr/bin/python3", append([]string{"testdata/mqtt_client.py"}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var wrong strings.Builder
	cmd.Stderr = &wrong
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s := &script{in: in, said: make(chan string, 64)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(s.said)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			word, rest, _ := strings.Cut(lines.Text(), " ")
			if !heard(word, rest) {
				s.said <- lines.Text()
			}
		}
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-done
		cmd.Wait()
		if wrong.Len() > 0 {
			t.Errorf("%v: %s", args, wrong.String())
		}
	})
	return s
}

func (s *script) tell(format string, args ...any) { fmt.Fprintf(s.in, format+"\n", args...) }

// hear waits for the next line.
func (s *script) hear() (string, error) {
	limit := time.NewTimer(waitLong)
	defer limit.Stop()
	select {
	case l, ok := <-s.said:
		if !ok {
			return "", errors.New("the client ended")
		}
		return l, nil
	case <-limit.C:
		return "", fmt.Errorf("the client said nothing for %v", waitLong)
	}
}

// pythonPublisher is paho-mqtt of Debian.
type pythonPublisher struct{ s *script }

func newPythonPublisher(t *testing.T, l *ledger, window int) *pythonPublisher {
	heard := func(word, rest string) bool {
		if word == "ack" {
			n, _ := strconv.Atoi(rest)
			l.ack(n)
		}
		return word == "ack"
	}
	return &pythonPublisher{startScript(t, heard, "pub", strings.ReplaceAll(l.topic, "/", "-"), l.topic, fmt.Sprint(l.qos), fmt.Sprint(window))}
}

func (p *pythonPublisher) run(port int, last bool) error {
	p.s.tell("connect %d", port)
	for {
		said, err := p.s.hear()
		switch {
		case err != nil:
			return err
		case said == "gone":
			return errLost
		case said == "left":
			return nil
		case said == "idle" && last:
			p.s.tell("leave")
		case said == "idle":
			p.s.tell("go")
		}
	}
}
