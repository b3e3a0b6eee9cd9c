package uplink

import (
	"bytes"
	"strconv"
	"strings"
	"time"

	"busgate/buffer"
	"busgate/embeddedbroker"
)

// The encoders are pure: the same records give the same bytes in every process,
// because what is sent again under a packet id must be the same message.

// coder holds what the encoders need besides the records.
type coder struct {
	gateway string
	name    string // of the uplink
	base    string // first levels of our own topics
	unixMS  bool   // ts is a number of milliseconds
	stream  buffer.StreamID
}

// number is the place of a record in the stream of this uplink.
func (c *coder) number(r *buffer.Record) (uint64, bool) {
	for _, n := range r.Numbers {
		if n.Stream == c.stream || c.stream == 0 {
			return n.N, true
		}
	}
	return 0, false
}

// payload is the payload of one record as it goes up. Only numbered readings of
// our own, which are JSON objects that begin with ts or uptime, are changed: gw,
// boot and n follow ts, and a reading whose time became known while it waited
// gets its ts.
func (c *coder) payload(r *buffer.Record, history bool) []byte {
	n, ok := c.number(r)
	if !ok || embeddedbroker.Kind(r.Kind) != embeddedbroker.KindReading {
		return r.Payload
	}
	head, rest, ok := c.head(r)
	if !ok {
		return r.Payload
	}
	b := make([]byte, 0, len(r.Payload)+len(c.gateway)+len(r.Boot)+64)
	b = append(b, head...)
	b = append(b, `,"gw":`...)
	b = strconv.AppendQuote(b, c.gateway) // [a-z0-9_-]: no escapes
	if !bytes.Contains(head, []byte(`"boot":`)) {
		b = append(b, `,"boot":`...)
		b = strconv.AppendQuote(b, r.Boot)
	}
	b = append(b, `,"n":`...)
	b = strconv.AppendUint(b, n, 10)
	if history {
		b = append(b, `,"h":1`...)
	}
	return append(b, rest...)
}

// head splits a reading behind its time: {"ts":"..." or {"uptime":...,"boot":"..."
// and the rest, which begins with a comma or the closing brace.
func (c *coder) head(r *buffer.Record) (head, rest []byte, ok bool) {
	p := r.Payload
	if bytes.HasPrefix(p, []byte(`{"ts":`)) {
		end := valueEnd(p, len(`{"ts":`))
		return p[:max(end, 0)], p[max(end, 0):], end > 0
	}
	if !bytes.HasPrefix(p, []byte(`{"uptime":`)) {
		return nil, nil, false
	}
	end := valueEnd(p, len(`{"uptime":`))
	if end > 0 && bytes.HasPrefix(p[end:], []byte(`,"boot":`)) {
		end = valueEnd(p, end+len(`,"boot":`))
	}
	if end < 0 {
		return nil, nil, false
	}
	if r.At.IsZero() {
		return p[:end], p[end:], true
	}
	return append([]byte(`{"ts":`), c.stamp(r.At)...), p[end:], true
}

// stamp is a time as the gateway writes it.
func (c *coder) stamp(t time.Time) []byte {
	if c.unixMS {
		return strconv.AppendInt(nil, t.UnixMilli(), 10)
	}
	return t.UTC().AppendFormat(nil, `"2006-01-02T15:04:05.000Z"`)
}

// valueEnd is the index behind the string or number that begins at i, -1 when
// there is none or nothing follows it.
func valueEnd(p []byte, i int) int {
	if i < len(p) && p[i] == '"' {
		for i++; i < len(p) && p[i] != '"'; i++ {
			if p[i] == '\\' {
				i++
			}
		}
		i++
	} else {
		for i < len(p) && strings.IndexByte("0123456789+-.eE", p[i]) >= 0 {
			i++
		}
	}
	if i >= len(p) || p[i] != ',' && p[i] != '}' {
		return -1
	}
	return i
}
