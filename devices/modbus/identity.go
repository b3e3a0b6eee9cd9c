package modbus

import (
	"context"
	"errors"
	"strings"

	gb "github.com/goburrow/modbus"

	"busgate/devices"
)

// noIdentity is the identity of a device that does not tell one.
const noIdentity = "-"

// identify asks who answers under a number, so that what was learned about
// another device is not used for it: once after the wire was opened, and again
// when the unit comes back from silence. A device that told nothing the first
// time is not asked again. Without a Memory nothing is asked.
func (r *round) identify(ctx context.Context) error {
	u := r.u
	if r.f.memory == nil || u.asked || u.who == noIdentity {
		return nil
	}
	if err := r.yield(ctx, 0); err != nil {
		return err
	}
	who, err := r.f.identity(ctx, u)
	switch {
	case err == nil:
	case errors.Is(err, devices.ErrNoAnswer) || errors.Is(err, devices.ErrBadFrame):
		if u.who != "" { // it told once: noise
			return nil
		}
		who = noIdentity
	default:
		if _, refused := errors.AsType[*devices.Exception](err); !refused {
			return err
		}
		who = noIdentity
	}
	u.asked = true
	if u.who != "" && u.who != who {
		u.forget()
		r.f.log.Info("another device answers; what was learned about the one before is forgotten", "device", u.dev.Name, "identity", who)
	}
	u.who = who
	return nil
}

// identity is vendor, product code and revision (Modbus AP v1.1b3, 6.21).
func (f *field) identity(ctx context.Context, u *unit) (string, error) {
	f.pack.unit(u.dev.UnitID)
	adu, err := f.pack.Encode(&gb.ProtocolDataUnit{FunctionCode: 0x2B, Data: []byte{0x0E, 1, 0}})
	if err != nil {
		return "", err
	}
	u.counts.Requests++
	ans, err := f.link.exchange(ctx, adu, u.patience(f.bus, f.timing))
	if err != nil {
		if errors.Is(err, devices.ErrNoAnswer) {
			u.counts.Timeouts++
		}
		return "", err
	}
	pdu, err := f.pack.Decode(ans)
	if err != nil {
		u.counts.Bad++
		return "", errors.Join(devices.ErrBadFrame, err)
	}
	if pdu.FunctionCode != 0x2B {
		u.counts.Exceptions++
		return "", &devices.Exception{Function: 0x2B, Text: "function 43 refused"}
	}
	u.counts.Good++
	return identityText(pdu.Data), nil
}

// identityText joins the objects of an answer, at most 200 bytes of each.
func identityText(b []byte) string {
	if len(b) < 6 {
		return noIdentity
	}
	var out []string
	rest := b[6:]
	for range int(b[5]) {
		if len(rest) < 2 || len(rest) < 2+int(rest[1]) {
			break
		}
		out = append(out, strings.ToValidUTF8(string(rest[2:2+min(int(rest[1]), 200)]), "?"))
		rest = rest[2+int(rest[1]):]
	}
	if len(out) == 0 {
		return noIdentity
	}
	return strings.Join(out, " | ")
}
