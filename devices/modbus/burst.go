package modbus

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	gb "github.com/goburrow/modbus"

	"busgate/devices"
)

// flight is one request of a burst.
type flight struct {
	adu  []byte // as the client made it
	sent []byte // as it went out
	id   uint16
	ans  []byte
	err  error
	done bool
	took exchange
}

// burst makes the first n requests of the queue at once. What fails is asked once
// more alone, as the bus says, unless the unit is silent.
func (r *round) burst(ctx context.Context, link *TCP, n int) error {
	tasks := append([]task(nil), r.queue[:n]...)
	r.queue = r.queue[n:]
	r.sent += n
	flights := make([]flight, n)
	var captured = errors.New("not sent yet")
	r.f.pack.unit(r.u.dev.UnitID)
	for i, t := range tasks {
		client := gb.NewClient2(r.f.pack, sender(func(adu []byte) ([]byte, error) {
			flights[i].adu = append([]byte(nil), adu...)
			return nil, captured
		}))
		if _, err := t.ask(client); !errors.Is(err, captured) {
			return err
		}
	}
	link.burst(ctx, flights, r.u.patience(r.f.bus, r.f.timing))
	if err := ctx.Err(); err != nil {
		return err
	}
	for i, t := range tasks {
		f := &flights[i]
		link.last = f.took
		data, err := r.f.over(r.u, t.ask, func(adu []byte) ([]byte, error) {
			copy(f.ans, adu[:2]) // the client numbers the request anew
			return f.ans, f.err
		})
		r.u.answered(t.span, err)
		tries, at := 1, f.took.end
		failed := errors.Is(err, devices.ErrNoAnswer) || errors.Is(err, devices.ErrBadFrame)
		if failed && !r.over && r.f.bus.Retries > 0 {
			data, tries, err = r.f.tries(ctx, r.u, t.span, r.f.bus.Retries)
			tries++
			at = link.last.end
		}
		if r.over { // it was silent about one before
			r.failed = append(r.failed, failure{t.span, "no-answer", noAnswerText(r.f.bus, r.g.Device.UnitID, tries, r.f.patienceOf(r.u))})
			continue
		}
		if err := r.took(ctx, t, data, at, tries, err); err != nil {
			return err
		}
	}
	return nil
}

// burst sends all requests and takes their answers in the order in which they
// come. Each answer gives the others their whole timeout anew: a device works on
// one after another.
func (t *TCP) burst(ctx context.Context, flights []flight, p patience) {
	t.mu.Lock()
	defer t.mu.Unlock()
	err := t.connect(ctx)
	if err == nil {
		err = t.sendAll(flights)
	}
	wait := func() error { return t.conn.SetReadDeadline(time.Now().Add(p.timeout)) }
	if err == nil {
		err = wait()
	}
	for left := len(flights); err == nil && left > 0; {
		var ans []byte
		if ans, err = t.frame(); err != nil {
			break
		}
		var f *flight
		if f, err = t.flightOf(ans, flights); f != nil { // what nobody waits for gives no time
			left--
			err = wait()
		}
	}
	switch {
	case err == nil:
		t.silent = 0
		return
	case errors.Is(err, os.ErrDeadlineExceeded):
		t.counts.Timeouts++
		t.tap.Note(devices.Frame{At: time.Now(), Gap: p.timeout, RTT: p.timeout, Mark: devices.MarkSilence})
		if t.silent++; t.silent >= maxSilent || t.have > 0 {
			t.hangUp()
		}
		err = devices.ErrNoAnswer
	case errors.Is(err, devices.ErrBadFrame):
		t.counts.Bad++
		t.hangUp()
	default: // the requests are made again one by one, which tells what is wrong
		t.hangUp()
		err = fmt.Errorf("%w: %w", devices.ErrNoAnswer, err)
	}
	for i := range flights {
		if f := &flights[i]; !f.done {
			f.err = err
		}
	}
}

func (t *TCP) sendAll(flights []flight) error {
	for i := range flights {
		f := &flights[i]
		t.id++
		t.asked++
		t.counts.Requests++
		f.id, f.sent = t.id, append([]byte(nil), f.adu...)
		binary.BigEndian.PutUint16(f.sent, f.id)
		if err := t.conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
			return err
		}
		n, err := t.conn.Write(f.sent)
		t.counts.BytesOut += uint64(n)
		if err != nil {
			return fmt.Errorf("write: %w", err)
		}
		now := time.Now()
		f.took.sent = now
		t.sent[f.id%sentIDs] = sentID{f.id, now}
		t.tap.Note(devices.Frame{At: now, Out: true, Data: f.sent[6:], Gap: t.gap(now), Mark: devices.MarkOK})
	}
	return nil
}

// flightOf gives an answer to the request it belongs to; nil when to none of these.
func (t *TCP) flightOf(ans []byte, flights []flight) (*flight, error) {
	got := binary.BigEndian.Uint16(ans)
	for i := range flights {
		f := &flights[i]
		switch {
		case f.id != got:
			continue
		case f.done: // a datagram that came twice
			t.counts.Late++
			t.show(ans, devices.MarkLate)
			return nil, nil
		}
		mine, err := t.judge(ans, f.sent, f.id)
		if !mine || err != nil {
			return nil, err
		}
		now := time.Now()
		t.proven, t.strange = true, 0
		t.counts.Good++
		f.took.first, f.took.end, f.took.size = t.last.first, now, len(ans)
		t.last = f.took
		t.show(ans, devices.MarkOK)
		f.ans, f.done = append([]byte(nil), ans...), true
		return f, nil
	}
	newest := &flights[len(flights)-1]
	_, err := t.judge(ans, newest.sent, newest.id)
	return nil, err
}
