package buffer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"time"
	"unique"
)

// A segment is the column data of one row:
//
//	"BGS1"  version 1  codec (0 raw, 1 deflate)  raw length u32 LE  records
//
// and a record is a uvarint length and then
//
//	uvarint  seq minus that of the record before (of the segment's first)
//	byte     kind
//	u16 LE   flags
//	byte     index into need, when flagSet
//	varint   mono ms minus that of the record before
//	varint   wall ms minus the last one given, when flagWall
//	uvarint  expiry, Unix ms, when flagExpires
//	byte     level, when flagLevel
//	uvarint  how many numbers, then pairs (stream, n), when flagNumbers
//	uvarint  length of the topic, topic
//	uvarint  length of the properties, properties, when flagProps
//	         payload
const (
	segMagic   = "BGS1"
	segVersion = 1
	segPrefix  = 10

	codecRaw     = 0
	codecDeflate = 1

	segBytes   = 64 << 10 // raw, unless one record alone is larger
	segRecords = 4096
	maxRaw     = 2 << 20 // what a decoder believes
	maxNumbers = 16
	maxTopic   = 65535
	maxLevel   = 10
)

const (
	flagQoS     = 3
	flagRetain  = 1 << 2
	flagThin    = 1 << 3
	flagWall    = 1 << 4
	flagProps   = 1 << 5
	flagSet     = 1 << 6
	flagExpires = 1 << 7
	flagNumbers = 1 << 8
	flagLevel   = 1 << 9
	flagsKnown  = 1<<10 - 1
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var errSegment = errors.New("segment is malformed")

// checksum covers what a row cannot lose: who needs it and the records.
func checksum(need, data []byte) uint32 {
	return crc32.Update(crc32.Checksum(need, castagnoli), castagnoli, data)
}

// point is what the differences of the next record count from.
type point struct {
	seq        uint64
	mono, wall int64
}

// builder collects the records of one row.
type builder struct {
	lane        uint8
	boot        int64 // row of table boot
	first, last uint64
	n           int
	ts          int64 // as in header
	needs       []need
	needBytes   int // upper bound of the encoded needs
	raw         []byte
	at          point
}

// place is the index into needs of a set, and whether a record of size bytes
// for it may join. A set that is new gets the index behind the last. Nothing
// joins a builder that is nil.
func (b *builder) place(set []byte, size int) (i int, fits bool) {
	if b == nil {
		return 0, false
	}
	for i < len(b.needs) && b.needs[i].set.Value() != string(set) {
		i++
	}
	fits = b.n < segRecords && len(b.raw)+size <= segBytes &&
		(i < len(b.needs) || i < maxNeeds && b.needBytes+len(set)+16 <= maxNeedBytes)
	return i, fits || b.n == 0
}

// put encodes a record into b and returns the reused scratch space; i is where
// place has found its set.
func (b *builder) put(scratch []byte, r *Record, set []byte, i int) []byte {
	if b.n == 0 {
		b.first, b.at = r.Seq, point{seq: r.Seq}
	}
	if i == len(b.needs) {
		b.needs = append(b.needs, need{set: unique.Make(string(set))})
		b.needBytes += len(set) + 16
	}
	scratch = appendRecord(scratch[:0], &b.at, r, i)
	start := len(b.raw)
	b.raw = binary.AppendUvarint(b.raw, uint64(len(scratch)))
	b.raw = append(b.raw, scratch...)
	b.needs[i].n++
	b.needs[i].bytes += uint32(len(b.raw) - start)
	b.n++
	b.last = r.Seq
	switch wall := millis(r.At); {
	case wall > 0:
		b.ts = max(b.ts, wall)
	case b.ts <= 0:
		b.ts = min(b.ts, -r.Mono.Milliseconds())
	}
	return scratch
}

// millis is Unix time in ms; 0 for the zero time.
func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

// fromMillis is the inverse of millis, in UTC.
func fromMillis(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

// appendRecord writes the body of a record, without its length, and moves p.
func appendRecord(dst []byte, p *point, r *Record, set int) []byte {
	flags := uint16(r.QoS & flagQoS)
	wall, mono := millis(r.At), r.Mono.Milliseconds()
	for _, f := range [...]struct {
		on  bool
		bit uint16
	}{
		{r.Retain, flagRetain}, {r.Thinnable, flagThin}, {wall != 0, flagWall}, {len(r.Props) > 0, flagProps},
		{set > 0, flagSet}, {!r.Expires.IsZero(), flagExpires}, {len(r.Numbers) > 0, flagNumbers}, {r.Level > 0, flagLevel},
	} {
		if f.on {
			flags |= f.bit
		}
	}
	dst = binary.AppendUvarint(dst, r.Seq-p.seq)
	dst = append(dst, r.Kind, byte(flags), byte(flags>>8))
	if set > 0 {
		dst = append(dst, byte(set))
	}
	dst = binary.AppendVarint(dst, mono-p.mono)
	p.seq, p.mono = r.Seq, mono
	if wall != 0 {
		dst = binary.AppendVarint(dst, wall-p.wall)
		p.wall = wall
	}
	if !r.Expires.IsZero() {
		dst = binary.AppendUvarint(dst, uint64(max(r.Expires.UnixMilli(), 0)))
	}
	if r.Level > 0 {
		dst = append(dst, r.Level)
	}
	if len(r.Numbers) > 0 {
		dst = binary.AppendUvarint(dst, uint64(len(r.Numbers)))
		for _, n := range r.Numbers {
			dst = binary.AppendUvarint(dst, uint64(n.Stream))
			dst = binary.AppendUvarint(dst, n.N)
		}
	}
	dst = binary.AppendUvarint(dst, uint64(len(r.Topic)))
	dst = append(dst, r.Topic...)
	if len(r.Props) > 0 {
		dst = binary.AppendUvarint(dst, uint64(len(r.Props)))
		dst = append(dst, r.Props...)
	}
	return append(dst, r.Payload...)
}

// view is a decoded record whose bytes still lie in the segment.
type view struct {
	seq     uint64
	size    int // bytes in the segment, with the length
	set     int // index into need
	flags   uint16
	kind    byte
	level   byte
	mono    int64
	wall    int64 // 0: not known
	expires int64 // 0: never
	numbers []byte
	topic   []byte
	props   []byte
	payload []byte
}

// cursor walks the records of a segment. Its zero point is set by newCursor.
type cursor struct {
	raw []byte
	off int
	at  point
}

func newCursor(raw []byte, first uint64) cursor { return cursor{raw: raw, at: point{seq: first}} }

// next decodes the record at the cursor; io.EOF at the end, errSegment when
// the bytes make no sense.
func (c *cursor) next(v *view) error {
	if c.off == len(c.raw) {
		return io.EOF
	}
	rest := fields{b: c.raw[c.off:]}
	f := fields{b: rest.bytes(rest.uvarint(maxRaw)), bad: rest.bad}
	*v = view{size: len(c.raw) - c.off - len(rest.b)}
	v.seq = c.at.seq + f.uvarint(math.MaxUint64)
	v.kind = f.byte()
	v.flags = uint16(f.byte()) | uint16(f.byte())<<8
	if v.flags&flagSet != 0 {
		v.set = int(f.byte())
	}
	v.mono = c.at.mono + f.varint()
	if v.flags&flagWall != 0 {
		v.wall = c.at.wall + f.varint()
		c.at.wall = v.wall
	}
	if v.flags&flagExpires != 0 {
		v.expires = int64(f.uvarint(math.MaxInt64))
	}
	if v.flags&flagLevel != 0 {
		v.level = f.byte()
	}
	if v.flags&flagNumbers != 0 {
		v.numbers = f.numbers()
	}
	v.topic = f.bytes(f.uvarint(maxTopic))
	if v.flags&flagProps != 0 {
		v.props = f.bytes(f.uvarint(maxRaw))
	}
	v.payload = f.b
	if f.bad || v.flags&^flagsKnown != 0 || v.seq < c.at.seq || c.off > 0 && v.seq == c.at.seq {
		return errSegment
	}
	c.off += v.size
	c.at.seq, c.at.mono = v.seq, v.mono
	return nil
}

// numbers skips the list of numbers and returns its bytes.
func (f *fields) numbers() []byte {
	before := f.b
	for range f.uvarint(maxNumbers) {
		f.uvarint(math.MaxUint32)
		f.uvarint(math.MaxUint64)
	}
	return before[:len(before)-len(f.b)]
}

// list decodes the numbers of a record.
func (v *view) list() []Number {
	if v.numbers == nil {
		return nil
	}
	f := fields{b: v.numbers}
	k := f.uvarint(maxNumbers)
	ns := make([]Number, k)
	for i := range ns {
		ns[i] = Number{StreamID(f.uvarint(math.MaxUint32)), f.uvarint(math.MaxUint64)}
	}
	return ns
}

// number finds the place of the record in one stream; 0: none.
func (v *view) number(stream StreamID) uint64 {
	if v.numbers == nil || stream == 0 {
		return 0
	}
	f := fields{b: v.numbers}
	for range f.uvarint(maxNumbers) {
		if s, n := StreamID(f.uvarint(math.MaxUint32)), f.uvarint(math.MaxUint64); s == stream {
			return n
		}
	}
	return 0
}

// verify walks all records of a segment: n of them, rising from first to last,
// each with a set that exists.
func verify(raw []byte, first, last uint64, n, sets int) error {
	c := newCursor(raw, first)
	var v view
	k := 0
	for {
		err := c.next(&v)
		if err == io.EOF {
			break
		}
		if err != nil || v.set >= sets || k == 0 && v.seq != first {
			return fmt.Errorf("%w: record %d", errSegment, k)
		}
		k++
	}
	if k != n || v.seq != last {
		return fmt.Errorf("%w: %d records up to %d, not %d up to %d", errSegment, k, v.seq, n, last)
	}
	return nil
}
