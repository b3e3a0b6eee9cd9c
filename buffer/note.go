package buffer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"sync/atomic"
)

// notes is a file beside the database that tells how far each uplink is that
// does not wait for the disk. Each Ack writes it, nothing flushes it: it
// outlives the process, however that ends, and not the kernel. So after kill -9
// no acknowledged delivery is repeated, at the price of one write into the page
// cache; every half minute or so the kernel brings a page per uplink to the
// disk. Without it (no room, read-only) deliveries are repeated that were
// acknowledged since the positions were saved.
//
// An uplink has a page, by its slot: CRC-32C, length, then the label of the
// boot of the store, name, start and positions.
type notes struct {
	f      *os.File // nil: could not be opened
	failed atomic.Uint64
}

const (
	notePage = 4096
	noteHead = 6
)

func openNotes(path string) notes {
	f, err := os.OpenFile(path+"-notes", os.O_RDWR|os.O_CREATE, 0o640)
	if err != nil {
		return notes{}
	}
	return notes{f: f}
}

func (n *notes) write(slot int, note []byte) {
	if len(note) == 0 {
		return
	}
	if _, err := n.f.WriteAt(note, int64(slot)*notePage); err != nil {
		n.failed.Add(1)
	}
}

// read returns what write wrote, or an error.
func (n *notes) read(slot int) ([]byte, error) {
	page := make([]byte, notePage)
	k, err := n.f.ReadAt(page, int64(slot)*notePage)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if page = page[:k]; k < noteHead {
		return nil, errNote
	}
	size := int(binary.BigEndian.Uint16(page[4:]))
	if size > k-noteHead || binary.BigEndian.Uint32(page) != crc32.Checksum(page[4:noteHead+size], castagnoli) {
		return nil, errNote
	}
	return page[noteHead : noteHead+size], nil
}

func (n *notes) close() {
	if n.f != nil {
		n.f.Close()
	}
}

var errNote = fmt.Errorf("%w: note", errDamaged)

// noteLocked writes into c.note what notes keep of the uplink. It is nothing
// when the disk keeps each of its steps, or when the note were too long.
func (c *Consumer) noteLocked() []byte {
	if c.s.notes.f == nil || c.kind != Uplink || c.o.Exact || c.gone {
		return nil
	}
	b := append(c.note[:0], 0, 0, 0, 0, 0, 0)
	for _, text := range [...]string{c.s.boot.label, c.name} {
		b = binary.AppendUvarint(b, uint64(len(text)))
		b = append(b, text...)
	}
	b = binary.AppendUvarint(b, c.start)
	for l := range lanes {
		b = binary.AppendUvarint(b, c.posLocked(l))
	}
	b = appendSpans(b, &c.heads)
	c.note = b
	if len(b) > notePage {
		return nil
	}
	binary.BigEndian.PutUint16(b[4:], uint16(len(b)-noteHead))
	binary.BigEndian.PutUint32(b, crc32.Checksum(b[4:], castagnoli))
	return b
}

// parseNote reads the positions of a note; an error when it is not of this
// consumer in that boot.
func (c *Consumer) parseNote(b []byte, label string) ([lanes][]head, error) {
	f := fields{b: b}
	for _, want := range [...]string{label, c.name} {
		n := int(f.uvarint(notePage))
		if n > len(f.b) || string(f.b[:n]) != want {
			return [lanes][]head{}, errNote
		}
		f.b = f.b[n:]
	}
	var pos [lanes]uint64
	start := f.uvarint(maxSeq)
	for l := range pos {
		pos[l] = f.uvarint(maxSeq)
	}
	if f.bad || start != c.start {
		return [lanes][]head{}, errNote
	}
	return parseHeads(pos, f.b, nil)
}

// takeNotes moves the uplinks on to where the notes of the former boot have
// them, and returns the rows to save. Notes count only under the same kernel,
// and only those that speak of records that the file has: whatever was
// acknowledged was committed before, so others belong to another file, or to
// readings that were only in RAM. It is called before anybody knows the store.
func (s *Store) takeNotes(former *boot) (rows []op) {
	if s.notes.f == nil || former == nil || !sameKernel(former, s.boot) {
		return nil
	}
	for _, c := range s.slots {
		if c == nil || c.kind != Uplink {
			continue
		}
		b, err := s.notes.read(c.slot)
		if err != nil {
			continue
		}
		heads, err := c.parseNote(b, former.label)
		if err != nil || !below(&heads, s.nextSeq) {
			continue
		}
		c.catchUp(&heads)
		s.recount(c)
		rows = append(rows, op{sqlConsumer, c.row()})
	}
	return rows
}

// below says whether all that is finished at heads is below next.
func below(heads *[lanes][]head, next uint64) bool {
	for _, hs := range heads {
		if hs[len(hs)-1].done > next {
			return false
		}
	}
	return true
}

// catchUp finishes what is finished at heads.
func (c *Consumer) catchUp(heads *[lanes][]head) {
	for i := range c.open {
		if e := &c.open[i]; !needs(heads[e.lane], e.seq, e.seq) {
			e.state = stateDone
		}
	}
	for l, hs := range heads {
		for _, h := range hs {
			if h.done > h.lo {
				c.skipLocked(l, h.lo, h.done-1) // without room for another head it comes again
			}
		}
	}
	c.settleLocked(1<<lanes - 1)
}
