package modbus

import (
	"time"

	"busgate/devices"
)

// trial watches the parts of a request that was refused although it had no gaps:
// when all of them answer, its size was the fault.
type trial struct {
	width, open, widest int
	refused             bool
}

// learn draws the conclusion from exception 2 or 3: first the widest gap that
// nobody has read over yet, then the size, at last the register itself. A size
// that was read before is no fault: then one of the gaps has become illegal since
// it was read over.
func (r *round) learn(t task, x *devices.Exception) {
	widest, at := t.widestGap(r.u.verified)
	if at == 0 && (x.Code == exAddress || t.width() <= r.u.widest) {
		widest, at = t.widestGap(nil)
	}
	switch {
	case at > 0:
		delete(r.u.verified, widest)
		r.u.forbid(widest)
	case len(t.parts) > 1:
		at = len(t.parts) / 2
		if t.trial == nil {
			t.trial = &trial{width: t.width(), open: 1}
		}
	default:
		r.unsupported(t.span, x)
		r.settle(t, true)
		return
	}
	a, b := t.splitAt(at)
	if t.trial != nil {
		t.trial.open++
	}
	r.queue = append([]task{{request: a, trial: t.trial}, {request: b, trial: t.trial}}, r.queue...)
}

// widestGap is the widest gap of a request that is not among the verified, and
// the part behind it; 0: there is none.
func (r request) widestGap(verified map[gap]bool) (widest gap, at int) {
	end := r.from
	for i, s := range r.parts {
		g := gap{r.table, end, s.from}
		if i > 0 && g.to-g.from > widest.to-widest.from && !verified[g] {
			widest, at = g, i
		}
		end = max(end, s.to)
	}
	return widest, at
}

// settle closes one part of a trial.
func (r *round) settle(t task, refused bool) {
	tr := t.trial
	if tr == nil {
		return
	}
	tr.open--
	tr.refused = tr.refused || refused
	if !refused {
		tr.widest = max(tr.widest, t.width())
	}
	if tr.open == 0 && !tr.refused && !isBits(t.table) && tr.widest < tr.width {
		r.u.maxRead = max(1, tr.widest)
		r.u.widest = min(r.u.widest, r.u.maxRead)
		r.u.version++
	}
}

// unsupported notes registers that the unit does not have; they are asked again in an hour.
func (r *round) unsupported(s span, x *devices.Exception) {
	r.u.unsupported[s] = refusal{x.Code, time.Now().Add(askAgain)}
	r.u.version++
}
