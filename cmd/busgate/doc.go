// Command busgate reads meters, relays and sensors on RS-485, Modbus TCP and
// UART, serves them over MQTT on the LAN, and relays them to a cloud broker
// over a link that comes and goes.
//
// This room parses words, wires the rooms below and prints. It is not for
// business logic: a rule about buses, messages or records has its own room.
//
//	main.go      the table of commands
//	gateway.go   the wiring that run and demo share
//	stages.go    the order of starting and stopping
//	console.go   what the console sees of the rooms; metrics.go, its numbers
package main
