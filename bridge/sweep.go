package bridge

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
)

// knownKey is where the Memory keeps what is retained.
const knownKey = "bridge/known"

// known is what the process before left retained, here and at the clouds: the
// broker keeps no status over a restart, but a cloud does.
type known struct {
	Base      string              `json:"base"`
	Devices   map[string][]string `json:"devices"`             // with the topics of their scalars
	Discovery map[string][]string `json:"announced,omitempty"` // topics, with their components
}

// alertWords are the alerts that the rooms of the gateway raise.
var alertWords = []string{"disk-full", "buffer-dropping", "buffer-damaged", "read-only", "clock", "second-master", "orphan-uplink"}

// topics are all topics that may be retained.
func (k *known) topics() (ts []string) {
	if k.Base == "" {
		return nil
	}
	for _, kind := range []string{kindStatus, kindState, kindInfo} {
		ts = append(ts, k.Base+"/"+gatewayDevice+"/"+kind)
	}
	for _, name := range slices.Sorted(maps.Keys(k.Devices)) {
		t := newTopics(k.Base, name, nil, false)
		ts = append(append(ts, t.status, t.state, t.info, t.failure), k.Devices[name]...)
	}
	for _, word := range alertWords {
		ts = append(ts, k.Base+"/"+gatewayDevice+"/"+kindAlert+"/"+word)
	}
	return ts
}

// recall reads what the process before left retained, and notes what this one
// will say besides: a kill in between must leave no ghost. A gateway of another
// name is not noted before the old one is swept.
func (b *Bridge) recall() (before known) {
	if b.memory != nil {
		raw, err := b.memory.Load(knownKey)
		if err == nil && raw != nil {
			err = json.Unmarshal(raw, &before)
		}
		if err != nil {
			b.log.Warn("what the last run left retained is not known", "err", err)
		}
	}
	b.discovering.Lock()
	b.discovered = before.Discovery // discover takes back what is gone
	b.discovering.Unlock()
	b.knowing.Lock()
	b.known.Discovery = before.Discovery
	b.knowing.Unlock()
	if before.Base == "" || before.Base == b.base {
		b.know(func(k *known) { k.Base, k.Devices = b.base, withTopics(before.Devices, b.sorted()) })
	}
	return before
}

// sweep empties what an earlier process left retained on topics of ours and
// this one does not stand for: devices, points, uplinks and alerts that are
// gone, errors that are not known to last, and, after a renaming of the gateway,
// all of the old name. The states of configured devices stay: they carry their
// time, and status says offline.
func (b *Bridge) sweep(before known) {
	topics := before.topics()
	if before.Base != "" && before.Base != b.base {
		b.log.Info("the gateway has another name; what is retained under the old one is deleted", "topic", before.Base)
		b.sweepBelow(before.Base, append(topics, b.keptBelow(before.Base)...), func(place, string) bool { return false })
		topics = nil
	}
	b.sweepBelow(b.base, append(topics, b.keptBelow(b.base)...), b.stands)
	b.knowDevices(b.sorted())
}

// keptBelow are the topics below base that the broker has something retained on.
func (b *Bridge) keptBelow(base string) (ts []string) {
	if b.kept == nil {
		return nil
	}
	for _, m := range b.kept(base + "/#") {
		ts = append(ts, m.Topic)
	}
	return ts
}

// sweepBelow empties the topics below base that do not stand: first all statuses
// say offline, so that nobody takes a value for fresh while the rest goes.
func (b *Bridge) sweepBelow(base string, topics []string, stands func(p place, topic string) bool) {
	slices.Sort(topics)
	var stale []string
	for _, topic := range slices.Compact(topics) {
		p, ok := parseTopic(base, topic)
		if !ok || !p.reserved() || stands(p, topic) {
			continue
		}
		if p.kind == kindStatus {
			b.board.post(b.word(topic, wordOffline))
		}
		stale = append(stale, topic)
	}
	slices.SortStableFunc(stale, func(x, y string) int { return order(base, x) - order(base, y) })
	for _, topic := range stale {
		b.board.empty(topic)
	}
}

// order is in which turn a topic of a removed device is emptied.
func order(base, topic string) int {
	turns := []string{kindState, kindStatus, kindInfo, kindError}
	p, _ := parseTopic(base, topic)
	if i := slices.Index(turns, p.kind); i >= 0 {
		return i
	}
	return len(turns)
}

// stands says that the gateway, as it is configured, keeps something on a topic.
func (b *Bridge) stands(p place, topic string) bool {
	if b.board.get(topic) != nil {
		return true
	}
	d := b.device(p.device)
	switch {
	case p.device == gatewayDevice:
		return p.kind == kindState && !p.deep
	case d == nil || p.kind != kindState:
		return false
	case !p.deep:
		return true
	}
	return slices.Contains(d.topics.points, topic)
}

// knowDevices notes in the Memory which topics of devices may be retained: of
// those that were and of those that come before anything is said of an Update,
// and only of the latter when all of it is said.
func (b *Bridge) knowDevices(plans ...[]*device) {
	var topics map[string][]string
	for _, ds := range plans {
		topics = withTopics(topics, ds)
	}
	b.know(func(k *known) { k.Base, k.Devices = b.base, topics })
}

// withTopics are the topics of scalars by device, with those of ds added.
func withTopics(topics map[string][]string, ds []*device) map[string][]string {
	all := make(map[string][]string, len(topics)+len(ds))
	maps.Copy(all, topics)
	for _, d := range ds {
		ts := all[d.cfg.Name]
		for _, topic := range d.topics.points {
			if !slices.Contains(all[d.cfg.Name], topic) {
				ts = append(slices.Clip(ts), topic)
			}
		}
		all[d.cfg.Name] = ts
	}
	return all
}

// know changes what is known to be retained, here and in the Memory.
func (b *Bridge) know(change func(*known)) {
	b.knowing.Lock()
	defer b.knowing.Unlock()
	change(&b.known)
	if b.memory == nil {
		return
	}
	raw, err := json.Marshal(b.known)
	if err == nil && bytes.Equal(raw, b.noted) {
		return
	}
	if err == nil {
		err = b.memory.Save(knownKey, raw)
	}
	if b.noted = raw; err != nil {
		b.noted = nil
		b.log.Warn("what is retained could not be noted on disk", "err", err)
	}
}
