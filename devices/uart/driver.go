package uart

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"busgate/config"
	"busgate/devices"
	"busgate/devices/port"
)

// Port is what a Field needs of an open line. Read returns 0, nil at the end of
// the read timeout.
type Port interface {
	Read([]byte) (int, error)
	Write([]byte) (int, error)
	SetReadTimeout(time.Duration) error
	Close() error
}

// Driver reads UART sensors. It implements devices.Driver; the zero Driver is
// ready to use. Safe for concurrent use.
type Driver struct {
	// OpenPort opens the line of a bus; nil is devices/port, or a TCP
	// connection. The simulator and tests put theirs here.
	OpenPort func(ctx context.Context, w devices.Wire) (Port, error)

	ports port.Opener
}

var _ devices.Driver = (*Driver)(nil)

// Error is a trouble of a whole line, in words for people: a devices.Trouble.
type Error struct {
	word, text string
	err        error
}

// Word is uart-setup, unreachable or port-gone.
func (e *Error) Word() string { return e.word }

// Text is one sentence for people.
func (e *Error) Text() string { return e.text }

func (e *Error) Error() string {
	if e.err == nil {
		return e.word + ": " + e.text
	}
	return e.word + ": " + e.err.Error()
}

func (e *Error) Unwrap() error { return e.err }

// Open opens the line and starts reading. A frame or point that makes no sense is
// refused before the port is touched, with the word uart-setup.
func (d *Driver) Open(ctx context.Context, w devices.Wire) (devices.Field, error) {
	for _, dev := range w.Devices {
		if _, err := newStation(dev); err != nil {
			return nil, &Error{"uart-setup", fmt.Sprintf("device %s: %v", dev.Name, err), err}
		}
	}
	var p Port
	var err error
	switch {
	case d.OpenPort != nil:
		p, err = d.OpenPort(ctx, w)
	case w.Bus.TCP != "":
		p, err = dial(ctx, w.Bus.TCP)
	default:
		var sp *port.Port
		if sp, err = d.ports.Open(w.Bus, len(w.Devices), w.Log); err == nil {
			p = sp
		}
	}
	if err != nil {
		return nil, err
	}
	return newField(w, p), nil
}

// Cost of a talker is nothing: it sends by itself. A polled sensor costs its
// request, its answer of unknown length, taken as 32 bytes unless the frame says
// more, and the time it thinks.
func (d *Driver) Cost(w devices.Wire, dev *config.Device, _ []int) (requests int, each time.Duration) {
	f := dev.Frame
	if f == nil || len(f.Request) == 0 {
		return 0, 0
	}
	n := len(f.Request) + max(f.Length, 32)
	return 1, time.Duration(n)*charTime(w.Bus) + cmp.Or(dev.AnswerTime, 20*time.Millisecond)
}

// charTime is how long one character takes on a serial line; 0 on TCP.
func charTime(bus *config.Bus) time.Duration {
	if bus.Baud <= 0 || bus.TCP != "" {
		return 0
	}
	bits := 1 + bus.DataBits + bus.StopBits
	if bus.Parity != 'N' {
		bits++
	}
	return time.Duration(bits) * time.Second / time.Duration(bus.Baud)
}
