package sim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"syscall"
	"time"
)

// maxUnread bounds what waits for a reader, in bytes; a tty holds as much.
// What comes on top is dropped and counted in Stats.Overrun.
const maxUnread = 4096

// Bus is a wire with Modbus units, or with one UART sensor, at its far end.
// Safe for concurrent use.
type Bus struct {
	line  Line
	start time.Time

	mu        sync.Mutex
	rng       *rand.Rand
	units     map[byte]*Unit
	faults    Faults
	stats     Stats
	port      *Port // who has the near end open
	unplugged bool

	// what the near end sends
	frame    []byte
	frameEnd time.Duration // when its last character has left
	frameBad bool          // it began too early or collided

	// what the near end hears; all times count from start
	air   []char        // on the wire, in the order of their ends
	quiet time.Duration // end of the last character that passed
	fifo  []byte
	rx    []chunk
	rxLen int

	talk       func(n uint64, t time.Duration) []byte
	talkEvery  time.Duration
	talkNext   time.Duration
	talks      uint64
	reply      func(request []byte, t time.Duration) []byte
	masterNext time.Duration
}

// char is one character on the wire.
type char struct {
	end  time.Duration
	b    byte
	last bool // of its frame: the FIFO does not wait for more
}

// chunk is what the FIFO hands over at once.
type chunk struct {
	due time.Duration
	b   []byte
}

// NewBus makes a bus with units on it. Everything random comes from seed.
func NewBus(l Line, seed uint64, units ...*Unit) *Bus {
	b := &Bus{
		line:  l.withDefaults(),
		start: time.Now(),
		rng:   rand.New(rand.NewPCG(seed, 0x9E3779B97F4A7C15)),
		units: map[byte]*Unit{},
	}
	for _, u := range units {
		b.units[u.ID] = u
	}
	return b
}

// NewTalker makes a wire with one sensor that sends gen(n, t) each interval
// without being asked: n counts from 0, t is the time since the start. gen is
// called with the bus locked.
func NewTalker(l Line, seed uint64, interval time.Duration, gen func(n uint64, t time.Duration) []byte) *Bus {
	b := NewBus(l, seed)
	b.talk, b.talkEvery, b.talkNext = gen, interval, interval
	return b
}

// NewPolled makes a wire with one sensor that answers a request, which a
// silence of t3.5 ends, with reply(request, t); nil is no answer.
func NewPolled(l Line, seed uint64, reply func(request []byte, t time.Duration) []byte) *Bus {
	b := NewBus(l, seed)
	b.reply = reply
	return b
}

// Line is the setting of the wire.
func (b *Bus) Line() Line { return b.line }

// Add puts a unit on the bus; one of the same address goes.
func (b *Bus) Add(u *Unit) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.units[u.ID] = u
}

// Unit is the unit with that address, or nil.
func (b *Bus) Unit(id byte) *Unit {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.units[id]
}

// SetFaults replaces the faults of the bus.
func (b *Bus) SetFaults(f Faults) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.setFaultsLocked(f)
}

func (b *Bus) setFaultsLocked(f Faults) {
	now := b.now()
	b.advanceLocked(now)
	if f.SecondMaster > 0 && f.SecondMaster != b.faults.SecondMaster {
		b.masterNext = now + f.SecondMaster
	}
	b.faults = f
	b.wakeLocked()
}

// Stats is the truth so far.
func (b *Bus) Stats() Stats {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.advanceLocked(b.now())
	return b.stats
}

// Open opens the near end. One port at a time: EBUSY; ENOENT while unplugged.
func (b *Bus) Open() (*Port, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.unplugged {
		return nil, fmt.Errorf("open simulated bus: %w", syscall.ENOENT)
	}
	if b.port != nil {
		return nil, fmt.Errorf("open simulated bus: %w", syscall.EBUSY)
	}
	b.advanceLocked(b.now())
	b.fifo, b.rx, b.rxLen = nil, nil, 0
	b.port = &Port{bus: b, timeout: -1, wake: make(chan struct{}, 1)}
	return b.port, nil
}

// Unplug takes the adapter away: the open port fails with EIO from now on.
func (b *Bus) Unplug() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.unplugged = true
	b.wakeLocked()
}

// Replug brings the adapter back; the port must be opened anew.
func (b *Bus) Replug() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.unplugged = false
	if b.port != nil {
		b.port.dead = true
		b.port.poke()
		b.port = nil
	}
}

func (b *Bus) now() time.Duration { return time.Since(b.start) }

func (b *Bus) wakeLocked() {
	if b.port != nil {
		b.port.poke()
	}
}

// fullDuplex: a sensor on a UART has a wire for each direction; nothing collides.
func (b *Bus) fullDuplex() bool { return b.talk != nil || b.reply != nil }

