package uart

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"

	"busgate/config"
)

// framer finds where frames begin and end. It looks at bytes only; whether a
// frame is good is the check's matter.
type framer interface {
	// find looks for the first frame in b: b[:from] belongs to none and can go,
	// b[from:to] is one. to == 0: it needs more bytes. long counts the bytes of
	// b[:from] that began a frame longer than allowed. quiet says that silence
	// followed b.
	find(b []byte, quiet bool) (from, to, long int)

	// again says that after a bad check the search goes on one byte after the
	// beginning; else behind the frame.
	again() bool
}

// newFramer makes the framer of a frame. talks: the line may be in the middle of
// a frame when it is opened.
func newFramer(f *config.Frame, talks bool) (framer, error) {
	most := f.Max
	if most <= 0 {
		most = 1024
	}
	head := slices.Concat(f.Start, f.Header)
	switch f.Kind {
	case "line":
		// Without a header or a check half a line cannot be told from a whole one.
		return &lineFramer{head: head, end: lineEnd(f), most: most, skip: talks && len(head) == 0}, nil
	case "delimited":
		if len(head) == 0 || len(f.End) == 0 {
			return nil, fmt.Errorf(`frame kind "delimited" needs start and end`)
		}
		return &delimitedFramer{head: head, end: f.End, most: most}, nil
	case "fixed":
		if f.Length < 1 || f.Length < len(head)+len(f.End) || f.Length > maxFrame {
			return nil, fmt.Errorf(`frame kind "fixed" needs length, the bytes of the whole frame`)
		}
		return &fixedFramer{head: head, length: f.Length}, nil
	case "length":
		if len(head) == 0 || f.At < 0 || f.Size < 1 || f.Size > 4 || f.At+f.Size > most {
			return nil, fmt.Errorf(`frame kind "length" needs header, at and size (1 to 4)`)
		}
		return &lengthFramer{head: head, at: f.At, size: f.Size, little: f.Endian == "little", add: f.Add, most: most}, nil
	case "idle":
		return &idleFramer{most: most, skip: talks}, nil
	case "nmea":
		return &nmeaFramer{most: most}, nil
	case "p1":
		return &p1Framer{most: max(most, ringSize)}, nil
	case "sml":
		return &smlFramer{most: maxFrame}, nil
	}
	return nil, fmt.Errorf("frame kind %q is not known", f.Kind)
}

// lineFramer takes lines up to and with their end. With a header a line begins
// there, whatever stands before.
type lineFramer struct {
	head, end []byte
	most      int
	skip      bool // up to the next end
}

func (l *lineFramer) again() bool { return len(l.head) > 0 }

func (l *lineFramer) find(b []byte, quiet bool) (from, to, long int) {
	if quiet && len(b) == 0 {
		l.skip = false // what comes after a silence begins a line
	}
	for {
		rest := b[from:]
		i := bytes.Index(rest, l.end)
		switch {
		case i < 0 && len(rest) > l.most:
			keep := len(rest) - partial(rest, l.end)
			l.skip = true
			return from + keep, 0, long + keep
		case i < 0:
			return from, 0, long
		case l.skip:
			l.skip = false
			from += i + len(l.end)
			continue
		}
		to = from + i + len(l.end)
		if k := bytes.Index(b[from:to], l.head); k >= 0 {
			from += k
		} else {
			from, to = to, 0
			continue
		}
		if to-from > l.most+len(l.end) {
			long += to - from
			from = to
			continue
		}
		return from, to, long
	}
}

// delimitedFramer takes what stands between two byte sequences, with them.
type delimitedFramer struct {
	head, end []byte
	most      int
}

func (d *delimitedFramer) again() bool { return true }

func (d *delimitedFramer) find(b []byte, _ bool) (from, to, long int) {
	for {
		i, whole := seek(b, from, d.head)
		if from = i; !whole {
			return from, 0, long
		}
		body := from + len(d.head)
		if k := bytes.Index(b[body:], d.end); k >= 0 && body+k+len(d.end)-from <= d.most {
			return from, body + k + len(d.end), long
		} else if k < 0 && len(b)-from < d.most {
			return from, 0, long
		}
		from++
		long++
	}
}

// fixedFramer takes frames of one length, beginning at the header.
type fixedFramer struct {
	head   []byte
	length int
}

func (f *fixedFramer) again() bool { return true }

func (f *fixedFramer) find(b []byte, _ bool) (from, to, long int) {
	from, whole := seek(b, 0, f.head)
	if !whole || len(b)-from < f.length {
		return from, 0, 0
	}
	return from, from + f.length, 0
}

// lengthFramer takes frames that say how long they are.
type lengthFramer struct {
	head     []byte
	at, size int
	little   bool
	add      int
	most     int
}

func (l *lengthFramer) again() bool { return true }

func (l *lengthFramer) find(b []byte, _ bool) (from, to, long int) {
	for {
		i, whole := seek(b, from, l.head)
		if from = i; !whole || len(b)-from < l.at+l.size {
			return from, 0, long
		}
		var word [4]byte
		field := b[from+l.at : from+l.at+l.size]
		var n uint32
		if l.little {
			copy(word[:], field)
			n = binary.LittleEndian.Uint32(word[:])
		} else {
			copy(word[4-l.size:], field)
			n = binary.BigEndian.Uint32(word[:])
		}
		total := int64(n) + int64(l.add)
		if total < int64(max(l.at+l.size, len(l.head))) || total > int64(l.most) {
			from++ // no frame says so: the header was chance
			long++
			continue
		}
		if len(b)-from < int(total) {
			return from, 0, long
		}
		return from, from + int(total), long
	}
}

// idleFramer takes what stands between two silences.
type idleFramer struct {
	most int
	skip bool // up to the next silence
}

func (f *idleFramer) again() bool { return false }

func (f *idleFramer) find(b []byte, quiet bool) (from, to, long int) {
	switch {
	case len(b) > f.most:
		f.skip = !quiet
		return len(b), 0, len(b)
	case f.skip:
		f.skip = !quiet
		return len(b), 0, 0
	case quiet && len(b) > 0:
		return 0, len(b), 0
	}
	return 0, 0, 0
}

// nmeaFramer takes sentences from $ or ! to the line end. Both are reserved
// (NMEA 0183, 5.1), so that a sentence begins at the last one before its end.
type nmeaFramer struct{ most int }

func (n *nmeaFramer) again() bool { return true }

func (n *nmeaFramer) find(b []byte, _ bool) (from, to, long int) {
	for {
		i := bytes.IndexAny(b[from:], "$!")
		if i < 0 {
			return len(b), 0, long
		}
		from += i
		k := bytes.IndexByte(b[from:], '\n')
		if j := bytes.LastIndexAny(b[from:from+max(k, 0)], "$!"); j > 0 {
			from, k = from+j, k-j
		}
		switch {
		case k >= 0 && k < n.most:
			return from, from + k + 1, long
		case k < 0 && len(b)-from < n.most:
			return from, 0, long
		}
		from++
		long++
	}
}

// seek is the place of the first head in b from on. When there is none, it is
// where one may have begun, and whole is false.
func seek(b []byte, from int, head []byte) (at int, whole bool) {
	if i := bytes.Index(b[from:], head); i >= 0 {
		return from + i, true
	}
	return len(b) - partial(b[from:], head), false
}

// partial is how many bytes at the end of b may be the beginning of pattern.
func partial(b, pattern []byte) int {
	for n := min(len(b), len(pattern)-1); n > 0; n-- {
		if bytes.HasPrefix(pattern, b[len(b)-n:]) {
			return n
		}
	}
	return 0
}
