package uplink

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"busgate/config/report"
)

// feature is something that a cloud may close the connection for.
type feature uint8

// The features in the order in which they are suspected.
const (
	private feature = iota // CONNECT with level 0x84
	large                  // packets above largeFrom
	qos2
	retain
	will
	features
)

const (
	largeFrom    = 16 << 10
	smallest     = 4 << 10 // max_packet is never halved below
	strikesOut   = 3       // closes after the use of a feature, until it is switched off
	strikesBorne = 12      // ... when the same broker has borne it before
	suspectFor   = 5 * time.Second
	degradedFor  = 24 * time.Hour
	bareFor      = 10 * time.Minute // the first time: it may have been an outage
	factDegraded = "degraded"
)

var featureNames = [features]string{"private", "large", "qos2", "retain", "will"}

// suspicion learns which feature of ours a cloud does not bear. A connection
// that the peer closes shortly after a feature was used, and before anything
// that used it was acknowledged, is a strike against it. After three the feature
// is switched off on trial. If the cloud goes on closing, it was another. If it
// does not, the feature is used once more: only when the cloud closes then, it
// was that one.
//
// After the first such close connections are careful: nothing but CONNECT and
// PINGREQ leaves until the broker has answered, so that a bad network is not
// taken for a message that the broker does not bear. Three closes in a row still
// happen by chance where connections live for a few round trips only, and to
// switch QoS 2 off repeats messages: what the broker has borne once is judged
// after twelve.
type suspicion struct {
	strikes [features]int
	off     [features]bool // confirmed or on trial
	trial   feature        // features = none
	verify  bool           // the one on trial is used once more
	tried   [features]bool // on trial before, in vain
	borne   [features]bool // something that used it was acknowledged once; never large, which has many sizes
	served  bool           // a record was completed once
	bare    bool           // everything is off: no single one was it
	bared   time.Time      // when it was so first
	careful bool           // the last connection ended without progress
	since   time.Time      // of the last change
	stuck   int            // closes in a row of connections that were dead
	head    uint64         // bare: ord of the record that the connection died of last
	deaths  int            // ... so often in a row; with a trial: closes since it began
}

// use is where a feature was used first on a connection (large: last), and
// whether something that used it was acknowledged there.
type use struct {
	at     time.Time // zero: not used
	end    uint64    // in the stream
	proven bool
}

// suspects are the features that a connection may have been closed for. will and
// level 0x84 stand in CONNECT; the others come after a sign of life only.
func suspects(u *[features]use, alive bool, now time.Time) (fs []feature) {
	for f := range features {
		early := f == will || f == private
		if early != alive && !u[f].at.IsZero() && !u[f].proven && now.Sub(u[f].at) <= suspectFor {
			fs = append(fs, f)
		}
	}
	return fs
}

// learn takes a connection that the peer closed under suspicion of fs; dead
// tells that it was alive, that records were sent on it, and none was
// acknowledged. learn tells whether something is switched on or off now, and
// which feature is convicted (features = none).
func (s *suspicion) learn(fs []feature, dead bool, now time.Time) (change bool, guilty feature) {
	for _, f := range fs {
		s.strikes[f]++
	}
	if dead {
		s.stuck++
	}
	s.careful = s.careful || dead || len(fs) > 0
	if f := s.trial; f != features {
		if s.verify {
			if !slices.Contains(fs, f) {
				return false, features
			}
			s.off[f], s.trial, s.verify, s.since = true, features, false, now
			return true, f
		}
		// The feature on trial is off and the cloud still closes: not this one.
		if s.deaths++; s.deaths < strikesOut {
			return false, features
		}
		s.off[f], s.tried[f], s.trial, s.deaths, s.stuck = false, true, features, 0, s.stuck+strikesOut
		change = true
	}
	for f := range features {
		if s.strikes[f] >= limit(s.borne[f]) && !s.off[f] && !s.tried[f] {
			s.off[f], s.trial, s.since = true, f, now
			return true, features
		}
	}
	if dead && s.stuck >= limit(s.served) { // no single one was it
		s.bare, s.since = true, now
		if s.bared.IsZero() {
			s.bared = now
		}
		for f := range features {
			s.off[f] = true
		}
		change = true
	}
	return change, features
}

