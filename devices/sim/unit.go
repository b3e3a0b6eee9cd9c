package sim

import (
	"math"
	"sync"
	"time"
)

// Table is one of the four tables of a Modbus unit.
type Table uint8

const (
	Coil     Table = iota // function 1, write 5 and 15
	Discrete              // function 2
	Input                 // function 4
	Holding               // function 3, write 6, 16, 22 and 23
)

// Unit is one slave: four tables of registers, some of which change by
// themselves. An address that nobody defined is answered with exception 2.
// Safe for concurrent use; one Unit may serve several buses.
type Unit struct {
	ID byte

	mu      sync.Mutex
	start   time.Time
	cells   [4]map[uint16]uint16
	live    [4]map[uint16]*live
	fill    func(Table, uint16) (uint16, bool)
	refuse  []refusal
	without map[byte]bool // functions it does not know
	silent  map[byte]bool // functions it gives no answer to
	watch   func(pdu []byte)
	onWrite func(Table, uint16, uint16) uint16
	ident   []string // vendor, product code, revision; nil = no function 0x2B
	answer  time.Duration
	jitter  time.Duration
	queue   bool          // works on its requests one by one
	free    time.Duration // ... and has done them then, since the start of its bus
	maxRead int
	faults  Faults
	served  uint64
}

type live struct {
	addr  uint16
	words int
	fn    func(t time.Duration) []uint16
}

type refusal struct {
	table    Table
	from, to uint16
	code     byte
}

// NewUnit makes a unit without registers. Its time begins now.
func NewUnit(id byte) *Unit {
	u := &Unit{ID: id, start: time.Now(), without: map[byte]bool{}, maxRead: 125}
	for i := range u.cells {
		u.cells[i], u.live[i] = map[uint16]uint16{}, map[uint16]*live{}
	}
	return u
}

// Set defines words from addr on; for coils and discrete inputs a word is 0 or 1.
func (u *Unit) Set(t Table, addr uint16, words ...uint16) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for i, w := range words {
		u.cells[t][addr+uint16(i)] = w
		delete(u.live[t], addr+uint16(i))
	}
}

// SetBit defines one coil or discrete input.
func (u *Unit) SetBit(t Table, addr uint16, on bool) {
	w := uint16(0)
	if on {
		w = 1
	}
	u.Set(t, addr, w)
}

// SetFloat32 defines two registers, high word first.
func (u *Unit) SetFloat32(t Table, addr uint16, v float32) {
	u.Set(t, addr, float32Words(float64(v))...)
}

// SetFill gives every address that is not defined otherwise a value; ok false
// leaves it undefined. fn is called with the unit locked.
func (u *Unit) SetFill(fn func(t Table, addr uint16) (w uint16, ok bool)) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.fill = fn
}

// Live defines words registers from addr on whose value is fn of the time since
// the unit was made. fn is called once a request, with the unit locked, and
// returns that many words.
func (u *Unit) Live(t Table, addr uint16, words int, fn func(t time.Duration) []uint16) {
	u.mu.Lock()
	defer u.mu.Unlock()
	l := &live{addr, words, fn}
	for i := range words {
		u.live[t][addr+uint16(i)] = l
	}
}

// LiveFloat32 defines two registers, high word first, that change over time.
func (u *Unit) LiveFloat32(t Table, addr uint16, fn func(t time.Duration) float64) {
	u.Live(t, addr, 2, func(t time.Duration) []uint16 { return float32Words(fn(t)) })
}

// Get is the word that stands at an address now.
func (u *Unit) Get(t Table, addr uint16) (w uint16, ok bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.wordLocked(t, addr, time.Since(u.start), nil)
}

// Refuse answers every request that touches from..to (both included) with an exception.
func (u *Unit) Refuse(t Table, from, to uint16, code byte) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.refuse = append(u.refuse, refusal{t, from, to, code})
}

// Without makes the unit answer these functions with exception 1.
func (u *Unit) Without(functions ...byte) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, f := range functions {
		u.without[f] = true
	}
}

// SetAnswerTime is how long the unit thinks: d plus a random part of up to jitter.
func (u *Unit) SetAnswerTime(d, jitter time.Duration) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.answer, u.jitter = d, jitter
}

// SetMaxRead makes requests of more registers fail with exception 3. 1..125.
func (u *Unit) SetMaxRead(n int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.maxRead = n
}

// SetIdentity answers function 0x2B/0x0E with vendor, product code and revision.
func (u *Unit) SetIdentity(vendor, product, revision string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.ident = []string{vendor, product, revision}
}

// OnWrite lets fn change a word before it is stored, as a device that clamps
// does. fn is called with the unit locked.
func (u *Unit) OnWrite(fn func(t Table, addr, word uint16) uint16) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.onWrite = fn
}

// SetFaults switches the faults of this unit; the faults of its bus come on top.
func (u *Unit) SetFaults(f Faults) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.faults = f
}

// Served counts the requests that were answered, with exceptions.
func (u *Unit) Served() uint64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.served
}

func (u *Unit) settings() (answer, jitter time.Duration, f Faults) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.answer, u.jitter, u.faults
}

// wordLocked looks a word up. seen keeps what the live cells of one request
// gave, so that the words of one value belong together; nil = do not keep.
func (u *Unit) wordLocked(t Table, addr uint16, at time.Duration, seen map[*live][]uint16) (uint16, bool) {
	if l := u.live[t][addr]; l != nil {
		words := seen[l]
		if words == nil {
			words = l.fn(at)
			if seen != nil {
				seen[l] = words
			}
		}
		return words[addr-l.addr], true
	}
	if w, ok := u.cells[t][addr]; ok {
		return w, true
	}
	if u.fill != nil {
		return u.fill(t, addr)
	}
	return 0, false
}

// storeLocked writes a word into an address that exists.
func (u *Unit) storeLocked(t Table, addr, w uint16) {
	if u.onWrite != nil {
		w = u.onWrite(t, addr, w)
	}
	delete(u.live[t], addr)
	u.cells[t][addr] = w
}

func float32Words(v float64) []uint16 {
	b := math.Float32bits(float32(v))
	return []uint16{uint16(b >> 16), uint16(b)}
}
