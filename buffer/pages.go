package buffer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
)

// pages reads the pages of a database file that SQLite may refuse: the file
// and, above it, the committed frames of its -wal file. It trusts nothing it
// reads; see the SQLite file format, sections 1.5 to 2.1 and 4.1.
type pages struct {
	db, wal *os.File
	frames  map[uint32]int64 // page -> offset of its newest content in wal
	n       uint32
	free    map[uint32]bool // on the freelist: what they hold is stale
}

var errPage = errors.New("page is malformed")

// openPages opens the file and its -wal, if there is one.
func openPages(path string) (*pages, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	p := &pages{db: f, frames: map[uint32]int64{}, free: map[uint32]bool{}, n: uint32(min(st.Size()/pageSize, math.MaxInt32))}
	if w, err := os.Open(path + "-wal"); err == nil {
		p.wal = w
		p.index()
	}
	p.freelist()
	return p, nil
}

func (p *pages) close() {
	p.db.Close() // opened for reading
	if p.wal != nil {
		p.wal.Close()
	}
}

const (
	walHeader   = 32
	frameHeader = 24
)

// index finds the newest committed content of each page in the -wal file. It
// ends at the first frame that does not belong, as SQLite does.
func (p *pages) index() {
	var h [walHeader]byte
	if _, err := p.wal.ReadAt(h[:], 0); err != nil || binary.BigEndian.Uint32(h[8:]) != pageSize {
		return
	}
	var order binary.ByteOrder = binary.LittleEndian
	switch binary.BigEndian.Uint32(h[:]) {
	case 0x377f0682:
	case 0x377f0683:
		order = binary.BigEndian
	default:
		return
	}
	sum := walSum(order, [2]uint32{}, h[:24])
	if !sumAt(h[24:], sum) {
		return
	}
	pending := map[uint32]int64{}
	frame := make([]byte, frameHeader+pageSize)
	for off := int64(walHeader); ; off += int64(len(frame)) {
		if _, err := p.wal.ReadAt(frame, off); err != nil || string(frame[8:16]) != string(h[16:24]) {
			return
		}
		sum = walSum(order, walSum(order, sum, frame[:8]), frame[frameHeader:])
		if !sumAt(frame[16:], sum) {
			return
		}
		pending[binary.BigEndian.Uint32(frame)] = off + frameHeader
		if size := binary.BigEndian.Uint32(frame[4:]); size != 0 { // a commit
			for no, at := range pending {
				p.frames[no] = at
			}
			clear(pending)
			p.n = max(p.n, size)
		}
	}
}

// walSum is the checksum of section 4.2 of the file format.
func walSum(order binary.ByteOrder, s [2]uint32, b []byte) [2]uint32 {
	for i := 0; i+8 <= len(b); i += 8 {
		s[0] += order.Uint32(b[i:]) + s[1]
		s[1] += order.Uint32(b[i+4:]) + s[0]
	}
	return s
}

func sumAt(b []byte, s [2]uint32) bool {
	return binary.BigEndian.Uint32(b) == s[0] && binary.BigEndian.Uint32(b[4:]) == s[1]
}