// limit is how many closes in a row are no chance.
func limit(borne bool) int {
	if borne {
		return strikesBorne
	}
	return strikesOut
}

// bears notes that the broker bears a feature; true when that is new.
func (s *suspicion) bears(f feature) bool {
	fresh := f != large && !s.borne[f]
	s.borne[f] = s.borne[f] || fresh
	return fresh
}

// progressed takes acknowledged progress on a connection. A feature on trial is
// to be used once more, which changes the settings; one that was used once more
// and bore it is acquitted.
func (s *suspicion) progressed(u *[features]use) (change bool) {
	s.careful, s.deaths, s.stuck, s.served = false, 0, 0, true
	f := s.trial
	switch {
	case f == features:
		s.tried = [features]bool{}
	case !s.verify:
		s.off[f], s.verify, s.careful = false, true, true
		return true
	case u[f].proven:
		s.trial, s.verify, s.strikes[f] = features, false, 0
	default:
		s.careful = true
	}
	return false
}

// died counts connections that died of the same record with everything off.
func (s *suspicion) died(head uint64) bool {
	if head != s.head {
		s.head, s.deaths = head, 0
	}
	s.deaths++
	return s.bare && s.deaths >= strikesOut
}

// names lists what is off.
func (s *suspicion) names() []string { return named(s.off) }

// named lists the features that are set.
func named(set [features]bool) (names []string) {
	for f, on := range set {
		if on {
			names = append(names, featureNames[f])
		}
	}
	return names
}

func newSuspicion() suspicion { return suspicion{trial: features} }

// apply lays what was learned over the settings of the configuration.
func (s *suspicion) apply(set *settings) *settings {
	out := *set
	if s.off[qos2] && out.qos == 2 {
		out.qos = 1
	}
	if s.off[retain] {
		out.retain = false
	}
	if s.off[will] {
		out.will = false
	}
	if s.off[private] {
		out.private = false
	}
	if s.off[large] {
		out.maxPacket = max(smallest, min(out.maxPacket, 2*largeFrom)/2)
	}
	if s.bare {
		out.window = 1
	}
	return &out
}

// used notes the features of a PUBLISH that ends at end in the stream.
func (e *epoch) used(p *packets.PublishPacket, end uint64, now time.Time) {
	note := func(f feature) {
		if u := &e.use[f]; u.at.IsZero() || f == large {
			*u = use{at: now, end: end}
		}
	}
	if p.Qos == 2 {
		note(qos2)
	}
	if p.Retain {
		note(retain)
	}
	if len(p.TopicName)+len(p.Payload) > largeFrom {
		note(large)
	}
}

// exonerate takes the acknowledgements of a connection: what was used before
// the last of them did not close it.
func (l *Link) exonerate(e *epoch) {
	if l.s.reach <= e.reach {
		return
	}
	e.reach = l.s.reach
	fresh := false
	for f := range features {
		if u := &e.use[f]; !u.at.IsZero() && u.end <= e.reach {
			u.proven = true
			l.suspect.strikes[f] = 0
			fresh = l.suspect.bears(f) || fresh
		}
	}
	if fresh {
		l.keepDegraded()
	}
	if l.s.progress && l.suspect.progressed(&e.use) {
		l.adopt()
		e.leave = time.Now() // with the feature, on another connection
	}
}

// learned says what this cloud does not bear, once, and remembers it.
func (l *Link) learned(f feature) {
	host := l.dialled().host
	var text string
	switch f {
	case large:
		text = fmt.Sprintf("%s closes the connection after packets above %d bytes; sent in smaller ones from now on", host, l.set.maxPacket)
	case qos2:
		text = host + " closes the connection after messages of QoS 2; sent with QoS 1 from now on"
	case retain:
		text = host + " closes the connection after retained messages; sent without retain from now on"
	case will:
		text = host + " closes the connection after a will; connected without will from now on"
	default:
		return
	}
	l.ladder.Fail(report.Report{Err: "poison", Level: slog.LevelError, Who: l.who, Text: text}, slog.String("uplink", l.name))
	l.keepDegraded()
}

