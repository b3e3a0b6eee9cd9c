package modbus

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// clerk is a Port with a unit, or a gateway, at its far end that works on its
// requests one by one, each as long as it takes, and forgets none for which it
// has room. Holding register a holds a when it is even, else the moment of
// answering in steps of 10 ms; input register a holds a + 0x4000 or that moment.
// From 0x8000 on registers can be written.
type clerk struct {
	rng   *rand.Rand
	start time.Time
	work  func() time.Duration // for one request
	room  int                  // requests that wait

	lose, damage, cut, noise, foreign, master float64
	overtaken                                 float64       // answers that come by up to later behind others
	later                                     time.Duration //
	only1                                     bool          // one register at a time, exception 3
	even                                      bool          // two, or four: half of a value is refused
	mute4                                     bool          // function 4 and what is too long get no answer

	timeout time.Duration
	free    time.Time
	jobs    []job // in the order in which they are done
	air     []sound
	words   map[uint16]uint16
}

// job is a request that was taken.
type job struct {
	req  []byte
	done time.Time
}

// sound is bytes on their way to the near end.
type sound struct {
	at time.Time
	b  []byte
}

func newClerk(seed uint64, work func(*rand.Rand) time.Duration) *clerk {
	rng := rand.New(rand.NewPCG(seed, 77))
	return &clerk{rng: rng, start: time.Now(), work: func() time.Duration { return work(rng) }, room: 1000, words: map[uint16]uint16{}}
}

func always(d time.Duration) func(*rand.Rand) time.Duration {
	return func(*rand.Rand) time.Duration { return d }
}

func (c *clerk) SetReadTimeout(d time.Duration) error { c.timeout = d; return nil }
func (c *clerk) Close() error                         { return nil }

func (c *clerk) roll(p float64) bool { return p > 0 && c.rng.Float64() < p }

func (c *clerk) Write(req []byte) (int, error) {
	now := time.Now()
	c.run(now)
	if c.roll(c.noise) { // long before the answer
		b := make([]byte, 1+c.rng.IntN(12))
		for i := range b {
			b[i] = byte(c.rng.Uint32())
		}
		c.say(now.Add(time.Millisecond), b)
	}
	if c.roll(c.master) { // asks the same unit for something of the same length
		theirs := seal([]byte{1, 3, 0x20, byte(2 * c.rng.IntN(100)), 0, byte(1 + c.rng.IntN(3))})
		c.say(now.Add(2*time.Millisecond), theirs)
		c.take(theirs, now.Add(2*time.Millisecond))
	}
	c.take(bytes.Clone(req), now)
	return len(req), nil
}

// take puts a request into the queue.
func (c *clerk) take(req []byte, now time.Time) {
	if len(c.jobs) >= c.room {
		return
	}
	if c.free.Before(now) {
		c.free = now
	}
	c.free = c.free.Add(c.work())
	c.jobs = append(c.jobs, job{req, c.free})
}

// run does what is done by now.
func (c *clerk) run(now time.Time) {
	for len(c.jobs) > 0 && !c.jobs[0].done.After(now) {
		j := c.jobs[0]
		c.jobs = c.jobs[1:]
		c.answer(j)
	}
}

func (c *clerk) answer(j job) {
	ans := c.serve(j)
	if ans == nil || c.roll(c.lose) {
		return
	}
	at := j.done
	if c.roll(c.overtaken) {
		at = at.Add(time.Duration(c.rng.Int64N(int64(c.later))))
	}
	if c.roll(c.foreign) {
		c.say(at, seal(append([]byte{9}, ans[1:len(ans)-2]...)))
	}
	if c.roll(c.damage) {
		ans[c.rng.IntN(len(ans))] ^= 1 << c.rng.IntN(8)
	}
	if c.roll(c.cut) {
		ans = ans[:1+c.rng.IntN(len(ans)-1)]
	}
	c.say(at, ans)
}

