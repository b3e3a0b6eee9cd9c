package buffer

import (
	"iter"
	"slices"
	"sort"
	"time"
)

const (
	laneShift  = 56
	maxSeq     = 1<<laneShift - 1
	maxHeaders = 65536 // merging starts at three quarters of it
)

// header is what RAM knows of a segment: enough to find, count and drop it
// without the disk. All but left and dead is immutable.
type header struct {
	first, last uint64
	ts          int64 // newest arrival, ms: UTC, or without a clock minus the time since the kernel started
	needs       []need
	n           uint32
	size        uint32 // bytes of the row's blobs
	raw         uint32
	boot        uint32
	born        time.Duration // CLOCK_BOOTTIME of its commit; 0: before this process
	left        int16         // consumers that still need it
	asked       int16         // left when it was found not worth to be squeezed
	lane        uint8
	dead        bool   // trimmed, rewritten or set aside
	busy        bool   // being rewritten: nothing of it may be leased
	ram         []byte // the records, while the disk does not take them
}

func (h *header) id() int64 { return int64(h.lane)<<laneShift | int64(h.first) }

// space estimates what of the file a segment occupies: small rows share pages,
// large ones have overflow pages of their own.
func (h *header) space() int64 {
	const inPage, local, overflow = 4000, 500, pageSize - 4
	n := int64(h.size) + 40
	if n <= inPage {
		return n
	}
	return local + (n-local+overflow-1)/overflow*pageSize
}

func (h *header) has(slot int) bool {
	for i := range h.needs {
		if has(h.needs[i].set.Value(), slot) {
			return true
		}
	}
	return false
}

// lane is the segments of one lane, in order; their ranges do not overlap.
type lane struct {
	no   int
	segs []*header
}

// find is the index of the first segment that may hold seq or a later record.
func (l *lane) find(seq uint64) int {
	return sort.Search(len(l.segs), func(i int) bool { return l.segs[i].last >= seq })
}

// add puts a segment into its place, mostly the end.
func (l *lane) add(h *header) {
	l.segs = slices.Insert(l.segs, l.find(h.first), h)
}

// sweep takes the dead out.
func (l *lane) sweep() {
	dead := 0
	for dead < len(l.segs) && l.segs[dead].dead {
		l.segs[dead] = nil
		dead++
	}
	l.segs = slices.DeleteFunc(l.segs[dead:], func(h *header) bool { return h.dead })
}

// addSegmentLocked makes a committed segment visible: counted for its
// consumers and found by their reads.
func (s *Store) addSegmentLocked(h *header) { s.insertLocked(h, true) }

// insertLocked puts a segment into its lane. With fresh its records are counted
// for all consumers, else for sessions only: uplinks count record by record.
func (s *Store) insertLocked(h *header, fresh bool) {
	s.lanes[h.lane].add(h)
	s.segments++
	s.records += int64(h.n)
	s.stored += int64(h.size)
	s.space += h.space()
	for slot := range slotsOf(union(h.needs)) {
		c := s.slots[slot]
		if c == nil || !c.needsLocked(h) {
			continue
		}
		h.left++
		if !fresh && c.kind == Uplink {
			continue
		}
		n, size := needsOf(h.needs, slot)
		c.n += n
		c.bytes += size
		if c.overQuotaLocked() && !slices.Contains(s.over, c) {
			s.over = append(s.over, c)
		}
		c.wakeUp()
	}
	if h.left == 0 {
		s.retireLocked(h)
	}
}

// passLocked notes that a consumer needs h no more.
func (s *Store) passLocked(h *header) {
	if h.left--; h.left == 0 {
		s.retireLocked(h)
	}
}

// retireLocked queues a segment for deletion. It stays in its lane, dead, until
// the committer sweeps, so that walks over a lane may retire what they pass.
func (s *Store) retireLocked(h *header) {
	h.dead = true
	if h.ram == nil {
		s.trimLocked(h)
	}
	s.uncountLocked(h)
	s.dirtyLocked()
}

// trimLocked queues a row for deletion.
func (s *Store) trimLocked(h *header) {
	s.trims = append(s.trims, h)
	s.trimSpace += h.space()
}

func (s *Store) uncountLocked(h *header) {
	s.segments--
	s.records -= int64(h.n)
	s.stored -= int64(h.size)
	s.space -= h.space()
	s.cache.drop(h)
}

// neededBy yields the living segments of a lane that c needs, oldest first.
func (l *lane) neededBy(c *Consumer) iter.Seq[*header] {
	return func(yield func(*header) bool) {
		for _, h := range l.segs[l.find(c.heads[l.no][0].done):] {
			if !h.dead && h.has(c.slot) && c.needsLocked(h) && !yield(h) {
				return
			}
		}
	}
}

// cache keeps the raw bytes of the newest segments and of those being read.
// The oldest go at cacheBytes.
type cache struct {
	raw   map[*header][]byte
	order []*header
	bytes int
}

const cacheBytes = 768 << 10

func (c *cache) get(h *header) []byte { return c.raw[h] }

func (c *cache) put(h *header, raw []byte) {
	if c.raw == nil {
		c.raw = map[*header][]byte{}
	}
	if _, ok := c.raw[h]; ok || h.dead {
		return
	}
	c.raw[h] = raw
	c.order = append(c.order, h)
	c.bytes += cap(raw)
	for c.bytes > cacheBytes && len(c.order) > 1 {
		c.drop(c.order[0])
	}
}

func (c *cache) drop(h *header) {
	raw, ok := c.raw[h]
	if !ok {
		return
	}
	delete(c.raw, h)
	c.bytes -= cap(raw)
	i := slices.Index(c.order, h)
	c.order = slices.Delete(c.order, i, i+1)
}
