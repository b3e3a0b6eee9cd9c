package sim

import (
	"slices"
	"time"
)

// endFrameLocked: the silence after a request is over at the moment at; the
// units look at it.
func (b *Bus) endFrameLocked(at time.Duration) {
	frame, bad := b.frame, b.frameBad
	b.frame, b.frameBad = nil, false
	b.stats.Requests++
	if bad || b.faults.Silent {
		return
	}
	if b.faults.WrongBaud {
		b.garbageLocked(len(frame), at)
		return
	}
	if b.reply != nil {
		if p := b.reply(frame, at); p != nil {
			b.deliverLocked(p, nil, Faults{}, at)
		}
		return
	}
	id, pdu, ok := b.line.open(frame)
	if !ok {
		b.stats.BadRequests++
		return
	}
	if id == 0 { // broadcast: all do it, nobody answers. Modbus over Serial Line v1.02, 2.1
		for _, u := range b.units {
			if _, _, f := u.settings(); !f.Dead && !b.faults.Dead {
				u.Serve(pdu, b.start.Add(at))
			}
		}
		return
	}
	u := b.units[id]
	if u == nil {
		b.stats.Unheard++
		return
	}
	think, jitter, f := u.settings()
	if f.Dead || b.faults.Dead {
		b.stats.Unheard++
		return
	}
	if jitter > 0 {
		think += time.Duration(b.rng.Int64N(int64(jitter)))
	}
	answer := u.Serve(pdu, b.start.Add(at))
	if answer == nil {
		b.stats.Unheard++
		return
	}
	if b.rollLocked(b.faults.Except) {
		answer = exception(pdu[0], b.faults.Code)
	} else if b.rollLocked(f.Except) {
		answer = exception(pdu[0], f.Code)
	}
	if answer[0]&0x80 != 0 {
		b.stats.Exceptions++
	}
	var foreign []byte
	if b.rollLocked(b.faults.Foreign) || b.rollLocked(f.Foreign) {
		b.stats.Foreign++
		foreign = b.line.Seal(id%247+1, answer)
	}
	b.deliverLocked(b.line.Seal(id, answer), foreign, f, u.done(at, think))
}

// deliverLocked puts an answer on the wire at the moment at, as the faults want
// it. before is sent first, back to back.
func (b *Bus) deliverLocked(p, before []byte, f Faults, at time.Duration) {
	g := b.faults
	if b.rollLocked(g.Lose) || b.rollLocked(f.Lose) {
		b.stats.Lost++
		return
	}
	if b.rollLocked(g.Noise) || b.rollLocked(f.Noise) {
		b.garbageLocked(4, at)
		b.stats.Late++
		at += max(g.LateBy, f.LateBy)
	}
	switch {
	case b.rollLocked(g.Late):
		b.stats.Late++
		at += g.LateBy
	case b.rollLocked(f.Late):
		b.stats.Late++
		at += f.LateBy
	}
	p = b.damageLocked(slices.Clone(p), f)
	switch {
	case b.rollLocked(g.Stray):
		b.stats.Stray++
		before = append(before, g.StrayByte)
	case b.rollLocked(f.Stray):
		b.stats.Stray++
		before = append(before, f.StrayByte)
	}
	b.stats.Answers++
	b.launchLocked(append(before, p...), at, !b.fullDuplex())
}

// damageLocked hurts the bytes of one frame and counts it once.
func (b *Bus) damageLocked(p []byte, f Faults) []byte {
	hurt := false
	g := b.faults
	if b.rollLocked(g.Damage) || b.rollLocked(f.Damage) {
		p[b.rng.IntN(len(p))] ^= 1 << b.rng.IntN(8)
		hurt = true
	}
	if rate := 1 - (1-g.BitError)*(1-f.BitError); rate > 0 {
		for i := range p {
			if b.rollLocked(rate) {
				p[i] ^= 1 << b.rng.IntN(8)
				hurt = true
			}
		}
	}
	if len(p) > 4 && (b.rollLocked(g.Cut) || b.rollLocked(f.Cut)) {
		i := 1 + b.rng.IntN(len(p)-3)
		p = slices.Delete(p, i, i+1+b.rng.IntN(2))
		hurt = true
	}
	if g.Double || f.Double { // the second one begins a little later: the line carries the AND of both
		k := 1 + b.rng.IntN(3)
		both := append(slices.Clone(p), make([]byte, k)...)
		for i := range both {
			v := byte(0xFF)
			if i < len(p) {
				v &= p[i]
			}
			if i >= k {
				v &= p[i-k]
			}
			both[i] = v
		}
		p, hurt = both, true
	}
	if hurt {
		b.stats.Damaged++
	}
	return p
}

// garbageLocked is what a receiver makes of an answer at another speed.
func (b *Bus) garbageLocked(n int, at time.Duration) {
	p := make([]byte, n+b.rng.IntN(n+1)+3)
	for i := range p {
		p[i] = byte(b.rng.Uint32())
	}
	b.stats.Answers++
	b.stats.Damaged++
	b.launchLocked(p, at, !b.fullDuplex())
}

// talkLocked sends the next frame of a talker.
func (b *Bus) talkLocked(at time.Duration) {
	n := b.talks
	b.talks++
	b.talkNext += b.talkEvery
	if b.faults.Dead || b.faults.Silent {
		return
	}
	p := b.talk(n, at)
	if len(p) == 0 {
		return
	}
	b.stats.Talks++
	if b.faults.WrongBaud {
		b.garbageLocked(len(p), at)
		return
	}
	if k := len(b.air); k > 0 { // its own last frame is not out yet
		at = max(at, b.air[k-1].end)
	}
	b.deliverLocked(p, nil, Faults{}, at)
}

// secondMasterLocked lets another master ask unit 4, and the unit answer it.
func (b *Bus) secondMasterLocked(at time.Duration) {
	every := b.faults.SecondMaster
	b.masterNext = at + every/2 + time.Duration(b.rng.Int64N(int64(every)))
	ask := b.line.Seal(4, []byte{3, 0, byte(b.rng.IntN(256)), 0, 2})
	b.launchLocked(ask, at, true)
	b.stats.Foreign++
	answer := b.line.Seal(4, []byte{3, 4, 0, byte(b.rng.Uint32()), 0, byte(b.rng.Uint32())})
	b.launchLocked(answer, at+time.Duration(len(ask))*b.line.Char()+b.line.Silence()+20*time.Millisecond, true)
}

// rollLocked is true with probability p. It draws nothing for 0, so that a
// fault which is off does not move the others.
func (b *Bus) rollLocked(p float64) bool { return p > 0 && b.rng.Float64() < p }
