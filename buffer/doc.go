// Package buffer is the durable store: one SQLite file, one connection, one
// committer. Everything that must survive kill -9 and a power cut goes through
// it, so that one transaction and one flush serve all.
//
//	Append ──> batch ──> committer: INSERT segments, changes, cursors; COMMIT; fdatasync(-wal)
//	               │                                                           │
//	               │                      Tickets fire, in order  <────────────┤
//	Consumer.Next <── segments, in order of their numbers  <───────────────────┘
//	Consumer.Ack  ──> cursor ──> segments that nobody needs are deleted
//	               └─> note, outlives kill -9 without a flush
//
// A record names the consumers it waits for: uplinks, which lease records
// under dense numbers and acknowledge them, and sessions of the LAN, which
// read by sequence number. The records of one group commit are one row, a
// segment; it goes when the last consumer has passed it. Nothing else deletes
// records but a bound, and every such loss is a row of the loss ledger in the
// same transaction.
//
// It does not know MQTT rules, topics' meaning, devices or payload formats;
// who wants a record is decided by the router that appends it.
package buffer
