package uplink

import (
	"bytes"
	"compress/zlib"
	"slices"
	"strconv"
	"strings"
	"time"

	"busgate/buffer"
	"busgate/embeddedbroker"
)

// batchLevel is fixed: the same records must give the same bytes.
const batchLevel = 6

// entryOverhead is more than what a batch adds to the payload of a reading.
const entryOverhead = 64

// device is the device of a reading that can be batched; "" when it cannot: the
// other records go as they are, between the batches.
func (c *coder) device(r *buffer.Record) string {
	if embeddedbroker.Kind(r.Kind) != embeddedbroker.KindReading {
		return ""
	}
	rest, ok := strings.CutPrefix(r.Topic, c.base+"/")
	if !ok {
		return ""
	}
	dev, kind, _ := strings.Cut(rest, "/")
	if _, numbered := c.number(r); kind != "state" || !numbered {
		return ""
	}
	if _, _, ok := c.head(r); !ok {
		return ""
	}
	return dev
}

// batch is the payload of several readings of one boot, in order:
//
//	{"v":1,"gw":"g","boot":"b-1","s":"cloud","n":[1,2],"d":{"dev":[{"n":1,"ts":1782000000123,"clk":"ntp","v":{...}}]}}
//
// ts is in milliseconds since 1970, the time of the reading. A reading whose
// time is not known has "up", the seconds since its boot, instead. clk says how
// the time is known: ntp, or redated when the clock came later.
func (c *coder) batch(rs []buffer.Record) []byte {
	lo, _ := c.number(&rs[0])
	hi, _ := c.number(&rs[len(rs)-1])
	b := append([]byte(`{"v":1,"gw":`), strconv.Quote(c.gateway)...)
	b = append(append(b, `,"boot":`...), strconv.Quote(rs[0].Boot)...)
	b = append(append(b, `,"s":`...), strconv.Quote(c.name)...)
	b = strconv.AppendUint(append(b, `,"n":[`...), lo, 10)
	b = strconv.AppendUint(append(b, ','), hi, 10)
	b = append(b, `],"d":{`...)

	devices := map[string][]int{}
	for i := range rs {
		d := c.device(&rs[i])
		devices[d] = append(devices[d], i)
	}
	names := make([]string, 0, len(devices))
	for d := range devices {
		names = append(names, d)
	}
	slices.Sort(names)
	for i, d := range names {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(append(b, strconv.Quote(d)...), ':', '[')
		for j, k := range devices[d] {
			if j > 0 {
				b = append(b, ',')
			}
			b = c.entry(b, &rs[k])
		}
		b = append(b, ']')
	}
	return append(b, '}', '}')
}

// entry appends one reading of a batch.
func (c *coder) entry(b []byte, r *buffer.Record) []byte {
	n, _ := c.number(r)
	b = strconv.AppendUint(append(b, `{"n":`...), n, 10)
	head, rest, _ := c.head(r)
	stamp, dated := bytes.CutPrefix(head, []byte(`{"ts":`))
	switch {
	case r.At.IsZero() && dated:
		b = append(append(b, `,"ts":`...), stamp...)
	case r.At.IsZero():
		up, _ := bytes.CutPrefix(head, []byte(`{"uptime":`))
		up, _, _ = bytes.Cut(up, []byte(","))
		b = append(append(b, `,"up":`...), up...)
	default:
		b = strconv.AppendInt(append(b, `,"ts":`...), r.At.UnixMilli(), 10)
		clk := "ntp"
		if r.Clock == buffer.Redated {
			clk = "redated"
		}
		b = append(append(b, `,"clk":`...), strconv.Quote(clk)...)
	}
	b = append(b, `,"v":{`...)
	b = append(b, bytes.TrimPrefix(rest, []byte(","))...)
	return append(b, '}')
}

// deflater compresses batches, one after the other, with one writer: a new one
// takes more than half a megabyte.
type deflater struct{ w *zlib.Writer }

// deflate is p as a zlib stream when that is smaller, else p. The first byte
// tells: 0x7B is JSON, 0x78 is zlib.
func (d *deflater) deflate(p []byte) []byte {
	var out bytes.Buffer
	var err error
	if d.w == nil {
		d.w, err = zlib.NewWriterLevel(&out, batchLevel)
		if err != nil {
			panic("uplink: " + err.Error()) // the level is a constant
		}
	}
	d.w.Reset(&out)
	if _, err = d.w.Write(p); err == nil {
		err = d.w.Close()
	}
	if err != nil || out.Len() >= len(p) { // a bytes.Buffer takes everything
		return p
	}
	return out.Bytes()
}

