package uart

import "slices"

const (
	ringSize = 8 << 10  // bytes kept of a frame that is not complete
	maxFrame = 16 << 10 // the longest frame of any kind
)

// stream turns the bytes of a line into good frames. It keeps at most one
// incomplete frame: what is longer than the framer allows is dropped.
type stream struct {
	framer framer
	check  func(frame []byte) bool

	// lost, when set, sees the bytes that are given up: those of a damaged frame
	// once, those between frames as they go. It may not keep them.
	lost func(b []byte, damaged bool)

	buf  []byte
	told int // bytes of buf that lost has seen

	good, bad uint64 // frames
	stale     uint64 // bytes outside of frames, and those of bad ones
	overrun   uint64 // bytes of frames that were too long
}

// feed takes bytes as they came and gives each good frame to emit, which may not
// keep it. quiet says that silence followed.
func (s *stream) feed(p []byte, quiet bool, emit func(frame []byte)) {
	for len(p) > 0 || quiet {
		n := min(len(p), ringSize)
		s.buf = append(s.buf, p[:n]...)
		p = p[n:]
		s.scan(quiet && len(p) == 0, emit)
		if len(p) == 0 {
			return
		}
	}
}

func (s *stream) scan(quiet bool, emit func([]byte)) {
	b := s.buf
	for {
		from, to, long := s.framer.find(b, quiet)
		s.overrun += uint64(long)
		s.stale += uint64(from - long)
		s.tell(b[:from], false)
		if to == 0 {
			b = b[from:]
			break
		}
		frame := b[from:to]
		switch {
		case s.check(frame):
			s.good++
			emit(frame)
			s.told = max(0, s.told-len(frame))
			b = b[to:]
		case s.framer.again():
			s.bad++
			s.stale++
			s.tell(frame, true)
			s.told = max(s.told, len(frame)) - 1
			b = b[from+1:]
		default:
			s.bad++
			s.stale += uint64(len(frame))
			s.tell(frame, true)
			s.told = max(0, s.told-len(frame))
			b = b[to:]
		}
	}
	s.buf = slices.Delete(s.buf, 0, len(s.buf)-len(b))
}

// reset forgets an incomplete frame.
func (s *stream) reset() {
	s.stale += uint64(len(s.buf))
	s.tell(s.buf, false)
	s.buf = s.buf[:0]
}

// tell shows the bytes that are given up: a damaged frame as a whole, of others
// those that were not shown as part of one.
func (s *stream) tell(b []byte, damaged bool) {
	if damaged {
		if s.lost != nil {
			s.lost(b, true)
		}
		return
	}
	seen := min(s.told, len(b))
	s.told -= seen
	if s.lost != nil && len(b) > seen {
		s.lost(b[seen:], false)
	}
}
