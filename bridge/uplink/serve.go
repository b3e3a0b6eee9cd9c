package uplink

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
)

// epoch is one connection from CONNACK to its end.
type epoch struct {
	*opened
	number    uint64
	v         vitals
	marks     []mark    // frames that are not flushed yet, in order
	lastWrite time.Time // of any packet
	heard     time.Time // something came
	recordAt  time.Time // a PUBLISH of a record was written
	ping      time.Time // PINGREQ that is not answered
	pingEnd   uint64    // in the stream

	use   [features]use
	reach uint64 // of the session, seen by exonerate

	progressed bool      // something of the store was acknowledged
	ackedThen  uint64    // records acknowledged when it began
	emptySince time.Time // nothing waits since; zero: something does
	overflow   time.Time // a message from the cloud was not taken since
	renew      bool      // credentials have changed: reconnect when drained

	stop     time.Time // the link is to end: draining until then
	why      string    // of stop: "stop", or "lazy"
	farewell time.Time // offline was said, its answer is waited for until then
	parted   bool      // and it came
	leave    time.Time // another connection is to follow: draining until then
}

// mark is the end of a frame in the stream of a connection.
type mark struct {
	end uint64
	o   *owing
	f   *flight
}

// serve runs one connection to its end and returns why it ended.
func (l *Link) serve(ctx context.Context, c *opened) error {
	l.stats.connects++
	l.epochs++
	e := &epoch{opened: c, number: l.epochs, ackedThen: l.s.acked, lastWrite: c.at, heard: c.at}
	if l.set.will {
		e.use[will] = use{at: c.at}
	}
	if l.set.private {
		e.use[private] = use{at: c.at}
	}
	l.s.lastAck, l.connected = c.at, c.at
	if c.present {
		l.stats.sessionPresent++
	}
	l.enter(Resuming, l.state.Why)
	in, over := make(chan []packets.ControlPacket), make(chan struct{})
	l.crew.send(c.w.flush)
	l.crew.send(func() { receive(c.w, in, over) })
	l.crew.send(func() { e.v.watch(c.w, l.timing, over) })

	why := l.drive(ctx, e, in)
	c.w.close(why)
	close(over)
	l.crew.dismiss()
	l.paused(time.Now())

	handed, _ := c.w.progress()
	for _, m := range e.marks { // what was handed to a connection may have arrived: at most once
		if m.f != nil && m.end <= handed {
			l.s.written(m.f, time.Now())
		}
	}
	if !errors.Is(why, errStopped) { // after DISCONNECT the broker may close first
		why = c.w.why()
	}
	if cl, ok := errors.AsType[*closing](why); ok {
		l.stats.closed[cl.reason]++
		l.struck = cl.reason == "peer" && l.suspectClose(e, time.Now())
	}
	l.s.disconnected()
	l.acknowledge()
	return why
}

// receive reads packets until the connection ends. What is in the buffer comes
// as one batch, so that many PUBRECs make one release.
func receive(w *wire, in chan<- []packets.ControlPacket, over <-chan struct{}) {
	defer close(in)
	for {
		p, err := w.read()
		batch := []packets.ControlPacket{p}
		for err == nil && len(batch) < maxWindow && w.ready() {
			if p, err = w.read(); err == nil {
				batch = append(batch, p)
			}
		}
		if batch[0] != nil {
			select {
			case in <- batch:
			case <-over:
				return
			}
		}
		if err != nil {
			reason := "peer"
			if errors.Is(err, net.ErrClosed) { // by us, who said why
				reason = "closed"
			}
			if errors.Is(err, errMalformed) || errors.Is(err, errOversize) {
				reason = "protocol"
			}
			w.close(&closing{reason: reason, err: err})
			return
		}
	}
}

