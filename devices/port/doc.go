// Package port opens serial ports and keeps them: the lock against a second
// program, the settings of RS-485 and latency, low file descriptors, and errors
// that say what is wrong with the port in words for people.
//
//	modbus, uart ──> Opener.Open ──> Port (Read, Write, SetReadTimeout, Close)
//	                                  │
//	            flock · RS-485 · low latency · go.bug.st/serial
//
// It knows no protocol and no schedule, and it never opens a port that nobody
// named: listing ports with the serial library opens every ttyS*, which can
// hang (go-serial#104).
package port