// say lets bytes arrive at a moment, in a piece, behind all that arrives then.
func (c *clerk) say(at time.Time, b []byte) {
	for _, s := range c.air {
		if d := at.Sub(s.at); d >= 0 && d < 3*time.Millisecond {
			at = s.at.Add(3 * time.Millisecond)
		}
	}
	c.air = append(c.air, sound{at, b})
	slices.SortStableFunc(c.air, func(a, b sound) int { return a.at.Compare(b.at) })
}

// serve is the answer to a request; nil: none.
func (c *clerk) serve(j job) []byte {
	fn, addr, n := j.req[1], binary.BigEndian.Uint16(j.req[2:]), binary.BigEndian.Uint16(j.req[4:])
	moment := uint16(j.done.Sub(c.start) / (10 * time.Millisecond))
	switch {
	case fn == 6:
		c.words[addr] = n
		return bytes.Clone(j.req)
	case fn == 16:
		for i := range n {
			c.words[addr+i] = binary.BigEndian.Uint16(j.req[7+2*i:])
		}
		return seal(bytes.Clone(j.req[:6]))
	case fn == 4 && c.mute4 || c.mute4 && c.only1 && n > 1:
		return nil
	case c.only1 && n > 1, c.even && n%2 == 1 && n > 1, c.even && addr%2 == 1:
		return seal([]byte{j.req[0], fn | 0x80, 3})
	case addr >= 0x7000 && addr < 0x8000: // there is nothing
		return seal([]byte{j.req[0], fn | 0x80, 2})
	}
	ans := []byte{j.req[0], fn, byte(2 * n)}
	for i := range n {
		w := addr + i
		switch {
		case w >= 0x8000:
			w = c.words[w]
		case w%2 == 1:
			w = moment
		case fn == 4:
			w += 0x4000
		}
		ans = binary.BigEndian.AppendUint16(ans, w)
	}
	return seal(ans)
}

func (c *clerk) Read(b []byte) (int, error) {
	end := time.Now().Add(c.timeout)
	for {
		now := time.Now()
		c.run(now)
		if len(c.air) > 0 && !c.air[0].at.After(now) {
			n := copy(b, c.air[0].b)
			if c.air[0].b = c.air[0].b[n:]; len(c.air[0].b) == 0 {
				c.air = c.air[1:]
			}
			return n, nil
		}
		next := end
		if len(c.jobs) > 0 && c.jobs[0].done.Before(next) {
			next = c.jobs[0].done
		}
		if len(c.air) > 0 && c.air[0].at.Before(next) {
			next = c.air[0].at
		}
		if !now.Before(end) {
			return 0, nil
		}
		time.Sleep(next.Sub(now))
	}
}

// writes says that another write to addr than of the value w waits in the queue.
func (c *clerk) writes(addr, w uint16) bool {
	return slices.ContainsFunc(c.jobs, func(j job) bool {
		return j.req[1] == 6 && binary.BigEndian.Uint16(j.req[2:]) == addr && binary.BigEndian.Uint16(j.req[4:]) != w ||
			j.req[1] == 16 && binary.BigEndian.Uint16(j.req[2:]) == addr && binary.BigEndian.Uint16(j.req[7:]) != w
	})
}

// asker asks a clerk and looks at what it is told.
type asker struct {
	t      *testing.T
	l      *Line
	c      *clerk
	p      patience
	tries  int
	good   int
	wrong  int // another register's
	old    int // older than maxStale
	unsure int // a write that was confirmed and is not what the unit holds
	sent   int
}

func askerOf(t *testing.T, c *clerk, p patience) *asker {
	l := newLine(c, timing{char: 500 * time.Microsecond, gap: 2 * time.Millisecond, silence: 58 * time.Millisecond}, nil)
	return &asker{t: t, l: l, c: c, p: p, tries: 2}
}

