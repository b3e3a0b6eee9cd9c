package embeddedbroker

import "sync/atomic"

// counters since the start. Everybody adds, Stats reads.
type counters struct {
	received, receivedBytes       atomic.Uint64 // PUBLISH packets in; bytes of everything in
	publishBytes                  atomic.Uint64 // payload bytes in
	sent, sentBytes, sentAll      atomic.Uint64 // PUBLISH packets out, their payload bytes; bytes of everything out
	packetsIn                     atomic.Uint64
	answers                       atomic.Uint64 // packets out that are no PUBLISH
	dropped                       atomic.Uint64
	droppedFull                   atomic.Uint64
	droppedLocal                  atomic.Uint64
	expired, oversize             atomic.Uint64
	refusedFull                   atomic.Uint64
	refusedReserved, refusedACL   atomic.Uint64
	withheld                      atomic.Uint64
	slowClosed                    atomic.Uint64
	failedLogins, refusedConnects atomic.Uint64
	paced, slowed, refusedAliases atomic.Uint64
	endedFull                     atomic.Uint64
	unknownAcks                   atomic.Uint64
	expiredSessions               atomic.Uint64
	connectionsAll, socketsAll    atomic.Uint64
}

// packetsOut is what was sent: messages, and answers to what came.
func (n *counters) packetsOut() uint64 { return n.sent.Load() + n.answers.Load() }
