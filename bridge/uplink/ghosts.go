package uplink

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"busgate/buffer"
)

// factEmptied is the key under which the retained topics are kept that were
// emptied while older records still wait.
const factEmptied = "emptied"

// maxEmptied bounds them; beyond it the one that was emptied first is forgotten.
const maxEmptied = 256

// removed notes a retained topic that is emptied, and tells that a record is
// older than that: the emptying goes ahead of the readings that wait, and one of
// them must not put a ghost in its place.
func (l *Link) removed(r *buffer.Record) bool {
	if !r.Retain || len(r.Payload) > 0 {
		return r.Seq < l.emptied[r.Topic]
	}
	if l.emptied[r.Topic] == r.Seq {
		return false
	}
	if l.emptied[r.Topic] = r.Seq; len(l.emptied) > maxEmptied {
		first := r.Topic
		for t, seq := range l.emptied {
			if seq < l.emptied[first] {
				first = t
			}
		}
		delete(l.emptied, first)
	}
	l.keepEmptied()
	return false
}

// noted tells that a record may leave. One that empties a topic must not be ahead
// of the note of it on disk: once it is acknowledged it does not come again, and
// after a kill an older one would put a ghost there.
func (l *Link) noted(r *buffer.Record) bool {
	if !r.Retain || len(r.Payload) > 0 || !l.set.retain {
		return true
	}
	l.removed(r)
	return l.emptying == nil || l.emptied[r.Topic] != r.Seq // there was no room for it
}

// keepEmptied remembers over a restart what is emptied.
func (l *Link) keepEmptied() {
	if l.o.Keep == nil {
		return
	}
	var b []byte
	for t, seq := range l.emptied {
		b = fmt.Appendf(b, "%d %q\n", seq, t)
	}
	done := make(chan error, 1)
	l.emptying, l.noting = done, time.Now()
	l.o.Keep(factEmptied, b, func(err error) { done <- err })
}

// loadEmptied takes over what an earlier process noted.
func (l *Link) loadEmptied() {
	if l.o.Fact == nil {
		return
	}
	for line := range strings.Lines(string(l.o.Fact(factEmptied))) {
		num, quoted, _ := strings.Cut(strings.TrimSpace(line), " ")
		seq, err1 := strconv.ParseUint(num, 10, 64)
		topic, err2 := strconv.Unquote(quoted)
		if err1 == nil && err2 == nil && len(l.emptied) < maxEmptied {
			l.emptied[topic] = seq
		}
	}
}

// forgetEmptied is called when nothing waits: no older record can come any more.
func (l *Link) forgetEmptied() {
	if len(l.emptied) > 0 {
		clear(l.emptied)
		l.keepEmptied()
	}
}
