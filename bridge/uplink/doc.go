// Package uplink drains one consumer of the store to one cloud broker over
// MQTT 3.1.1, and lets down what the owner allows.
//
// The store is the truth; the MQTT session is a projection of it. The room
// keeps no queue of its own and acknowledges nothing to the store before the
// cloud has acknowledged it:
//
//	buffer.Consumer ── Next ──> session ── frames ──> wire ──> cloud broker
//	      ^                       │  ^                  │
//	      └──── Ack, Release ─────┘  └──── frames ──────┘
//
//	Link      states, back-off, addresses, budget; one goroutine owns it
//	session   what is owed, in flight, subscribed: frames in, frames out; no
//	          socket, no clock but the time it is given
//	wire      frames over a net.Conn: bounded reads, batched writes, deadlines
//
// Exactness rests on two numbers. The consumer numbers its deliveries densely
// (ord = 1, 2, 3 ...); C is the ord up to which all is completed, R >= C the ord
// up to which the cloud has taken over (PUBREC) and the store knows it. The
// packet id is ord % 65535 + 1, so a restart finds the same id for the same
// record without having written anything for it: ords in (C,R] owe a PUBREL,
// ords above R owe a PUBLISH.
//
// What a packet carries is made by pure functions, one a file: as it is
// (encode.go), many readings in one (batch.go), or in ThingsBoard's own form
// (thingsboard.go; its calls become commands in rpc.go).
//
// It is not for deciding who wants a message (the broker's router does, see
// Wants), for writing to devices (package bridge does), or for keeping anything.
package uplink
