package buffer

import "slices"

// Reasons of the loss ledger.
const (
	reasonBytes    = "bound-bytes"
	reasonMessages = "bound-messages"
	reasonAge      = "bound-age"
	reasonFree     = "free-disk"
	reasonQuota    = "quota"
	reasonThinned  = "thinned"
	reasonExpired  = "expired"
	reasonCorrupt  = "corrupt"
	reasonFailed   = "disk-failed"
	reasonNewer    = "newer-version"
	reasonOperator = "operator"
)

const maxLosses = 1024

// Loss is a row of the loss ledger: records that a consumer will never get.
type Loss struct {
	ID       int64
	Consumer string
	Stream   string // "" when the records had no numbers
	Boot     string
	Lo, Hi   uint64 // numbers in the stream, inclusive; 0 when there are none
	Dropped  uint64
	Kept     uint64 // of the range, by thinning
	Bytes    int64  // before deflate
	Reason   string
}

// loss is a row in RAM.
type loss struct {
	id            int64
	slot          int
	stream        StreamID
	boot          int64
	lo, hi        uint64
	dropped, kept uint64
	bytes         int64
	reason        string
	sealed        bool // handed out: it grows no more
	told          bool
	dirty         bool
}

// row is the statement that saves l.
func (l *loss) row() op {
	return op{sqlLoss, []any{l.id, l.slot, uint32(l.stream), l.boot, l.lo, l.hi, l.dropped, l.kept, l.bytes, l.reason, l.told}}
}

// loseLocked writes a loss; the row is saved in the transaction that saves what
// caused it. Neighbouring losses of equal consumer, stream, boot and reason
// share a row, and any such rows do when the ledger is full.
func (s *Store) loseLocked(c *Consumer, bootID int64, lo, hi, dropped, kept uint64, bytes int64, reason string) {
	stream := c.stream
	if lo == 0 {
		stream, hi = 0, 0
	}
	s.count.lost(reason, dropped)
	if c.lost == nil {
		c.lost = map[string]uint64{}
	}
	c.lost[reason] += dropped
	s.owing = true
	s.dirtyLocked()
	full := len(s.losses) >= maxLosses
	for i := len(s.losses) - 1; i >= 0; i-- {
		l := s.losses[i]
		if l.slot != c.slot || l.stream != stream || l.boot != bootID || l.reason != reason || l.sealed || l.told {
			continue
		}
		if !full && lo > l.hi+1 {
			break
		}
		if lo <= l.hi && kept > 0 { // thinned again: what goes now was kept before
			l.kept -= min(dropped, l.kept)
		} else {
			l.kept += kept
		}
		l.lo, l.hi = min(l.lo, lo), max(l.hi, hi)
		l.dropped += dropped
		l.bytes += bytes
		l.dirty = true
		return
	}
	if full {
		i := max(slices.IndexFunc(s.losses, func(l *loss) bool { return l.told }), 0)
		if !s.losses[i].told {
			s.count.ledgerOverflow++
		}
		s.lossesGone = append(s.lossesGone, s.losses[i].id)
		s.losses = slices.Delete(s.losses, i, i+1)
	}
	s.lastLoss++
	s.losses = append(s.losses, &loss{id: s.lastLoss, slot: c.slot, stream: stream, boot: bootID, lo: lo, hi: hi,
		dropped: dropped, kept: kept, bytes: bytes, reason: reason, dirty: true})
}

// forgetLossesLocked drops what nobody will be told any more.
func (s *Store) forgetLossesLocked(slot int) {
	s.losses = slices.DeleteFunc(s.losses, func(l *loss) bool {
		if l.slot == slot {
			s.lossesGone = append(s.lossesGone, l.id)
			s.owing = true
		}
		return l.slot == slot
	})
}

// Losses lists what of c was lost and not yet told. Rows that were handed out
// do not change any more.
func (s *Store) Losses(c *Consumer) []Loss {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Loss
	for _, l := range s.losses {
		if l.slot == c.slot && !l.told {
			l.sealed = true
			out = append(out, s.lossLocked(l))
		}
	}
	return out
}

func (s *Store) lossLocked(l *loss) Loss {
	o := Loss{ID: l.id, Lo: l.lo, Hi: l.hi, Dropped: l.dropped, Kept: l.kept, Bytes: l.bytes, Reason: l.reason}
	if c := s.slots[l.slot]; c != nil {
		o.Consumer = c.name
	}
	if l.stream != 0 && int(l.stream) <= len(s.streams) {
		o.Stream = s.streams[l.stream-1].name
	}
	if b := s.boots[l.boot]; b != nil {
		o.Boot = b.label
	}
	return o
}

// Told marks rows whose report the receiver has acknowledged. They stay in the
// ledger until it is full.
func (s *Store) Told(ids ...int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.losses {
		if slices.Contains(ids, l.id) {
			l.told, l.dirty = true, true
		}
	}
	s.dirtyLocked()
}
