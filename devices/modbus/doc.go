// Package modbus asks Modbus units: RTU and ASCII over a serial port or over TCP,
// and Modbus TCP, also in datagrams. It is a devices.Driver.
//
//	Group ──plan──> blocks ──goburrow Client + Packager──> Line (RTU, ASCII) ──> port
//	          ^                                            TCP (MBAP)        ──> net.Conn
//	          │ learned: turnaround, gaps, limits <──> devices.Memory
//	Values <──devices.Decode── registers <─────────────────┘
//
// goburrow/modbus gives the encoding of requests and the decoding of answers;
// waiting, framing and everything that keeps a late or foreign answer from
// being taken for ours is here. The points of a SunSpec device are found by
// walking through its models. The room knows no schedule: the bus goroutine of
// devices calls it, one call at a time.
package modbus
