// Package packet is the codec of MQTT 3.1, 3.1.1 and 5.0: bytes to values and
// back, for both directions of a connection.
//
// Decoding is strict: every length stays inside its packet, nothing is left
// over, strings are UTF-8 without U+0000, flags are exact, each property is
// known, allowed in its packet and present at most once. It copies nothing that
// is large: slices of a decoded packet point into the bytes that were given.
// Encoding appends to a slice of the caller and allocates nothing else.
//
// It knows no sockets, no sessions and no rules that need more than one packet.
//
//	bytes ── ReadHeader ──> Header + body ── Decode ──> Connect, Publish, Ack ...
//	bytes <───────────────── Append(dst, version) ───── Connect, Publish, Ack ...
package packet