// sendLocked puts characters of the near end on the wire.
func (b *Bus) sendLocked(p []byte, now time.Duration) {
	tc := b.line.Char()
	from := max(now, b.frameEnd) // the UART sends one after another
	if len(b.frame) == 0 {
		b.frameBad = false
		// a hundredth of a character is rounding, not a violation
		if s := b.line.Silence(); !b.line.ASCII && !b.fullDuplex() && b.quiet > 0 && from < b.quiet+s-tc/100 {
			b.stats.GapViolations++
			b.frameBad = true
		}
	}
	end := from + time.Duration(len(p))*tc
	b.frame = append(b.frame, p...)
	if len(b.frame) > 512 {
		b.frame, b.frameBad = b.frame[:512], true
	}
	b.stats.Wire += end - from
	if !b.fullDuplex() && b.collideLocked(from, end) {
		b.frameBad = true
	}
	b.frameEnd = end
	b.quiet = max(b.quiet, end)
	if b.faults.Echo {
		b.stats.Wire -= end - from // counted once
		b.launchLocked(p, from, false)
	}
}

// collideLocked damages what is on the wire between from and end.
func (b *Bus) collideLocked(from, end time.Duration) bool {
	hit := false
	tc := b.line.Char()
	for i := range b.air {
		if c := &b.air[i]; c.end > from && c.end-tc < end {
			c.b ^= byte(1 + b.rng.IntN(255))
			hit = true
		}
	}
	if hit {
		b.stats.Collisions++
	}
	return hit
}

// launchLocked puts a frame of the far end on the wire, its first character at from.
// shared: on the wire that the near end sends on, where frames can collide.
func (b *Bus) launchLocked(p []byte, from time.Duration, shared bool) {
	tc := b.line.Char()
	p = slices.Clone(p)
	end := from + time.Duration(len(p))*tc
	if shared {
		hit := b.collideLocked(from, end)
		if b.frameEnd > from && b.frameEnd-time.Duration(len(b.frame))*tc < end && len(b.frame) > 0 {
			b.frameBad = true
			hit = true
		}
		if hit {
			for i := range p {
				p[i] ^= byte(1 + b.rng.IntN(255))
			}
		}
	}
	b.stats.Wire += end - from
	for i, c := range p {
		b.air = append(b.air, char{from + time.Duration(i+1)*tc, c, i == len(p)-1})
	}
	slices.SortStableFunc(b.air, func(x, y char) int { return int(x.end - y.end) })
}

// advanceLocked lets everything happen that happens until now.
func (b *Bus) advanceLocked(now time.Duration) {
	for {
		next, event := b.eventLocked()
		if event == nil || next > now {
			break
		}
		event(next)
	}
	n := 0
	for n < len(b.air) && b.air[n].end <= now {
		c := b.air[n]
		b.quiet = max(b.quiet, c.end)
		b.hearLocked(c)
		n++
	}
	b.air = slices.Delete(b.air, 0, n)
}

// eventLocked is the next thing that a party on the wire does.
func (b *Bus) eventLocked() (at time.Duration, do func(time.Duration)) {
	at = -1
	offer := func(t time.Duration, f func(time.Duration)) {
		if at < 0 || t < at {
			at, do = t, f
		}
	}
	if len(b.frame) > 0 {
		t := b.frameEnd
		switch { // Modbus over Serial Line v1.02, 2.5.2.1: ASCII characters may be 1 s apart
		case !b.line.ASCII:
			t += b.line.Silence()
		case b.frame[len(b.frame)-1] != '\n':
			t += time.Second
		}
		offer(t, b.endFrameLocked)
	}
	if b.talk != nil {
		offer(b.talkNext, b.talkLocked)
	}
	if b.faults.SecondMaster > 0 {
		offer(b.masterNext, b.secondMasterLocked)
	}
	return at, do
}

// hearLocked gives a character to the FIFO of the near end.
func (b *Bus) hearLocked(c char) {
	if b.port == nil {
		return
	}
	if b.rxLen+len(b.fifo) >= maxUnread {
		b.stats.Overrun++
		return
	}
	b.fifo = append(b.fifo, c.b)
	due := c.end
	if tick := b.line.Latency; tick > 0 {
		due = (c.end + tick - 1) / tick * tick
	} else if len(b.fifo) < b.line.Chunk && !c.last {
		return
	}
	b.rx = append(b.rx, chunk{due, b.fifo})
	b.rxLen += len(b.fifo)
	b.fifo = nil
}

// takeLocked hands over what is due.
func (b *Bus) takeLocked(p []byte, now time.Duration) int {
	n := 0
	for len(b.rx) > 0 && b.rx[0].due <= now && n < len(p) {
		k := copy(p[n:], b.rx[0].b)
		n += k
		b.rxLen -= k
		if b.rx[0].b = b.rx[0].b[k:]; len(b.rx[0].b) == 0 {
			b.rx = b.rx[1:]
		}
	}
	return n
}

// dueLocked is when the near end hears something next, or an event comes that
// may lead to it; ok is false while nothing is on its way.
func (b *Bus) dueLocked() (at time.Duration, ok bool) {
	at, do := b.eventLocked()
	ok = do != nil
	offer := func(t time.Duration) {
		if !ok || t < at {
			at, ok = t, true
		}
	}
	if len(b.rx) > 0 {
		offer(b.rx[0].due)
	}
	for i, c := range b.air {
		if b.line.Latency > 0 || c.last || len(b.fifo)+i+1 >= b.line.Chunk {
			offer(c.end)
			break
		}
	}
	return at, ok
}