// keepDegraded remembers over a restart what is off and what the broker bears.
func (l *Link) keepDegraded() {
	if l.o.Keep != nil {
		l.o.Keep(factDegraded, []byte(strings.Join([]string{
			l.base.identity(), strings.Join(l.suspect.names(), " "), strings.Join(named(l.suspect.borne), " "),
		}, "\n")), func(error) {})
	}
}

// loadDegraded takes over what an earlier process learned of the same broker.
func (l *Link) loadDegraded() {
	if l.o.Fact == nil {
		return
	}
	id, names, _ := strings.Cut(string(l.o.Fact(factDegraded)), "\n")
	if id != l.base.identity() {
		return
	}
	off, borne, _ := strings.Cut(names, "\n")
	for f := range features {
		l.suspect.off[f] = slices.Contains(strings.Fields(off), featureNames[f])
		l.suspect.borne[f] = slices.Contains(strings.Fields(borne), featureNames[f])
	}
	l.suspect.since = time.Now()
	l.set = l.suspect.apply(l.base)
}

// pardons tells that it is time to try again what is switched off.
func (s *suspicion) pardons(now time.Time) bool {
	if len(s.names()) == 0 {
		return false
	}
	first := s.bare && s.since.Equal(s.bared)
	return now.Sub(s.since) >= degradedFor || first && now.Sub(s.since) >= bareFor
}

// amnesty tries everything again: after a changed configuration, and after a day.
func (l *Link) amnesty() {
	if len(l.suspect.names()) > 0 {
		l.ladder.Solve("poison", l.who, func(time.Duration, uint64) string { return "trying again what the cloud did not bear" })
	}
	bared := l.suspect.bared
	l.suspect = newSuspicion()
	if time.Since(bared) < degradedFor {
		l.suspect.bared = bared
	}
	l.poison = map[uint64]bool{}
	l.adopt()
}

// adopt makes the settings follow what was learned. What is in flight must be
// packed anew, in a session that knows nothing of how it was.
func (l *Link) adopt() {
	was := l.set
	l.set, l.packed = l.suspect.apply(l.base), nil
	if was.qos != l.set.qos || was.retain != l.set.retain || was.maxPacket != l.set.maxPacket || was.window != l.set.window {
		l.clean, l.repack = l.set.identity(), true
	}
}

// suspectClose learns from a connection that the peer closed; true when it may
// have been for something of ours.
func (l *Link) suspectClose(e *epoch, now time.Time) bool {
	if !l.suspect.bare {
		fs := suspects(&e.use, e.reach > 0, now)
		dead := e.reach > 0 && !l.s.progress && e.recordAt.After(now.Add(-suspectFor))
		l.judge(fs, dead, now)
		return dead || len(fs) > 0
	}
	// One message at a time, after the broker has shown that it answers.
	if e.reach == 0 || len(l.s.flights) == 0 {
		return false
	}
	head := l.s.flights[0]
	died := head.end > e.reach && now.Sub(e.recordAt) <= suspectFor
	if died && l.suspect.died(head.first) {
		l.setAside(head)
	}
	return died
}

// judge learns from a close under suspicion of fs.
func (l *Link) judge(fs []feature, dead bool, now time.Time) {
	change, guilty := l.suspect.learn(fs, dead, now)
	if change {
		l.adopt()
	}
	if guilty != features {
		l.learned(guilty)
	}
}

// setAside gives a message up that kills every connection: its loss is reported
// in its place.
func (l *Link) setAside(f *flight) {
	l.stats.poison++
	l.suspect.head, l.suspect.deaths = 0, 0
	l.ladder.Fail(report.Report{Err: "poison", Level: slog.LevelError, Who: l.who,
		Text: fmt.Sprintf("%s closes the connection at each message to %s; one is set aside and reported as lost", l.dialled().host, report.Name(f.topic))},
		slog.String("uplink", l.name))
	if len(l.poison) < maxWindow {
		l.poison[f.first] = true
	}
	l.repack, l.clean = true, l.set.identity()
}
