package modbus

import (
	"cmp"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"maps"
	"reflect"
	"slices"
	"time"

	"busgate/config"
	"busgate/devices"
)

// knownVersion is that of known: what another one wrote is not used.
const knownVersion = 2

const (
	noteEvery = time.Minute // at most so often the Memory is written, for each unit
	// A register that was refused before a restart is asked again soon: it costs
	// one request, and the device may be another one now.
	refusedSoon = time.Minute
)

// known is what is kept about a unit over a restart. Nothing of it is needed for
// a right value: what is out of date costs a request more, or one exception.
type known struct {
	Version  int      `json:"version"`            // knownVersion
	Map      string   `json:"map"`                // of the points it was learned with
	Identity string   `json:"identity,omitempty"` // of the device
	Turn     int64    `json:"turn_us"`
	P99      int64    `json:"p99_us"`
	Late     int64    `json:"late_us,omitempty"`  // the longest that an answer took which nobody waited for any more
	MaxRead  int      `json:"max_read,omitempty"` // 0: no limit found
	Illegal  [][3]int `json:"illegal,omitempty"`  // table, from, to
	Verified [][3]int `json:"verified,omitempty"`
	Refused  [][4]int `json:"refused,omitempty"` // table, from, to, exception
	Mask     masking  `json:"mask,omitempty"`
	Echo     bool     `json:"echo,omitempty"`
}

// memoryKey is where a unit is kept.
func memoryKey(bus *config.Bus, id byte) string {
	return fmt.Sprintf("modbus/%s/%d", cmp.Or(bus.Serial, bus.TCP), id)
}

// fingerprint is the same as long as the registers of a device are.
func fingerprint(d *config.Device) string {
	h := fnv.New64a()
	fmt.Fprint(h, d.Profile, d.MaxRead)
	for i := range d.Points {
		p := &d.Points[i]
		fmt.Fprint(h, "|", p.Table, p.Addr, " ", devices.Words(p), p.ScaleReg, p.SunSpec, p.Atomic)
	}
	return fmt.Sprintf("%016x", h.Sum64())
}

// recall takes over what the Memory has about the unit, if it is about the same
// map. It is false when there is something that another version wrote, or that
// cannot be read.
func (u *unit) recall(m devices.Memory, bus *config.Bus) bool {
	if m == nil {
		return true
	}
	raw, err := m.Load(memoryKey(bus, u.dev.UnitID))
	if err != nil || len(raw) == 0 {
		return true
	}
	var k known
	switch {
	case json.Unmarshal(raw, &k) != nil || k.Version != knownVersion || !k.sane():
		return false
	case k.Map != fingerprint(u.dev):
		return true
	}
	u.saved, u.loaded = k, true
	u.who, u.mask = k.Identity, k.Mask
	if k.Turn > 0 {
		u.ta = time.Duration(k.Turn) * time.Microsecond
		u.plannedTa = u.ta
	}
	u.p99 = time.Duration(k.P99) * time.Microsecond
	u.latest = time.Duration(k.Late) * time.Microsecond
	if k.MaxRead > 0 {
		u.maxRead = k.MaxRead
	}
	for _, g := range k.Illegal {
		u.forbid(gap{tables[g[0]], g[1], g[2]})
	}
	for _, g := range k.Verified {
		u.verify(gap{tables[g[0]], g[1], g[2]})
	}
	for _, r := range k.Refused {
		u.unsupported[span{tables[r[0]], r[1], r[2]}] = refusal{byte(r[3]), time.Now().Add(refusedSoon)}
	}
	return true
}

// sane says that all numbers are in their ranges.
func (k *known) sane() bool {
	ok := func(table, from, to int) bool {
		return table >= 0 && table < len(tables) && from >= 0 && from < to && to <= 65536
	}
	for _, g := range slices.Concat(k.Illegal, k.Verified) {
		if !ok(g[0], g[1], g[2]) {
			return false
		}
	}
	for _, r := range k.Refused {
		if !ok(r[0], r[1], r[2]) || r[3] < 1 || r[3] > 3 {
			return false
		}
	}
	most := int64(time.Minute / time.Microsecond)
	return k.Turn >= 0 && k.Turn <= most && k.P99 >= 0 && k.P99 <= most && k.Late >= 0 && k.Late <= most && k.MaxRead >= 0 && k.MaxRead <= 125 && k.Mask <= maskMissing
}

// knowledge is what is worth keeping of the unit. Times that hardly moved stay as
// they were saved, so that an SD card is not written for them.
func (u *unit) knowledge(echo bool) known {
	k := known{Version: knownVersion, Map: fingerprint(u.dev), Identity: u.who, Mask: u.mask, Echo: echo}
	k.Turn = steady(u.saved.Turn, u.plannedTa.Microseconds())
	if u.answer.n >= enough || u.loaded {
		k.P99 = steady(u.saved.P99, min(u.p99, time.Minute).Microseconds())
	}
	k.Late = steady(u.saved.Late, min(u.latest, time.Minute).Microseconds())
	if u.maxRead < 125 {
		k.MaxRead = u.maxRead
	}
	index := func(table string) int { return slices.Index(tables[:], table) }
	for _, g := range u.illegal {
		k.Illegal = append(k.Illegal, [3]int{index(g.table), g.from, g.to})
	}
	for g := range u.verified {
		k.Verified = append(k.Verified, [3]int{index(g.table), g.from, g.to})
	}
	for s, r := range u.unsupported {
		k.Refused = append(k.Refused, [4]int{index(s.table), s.from, s.to, int(r.code)})
	}
	slices.SortFunc(k.Illegal, func(a, b [3]int) int { return slices.Compare(a[:], b[:]) })
	slices.SortFunc(k.Verified, func(a, b [3]int) int { return slices.Compare(a[:], b[:]) })
	slices.SortFunc(k.Refused, func(a, b [4]int) int { return slices.Compare(a[:], b[:]) })
	return k
}

// steady is old unless now is more than a quarter away from it.
func steady(old, now int64) int64 {
	if d := now - old; 4*max(d, -d) <= max(old, 1000) {
		return old
	}
	return now
}

// learned notes now and then what was learned about a unit that answers.
func (f *field) learned(u *unit) {
	if now := time.Now(); now.Sub(u.noted) >= noteEvery {
		u.noted = now
		f.note(u)
	}
}

// note writes what is known about a unit, when it changed.
func (f *field) note(u *unit) {
	if f.memory == nil || u.answer.n == 0 {
		return
	}
	l, serial := f.link.(*Line)
	k := u.knowledge(serial && l.echoes.on)
	if reflect.DeepEqual(k, u.saved) {
		return
	}
	raw, err := json.Marshal(k)
	if err != nil {
		f.log.Warn("what was learned cannot be written", "device", u.dev.Name, "err", err)
		return
	}
	f.memory.Save(memoryKey(f.bus, u.dev.UnitID), raw)
	u.saved = k
}

// echoKnown says that an adapter that hears itself was on this wire before.
func (f *field) echoKnown() bool {
	for _, u := range f.units {
		if u.saved.Echo {
			return true
		}
	}
	return false
}

// forget drops what was learned: another device answers under the number.
func (u *unit) forget() {
	u.illegal, u.maxRead, u.widest, u.mask = nil, 125, 0, maskUnknown
	maps.DeleteFunc(u.verified, func(gap, bool) bool { return true })
	maps.DeleteFunc(u.unsupported, func(span, refusal) bool { return true })
	u.layout, u.proven = nil, false
	u.answer, u.turn, u.latest = samples{}, samples{}, 0
	u.place()
	u.version++
}
