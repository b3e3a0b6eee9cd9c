package modbus

import (
	"context"
	"errors"

	gb "github.com/goburrow/modbus"

	"busgate/config"
	"busgate/devices"
)

// masking is what is known about function 22 of a unit.
type masking uint8

const (
	maskUnknown masking = iota
	maskKnown
	maskMissing
)

// Set writes: coils with function 5, or 15 for several; a register with 6, more
// with 16, and everything with 15 and 16 where write_fc says so. A part of a
// register goes with function 22 where the unit knows it, else it is read, merged
// and written back to back. Over UDP nothing is written: a datagram may come
// twice.
func (f *field) Set(ctx context.Context, dev *config.Device, items []devices.Item) error {
	u := f.unitOf(dev)
	if f.bus.Protocol == "modbus-udp" || items[0].Point.Table != "coil" && items[0].Point.Table != "holding" {
		return errors.ErrUnsupported
	}
	p, err := f.locate(u, items[0].Point)
	if err != nil {
		return err
	}
	raw := items[0].Raw
	if items[0].Mask != nil {
		done, err := f.mask(ctx, u, p, items[0])
		if done {
			return err
		}
		old, err := f.Get(ctx, dev, items[0].Point)
		if err != nil {
			return err
		}
		raw = merge(old, raw, items[0].Mask)
	}
	many := dev.WriteFC == 16
	_, err = f.do(ctx, u, u.patience(f.bus, f.timing), func(c gb.Client) ([]byte, error) {
		switch {
		case p.Table == "coil" && (len(items) > 1 || many):
			bits := make([]byte, (len(items)+7)/8)
			for i, it := range items {
				if it.Raw[0] != 0 {
					bits[i/8] |= 1 << (i % 8)
				}
			}
			return c.WriteMultipleCoils(p.Addr, uint16(len(items)), bits)
		case p.Table == "coil":
			v := uint16(0)
			if raw[0] != 0 {
				v = 0xFF00
			}
			return c.WriteSingleCoil(p.Addr, v)
		case len(raw) == 2 && !many:
			return c.WriteSingleRegister(p.Addr, uint16(raw[0])<<8|uint16(raw[1]))
		}
		return c.WriteMultipleRegisters(p.Addr, uint16(len(raw)/2), raw)
	})
	return err
}

// mask writes a part of one register with function 22 (Modbus AP v1.1b3, 6.16).
// done is false when the unit has to be written another way. A unit that is
// silent about it for the first time is not asked so again; whether it was done
// shows when the register is read back.
func (f *field) mask(ctx context.Context, u *unit, p *config.Point, it devices.Item) (done bool, err error) {
	at, ok := oneRegister(it.Mask)
	if !ok || u.mask == maskMissing {
		return false, nil
	}
	word := func(b []byte) uint16 { return uint16(b[2*at])<<8 | uint16(b[2*at+1]) }
	mine := word(it.Mask)
	_, err = f.do(ctx, u, u.patience(f.bus, f.timing), func(c gb.Client) ([]byte, error) {
		return c.MaskWriteRegister(p.Addr+uint16(at), ^mine, word(it.Raw)&mine)
	})
	_, refused := errors.AsType[*devices.Exception](err)
	switch {
	case err == nil:
		u.mask = maskKnown
	case u.mask == maskUnknown && refused:
		u.mask = maskMissing
		return false, nil
	case u.mask == maskUnknown && errors.Is(err, devices.ErrNoAnswer):
		u.mask = maskMissing
	case refused && exceptionCode(err) == exFunction: // another device than it was
		u.mask = maskMissing
		return false, nil
	}
	return true, err
}

func exceptionCode(err error) byte {
	if x, ok := errors.AsType[*devices.Exception](err); ok {
		return x.Code
	}
	return 0
}

// oneRegister is the only register in which a mask has bits.
func oneRegister(mask []byte) (at int, ok bool) {
	at = -1
	for i, m := range mask {
		switch {
		case m == 0:
		case at >= 0 && at != i/2:
			return 0, false
		default:
			at = i / 2
		}
	}
	return at, at >= 0
}

// merge is old with the bits of mask from raw.
func merge(old, raw, mask []byte) []byte {
	out := make([]byte, len(raw))
	for i := range out {
		out[i] = old[i]&^mask[i] | raw[i]&mask[i]
	}
	return out
}
