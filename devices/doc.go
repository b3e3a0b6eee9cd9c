// Package devices asks field devices in time and turns their bytes into
// readings: schedules, quarantine, commands and their read-back, learned
// timeouts, and what to say when something is wrong with a bus.
//
//	Fleet ── bus (goroutine) ── Field of a Driver: devices/modbus, devices/uart
//	  │        │ earliest deadline first; writes before polls; probes <= 5 %
//	  │        └── device ── group of points = one Round
//	  │
//	  ├── Sink.Take(Round), Sink.Health      (bridge implements it)
//	  ├── Write(Command) Result, Refresh, Update, Status
//	  └── Visit, Read, Tap: a guest on the wire between two polls, and its frames
//
// It knows no MQTT, no JSON but that of a Value, no disk, and it does not mend
// clocks: a Round carries the monotonic instant of its last answer.
package devices
