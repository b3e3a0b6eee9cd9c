package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The load generator of TestMeasureBroker: one thread, one epoll, every
// connection a small state machine, so that one core of it outruns any broker
// on another. It speaks MQTT 3.1.1 and checks that nothing is lost or out of
// order; what it measures of itself is printed beside the figures.

const (
	loadPayload = 128
	loadIn      = 64 << 10 // bytes of one read
	loadStall   = 10 * time.Second
)

// traffic is who publishes to whom.
type traffic struct {
	pubs, subs int
	qos        byte
	window     int  // messages of one publisher that are not finished
	durable    bool // subscribers with persistent sessions
}

// topic of a publisher: all have the same length.
func (t traffic) topic(pub int) string { return fmt.Sprintf("bench/%03d/value", pub) }

// fanout is how many subscribers get one message.
func (t traffic) fanout() int {
	if t.pubs == t.subs {
		return 1
	}
	return t.subs
}

// station is one connection of the generator.
type station struct {
	fd    int
	pub   int // number of the publisher, -1 = subscriber
	id    string
	in    []byte
	got   int
	out   []byte
	armed bool // waits for room to write

	// Publishers.
	packet []byte // PUBLISH, to be patched
	pidAt  int    // of the packet id in it, 0 = none
	pid    uint16
	next   uint64 // sequence number of the next message
	done   uint64 // messages that are finished
	credit int    // deliveries that came of the oldest that is not, QoS 0
	sent   []int64

	expect []uint64 // subscribers: next sequence number by publisher, from 1; 0 = none came yet
}

// load is one run.
type load struct {
	traffic
	ep        int
	all       []*station
	pub       []*station
	delivered uint64
	disorder  uint64
	paused    bool
	timing    bool
	waits     []int64 // ns from PUBLISH to PUBACK or PUBREC
	now       int64
	began     time.Time
}

// figures are what one run showed.
type figures struct {
	delivered uint64
	took      time.Duration
	cpu       time.Duration // of the broker
	own       float64       // share of its core that the generator used
	p50, p99  time.Duration // from PUBLISH to its acknowledgement
}

func (f figures) rate() float64 { return float64(f.delivered) / f.took.Seconds() }

// perMillion is CPU seconds per million messages delivered.
func (f figures) perMillion() float64 { return f.cpu.Seconds() / float64(f.delivered) * 1e6 }

// newLoad connects everybody.
func newLoad(t *testing.T, port int, tr traffic) *load {
	t.Helper()
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	l := &load{traffic: tr, ep: ep, waits: make([]int64, 0, 4<<20)} // to grow would stop the load
	for i := range tr.subs {
		filter := "bench/+/value"
		if tr.pubs == tr.subs {
			filter = tr.topic(i)
		}
		l.join(t, port, &station{pub: -1, id: fmt.Sprintf("sub-%03d", i), expect: make([]uint64, tr.pubs)}, !tr.durable, filter)
	}
	for i := range tr.pubs {
		s := &station{pub: i, id: fmt.Sprintf("pub-%03d", i), next: 1, pid: 1, sent: make([]int64, 65536)}
		topic := tr.topic(i)
		body := append([]byte{0, byte(len(topic))}, topic...)
		if tr.qos > 0 {
			s.pidAt = len(body)
			body = append(body, 0, 0)
		}
		body = append(body, bytes.Repeat([]byte{'x'}, loadPayload)...)
		s.packet = append(binary.AppendUvarint([]byte{0x30 | tr.qos<<1}, uint64(len(body))), body...)
		if s.pidAt > 0 {
			s.pidAt += len(s.packet) - len(body)
		}
		l.join(t, port, s, true, "")
		l.pub = append(l.pub, s)
	}
	return l
}

func (l *load) join(t *testing.T, port int, s *station, clean bool, filter string) {
	t.Helper()
	fd, err := dial(port, s.id, clean, filter, l.qos)
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err == nil {
		err = unix.EpollCtl(l.ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(len(l.all))})
	}
	if err != nil {
		t.Fatal(err)
	}
	s.fd, s.in = fd, make([]byte, loadIn)
	l.all = append(l.all, s)
}

