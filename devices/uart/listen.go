package uart

import (
	"context"
	"time"

	"busgate/config"
	"busgate/devices"
)

// Listen opens the line of w and gives what its sensors say to emit until ctx
// ends: good frames, damaged ones, and the bytes between them. It never sends.
// Without devices every burst of bytes between two silences is a frame. The
// error is the context's or a devices.Trouble.
func (d *Driver) Listen(ctx context.Context, w devices.Wire, emit func(devices.Frame)) error {
	if len(w.Devices) == 0 {
		w.Devices = []*config.Device{{Name: w.Bus.Name, Frame: &config.Frame{Kind: "idle", Max: maxFrame}}}
	}
	w.Tap = &devices.Tap{}
	_, coming, stop := w.Tap.Watch()
	defer stop()
	field, err := d.Open(ctx, w)
	if err != nil {
		return err
	}
	defer field.Close()
	f := field.(*Field)
	look := time.NewTicker(readSlice)
	defer look.Stop()
	for {
		select {
		case x := <-coming:
			emit(x)
		case <-look.C:
			if err := f.failed(); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// failed is why the line cannot be read any more, nil while it can.
func (f *Field) failed() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// Explainer reads the frames of a line for people. It is made once for a line.
type Explainer struct{ stations []*station }

// NewExplainer is for the sensors of one line; those that make no sense are left out.
func NewExplainer(devs []*config.Device) *Explainer {
	x := &Explainer{}
	for _, d := range devs {
		if st, err := newStation(d); err == nil {
			x.stations = append(x.stations, st)
		}
	}
	return x
}

// Explain says which sensor sent a good frame and what it holds: the readings
// in the order of its points, without those that have no usable value. The device
// is nil when no sensor sends such frames.
func (x *Explainer) Explain(frame []byte) (dev *config.Device, readings []devices.Reading) {
	for _, st := range x.stations {
		if len(frame) == 0 || !st.whole(frame) {
			continue
		}
		f := newFrame(st.dev.Frame, frame)
		for i, pk := range st.picks {
			if v, q, ok, err := pk(f); ok && err == nil {
				readings = append(readings, devices.Reading{Point: st.dev.Points[i].Name, Value: v, Quality: q})
			}
		}
		return st.dev, readings
	}
	return nil, nil
}

// whole says that b is just one good frame of the sensor.
func (st *station) whole(b []byte) bool {
	fr, err := newFramer(st.dev.Frame, false)
	if err != nil {
		return false
	}
	from, to, _ := fr.find(b, true)
	return from == 0 && to == len(b) && st.stream.check(b)
}