// drive owns the link while it is connected. It never waits for the connection.
func (l *Link) drive(ctx context.Context, e *epoch, in <-chan []packets.ControlPacket) error {
	if err := l.prepare(e); err != nil {
		return err
	}
	l.announce(e)
	tick := time.NewTicker(l.timing.tick)
	defer tick.Stop()
	done := ctx.Done()
	for {
		if err := l.step(e, time.Now()); err != nil {
			return err
		}
		select {
		case <-done:
			done = nil
			e.stop, e.why = time.Now().Add(l.o.Grace), "stop"
			l.enter(Draining, "")
		case ps, ok := <-in:
			if !ok {
				return e.w.why()
			}
			e.heard = time.Now()
			for _, p := range ps {
				if err := l.handle(e, p, e.heard); err != nil {
					return err
				}
			}
			l.exonerate(e)
		case r := <-l.fetch.got:
			if err := l.fetched(r, time.Now()); err != nil {
				return err
			}
		case err := <-l.released:
			if err != nil {
				return l.unkept(err)
			}
			l.s.durable()
		case err := <-l.cutting:
			if err := l.wasCut(err); err != nil {
				return err
			}
		case <-l.emptying: // kept or not: more cannot be done
			l.emptying = nil
		case <-e.w.moved:
			l.flushed(e, time.Now())
		case d := <-l.down.done:
			l.arrived(e, d)
		case <-l.kick:
			l.update(e)
		case <-l.gate.wake():
		case now := <-tick.C:
			if err := l.tick(e, now); err != nil {
				return err
			}
		}
	}
}

// step does what can be done now without waiting.
func (l *Link) step(e *epoch, now time.Time) error {
	if l.s.hold = (l.suspect.careful || l.suspect.bare) && e.reach == 0; l.s.hold && e.ping.IsZero() {
		e.pingNow(now)
	}
	l.s.alone = l.suspect.bare || l.suspect.careful
	l.s.pump()
	l.publish(e, now)
	l.acknowledge() // before what takes the place leaves: a kill between would repeat two windows
	for _, fr := range l.s.out {
		end := e.w.append(fr.p)
		if fr.o != nil || fr.f != nil {
			e.marks = append(e.marks, mark{end, fr.o, fr.f})
		}
		if fr.o != nil {
			fr.o.end = end
		}
		if p, ok := fr.p.(*packets.PublishPacket); ok {
			e.used(p, end, now)
			if l.s.resumed {
				e.recordAt = now
			}
		}
		e.lastWrite = now
	}
	clear(l.s.out)
	l.s.out = l.s.out[:0]
	if l.s.settle(); len(l.s.recs) > 0 {
		recs := l.s.recs
		l.s.recs, l.since = nil, now
		l.src.Release(l.answer(), recs...)
	}
	l.demand(e, now)
	return l.part(e, now)
}

// acknowledge tells the store what the cloud has completed.
func (l *Link) acknowledge() {
	if len(l.s.acks) > 0 {
		l.src.Ack(l.s.acks...)
		l.s.acks = l.s.acks[:0]
	}
}

const (
	enoughRoom = 64   // records asked for at a time while some are ready
	mostReady  = 1024 // records in memory that are not in flight, or two batches
)

// demand asks the source for as much as may be leased; of the backlog half a
// window at most, and a tenth in any case.
func (l *Link) demand(e *epoch, now time.Time) {
	if !l.s.resumed || !e.leave.IsZero() || !e.farewell.IsZero() {
		return
	}
	ready := len(l.ready) + len(l.late) + len(l.aside)
	room := min(l.set.leases-l.s.open(), max(mostReady, 2*l.set.batchRecords())) - ready
	if room < min(l.set.leases/4, enoughRoom) && ready > len(l.aside) {
		return // a few at a time would read the same segment again and again
	}
	late := l.s.late() + len(l.late)
	n := l.afford(max(1, l.set.leases/2) - late)
	l.fetch.demand(room, n, min(n, max(0, max(1, l.set.leases/10)-late)), now)
}

// fetched takes what the source gave.
func (l *Link) fetched(r fetched, now time.Time) error {
	lots, err := l.fetch.taken(r, now)
	if final(err) {
		return &closing{reason: "store", err: err}
	}
	l.starving(err)
	for _, x := range lots {
		if x.late {
			l.late = append(l.late, x)
		} else {
			l.ready = append(l.ready, x)
		}
	}
	return nil
}

// completing is the part of a window, 1/completing, that may wait for PUBCOMP
// beside a full window.
const completing = 4