func (l *load) close() {
	for _, s := range l.all {
		unix.Close(s.fd)
	}
	unix.Close(l.ep)
}

// run publishes for warm and span on the given core and gives the figures of
// span. Then it lets everything arrive and leaves nothing open.
func (l *load) run(t *testing.T, core int, warm, span time.Duration, cpu func() time.Duration) (f figures) {
	t.Helper()
	done := make(chan error)
	go func() {
		// The thread goes back as it was. One that ended would take along the
		// brokers that it had started: Pdeathsig is about the thread.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		var set, was unix.CPUSet
		set.Set(core)
		err := unix.SchedGetaffinity(0, &was)
		if err == nil {
			err = unix.SchedSetaffinity(0, &set)
		}
		defer unix.SchedSetaffinity(0, &was)
		if err == nil {
			err = l.phase(warm)
		}
		l.timing = true
		before, own, delivered, began := cpu(), threadTime(), l.delivered, time.Now()
		if err == nil {
			err = l.phase(span)
		}
		f.took = time.Since(began)
		f.cpu, f.delivered = cpu()-before, l.delivered-delivered
		f.own = (threadTime() - own).Seconds() / f.took.Seconds()
		l.timing = false
		if err == nil {
			l.paused = true
			err = l.phase(0)
			l.paused = false
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if l.disorder > 0 {
		t.Errorf("%d messages lost, twice or out of order", l.disorder)
	}
	if slices.Sort(l.waits); len(l.waits) > 0 {
		f.p50, f.p99 = time.Duration(l.waits[len(l.waits)/2]), time.Duration(l.waits[len(l.waits)*99/100])
	}
	l.waits = l.waits[:0]
	return f
}

// threadTime is the processor time of this thread.
func threadTime() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_THREAD, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// phase works for span, or with span 0 until everything has arrived.
func (l *load) phase(span time.Duration) error {
	began, moved, seen := time.Now(), time.Now(), l.delivered
	l.began = began
	for _, s := range l.pub {
		if err := l.publish(s); err != nil {
			return err
		}
	}
	events := make([]unix.EpollEvent, 256)
	for {
		now := time.Now()
		l.now = int64(now.Sub(began)) + began.UnixNano()
		switch {
		case span > 0 && now.Sub(began) >= span, span == 0 && l.finished():
			return nil
		case l.delivered != seen:
			seen, moved = l.delivered, now
		case now.Sub(moved) > loadStall:
			return fmt.Errorf("no message for %v: %d delivered, %s", loadStall, l.delivered, l.missing())
		}
		n, err := unix.EpollWait(l.ep, events, 20)
		if err != nil && err != unix.EINTR {
			return err
		}
		for _, e := range events[:max(n, 0)] {
			if err := l.serve(l.all[e.Fd], e.Events); err != nil {
				return fmt.Errorf("client %s: %w", l.all[e.Fd].id, err)
			}
		}
		for _, p := range l.pub {
			if err := l.publish(p); err != nil {
				return err
			}
		}
	}
}

func (l *load) finished() bool {
	sum := uint64(0)
	for _, p := range l.pub {
		if p.done+1 < p.next {
			return false
		}
		sum += p.next - 1
	}
	return l.delivered == sum*uint64(l.fanout())
}

func (l *load) missing() string {
	open := uint64(0)
	for _, p := range l.pub {
		open += p.next - 1 - p.done
	}
	return fmt.Sprintf("%d not finished", open)
}

// publish fills the window of a publisher.
func (l *load) publish(s *station) error {
	for !l.paused && !s.armed && s.next-s.done <= uint64(l.window) {
		at := len(s.out)
		s.out = append(s.out, s.packet...)
		p := s.out[at:]
		if s.pidAt > 0 {
			binary.BigEndian.PutUint16(p[s.pidAt:], s.pid)
			s.sent[s.pid] = l.now
			if s.pid++; s.pid == 0 {
				s.pid = 1
			}
		}
		body := p[len(p)-loadPayload:]
		binary.BigEndian.PutUint16(body, uint16(s.pub))
		binary.BigEndian.PutUint64(body[2:], s.next)
		s.next++
	}
	return l.flush(s)
}

// flush writes what is there in one piece.
func (l *load) flush(s *station) error {
	if len(s.out) == 0 || s.armed {
		return nil
	}
	n, err := unix.Write(s.fd, s.out)
	if err != nil && err != unix.EAGAIN {
		return err
	}
	s.out = append(s.out[:0], s.out[max(n, 0):]...)
	if s.armed = len(s.out) > 0; s.armed {
		return l.arm(s, unix.EPOLLIN|unix.EPOLLOUT)
	}
	return nil
}

func (l *load) arm(s *station, events uint32) error {
	i := slices.Index(l.all, s)
	return unix.EpollCtl(l.ep, unix.EPOLL_CTL_MOD, s.fd, &unix.EpollEvent{Events: events, Fd: int32(i)})
}

// serve reads once and handles every packet that came.
func (l *load) serve(s *station, events uint32) error {
	if events&unix.EPOLLOUT != 0 && s.armed {
		s.armed = false
		if err := l.arm(s, unix.EPOLLIN); err != nil {
			return err
		}
		if err := l.flush(s); err != nil {
			return err
		}
	}
	n, err := unix.Read(s.fd, s.in[s.got:])
	switch {
	case err == unix.EAGAIN:
		return nil
	case err != nil:
		return err
	case n == 0:
		return fmt.Errorf("closed by the broker")
	}
	s.got += n
	at := 0
	for {
		n := l.take(s, s.in[at:s.got])
		if n == 0 {
			break
		}
		at += n
	}
	s.got = copy(s.in, s.in[at:s.got])
	return l.flush(s)
}

// take handles the packet at the start of b and says how long it is; 0 = not whole.
func (l *load) take(s *station, b []byte) int {
	if len(b) < 2 {
		return 0
	}
	length, n := binary.Uvarint(b[1:])
	if n <= 0 || len(b) < 1+n+int(length) {
		return 0
	}
	body := b[1+n : 1+n+int(length)]
	switch b[0] >> 4 {
	case 3: // PUBLISH
		l.deliver(s, b[0]>>1&3, body)
	case 4: // PUBACK
		l.answered(s, body)
		s.done++
	case 5: // PUBREC
		l.answered(s, body)
		s.out = append(s.out, 0x62, 2, body[0], body[1])
	case 6: // PUBREL
		s.out = append(s.out, 0x70, 2, body[0], body[1])
	case 7: // PUBCOMP
		s.done++
	}
	return 1 + n + int(length)
}

// answered notes how long the acknowledgement of a message took.
func (l *load) answered(s *station, body []byte) {
	if l.timing {
		l.waits = append(l.waits, l.now-s.sent[binary.BigEndian.Uint16(body)])
	}
}

func (l *load) deliver(s *station, qos byte, body []byte) {
	l.delivered++
	payload := body[len(body)-loadPayload:]
	pub, seq := int(binary.BigEndian.Uint16(payload)), binary.BigEndian.Uint64(payload[2:])
	if want := s.expect[pub]; want != 0 && seq != want {
		l.disorder++
	}
	s.expect[pub] = seq + 1
	if qos == 0 {
		p := l.pub[pub]
		if p.credit++; p.credit == l.fanout() {
			p.credit = 0
			p.done++
		}
		return
	}
	pid := body[2+int(binary.BigEndian.Uint16(body)):]
	first := byte(0x40) // PUBACK
	if qos == 2 {
		first = 0x50
	}
	s.out = append(s.out, first, 2, pid[0], pid[1])
}
