package uplink

import (
	"encoding/json"
	"strings"
	"time"

	"busgate/buffer"
	"busgate/embeddedbroker"
)

const (
	// maxHeader is what a PUBLISH has beside topic and payload, at most: five
	// bytes of fixed header, two of topic length, two of packet id.
	maxHeader = 9

	maxLosses = 64 // entries of one loss report

	// liveRun is how many live packets go before one of the backlog when both wait.
	liveRun = 9

	// torn is how long the rest of a batch that was cut earlier is waited for;
	// what does not come then is lost in the store.
	torn = 5 * time.Second
)

// lot is a leased record that is not in flight yet.
type lot struct {
	buffer.Record
	came time.Time
	late bool // of the backlog of live_first
}

// publish puts what is ready into flight, as far as window, rates and budget
// allow.
func (l *Link) publish(e *epoch, now time.Time) {
	if !l.s.resumed || !e.leave.IsZero() || !e.farewell.IsZero() {
		return
	}
	full, poor := false, false
	if l.month.cap > 0 {
		l.count()
	}
	for !e.w.full() {
		q := l.turn()
		if q == nil {
			break
		}
		n, closed := l.extent(*q)
		hurry := !e.stop.IsZero()
		if !closed && !l.ripe((*q)[0], now, hurry) || !l.cut(*q, now, hurry) {
			break
		}
		if l.tooLargeOnTrial((*q)[0]) {
			l.aside = append(l.aside, (*q)[0])
			*q = (*q)[1:]
			continue
		}
		if full = l.full(); full || !l.noted(&(*q)[0].Record) {
			break
		}
		f := l.pack((*q)[:n], now)
		if full = l.s.bytes > 0 && l.s.bytes+f.size() > l.set.windowBytes(); full || l.s.blocked(f.first) {
			break
		}
		if poor = !l.month.allows(l.worth(&(*q)[0], now)); poor || !l.gate.pass(f.size(), now) {
			break
		}
		if f.late {
			l.run = 0
		} else {
			l.run++
		}
		if f.over > 0 {
			l.stats.oversize++
			l.log.Warn("message exceeds max_packet and is not sent", "topic", (*q)[0].Topic, "bytes", f.over, "max_packet", l.set.maxPacket)
		}
		if f.unfit {
			l.stats.unfit++
		}
		for i := range n {
			l.stats.result(l.coder.base, &(*q)[i].Record)
		}
		clear((*q)[:n])
		*q = (*q)[n:]
		l.packed = nil
		l.s.add(f)
		l.stats.packets++
		l.stats.records += uint64(n)
	}
	l.stats.windowFull.run(full, now)
	l.stats.budgetWait.run(poor || l.poor, now)
}

// tooLargeOnTrial tells that a record must wait until it is known whether the
// cloud bears large packets: it would be given up for what may not be its fault.
func (l *Link) tooLargeOnTrial(r lot) bool {
	return l.suspect.trial == large && !l.suspect.verify && int64(len(r.Topic)+len(r.Payload))+entryOverhead+maxHeader > l.set.maxPacket
}

// turn is the queue that goes next: what is live, but the backlog gets one
// packet in ten and at most half of the window. nil: nothing may go.
func (l *Link) turn() *[]lot {
	if len(l.late) > 0 && (len(l.ready) == 0 || l.run >= liveRun) && l.s.late() < max(1, l.window()/2) {
		return &l.late
	}
	if len(l.ready) > 0 {
		return &l.ready
	}
	return nil
}

// ripe tells that a batch must not wait for more.
func (l *Link) ripe(first lot, now time.Time, hurry bool) bool {
	if b := l.bounds[first.Ord]; b != nil {
		return now.Sub(first.came) >= torn
	}
	return hurry || first.late || now.Sub(first.came) >= l.set.batchAge()
}

// pack makes a flight of lots: one record, or a batch.
func (l *Link) pack(lots []lot, now time.Time) *flight {
	if batches(&l.set.cfg) && l.coder.device(&lots[0].Record) != "" {
		if f := l.batchOf(lots); f.size()+maxHeader <= l.set.maxPacket || len(lots) > 1 {
			f.late = lots[0].late
			return f
		}
	}
	return l.single(&lots[0], now)
}

// single carries one record. A record that the cloud would not take is replaced
// by the report of its loss, which then has its place and its packet id.
func (l *Link) single(r *lot, now time.Time) *flight {
	f := &flight{first: r.Ord, last: r.Ord, qos: l.set.qos, again: r.Dup && l.set.qos > 0, late: r.late}
	if l.set.thingsboard() {
		f.topic, f.payload, f.unfit = l.coder.board(&r.Record)
		f.unfit = !f.unfit
	} else {
		topic, history := l.history(r, now)
		f.topic, f.payload = l.rename(topic), l.coder.payload(&r.Record, history)
		f.retain = r.Retain && l.set.retain && !history && !l.removed(&r.Record)
	}
	switch {
	case f.unfit:
		l.lose(f, &r.Record, "unfit")
	case l.poison[r.Ord]:
		l.lose(f, &r.Record, "poison")
	case f.size()+maxHeader > l.set.maxPacket:
		f.over = f.size() + maxHeader
		l.lose(f, &r.Record, "oversize")
	}
	return f
}

// history is the topic of a record, and whether it goes as history: a reading
// that comes late with live_first must not take the place of a newer state.
func (l *Link) history(r *lot, now time.Time) (string, bool) {
	late := r.late || !r.At.IsZero() && now.Sub(r.At) > l.set.cfg.LiveAge && l.set.cfg.LiveAge > 0
	if l.set.cfg.Order != "live_first" || !late || embeddedbroker.Kind(r.Kind) != embeddedbroker.KindReading {
		return r.Topic, false
	}
	rest, ok := strings.CutPrefix(r.Topic, l.gw.Base()+"/")
	dev, kind, _ := strings.Cut(rest, "/")
	if kind, point, _ := strings.Cut(kind, "/"); ok && kind == "state" {
		topic := l.gw.Base() + "/" + dev + "/history"
		if point != "" {
			topic += "/" + point
		}
		return topic, true
	}
	return r.Topic, false
}

// lose makes of a flight the report that its record is lost.
func (l *Link) lose(f *flight, r *buffer.Record, why string) {
	n, _ := l.coder.number(r)
	loss := buffer.Loss{Boot: r.Boot, Lo: n, Hi: n, Dropped: 1, Reason: why}
	f.topic, f.retain = l.lossTopic(), false
	f.payload = lossReport([]buffer.Loss{loss})
}

// lossTopic is where losses are reported.
func (l *Link) lossTopic() string {
	if l.set.thingsboard() {
		return boardOwnTelemetry
	}
	return l.set.topics.remote(l.gw.Base() + "/gateway/loss")
}

// lossReport is the payload of gateway/loss.
func lossReport(ls []buffer.Loss) []byte {
	type entry struct {
		Boot string `json:"boot"`
		Lo   uint64 `json:"lo"`
		Hi   uint64 `json:"hi"`
		N    uint64 `json:"n"`
		Kept uint64 `json:"kept,omitempty"`
		Why  string `json:"why"`
	}
	doc := struct {
		Loss []entry `json:"loss"`
	}{}
	for _, x := range ls {
		doc.Loss = append(doc.Loss, entry{x.Boot, x.Lo, x.Hi, x.Dropped, x.Kept, x.Reason})
	}
	b, err := json.Marshal(doc)
	if err != nil {
		panic("uplink: a loss report cannot be encoded: " + err.Error()) // strings and numbers only
	}
	return b
}
