package embeddedbroker

import (
	"fmt"
	"math"
	"runtime/metrics"
	"strconv"
	"time"
)

// sysWriter publishes $SYS with the names of mosquitto: retained, QoS 0, in
// memory only, and each value only when it has changed.
type sysWriter struct {
	b     *Broker
	next  time.Time
	last  map[string]string
	from  origin
	loads []*load
	at    time.Time
	most  int // clients at once
	heap  uint64
}

// load is a rate per minute, averaged over one, five and fifteen minutes.
type load struct {
	name  string
	count func() uint64
	last  uint64
	avg   [3]float64
}

func newSysWriter(b *Broker) *sysWriter {
	n := &b.n
	w := &sysWriter{b: b, last: map[string]string{}, next: time.Now(), at: time.Now()}
	for _, l := range []load{
		{name: "messages/received", count: n.packetsIn.Load},
		{name: "messages/sent", count: n.packetsOut},
		{name: "publish/received", count: n.received.Load},
		{name: "publish/sent", count: n.sent.Load},
		{name: "publish/dropped", count: n.dropped.Load},
		{name: "bytes/received", count: n.receivedBytes.Load},
		{name: "bytes/sent", count: n.sentAll.Load},
		{name: "connections", count: n.connectionsAll.Load},
		{name: "sockets", count: n.socketsAll.Load},
	} {
		w.loads = append(w.loads, &l)
	}
	return w
}

// run publishes when it is time and says when to come again; zero: never.
func (w *sysWriter) run(now time.Time) time.Time {
	every := w.b.set.Load().cfg.SysInterval
	if every <= 0 {
		return time.Time{}
	}
	if now.Before(w.next) {
		return w.next
	}
	w.next = now.Add(every)
	w.rates(now)
	w.values(now)
	return w.next
}

var loadNames = [3]string{"1min", "5min", "15min"}

// rates brings the averages up to date as mosquitto does: an exponential decay.
func (w *sysWriter) rates(now time.Time) {
	dt := now.Sub(w.at).Seconds()
	w.at = now
	if dt <= 0 {
		return
	}
	for _, l := range w.loads {
		n := l.count()
		perMinute := float64(n-l.last) * 60 / dt
		l.last = n
		for i, minutes := range [3]float64{1, 5, 15} {
			decay := math.Exp(-dt / (60 * minutes))
			l.avg[i] = perMinute + decay*(l.avg[i]-perMinute)
			w.put("load/"+l.name+"/"+loadNames[i], strconv.FormatFloat(l.avg[i], 'f', 2, 64))
		}
	}
}

func (w *sysWriter) values(now time.Time) {
	n, s := &w.b.n, w.b.Stats()
	w.most = max(w.most, s.Clients)
	inflight, queued, bytes := w.b.waiting()
	heap := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(heap)
	used := heap[0].Value.Uint64()
	w.heap = max(w.heap, used)
	w.put("version", "busgate version "+w.b.opts.Version)
	w.put("uptime", fmt.Sprintf("%d seconds", int64(now.Sub(w.b.start).Seconds())))
	for _, v := range []struct {
		name  string
		value uint64
	}{
		{"clients/total", uint64(s.Sessions)},
		{"clients/connected", uint64(s.Clients)},
		{"clients/active", uint64(s.Clients)},
		{"clients/disconnected", uint64(s.Sessions - s.Clients)},
		{"clients/inactive", uint64(s.Sessions - s.Clients)},
		{"clients/maximum", uint64(w.most)},
		{"clients/expired", s.SessionsExpired},
		{"messages/received", n.packetsIn.Load()},
		{"messages/sent", n.packetsOut()},
		{"messages/stored", uint64(queued + s.Retained)},
		{"messages/inflight", uint64(inflight)},
		{"publish/messages/received", s.Received},
		{"publish/messages/sent", s.Sent},
		{"publish/messages/dropped", s.Dropped},
		{"publish/bytes/received", n.publishBytes.Load()},
		{"publish/bytes/sent", n.sentBytes.Load()},
		{"bytes/received", s.BytesReceived},
		{"bytes/sent", s.BytesSent},
		{"subscriptions/count", uint64(s.Subscriptions)},
		{"shared_subscriptions/count", uint64(s.Shared)},
		{"retained messages/count", uint64(s.Retained)},
		{"store/messages/count", uint64(queued + s.Retained)},
		{"store/messages/bytes", uint64(bytes + s.RetainedBytes)},
		{"heap/current", used},
		{"heap/maximum", w.heap},
		{"busgate/refused_full", s.RefusedFull},
		{"busgate/withheld", s.Withheld},
		{"busgate/failed_logins", s.FailedLogins},
		{"busgate/refused_connects", s.RefusedConnects},
		{"busgate/paced_connects", s.PacedConnects},
		{"busgate/slowed", s.Slowed},
		{"busgate/slow_closed", s.SlowClosed},
		{"busgate/commit_ms", uint64(w.b.rel.average.Load() / int64(time.Millisecond))},
	} {
		w.put(v.name, strconv.FormatUint(v.value, 10))
	}
}

// waiting sums up the messages that wait for sessions.
func (b *Broker) waiting() (inflight, queued int, bytes int64) {
	for _, c := range b.Clients() {
		inflight += c.Inflight
		queued += c.Queued
		bytes += c.QueuedBytes
	}
	return inflight, queued, bytes
}

// put publishes one value if it has changed.
func (w *sysWriter) put(name, value string) {
	if w.last[name] == value {
		return
	}
	w.last[name] = value
	w.b.publishSys(&w.from, name, value)
}

// UplinkState publishes $SYS/broker/connection/<name>/state: 1 or 0.
func (b *Broker) UplinkState(name string, connected bool) {
	value := "0"
	if connected {
		value = "1"
	}
	b.publishSys(&origin{}, "connection/"+name+"/state", value)
}

func (b *Broker) publishSys(o *origin, name, value string) {
	m := &Message{Topic: "$SYS/broker/" + name, Payload: []byte(value), Retain: true, Kind: KindStatus}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.publishLocked(o, &publication{msg: m})
}
