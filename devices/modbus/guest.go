package modbus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"busgate/devices"
)

const (
	maxStrangers = 64              // late answers of units that nobody owns, which wait for a guest
	guestOwing   = 5 * time.Second // how long a guest waits for the bus only to look what came
)

// Question is one exchange that a guest wants made on a wire which somebody else
// has open.
type Question struct {
	ADU     []byte        `json:"adu,omitempty"` // as it goes on the wire; empty: only look what has come
	Timeout time.Duration `json:"timeout"`
	Window  time.Duration `json:"window"` // after a timeout: how long the answer may still come
}

// Reply is what came of a Question. Times count from the end of the request.
type Reply struct {
	ADU     []byte        `json:"adu,omitempty"`
	Failure string        `json:"failure,omitempty"` // "", no-answer or bad-frame
	First   time.Duration `json:"first"`             // to the first bytes
	End     time.Duration `json:"end"`
	Size    int           `json:"size"`
	Late    []LateAnswer  `json:"late,omitempty"` // that came meanwhile, to guests
}

// LateAnswer is an answer that came too late, of a unit that is not on the bus.
type LateAnswer struct {
	Unit  byte          `json:"unit"`
	After time.Duration `json:"after"`
}

// readers are the functions that a guest may ask: they change nothing.
var readers = []byte{1, 2, 3, 4, 0x11, 0x2B}

// Ask makes the exchange of a guest on a Field of this package. It is called like
// a method of the Field, in a devices.Visit. The error is one of the wire, or
// says that the question cannot be asked.
func Ask(ctx context.Context, wire devices.Field, q Question) (Reply, error) {
	host, ok := wire.(*field)
	if !ok {
		return Reply{}, errors.New("this bus does not speak Modbus")
	}
	if len(q.ADU) == 0 {
		host.link.owing(seal([]byte{lastUnit, 4, 0, 0, 0, 1})) // looks through what has come
		return host.reply(nil, exchange{}), nil
	}
	if _, tcp := host.link.(*TCP); !harmless(q.ADU, tcp) {
		return Reply{}, fmt.Errorf("a guest may only read: % x", q.ADU[:min(len(q.ADU), 16)])
	}
	p := patience{timeout: min(max(q.Timeout, 0), maxWindow), window: min(max(q.Window, 0), maxWindow)}
	ans, err := host.link.exchange(ctx, q.ADU, p)
	r := host.reply(ans, host.link.timings())
	switch {
	case errors.Is(err, devices.ErrNoAnswer):
		r.Failure = "no-answer"
	case errors.Is(err, devices.ErrBadFrame):
		r.Failure = "bad-frame"
	case err != nil:
		return Reply{}, err
	}
	return r, nil
}

// harmless says that adu is a whole request which changes nothing: functions 1 to
// 4 with address and count, 0x11 alone, 0x2B with kind, code and object (Modbus AP
// v1.1b3, 6). On a line it is to one unit.
func harmless(adu []byte, tcp bool) bool {
	at, tail := 1, 2 // of the function; the check
	if tcp {
		at, tail = headerLen, 0
	}
	if len(adu) <= at || !tcp && adu[0] == 0 || !slices.Contains(readers, adu[at]) {
		return false
	}
	more := map[byte]int{0x11: 0, 0x2B: 3}
	n, short := more[adu[at]]
	if !short {
		n = 4
	}
	return len(adu) == at+1+n+tail
}

// reply hands the late answers of units that the host does not know to the guest.
func (f *field) reply(ans []byte, x exchange) Reply {
	r := Reply{ADU: slices.Clone(ans), Late: slices.Clone(f.strangers)}
	f.strangers = f.strangers[:0]
	if ans != nil {
		r.First, r.End, r.Size = x.first.Sub(x.sent), x.end.Sub(x.sent), x.size
	}
	return r
}

// guest is the link of a Field whose wire somebody else has open: each exchange
// is a Question there.
type guest struct {
	own  *field
	ask  func(context.Context, Question) (Reply, error)
	last exchange
	none devices.Counts
}

func (g *guest) exchange(ctx context.Context, adu []byte, p patience) ([]byte, error) {
	r, err := g.ask(ctx, Question{ADU: adu, Timeout: p.timeout, Window: p.window})
	if err != nil {
		return nil, err
	}
	sent := time.Now().Add(-r.End)
	g.last = exchange{sent: sent, first: sent.Add(r.First), end: sent.Add(r.End), size: r.Size}
	g.hear(r)
	switch r.Failure {
	case "no-answer":
		return nil, devices.ErrNoAnswer
	case "bad-frame":
		return nil, devices.ErrBadFrame
	}
	return r.ADU, nil
}

// hear takes over the late answers.
func (g *guest) hear(r Reply) {
	for _, l := range r.Late {
		g.own.late(l.Unit, l.After)
	}
}

// owing looks through what has come. Nothing is owed: the host keeps the account.
func (g *guest) owing([]byte) time.Duration {
	ctx, cancel := context.WithTimeout(context.Background(), guestOwing)
	defer cancel()
	if r, err := g.ask(ctx, Question{}); err == nil { // else the next exchange says why
		g.hear(r)
	}
	return 0
}

func (g *guest) timings() exchange { return g.last }

func (g *guest) tally() *devices.Counts { return &g.none }

func (g *guest) Close() error { return nil }

// visit makes the Field of a guest.
func (d *Driver) visit(w devices.Wire) *field {
	f := &field{bus: w.Bus, log: w.Log, timing: timingOf(w.Bus)}
	f.Devices(w.Devices)
	g := &guest{own: f, ask: d.Guest}
	if w.Bus.Protocol == "modbus-tcp" || w.Bus.Protocol == "modbus-udp" {
		f.setLink(g, &tcpPackager{})
	} else {
		f.setLink(g, &rtuPackager{})
	}
	return f
}