// page reads page no, from 1.
func (p *pages) page(no uint32, buf []byte) error {
	f, off := p.db, int64(no-1)*pageSize
	if at, ok := p.frames[no]; ok {
		f, off = p.wal, at
	}
	_, err := f.ReadAt(buf[:pageSize], off)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// freelist notes the pages that are not in use.
func (p *pages) freelist() {
	buf := make([]byte, pageSize)
	if p.page(1, buf) != nil || string(buf[:16]) != "SQLite format 3\x00" {
		return
	}
	trunk := binary.BigEndian.Uint32(buf[32:])
	for trunk != 0 && trunk <= p.n && !p.free[trunk] {
		p.free[trunk] = true
		if p.page(trunk, buf) != nil {
			return
		}
		trunk = binary.BigEndian.Uint32(buf)
		for i := range min(binary.BigEndian.Uint32(buf[4:]), pageSize/4-2) {
			p.free[binary.BigEndian.Uint32(buf[8+4*i:])] = true
		}
	}
}

// cell is where a row begins.
type cell struct {
	page uint32
	off  uint16
}

const leafTable = 0x0d

// cells lists the rows of a page; none when it is not a leaf of a table.
func (p *pages) cells(no uint32, buf []byte) (cs []cell) {
	if p.free[no] || p.page(no, buf) != nil {
		return nil
	}
	at := 0
	if no == 1 {
		at = 100
	}
	if buf[at] != leafTable {
		return nil
	}
	n := int(binary.BigEndian.Uint16(buf[at+3:]))
	for i := range n {
		ptr := at + 8 + 2*i
		if ptr+2 > pageSize {
			break
		}
		if off := binary.BigEndian.Uint16(buf[ptr:]); off < pageSize-4 {
			cs = append(cs, cell{no, off})
		}
	}
	return cs
}

const maxRow = 4 << 20

// row reads a row: its id and its columns (nil, int64, float64, string,
// []byte). buf holds the page of c.
func (p *pages) row(c cell, buf []byte) (id int64, cols []any, err error) {
	b := buf[c.off:pageSize]
	size, n := sqlVarint(b)
	rowid, m := sqlVarint(b[n:])
	if n == 0 || m == 0 || size > maxRow {
		return 0, nil, errPage
	}
	b = b[n+m:]
	const most, least = pageSize - 35, (pageSize-12)*32/255 - 23
	local := int(size)
	if local > most {
		if local = least + (int(size)-least)%(pageSize-4); local > most {
			local = least
		}
	}
	if local > len(b) || local < int(size) && local+4 > len(b) {
		return 0, nil, errPage
	}
	payload := append(make([]byte, 0, size), b[:local]...)
	if local < int(size) {
		next := binary.BigEndian.Uint32(b[local:])
		over := make([]byte, pageSize)
		for len(payload) < int(size) {
			if next < 2 || next > p.n {
				return 0, nil, fmt.Errorf("%w: overflow page %d", errPage, next)
			}
			if err := p.page(next, over); err != nil {
				return 0, nil, err
			}
			next = binary.BigEndian.Uint32(over)
			payload = append(payload, over[4:min(pageSize, 4+int(size)-len(payload))]...)
		}
	}
	cols, err = columns(payload)
	return int64(rowid), cols, err
}

const maxColumns = 16

// columns decodes a record of section 2.1.
func columns(b []byte) (cols []any, err error) {
	size, n := sqlVarint(b)
	if n == 0 || size > uint64(len(b)) || size < uint64(n) {
		return nil, errPage
	}
	types, body := b[n:size], b[size:]
	for len(types) > 0 && len(cols) < maxColumns {
		t, k := sqlVarint(types)
		if k == 0 {
			return nil, errPage
		}
		types = types[k:]
		width := [...]uint64{0, 1, 2, 3, 4, 6, 8, 8, 0, 0}
		w := (t - 12) / 2
		if t < 10 {
			w = width[t]
		}
		if t == 10 || t == 11 || w > uint64(len(body)) {
			return nil, errPage
		}
		v := body[:w]
		body = body[w:]
		switch {
		case t == 0:
			cols = append(cols, nil)
		case t == 7:
			cols = append(cols, math.Float64frombits(binary.BigEndian.Uint64(v)))
		case t == 8 || t == 9:
			cols = append(cols, int64(t-8))
		case t < 7:
			x := int64(int8(v[0]))
			for _, d := range v[1:] {
				x = x<<8 | int64(d)
			}
			cols = append(cols, x)
		case t%2 == 0:
			cols = append(cols, v)
		default:
			cols = append(cols, string(v))
		}
	}
	return cols, nil
}

// sqlVarint reads SQLite's big-endian varint; n is 0 when the bytes end.
func sqlVarint(b []byte) (v uint64, n int) {
	for i := range min(len(b), 9) {
		if i == 8 {
			return v<<8 | uint64(b[i]), 9
		}
		v = v<<7 | uint64(b[i]&0x7f)
		if b[i] < 0x80 {
			return v, i + 1
		}
	}
	return 0, 0
}
