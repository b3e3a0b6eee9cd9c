// Package sim is the far end of a wire: an RS-485 bus of Modbus units, a
// Modbus TCP server, and UART sensors that talk, each with faults that can be
// switched on one by one. The tests and the demo read them; they import
// nothing of the module, so that they judge it by other eyes than its own.
//
//	Unit ── Unit ── Unit          tables of registers, some of them alive
//	  └──────┴───────┴── Bus      characters, silences, collisions, faults
//	                      ├── Port   Read, Write, SetReadTimeout, Close: also in testing/synctest
//	                      └── Pty    the same bus behind a real tty, in real time
//	Unit ── Unit ── TCP           Modbus TCP, or RTU over TCP
//
// A Bus owns no goroutine: it is a queue of events that Read and Write move
// forward to the present. Inside a testing/synctest bubble a minute of traffic
// therefore takes no time, and two runs with one seed are equal.
package sim
