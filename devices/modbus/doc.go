// Package modbus asks Modbus units: RTU over a serial port or over TCP, and
// Modbus TCP. It is a devices.Driver.
//
//	Group ──plan──> blocks ──goburrow Client + Packager──> Line (RTU)  ──> port
//	                                                       TCP  (MBAP) ──> net.Conn
//	Values <──devices.Decode── registers <─────────────────┘
//
// goburrow/modbus gives the encoding of requests and the decoding of answers;
// waiting, framing and everything that keeps a late or foreign answer from
// being taken for ours is here. The room knows no schedule: the bus goroutine of
// devices calls it, one call at a time.
package modbus
