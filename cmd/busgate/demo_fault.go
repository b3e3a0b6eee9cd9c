package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"busgate/devices"
	"busgate/devices/sim"
	"busgate/embeddedbroker"
)

// When the faults of a demo come: a few seconds of good work first, where that
// is possible, and an adapter that comes and goes.
const (
	faultAfter  = 8 * time.Second
	unplugFor   = 6 * time.Second
	unplugEvery = 15 * time.Second
	clockAfter  = 30 * time.Second
)

// demoFault is one fault and what it shows.
type demoFault struct {
	name    string // before the =
	example string
	shows   string
	early   bool // it is there from the start
	blind   bool // what arrives at the cloud cannot be judged then
}

var demoFaults = []demoFault{
	{"crc", "crc=5%", "answers with one wrong bit: the wiring (after 10 of them, a minute or two)", false, false},
	{"noise", "noise, noise=1%", "characters with one wrong bit, which hits the long answers: the wiring", false, false},
	{"noise=00-first", "noise=00-first", "a stray 00 before each answer: bias resistors", false, false},
	{"lose", "lose=10%", "answers that never come: asked again, nothing is lost", false, false},
	{"dead", "dead=2, dead=all", "a unit that is switched off, or all of them", false, false},
	{"double", "double=1", "two devices with one unit number", false, false},
	{"late", "late=1200ms", "answers that come too late: the timeout to set", false, false},
	{"busy", "busy=10%", "exception 6 now and then: the interval (after 11 of them)", false, false},
	{"exception", "exception=4", "a device that reports its own failure", false, false},
	{"silent", "silent", "not one byte: A and B swapped, no power, wrong port (after 60 s)", true, false},
	{"wrong-baud", "wrong-baud", "bytes but no frame: baud or format", true, false},
	{"second-master", "second-master", "somebody else asks unit 4 on this bus (within half a minute)", false, false},
	{"echo", "echo", "an adapter that hears itself: works all the same", true, false},
	{"cross-talk", "cross-talk=10%", "good frames of another unit before the answer: never taken for it", false, false},
	{"unplug", "unplug", "the adapter is pulled and plugged in again, four times in a minute", false, false},
	{"word-order", "word-order", "the inverter's order is forgotten in the device map", true, false},
	{"gateway", "gateway", "a Modbus gateway that cannot reach the inverter (exception 11)", false, false},
	{"unreachable", "unreachable", "nobody listens at the inverter's address", true, false},
	{"tcp-limit", "tcp-limit", "the inverter serves one client, and that is another one", true, false},
	{"no-data", "no-data", "the GPS falls silent", false, false},
	{"bad-checksum", "bad-checksum", "damaged sentences of the GPS", false, false},
	{"clock", "clock", "a computer without a clock, which NTP sets after half a minute", true, true},
	{"buffer-full", "buffer-full", "no room for more than 20 messages while the cloud is away: the oldest go, and are counted", true, true},
	{"auth", "auth", "the cloud refuses the password: readings wait, nothing is lost", true, true},
}

// faultList is a repeatable flag.
type faultList []string

// String is what was given.
func (l *faultList) String() string { return strings.Join(*l, ",") }

// Set takes one fault.
func (l *faultList) Set(text string) error {
	for word := range strings.SplitSeq(text, ",") {
		if word = strings.TrimSpace(word); word != "list" && faultOf(word) == nil {
			names := make([]string, len(demoFaults))
			for i, f := range demoFaults {
				names[i] = f.name
			}
			name, _, _ := strings.Cut(word, "=")
			return fmt.Errorf("there is no fault %q%s; all of them: busgate demo --fault list", word, meant(name, names))
		}
		*l = append(*l, word)
	}
	return nil
}

// faultOf is the row of a fault as it was given, nil when there is none.
func faultOf(text string) *demoFault {
	name, _, _ := strings.Cut(text, "=")
	if text == "noise=00-first" {
		name = text
	}
	for i := range demoFaults {
		if demoFaults[i].name == name {
			return &demoFaults[i]
		}
	}
	return nil
}

// printFaults lists what --fault takes.
func printFaults(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, f := range demoFaults {
		fmt.Fprintf(t, "%s\t%s\n", f.example, f.shows)
	}
	return t.Flush()
}

// has says whether a fault was asked for.
func (l faultList) has(name string) bool {
	for _, f := range l {
		if f == name {
			return true
		}
	}
	return false
}

// blind names the faults under which what arrives cannot be judged.
func (l faultList) blind() string {
	var names []string
	for _, f := range l {
		if faultOf(f).blind {
			names = append(names, f)
		}
	}
	return strings.Join(names, ", ")
}

// faultShow makes the faults happen in their time.
type faultShow struct {
	plant *plant
	todo  []scheduled
}

// scheduled is something that happens once.
type scheduled struct {
	at  time.Duration
	say string
	do  func() error
}