// read asks for n registers, as often as a bus does.
func (a *asker) read(fn byte, addr, n uint16) bool {
	req := seal([]byte{1, fn, byte(addr >> 8), byte(addr), byte(n >> 8), byte(n)})
	for range a.tries {
		begin := time.Now()
		a.sent++
		ans, err := a.l.exchange(a.t.Context(), req, a.p)
		if err != nil {
			continue
		}
		if ans[1]&0x80 != 0 {
			if (addr < 0x7000 || addr >= 0x8000) && !a.c.only1 && !a.c.even {
				a.wrong++
			}
			return false
		}
		a.good++
		for i := range n {
			w, want := binary.BigEndian.Uint16(ans[3+2*i:]), addr+i
			switch {
			case want >= 0x8000:
			case want%2 == 1:
				steps := int16(uint16(begin.Sub(a.c.start)/(10*time.Millisecond)) - w) // they wrap around
				if time.Duration(steps)*10*time.Millisecond > maxStale+20*time.Millisecond {
					a.old++
				}
			case fn == 4 && w != want+0x4000, fn == 3 && w != want:
				a.wrong++
			}
		}
		return true
	}
	return false
}

// write writes one register, with function 6 or 16.
func (a *asker) write(fn byte, addr, w uint16) {
	req := []byte{1, fn, byte(addr >> 8), byte(addr), byte(w >> 8), byte(w)}
	if fn == 16 {
		req = []byte{1, fn, byte(addr >> 8), byte(addr), 0, 1, 2, byte(w >> 8), byte(w)}
	}
	a.sent++
	_, err := a.l.exchange(a.t.Context(), seal(req), a.p)
	if err == nil && (a.c.words[addr] != w || a.c.writes(addr, w)) {
		a.unsure++
	}
}

func (a *asker) report(what string) {
	a.t.Helper()
	if a.wrong+a.old+a.unsure > 0 {
		a.t.Errorf("%s: of %d good reads %d hold another register's value, %d are too old; %d writes are falsely confirmed", what, a.good, a.wrong, a.old, a.unsure)
	}
}

// hostility makes a clerk of a kind with all that goes wrong, all of it within
// what the package comment says; the window is that of the patience.
func hostility(c *clerk, r *rand.Rand) (p patience, addrs []uint16, widths []uint16) {
	p.timeout = time.Duration(60+r.IntN(400)) * time.Millisecond
	p.window = time.Duration(300+r.IntN(1500)) * time.Millisecond
	share := func(most float64) float64 { return float64(r.IntN(3)) / 2 * most }
	c.lose, c.damage, c.cut, c.noise, c.foreign = share(.05), share(.05), share(.03), share(.05), share(.05)
	c.room = 1 + r.IntN(12)
	mostly, slow, seldom := time.Duration(1+r.IntN(40))*time.Millisecond, time.Duration(r.IntN(3000))*time.Millisecond, share(.2)
	switch r.IntN(6) {
	case 0: // answers overtake one another
		c.overtaken, c.later = .1, p.window
		slow = 0
	case 1:
		c.only1 = true
	case 2: // a unit that cannot be asked to prove anything
		c.only1, c.mute4 = true, true
		slow, c.room = min(slow, 400*time.Millisecond), min(c.room, 4)
	case 3:
		c.even = true
	}
	c.work = func() time.Duration {
		d := mostly + time.Duration(c.rng.Int64N(int64(mostly)))
		if slow > 0 && c.roll(seldom) {
			d = slow/2 + time.Duration(c.rng.Int64N(int64(slow)))
		}
		return d
	}
	widths = []uint16{2, 2, 2, 3, 4}
	switch {
	case c.only1:
		widths = []uint16{1}
	case c.even:
		widths = []uint16{2, 2, 4}
	case r.IntN(3) == 0:
		widths = []uint16{2}
	}
	for range 3 + r.IntN(6) {
		addrs = append(addrs, uint16(2*r.IntN(1000)))
	}
	return p, addrs, widths
}
