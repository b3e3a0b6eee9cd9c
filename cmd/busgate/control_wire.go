package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"

	"busgate/config"
	"busgate/devices/modbus"
)

// wire is a bus as a command reaches it: through the daemon that has it open, or
// by opening it.
type wire struct {
	driver *modbus.Driver
	lent   *busRow // of the daemon; nil: the command opens the wire itself
	client *controlClient
}

// reach finds out whether a daemon has the wire of bus. If so its settings go
// into bus. With no wire it gives the exit status.
func reach(ctx context.Context, e *env, name, socket string, bus *config.Bus) (*wire, int) {
	client := newControlClient(socket)
	row, err := client.busOn(ctx, bus)
	switch {
	case errors.Is(err, errNoDaemon):
		return &wire{driver: &modbus.Driver{}}, exitOK
	case errors.Is(err, fs.ErrPermission) && (bus.TCP != "" || !held(bus.Serial)): // it is another wire than the daemon's, or may be
		return &wire{driver: &modbus.Driver{}}, exitOK
	case err != nil:
		return nil, controlExit(e, name, err)
	case row == nil:
		return &wire{driver: &modbus.Driver{}}, exitOK
	}
	bus.Protocol = row.Protocol
	if row.Baud != 0 {
		bus.Baud, bus.DataBits, bus.Parity, bus.StopBits = row.Baud, int(row.Format[0]-'0'), row.Format[1], int(row.Format[2]-'0')
	}
	share := name == "scan"
	return &wire{lent: row, client: client, driver: &modbus.Driver{Guest: func(ctx context.Context, q modbus.Question) (r modbus.Reply, err error) {
		err = client.call(ctx, "/v1/exchange", exchangeRequest{Bus: row.Name, Share: share, Question: q}, &r)
		return r, err
	}}}, exitOK
}

// held tells whether another program has a serial port open and locked.
func held(path string) bool {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return errors.Is(err, unix.EBUSY)
	}
	defer unix.Close(fd)
	return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) != nil
}

// busOn is the daemon's bus on the wire of bus, nil when it has none there.
func (c *controlClient) busOn(ctx context.Context, bus *config.Bus) (*busRow, error) {
	var rows []busRow
	if err := c.call(ctx, "/v1/buses", nil, &rows); err != nil {
		return nil, err
	}
	for i, r := range rows {
		if bus.Serial != "" && r.Serial != "" && samePort(bus.Serial, r.Serial) || bus.TCP != "" && bus.TCP == r.TCP {
			return &rows[i], nil
		}
	}
	return nil, nil
}

// setting is "9600 8N1", or the address of a network endpoint.
func (r *busRow) setting() string {
	if r.Baud == 0 {
		return r.TCP
	}
	return fmt.Sprintf("%d %s", r.Baud, r.Format)
}

// answering is "2 devices answer".
func (r *busRow) answering() string {
	switch r.Online {
	case 0:
		return "no device answers"
	case 1:
		return "1 device answers"
	}
	return fmt.Sprintf("%d devices answer", r.Online)
}
