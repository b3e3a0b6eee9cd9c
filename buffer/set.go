package buffer

import (
	"encoding/binary"
	"errors"
	"iter"
	"math/bits"
	"unique"
)

const (
	maxConsumers = 1024
	maxNeeds     = 16  // distinct consumer sets in one segment
	maxNeedBytes = 400 // their encoded size
)

// bitmap is a set of consumer slots: bit slot&7 of byte slot>>3, without
// trailing zero bytes, so that equal sets are equal strings.
type bitmap = unique.Handle[string]

// need is how many records of a segment wait for one set of consumers, and
// their bytes before deflate.
type need struct {
	set   bitmap
	n     uint32
	bytes uint32
}

func has(set string, slot int) bool {
	return slot>>3 < len(set) && set[slot>>3]&(1<<(slot&7)) != 0
}

// slotsOf yields the slots of a set in rising order.
func slotsOf(set string) iter.Seq[int] {
	return func(yield func(int) bool) {
		for i := range len(set) {
			for b := set[i]; b != 0; b &= b - 1 {
				if !yield(i<<3 + bits.TrailingZeros8(b)) {
					return
				}
			}
		}
	}
}

// union is the set of all consumers of needs.
func union(needs []need) string {
	if len(needs) == 1 {
		return needs[0].set.Value()
	}
	var u [maxConsumers / 8]byte
	n := 0
	for _, e := range needs {
		s := e.set.Value()
		n = max(n, len(s))
		for i := range len(s) {
			u[i] |= s[i]
		}
	}
	return string(u[:n])
}

// needsOf sums what of a segment waits for one consumer.
func needsOf(needs []need, slot int) (n int, size int64) {
	for _, e := range needs {
		if has(e.set.Value(), slot) {
			n += int(e.n)
			size += int64(e.bytes)
		}
	}
	return n, size
}

// appendSet writes a set as rising differences or as its bitmap, whichever is
// shorter.
func appendSet(dst []byte, set string) []byte {
	var sparse []byte
	n, last := 0, -1
	for slot := range slotsOf(set) {
		sparse = binary.AppendUvarint(sparse, uint64(slot-last-1))
		n, last = n+1, slot
	}
	if len(sparse) < len(set) {
		return append(binary.AppendUvarint(dst, uint64(n)<<1), sparse...)
	}
	return append(binary.AppendUvarint(dst, uint64(len(set))<<1|1), set...)
}

// appendNeeds writes the column need.
func appendNeeds(dst []byte, needs []need) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(needs)))
	for _, e := range needs {
		dst = binary.AppendUvarint(dst, uint64(e.n))
		dst = binary.AppendUvarint(dst, uint64(e.bytes))
		dst = appendSet(dst, e.set.Value())
	}
	return dst
}

var errNeed = errors.New("consumer sets are malformed")

// parseNeeds reads the column need.
func parseNeeds(b []byte) ([]need, error) {
	f := fields{b: b}
	k := f.uvarint(maxNeeds)
	if f.bad || k == 0 {
		return nil, errNeed
	}
	needs := make([]need, k)
	for i := range needs {
		needs[i].n = uint32(f.uvarint(1<<32 - 1))
		needs[i].bytes = uint32(f.uvarint(1<<32 - 1))
		needs[i].set = unique.Make(f.set())
	}
	if f.bad || len(f.b) != 0 {
		return nil, errNeed
	}
	return needs, nil
}

// set reads what appendSet wrote.
func (f *fields) set() string {
	h := f.uvarint(2*maxConsumers + 1)
	if h&1 != 0 {
		s := f.bytes(min(h>>1, maxConsumers/8+1))
		if len(s) > maxConsumers/8 || len(s) == 0 || s[len(s)-1] == 0 {
			f.bad = true
		}
		return string(s)
	}
	var u [maxConsumers / 8]byte
	slot, size := -1, 0
	f.bad = f.bad || h == 0 // nobody
	for range h >> 1 {
		slot += int(f.uvarint(maxConsumers)) + 1
		if f.bad || slot >= maxConsumers {
			f.bad = true
			return ""
		}
		u[slot>>3] |= 1 << (slot & 7)
		size = slot>>3 + 1
	}
	return string(u[:size])
}

// fields reads numbers and byte strings from untrusted bytes. After the first
// fault bad is set, nothing is left and everything reads as zero.
type fields struct {
	b   []byte
	bad bool
}

func (f *fields) fail() { f.b, f.bad = nil, true }

func (f *fields) uvarint(limit uint64) uint64 {
	v, n := uint64(0), 1
	if len(f.b) > 0 && f.b[0] < 0x80 { // most are
		v = uint64(f.b[0])
	} else {
		v, n = binary.Uvarint(f.b)
	}
	if n <= 0 || v > limit {
		f.fail()
		return 0
	}
	f.b = f.b[n:]
	return v
}

func (f *fields) varint() int64 {
	v, n := binary.Varint(f.b)
	if n <= 0 {
		f.fail()
		return 0
	}
	f.b = f.b[n:]
	return v
}

func (f *fields) byte() byte {
	if len(f.b) == 0 {
		f.fail()
		return 0
	}
	v := f.b[0]
	f.b = f.b[1:]
	return v
}

func (f *fields) bytes(n uint64) []byte {
	if n > uint64(len(f.b)) {
		f.fail()
		return nil
	}
	v := f.b[:n:n]
	f.b = f.b[n:]
	return v
}
