package bridge

import (
	"bytes"
	"fmt"
	"reflect"
	"slices"

	"busgate/config"
)

// Update takes a changed configuration, all or nothing, before the devices take
// it: removed devices go offline and their retained topics are emptied, changed
// info is published again, new devices are announced as offline. Name and topic
// of the gateway cannot change.
func (b *Bridge) Update(cfg *config.Config) error {
	b.updating.Lock()
	defer b.updating.Unlock()
	if base := cfg.Gateway.Base(); base != b.base {
		return fmt.Errorf("`name` needs a restart: systemctl restart busgate (%s became %s)", b.base, base)
	}
	next, err := b.plan(cfg)
	if err != nil {
		return err
	}
	b.knowDevices(b.sorted(), sortDevices(next))
	b.unixMS.Store(cfg.Gateway.Time == "unix_ms")
	b.mu.Lock()
	before := b.devices
	same := sendsScalars(cfg) == sendsScalars(b.cfg)
	for name, d := range next {
		old := before[name]
		if old != nil && same && old.unchanged(d) {
			next[name] = old
			continue
		}
		d.mu.Lock() // until it is introduced: nothing goes out before it knows what did
		if old != nil {
			d.inherit(old) // for a Birth of this moment
		}
	}
	b.devices, b.cfg = next, cfg
	b.mu.Unlock()

	for _, d := range sortDevices(before) {
		if next[d.cfg.Name] == nil {
			b.retire(d)
		}
	}
	for _, d := range sortDevices(next) {
		if before[d.cfg.Name] != d {
			b.introduce(d, before[d.cfg.Name])
		}
	}
	b.updateUplinks(cfg)
	b.knowDevices(sortDevices(next))
	b.discover(false)
	b.Changed()
	return nil
}

// updateUplinks makes the table of uplinks and their topics follow the
// configuration.
func (b *Bridge) updateUplinks(cfg *config.Config) {
	b.speaking.Lock()
	defer b.speaking.Unlock()
	b.mu.Lock()
	added, removed := b.uplinksLocked(cfg)
	b.mu.Unlock()
	for _, name := range added {
		b.board.post(b.word(b.uplinkTopic(name), wordOffline))
	}
	for _, name := range removed {
		b.board.empty(b.uplinkTopic(name))
		b.board.empty(b.uplinkTopic(name) + "/stats")
	}
}

// uplinksLocked makes the table of uplinks follow the configuration and names
// those that came and went.
func (b *Bridge) uplinksLocked(cfg *config.Config) (added, removed []string) {
	for name := range b.uplinks {
		if cfg.Uplinks[name] == nil {
			delete(b.uplinks, name)
			removed = append(removed, name)
		}
	}
	for name := range cfg.Uplinks {
		if _, known := b.uplinks[name]; !known {
			b.uplinks[name] = wordOffline
			added = append(added, name)
		}
	}
	slices.Sort(added)
	slices.Sort(removed)
	return added, removed
}

// unchanged says that nothing about the device is another than before.
func (d *device) unchanged(n *device) bool {
	return reflect.DeepEqual(d.cfg, n.cfg) && reflect.DeepEqual(d.bus, n.bus)
}

// introduce publishes a device that is new, or that replaces old, and unlocks it.
func (b *Bridge) introduce(d, old *device) {
	defer d.mu.Unlock()
	if old == nil {
		b.board.post(b.word(d.topics.status, wordOffline))
		b.board.post(b.message(d.topics.info, d.info(), true))
		return
	}
	old.mu.Lock()
	old.gone = true
	old.mu.Unlock()
	d.online = old.online
	d.inherit(old)
	restarts := d.cfg.UnitID != old.cfg.UnitID || d.cfg.Profile != old.cfg.Profile || d.cfg.Bus != old.cfg.Bus || !d.cfg.Enabled
	if d.online && restarts {
		d.online = false
		b.board.post(b.word(d.topics.status, wordOffline))
	}
	if m := b.board.get(d.topics.info); m == nil || !bytes.Equal(m.Payload, d.info()) {
		b.board.post(b.message(d.topics.info, d.info(), true))
	}
	for _, topic := range old.topics.points {
		if !slices.Contains(d.topics.points, topic) {
			b.board.empty(topic)
		}
	}
}

// inherit takes over what was published under the plan before.
func (d *device) inherit(old *device) {
	old.last.Lock()
	defer old.last.Unlock()
	d.last.state = old.last.state
	for i, topic := range d.topics.points {
		if k := slices.Index(old.topics.points, topic); k >= 0 {
			d.last.scalars[i] = old.last.scalars[k]
		}
	}
}

// retire takes a device off the map: offline first, then nothing retained is left.
func (b *Bridge) retire(d *device) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.gone = true
	b.board.post(b.word(d.topics.status, wordOffline))
	b.board.empty(d.topics.state)
	for _, topic := range d.topics.points {
		b.board.empty(topic)
	}
	b.board.empty(d.topics.status)
	b.board.empty(d.topics.info)
	if b.board.get(d.topics.failure) != nil {
		b.board.empty(d.topics.failure)
	}
}