// newFaultShow prepares the faults; those that must be there from the start are.
func newFaultShow(p *plant, faults faultList) (*faultShow, error) {
	s := &faultShow{plant: p}
	for _, text := range faults {
		f := faultOf(text)
		at := faultAfter
		if f.early {
			at = 0
		}
		switch {
		case text == "unplug":
			s.unplug()
		case text == "clock":
			s.todo = append(s.todo, scheduled{0, "fault clock: " + f.shows, func() error { return nil }})
		case f.early:
			if err := p.inject(text); err != nil {
				return nil, err
			}
			s.todo = append(s.todo, scheduled{0, "fault " + text + ": " + f.shows, func() error { return nil }})
		default:
			s.todo = append(s.todo, scheduled{at, "fault " + text + " begins: " + f.shows, func() error { return p.inject(text) }})
		}
	}
	return s, nil
}

// unplug pulls the adapter of the RS-485 bus four times.
func (s *faultShow) unplug() {
	for i := range 4 {
		at := faultAfter + time.Duration(i)*unplugEvery
		s.todo = append(s.todo,
			scheduled{at, "the adapter of rs485 is pulled (on purpose)", func() error { return s.plant.inject("unplug") }},
			scheduled{at + unplugFor, "the adapter is plugged in again", func() error { return s.plant.rs485.Replug() }})
	}
}

// step does what is due and gives the lines to say.
func (s *faultShow) step(t time.Duration) (lines []string, err error) {
	rest := s.todo[:0]
	for _, x := range s.todo {
		if t < x.at {
			rest = append(rest, x)
			continue
		}
		if err := x.do(); err != nil {
			return lines, err
		}
		lines = append(lines, x.say)
	}
	s.todo = rest
	return lines, nil
}

// inject switches one fault of the plant on.
func (p *plant) inject(text string) error {
	name, _, _ := strings.Cut(text, "=")
	switch name {
	case "word-order", "clock", "auth", "buffer-full", "unreachable": // see config
		return nil
	case "gateway":
		p.inverter.SetFaults(sim.TCPFaults{Exception: 11})
		return nil
	case "tcp-limit":
		p.inverter.SetFaults(sim.TCPFaults{MaxConns: 1})
		other, err := net.Dial("tcp", p.inverter.Addr())
		p.other = other // the one client that it serves
		return err
	case "no-data", "bad-checksum":
		if p.gps == nil {
			return fmt.Errorf("fault %s: there is no GPS without pseudo terminals", text)
		}
		if name == "no-data" {
			return p.gps.Inject("dead=all")
		}
		return p.gps.Inject("noise=0.1%")
	}
	if p.rs485 == nil {
		return fmt.Errorf("fault %s: it needs a pseudo terminal", text)
	}
	return p.rs485.Inject(text)
}

// busLine is what a bus has seen: "rs485: 412 requests, 380 good, 12 timeouts".
func busLine(b *devices.BusStatus) string {
	c := &b.Counts
	line := fmt.Sprintf("%s: %d requests, %d good", b.Name, c.Requests, c.Good)
	for _, n := range []struct {
		value uint64
		word  string
	}{
		{c.Bad, "damaged"}, {c.Timeouts, "timeouts"}, {c.Late, "too late"}, {c.Foreign, "of other units, thrown away"}, {c.Intruders, "caused by another master"},
		{c.Stray, "behind a stray byte"}, {c.Exceptions, "exceptions"}, {c.Echo, "echoes"}, {b.Reopened, "times opened again"}, {c.Skipped, "frames that newer ones replaced"},
	} {
		if n.value > 0 {
			line += fmt.Sprintf(", %d %s", n.value, n.word)
		}
	}
	return line
}

// recoveries is a log without what is only worth knowing, but with what is well again.
type recoveries struct{ slog.Handler }

// Handle passes warnings, errors and recoveries on.
func (h recoveries) Handle(ctx context.Context, r slog.Record) error {
	solved := false
	r.Attrs(func(a slog.Attr) bool {
		solved = solved || a.Key == "state" && a.Value.String() == "solved"
		return !solved
	})
	if r.Level < slog.LevelWarn && !solved {
		return nil
	}
	return h.Handler.Handle(ctx, r)
}

// WithAttrs keeps the filter.
func (h recoveries) WithAttrs(a []slog.Attr) slog.Handler { return recoveries{h.Handler.WithAttrs(a)} }

// WithGroup keeps the filter.
func (h recoveries) WithGroup(name string) slog.Handler { return recoveries{h.Handler.WithGroup(name)} }

// wrongClock is a kernel whose clock stands in March 2024 until NTP sets it.
func wrongClock() *kernel {
	k := realKernel
	begin, behind := time.Now(), time.Since(time.Date(2024, 3, 1, 8, 0, 0, 0, time.UTC))
	set := func() bool { return time.Since(begin) >= clockAfter }
	k.real = func() time.Duration {
		if set() {
			return realKernel.real()
		}
		return realKernel.real() - behind
	}
	k.synced = set
	k.hardware = func(time.Time) bool { return false }
	k.id = func() string { return "demo" }
	return &k
}

// cloudUsers writes the users file of a cloud that wants a password, and one
// with a wrong password.
func cloudUsers(dir string) (string, error) {
	file := filepath.Join(dir, "users")
	if err := os.WriteFile(filepath.Join(dir, "password"), []byte("wrong\n"), 0o600); err != nil {
		return "", err
	}
	return file, os.WriteFile(file, []byte("checker:"+embeddedbroker.HashPassword([]byte("checker"), 101)+"\nplant:"+embeddedbroker.HashPassword([]byte("right"), 101)+"\n"), 0o600)
}