// window is the number of packets of records that may be in flight, until PUBACK
// or, at QoS 2, until PUBREL has been written. At QoS 2 one place is left for
// birth and reports: mosquitto counts a QoS 1 PUBLISH against the same limit and
// closes the connection when it is above it, at each reconnect again.
func (l *Link) window() int {
	switch l.set.qos {
	case 0:
		return maxWindow
	case 2:
		return max(1, l.set.window-1)
	}
	return l.set.window
}

// full tells that no packet may be added to the window. At QoS 2 a message holds
// its place at the broker until the broker reads our PUBREL, which is ahead of
// any PUBLISH written after it; a quarter of the window more may wait for
// PUBCOMP. That makes up for the time in which the store notes what was received.
func (l *Link) full() bool {
	if w := l.window(); l.set.qos == 2 {
		return l.s.held >= w || l.s.inFlight() >= w+w/completing
	}
	return l.s.inFlight() >= l.window()
}

// flushed notes what has left: the clocks of the watchdog start then, and QoS 0
// is done.
func (l *Link) flushed(e *epoch, now time.Time) {
	_, flushed := e.w.progress()
	n := 0
	for ; n < len(e.marks) && e.marks[n].end <= flushed; n++ {
		if m := e.marks[n]; m.f != nil {
			l.s.written(m.f, now)
		} else if m.o.end == m.end { // not answered and used again already
			m.o.at = now
		}
	}
	e.marks = append(e.marks[:0], e.marks[n:]...)
}

// handle takes one packet of the broker.
func (l *Link) handle(e *epoch, p packets.ControlPacket, now time.Time) error {
	switch p := p.(type) {
	case *packets.PubackPacket:
		l.s.puback(p.MessageID, now)
	case *packets.PubrecPacket:
		l.s.pubrec(p.MessageID, now)
	case *packets.PubcompPacket:
		l.s.pubcomp(p.MessageID, now)
	case *packets.SubackPacket:
		l.s.suback(p, now)
	case *packets.UnsubackPacket:
		l.s.unsuback(p, now)
	case *packets.PingrespPacket:
		e.ping = time.Time{}
		l.s.reach = max(l.s.reach, e.pingEnd) // it answers all before it
		if now.Sub(e.at) >= l.set.keepAlive { // an idle connection that lasts is progress, too
			l.back.progress()
		}
	case *packets.PublishPacket:
		return l.arrive(e, p, now)
	case *packets.PubrelPacket:
		l.s.pubrelIn(p.MessageID)
	default: // CONNACK twice
		return &closing{reason: "protocol", err: fmt.Errorf("%w: CONNACK on an open connection", errMalformed)}
	}
	if l.s.progress && !e.progressed {
		e.progressed = true
		l.back.progress()
	}
	return nil
}

// pingNow asks for a sign of life.
func (e *epoch) pingNow(now time.Time) {
	e.pingEnd = e.w.append(packets.NewControlPacket(packets.Pingreq))
	e.lastWrite, e.ping = now, now
}

// tick looks after everything that depends on time.
func (l *Link) tick(e *epoch, now time.Time) error {
	if l.s.busy && now.Sub(l.since) >= l.timing.release {
		return l.hanging()
	}
	if l.emptying != nil && now.Sub(l.noting) >= l.timing.release {
		l.emptying = nil // a disk that hangs holds up nothing else
	}
	if !e.overflow.IsZero() && now.Sub(e.overflow) >= downPatience {
		return &closing{reason: "down-overflow", err: errors.New("messages from the cloud were not taken in time; it sends them again")}
	}
	// [MQTT-3.1.2-23] asks for a sign of life of ours; that of the broker tells a
	// dead link also while we go on writing into it.
	if silent := now.Sub(e.lastWrite) >= l.set.keepAlive || now.Sub(e.heard) >= l.set.keepAlive; silent && e.ping.IsZero() {
		e.pingNow(now)
	}
	since, oldest := l.s.owed()
	e.v.set(since, oldest, e.ping)
	l.meter(now)
	l.renew(e, now)
	if e.reach > 0 && (e.progressed || l.waiting() == 0) && l.suspect.pardons(now) {
		l.amnesty()
		if l.repack && e.leave.IsZero() { // what is in flight belongs to the session as it was
			e.leave = now.Add(drainPatience)
		}
	}
	l.assess(e, now)
	return nil
}