// extent is how many of the lots the next batch takes, and whether it is closed:
// full, or followed by what cannot join it. An open batch may be left open until
// it is old enough.
func (l *Link) extent(lots []lot) (n int, closed bool) {
	first := &lots[0]
	if l.coder.device(&first.Record) == "" {
		return 1, true
	}
	if !batches(&l.set.cfg) {
		return 1, true
	}
	if b := l.bounds[first.Ord]; b != nil { // a batch is never cut in two ways
		for n < len(lots) && lots[n].Ord <= b.last {
			n++
		}
		return max(n, 1), n > 0 && lots[n-1].Ord == b.last || n < len(lots)
	}
	limit, size, overhead := l.set.batchBytes(), int64(0), int64(entryOverhead)
	device := l.coder.device(&first.Record)
	if l.set.thingsboard() {
		overhead = boardEntry
	}
	for n < len(lots) {
		r := &lots[n].Record
		size += int64(len(r.Payload)) + overhead
		if n > 0 && (n >= l.set.batchRecords() || size > limit || r.Boot != first.Boot || r.Lane != first.Lane || l.bounds[r.Ord] != nil) {
			return n, true
		}
		if d := l.coder.device(r); d == "" || l.set.thingsboard() && d != device {
			return n, true
		}
		n++
	}
	return n, n >= l.set.batchRecords() || size > limit
}

// batchOf carries the records of one batch. One that could not leave is kept
// until it can: packing it is the most expensive thing that a link does.
func (l *Link) batchOf(lots []lot) *flight {
	if f := l.packed; f != nil && f.first == lots[0].Ord && f.last == lots[len(lots)-1].Ord && f.again == (lots[0].Dup && l.set.qos > 0) {
		return f
	}
	rs := make([]buffer.Record, len(lots))
	for i := range lots {
		rs[i] = lots[i].Record
	}
	l.packed = &flight{first: rs[0].Ord, last: rs[len(rs)-1].Ord, qos: l.set.qos, again: rs[0].Dup && l.set.qos > 0}
	if l.set.thingsboard() {
		l.packed.topic, l.packed.payload = boardTelemetry, l.coder.telemetry(l.coder.device(&rs[0]), rs)
		return l.packed
	}
	p := l.coder.batch(rs)
	if l.set.cfg.Compress == "deflate" {
		p = l.deflater.deflate(p)
	}
	l.packed.topic, l.packed.payload = l.set.topics.remote(l.gw.Base()+"/gateway/history"), p
	return l.packed
}

// factBatches is the key under which the cuts between batches are kept.
const factBatches = "batches"

// bound is where a batch ends. At QoS 2 it is on disk before the batch leaves:
// after a crash another cut would give the packet id another message.
type bound struct {
	last    uint64
	durable bool
}

// loadBounds reads the cuts of an earlier process.
func (l *Link) loadBounds() {
	l.bounds = map[uint64]*bound{}
	if l.o.Fact == nil || l.set.qos != 2 || !batches(&l.set.cfg) {
		return
	}
	for s := range strings.SplitSeq(string(l.o.Fact(factBatches)), " ") {
		lo, hi, _ := strings.Cut(s, "-")
		first, err1 := strconv.ParseUint(lo, 10, 64)
		last, err2 := strconv.ParseUint(hi, 10, 64)
		if err1 == nil && err2 == nil && first <= last && len(l.bounds) < maxWindow {
			l.bounds[first] = &bound{last, true}
		}
	}
}

// cut makes the bounds of what is ready durable, all in one commit. It tells
// whether the batch that begins with ord may leave.
func (l *Link) cut(lots []lot, now time.Time, hurry bool) bool {
	if l.set.qos != 2 || !batches(&l.set.cfg) || l.o.Keep == nil {
		return true
	}
	if b := l.bounds[lots[0].Ord]; b != nil {
		return b.durable
	}
	if l.cutting != nil {
		return false
	}
	var fresh []*bound
	for len(lots) > 0 {
		n, closed := l.extent(lots)
		if !closed && !l.ripe(lots[0], now, hurry) {
			break
		}
		if l.bounds[lots[0].Ord] == nil {
			b := &bound{last: lots[n-1].Ord}
			l.bounds[lots[0].Ord] = b
			fresh = append(fresh, b)
		}
		lots = lots[n:]
	}
	if len(fresh) == 0 {
		return false
	}
	done := make(chan error, 1)
	l.cutting, l.fresh = done, fresh
	l.o.Keep(factBatches, l.boundList(), func(err error) { done <- err })
	return false
}

// boundList is what is kept: the cuts of everything not completed.
func (l *Link) boundList() []byte {
	var firsts []uint64
	for first, b := range l.bounds {
		if b.last <= l.s.completed {
			delete(l.bounds, first)
			continue
		}
		firsts = append(firsts, first)
	}
	slices.Sort(firsts)
	var out []byte
	for _, first := range firsts {
		out = strconv.AppendUint(out, first, 10)
		out = append(out, '-')
		out = strconv.AppendUint(out, l.bounds[first].last, 10)
		out = append(out, ' ')
	}
	return bytes.TrimRight(out, " ")
}

// wasCut is the answer of the store to cut.
func (l *Link) wasCut(err error) error {
	for _, b := range l.fresh {
		b.durable = err == nil
	}
	if err != nil {
		for first, b := range l.bounds {
			if !b.durable {
				delete(l.bounds, first)
			}
		}
		err = &closing{reason: "release", err: err}
	}
	l.cutting, l.fresh = nil, nil
	return err
}
