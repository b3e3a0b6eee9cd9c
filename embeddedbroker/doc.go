// Package embeddedbroker is the MQTT server and router of busgate: 3.1, 3.1.1
// and 5.0 for the clients of the LAN, and the same router without a socket for
// what runs in this process. Its promise: a PUBACK or PUBREC for a message that
// something durable wants leaves after the flush that covers it.
//
// It knows no devices and no SQL. What must outlive the process goes through
// the interface Store, which embeddedbroker/durable implements on package
// buffer and Memory in RAM. The codec is embeddedbroker/packet. Enhanced
// authentication (AUTH), mount points and clustering are not here.
//
//	client ──> reader ── decode, ACL ──> publishLocked ── match once ──┐ core.mu
//	Local.Publish ─────────────────────────────^                       │
//	                                                                   v
//	           ┌── session queues, local queues <── handOver <── Store.Append
//	           v                                                       │ flush
//	client <── writer <── slots (answers, in order) <── Committed <────┘
//
// One mutex (Broker.mu) orders everything that is published or subscribed; each
// entry for the Store gets its number there. The effects of an entry (answers,
// deliveries) are released by its completion, in the order of the numbers: a
// queue is filled in that order and its writer never passes what is not
// released. No lock is held across a socket, and lock order is Broker.mu, one
// session, one connection.
//
// A persistent session holds numbers, not messages: what was written and not
// answered is read again from the Store on reconnect, and a session that is far
// behind reads everything from there.
//
// Nobody is trusted before the password is checked, and nobody with memory
// afterwards: connections that wait, hashing, names, topics, filters, retained
// levels, sessions and wills have bounds (limits.go, hashing.go, subscribe.go,
// retained.go, connect.go), and an address that runs into them has one line a
// minute. What they may ask for has a pace (pace.go): a flood waits in the kernel
// or at its own connection, and nobody else waits for it.
package embeddedbroker
