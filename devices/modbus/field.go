package modbus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	gb "github.com/goburrow/modbus"

	"busgate/config"
	"busgate/devices"
)

// link carries one exchange at a time: a Line or a TCP connection.
type link interface {
	exchange(ctx context.Context, adu []byte, p patience) ([]byte, error)
	owing(adu []byte) time.Duration
	timings() exchange
	tally() *devices.Counts
	Close() error
}

// packager is goburrow's, one for the whole bus: the unit changes per request.
type packager interface {
	gb.Packager
	unit(id byte)
}

type rtuPackager struct{ gb.RTUClientHandler }

func (p *rtuPackager) unit(id byte) { p.SlaveId = id }

type tcpPackager struct{ gb.TCPClientHandler }

func (p *tcpPackager) unit(id byte) { p.SlaveId = id }

// sender makes a Transporter of one call.
type sender func(adu []byte) ([]byte, error)

func (s sender) Send(adu []byte) ([]byte, error) { return s(adu) }

// field is one open bus. See devices.Field for who may call what when.
type field struct {
	bus    *config.Bus
	log    *slog.Logger
	timing timing
	link   link
	pack   packager
	units  map[byte]*unit
	tap    *devices.Tap
	memory devices.Memory // may be nil
	writes bool           // somebody on the bus takes commands

	strangers []LateAnswer              // of units that are not on the bus
	uart      func() devices.UARTErrors // of the kernel; nil: it does not count
}

var _ devices.Field = (*field)(nil)

func (f *field) setLink(l link, p packager) { f.link, f.pack = l, p }

// Devices changes who is on the bus. What was learned about a unit stays as
// long as its number and its profile do.
func (f *field) Devices(devs []*config.Device) {
	units := make(map[byte]*unit, len(devs))
	var other []string
	for _, d := range devs {
		u := f.units[d.UnitID]
		if u == nil || u.dev.Name != d.Name || u.dev.Profile != d.Profile {
			u = newUnit(d)
			if !u.recall(f.memory, f.bus) {
				other = append(other, d.Name)
			}
		}
		u.dev = d
		u.place()
		u.version++
		units[d.UnitID] = u
	}
	f.units, f.writes = units, writable(devs)
	if len(other) > 0 {
		f.log.Info("what another version learned about devices is not used; it is learned anew", "bus", f.bus.Name, "devices", strings.Join(other, " "))
	}
}

// unitOf finds what is known about a device.
func (f *field) unitOf(dev *config.Device) *unit {
	u := f.units[dev.UnitID]
	if u == nil { // a device that Wire.Devices did not name
		u = newUnit(dev)
		f.units[dev.UnitID] = u
	}
	return u
}

// late is told by the link of each answer that came too late.
func (f *field) late(id byte, after time.Duration) {
	u := f.units[id]
	if u == nil {
		if len(f.strangers) < maxStrangers {
			f.strangers = append(f.strangers, LateAnswer{id, after})
		}
		return
	}
	u.tooLate(after)
	if after > 2*f.bus.Timeout {
		u.counts.TooLate++
		u.tooLates.add(after)
		var middle [1]time.Duration
		u.tooLates.quantiles(16, middle[:], .5)
		u.counts.Latest = middle[0]
	}
}

// Close notes what was learned and closes the port or connection.
func (f *field) Close() error {
	for _, u := range f.units {
		f.note(u)
	}
	return f.link.Close()
}

// Counts are the counters of the bus.
func (f *field) Counts() devices.Counts {
	c := *f.link.tally()
	c.Exceptions = 0
	for _, u := range f.units {
		c.Exceptions += u.counts.Exceptions
	}
	if f.uart != nil {
		c.UART = f.uart()
	}
	return c
}

// Unit are the counters of one device.
func (f *field) Unit(dev *config.Device) devices.UnitCounts {
	u := f.unitOf(dev)
	c := u.counts
	c.Timeout = u.timeout(f.bus, f.timing)
	return c
}

// do makes one exchange with a unit. The error is devices.ErrNoAnswer,
// devices.ErrBadFrame, *devices.Exception, the context's, or the wire's.
func (f *field) do(ctx context.Context, u *unit, p patience, call func(gb.Client) ([]byte, error)) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return f.over(u, call, func(adu []byte) ([]byte, error) { return f.link.exchange(ctx, adu, p) })
}

// over is do over any way to send.
func (f *field) over(u *unit, call func(gb.Client) ([]byte, error), send sender) ([]byte, error) {
	var wire error
	f.pack.unit(u.dev.UnitID)
	client := gb.NewClient2(f.pack, sender(func(adu []byte) (ans []byte, err error) {
		ans, wire = send(adu)
		return ans, wire
	}))
	u.counts.Requests++
	out, err := call(client)
	if err == nil {
		u.counts.Good++
		u.heard(f.link.timings(), f.timing)
		return out, nil
	}
	if me, ok := errors.AsType[*gb.ModbusError](err); ok {
		u.counts.Exceptions++
		u.heard(f.link.timings(), f.timing)
		return nil, &devices.Exception{Function: me.FunctionCode & 0x7F, Code: me.ExceptionCode, Text: exceptionText(me.ExceptionCode)}
	}
	switch {
	case wire == nil: // the client found fault with an answer that the link let through
		u.counts.Bad++
		return nil, fmt.Errorf("%w: %w", devices.ErrBadFrame, err)
	case errors.Is(wire, devices.ErrNoAnswer):
		u.counts.Timeouts++
	case errors.Is(wire, devices.ErrBadFrame):
		u.counts.Bad++
	}
	return nil, wire
}

