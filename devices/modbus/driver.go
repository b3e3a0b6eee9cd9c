package modbus

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"sync"
	"time"

	"busgate/config"
	"busgate/devices"
	"busgate/devices/port"
)

// Driver opens buses of the protocols modbus-rtu and modbus-ascii (both serial or
// over TCP), modbus-tcp and modbus-udp. The zero Driver is ready to use.
type Driver struct {
	// OpenPort opens the serial port of a wire; nil is devices/port. The
	// simulator and tests put theirs here.
	OpenPort func(ctx context.Context, w devices.Wire) (Port, error)

	// Guest, when set, makes Open use a wire that somebody else has open: each
	// exchange is a Question there, see Ask. Nothing is opened and nothing closed.
	Guest func(ctx context.Context, q Question) (Reply, error)

	ports  port.Opener
	mu     sync.Mutex
	kept   map[string]*ledger // of wires that are closed, by where they are
	noOwed bool               // tests: Lines forget what is owed
	noIDs  bool               // tests: TCP takes any answer
}

var _ devices.Driver = (*Driver)(nil)

// Open opens the port, or connects.
func (d *Driver) Open(ctx context.Context, w devices.Wire) (devices.Field, error) {
	if d.Guest != nil {
		return d.visit(w), nil
	}
	f := &field{bus: w.Bus, log: w.Log, tap: w.Tap, timing: timingOf(w.Bus), memory: w.Memory}
	f.Devices(w.Devices)
	connect, err := dialer(w.Bus)
	if err != nil {
		return nil, err
	}
	lines := w.Bus.Protocol == "modbus-rtu" || w.Bus.Protocol == "modbus-ascii"
	switch {
	case w.Bus.Protocol == "modbus-tcp" || w.Bus.Protocol == "modbus-udp":
		t := newTCP(w.Bus.TCP, connect, f.late)
		t.tap, t.datagrams, t.noIDs = w.Tap, w.Bus.Protocol == "modbus-udp", d.noIDs
		if err := t.connect(ctx); err != nil {
			return nil, err
		}
		f.setLink(t, &tcpPackager{})
	case lines && w.Bus.TCP != "":
		conn, err := connect(ctx)
		if err != nil {
			return nil, err
		}
		f.setLink(d.line(&netPort{conn: conn, addr: w.Bus.TCP}, f), &rtuPackager{})
	case lines:
		p, err := d.openPort(ctx, w, f)
		if err != nil {
			return nil, err
		}
		f.setLink(d.line(p, f), &rtuPackager{})
	default:
		return nil, &trouble{"settings", w.Bus.Protocol + " is not possible on this bus", fmt.Errorf("bus %s: protocol %q", w.Bus.Name, w.Bus.Protocol)}
	}
	return f, nil
}

func (d *Driver) openPort(ctx context.Context, w devices.Wire, f *field) (Port, error) {
	if d.OpenPort != nil {
		return d.OpenPort(ctx, w)
	}
	p, err := d.ports.Open(w.Bus, len(w.Devices), w.Log)
	if err != nil {
		return nil, err
	}
	f.timing.latency = p.Latency()
	f.uart = func() devices.UARTErrors { return devices.UARTErrors(p.LineErrors()) }
	return p, nil
}

func (d *Driver) line(p Port, f *field) *Line {
	if f.timing.ascii {
		p = newASCIIPort(p)
	}
	l := newLine(p, f.timing, f.late)
	l.noOwed, l.tap = d.noOwed, f.tap
	where := cmp.Or(f.bus.Serial, f.bus.TCP)
	l.owes, l.keep = d.account(where), func(a *ledger) { d.put(where, a) }
	l.echoes.on = f.echoKnown()
	return l
}

// maxKept bounds the accounts of closed wires; those that owe nothing go, and
// above that a new one is not kept.
const maxKept = 64

// account is what is owed on a wire that was open before, or a new account: what
// was asked before it was opened anew may be answered after.
func (d *Driver) account(where string) *ledger {
	d.mu.Lock()
	defer d.mu.Unlock()
	a := d.kept[where]
	delete(d.kept, where)
	if a == nil {
		a = &ledger{}
	}
	return a
}

// put keeps the account of a wire that is closed.
func (d *Driver) put(where string, a *ledger) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(d.kept, func(_ string, old *ledger) bool { return !old.any(now) })
	if !a.any(now) || len(d.kept) >= maxKept {
		return
	}
	if d.kept == nil {
		d.kept = map[string]*ledger{}
	}
	d.kept[where] = a
}

// timingOf is the timing of a wire from its configuration (Modbus over serial
// line v1.02, 2.5.1.1: 3.5 characters, above 19200 baud 1.75 ms).
func timingOf(b *config.Bus) timing {
	if b.TCP != "" {
		// Segments may come apart; an answer lost by the network comes again after
		// the shortest retransmission time of TCP, which no timeout should undercut.
		return timing{silence: 200 * time.Millisecond, latency: 250 * time.Millisecond, ascii: b.Protocol == "modbus-ascii"}
	}
	bits := 1 + b.DataBits + b.StopBits
	if b.Parity != 'N' {
		bits++
	}
	t := timing{char: time.Duration(bits) * time.Second / time.Duration(max(b.Baud, 1)), ascii: b.Protocol == "modbus-ascii"}
	switch {
	case t.ascii: // the colon begins a frame, no silence
	case b.Baud > 19200:
		t.gap = 1750 * time.Microsecond
	default:
		t.gap = t.char * 35 / 10
	}
	if b.Gap > 0 {
		t.gap = b.Gap
	}
	t.silence = 50*time.Millisecond + 16*t.char
	return t
}

// Cost plans the requests of a group as the bus will, with the turnaround that
// was learned, or that of the profile, or 30 ms.
func (d *Driver) Cost(w devices.Wire, dev *config.Device, points []int) (requests int, each time.Duration) {
	u, t := newUnit(dev), timingOf(w.Bus)
	u.recall(w.Memory, w.Bus)
	u.suppose()
	l := limitsOf(w.Bus, u, t, writable(w.Devices))
	for _, r := range makePlan(spans(u.points, points, u.headers(points), l), l) {
		requests++
		each += l.time(r.table, r.width())
	}
	return requests, each
}

// limitsOf is what the planner must keep for a unit.
func limitsOf(bus *config.Bus, u *unit, t timing, writable bool) limits {
	l := limits{
		maxRead:   min(orMax(bus.MaxRead), orMax(u.dev.MaxRead), u.maxRead),
		maxHole:   bus.MaxHole,
		forbidden: u.forbidden,
		time:      func(table string, n int) time.Duration { return t.readTime(table, n, u.ta) },
	}
	if len(u.illegal) >= maxGaps {
		l.maxHole = 0
	}
	if writable {
		l.maxRead = min(l.maxRead, blockCap(t, u.ta))
	}
	return l
}

// orMax is a configured limit of registers, where 0 is none.
func orMax(n int) int {
	if n <= 0 || n > 125 {
		return 125
	}
	return n
}

// writable says that one of the devices takes commands.
func writable(devs []*config.Device) bool {
	for _, d := range devs {
		for i := range d.Points {
			if d.Points[i].Write {
				return true
			}
		}
	}
	return false
}
