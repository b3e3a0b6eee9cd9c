// Package uart reads sensors that send frames on a serial line: lines of text,
// NMEA, binary frames with a header and a sum, smart meters. It makes frames of
// bytes, throws damaged ones away and takes the points out of good ones.
//
//	port ──> reader ──> stream (framer, check) ──> station (a cell per point) ──> Poll
//	                     └ after a bad check it looks for the next header inside
//	                       the rejected bytes, so one damaged frame costs one frame
//
// A talker sends by itself: a poll takes what is new since the last one. A
// polled sensor is sent its request first. It is not for Modbus, and it writes
// no values.
package uart