// read makes one read request.
func (f *field) read(ctx context.Context, u *unit, s span, p patience) ([]byte, error) {
	out, err := f.do(ctx, u, p, s.ask)
	u.answered(s, err)
	return out, err
}

// ask makes the read of a span.
func (s span) ask(c gb.Client) ([]byte, error) {
	addr, n := uint16(s.from), uint16(s.width())
	switch s.table {
	case "coil":
		return c.ReadCoils(addr, n)
	case "discrete":
		return c.ReadDiscreteInputs(addr, n)
	case "input":
		return c.ReadInputRegisters(addr, n)
	}
	return c.ReadHoldingRegisters(addr, n)
}

// answered notes how a read went.
func (u *unit) answered(s span, err error) {
	if err != nil {
		return
	}
	if !u.proven || s.width() < u.best.width() {
		u.best, u.proven = request{span: s}, true
	}
	if !isBits(s.table) {
		u.widest = max(u.widest, s.width())
	}
}

// again makes a read, and for a timeout or a damaged answer the configured
// number of further tries. It says how many were made.
func (f *field) again(ctx context.Context, u *unit, s span) (out []byte, tries int, err error) {
	return f.tries(ctx, u, s, 1+f.bus.Retries)
}

// tries makes a read up to most times.
func (f *field) tries(ctx context.Context, u *unit, s span, most int) (out []byte, tries int, err error) {
	for {
		tries++
		out, err = f.read(ctx, u, s, u.patience(f.bus, f.timing))
		if tries >= most || !errors.Is(err, devices.ErrNoAnswer) && !errors.Is(err, devices.ErrBadFrame) {
			return out, tries, err
		}
	}
}

// Wait is how long a poll of g would have to listen out a late answer first.
func (f *field) Wait(g *devices.Group) time.Duration {
	wait := time.Duration(0)
	for _, r := range f.planOf(g, f.unitOf(g.Device)).requests {
		wait = max(wait, f.owing(g.Device, r.span))
	}
	return wait
}

func (f *field) owing(dev *config.Device, s span) time.Duration {
	var room [8]byte
	n := s.width()
	return f.link.owing(seal(append(room[:0], dev.UnitID, readFunction(s.table), byte(s.from>>8), byte(s.from), byte(n>>8), byte(n))))
}

func readFunction(table string) byte {
	switch table {
	case "coil":
		return 1
	case "discrete":
		return 2
	case "holding":
		return 3
	}
	return 4
}

// Probe asks the cheapest thing that the unit ever answered, or the narrowest
// of its points. An exception is an answer, too, but not one of a gateway.
func (f *field) Probe(ctx context.Context, dev *config.Device) error {
	u := f.unitOf(dev)
	s := u.cheapest()
	if s.width() == 0 {
		return devices.ErrNoAnswer
	}
	_, err := f.read(ctx, u, s, patience{timeout: u.probeTimeout(f.bus), window: u.window(f.bus)})
	if x, ok := errors.AsType[*devices.Exception](err); ok {
		if x.Code == exGatewayPath || x.Code == exGatewayTarget {
			return devices.ErrNoAnswer
		}
		return nil
	}
	return err
}

// cheapest is what a probe asks.
func (u *unit) cheapest() span {
	switch {
	case u.proven || len(u.points) == 0:
		return u.best.span
	case u.isSunSpec():
		return span{"holding", sunspecBases[0], sunspecBases[0] + 2}
	}
	s := valueSpan(&u.points[0])
	for i := range u.points {
		if t := valueSpan(&u.points[i]); t.width() < s.width() {
			s = t
		}
	}
	return s
}

// ProbeTime is what a Probe without answer costs, with the wait for a late
// answer that could be mistaken.
func (f *field) ProbeTime(dev *config.Device) time.Duration {
	return f.owing(dev, f.unitOf(dev).cheapest()) + f.unitOf(dev).probeTimeout(f.bus) + f.timing.frame(8) + f.timing.gap + f.timing.silence
}

// Get reads one point, raw.
func (f *field) Get(ctx context.Context, dev *config.Device, p *config.Point) ([]byte, error) {
	u := f.unitOf(dev)
	p, err := f.locate(u, p)
	if err != nil {
		return nil, err
	}
	out, _, err := f.again(ctx, u, valueSpan(p))
	if err == nil && isBits(p.Table) {
		out[0] &= 1
		out = out[:1]
	}
	return out, err
}
