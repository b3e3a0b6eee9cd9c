// Package durable is the Store of the broker on package buffer: what the broker
// acknowledges is in its file.
//
// It translates and keeps nothing of its own but a few names: a Message becomes
// a Record, an Op a Change, a persistent session a consumer that is read by
// sequence number. It knows no MQTT packets and no SQL.
//
//	Broker ── Entry{Msg, Targets, Ops} ──> durable ── Record, Change ──> buffer
//
// A message for uplinks and for sessions becomes two records of one
// transaction, because a session's record carries what each delivery needs
// (number, QoS, subscription ids) in front of the properties, and an uplink's
// record is exactly what goes up.
package durable
