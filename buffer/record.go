package buffer

import "time"

// Lanes of the store: 0 goes first. Order holds inside a lane only, so one
// topic must always take the same lane.
const (
	LaneState = 0 // answers to commands, changes of state
	LaneLAN   = 1 // messages of the LAN
	LaneLive  = 2 // readings
	LaneBulk  = 3 // salvaged and bulk data
	lanes     = 4
)

// ConsumerID names a consumer in Record.To. It is stable over restarts and may
// be given to another consumer after Forget; 0 is nobody.
type ConsumerID uint32

// StreamID names a stream inside one file.
type StreamID uint32

// Number is the place of a record in a stream, from 1 in each boot.
type Number struct {
	Stream StreamID
	N      uint64
}

// Quality says how Record.At is known.
type Quality uint8

const (
	NoTime  Quality = iota // At is zero; Boot and Mono still give the order
	Redated                // computed later from the offset of its boot
	Clocked                // the clock was known when the record was stamped
)

func (q Quality) String() string {
	return [...]string{"none", "redated", "clock"}[min(q, Clocked)]
}

// Record is a message waiting on disk. Append copies everything; records that
// a consumer returns belong to the caller, who must not write into Payload and
// Props because they share memory with each other.
type Record struct {
	Seq  uint64       // place in the one order of the file; set by Append
	Ord  uint64       // number of the delivery to this consumer, from 1; set by Next
	Dup  bool         // handed out before under this Ord; set by Next
	To   []ConsumerID // who needs it; empty on read
	Lane uint8        // 0..3

	QoS       uint8 // 0..3, the caller's
	Retain    bool
	Kind      uint8 // the caller's
	Thinnable bool  // the policy thin may drop it when the store is full
	Level     uint8 // how often thinning halved its neighbourhood, 0..10

	Topic   string // at most 65,535 bytes
	Payload []byte
	Props   []byte // opaque

	Expires time.Time     // zero: never. In whole milliseconds
	At      time.Time     // zero: not known. In whole milliseconds
	Clock   Quality       // ignored by Append
	Mono    time.Duration // CLOCK_BOOTTIME; zero: Append stamps it. In whole milliseconds
	Boot    string        // "<epoch>-<counter>" of the process that appended it; ignored by Append

	Numbers []Number // at most 16; drawn by the caller with Stream.Next
}

// Change is a change of durable state that one Append puts into the same
// transaction as its records. It is one of the types below.
type Change interface{ change() }

// Session is the durable part of a session: the bytes are the caller's.
type Session struct {
	Client string
	Data   []byte
	Gone   bool // removes it with its subscriptions and inbound ids
}

// Subscription is one filter of a session, which must exist.
type Subscription struct {
	Client, Filter string
	Data           []byte
	Gone           bool
}

// Inbound notes that a QoS 2 packet id of a session was received and not yet
// released.
type Inbound struct {
	Client string
	ID     uint16
	Gone   bool
}

// Retained is the retained message of a topic. Its Data is the caller's.
type Retained struct {
	Topic   string
	Data    []byte
	Payload []byte
	Gone    bool
}

// Fact is something learned that is worth remembering, such as what a broker
// does not support. The oldest go at 20,000 facts or 4 MiB.
type Fact struct {
	Key   string
	Value []byte
	Gone  bool
}

// Released notes for a consumer that is read with ReadFrom that the receiver
// has the record Seq: only the release is owed. Tag is the caller's (the packet
// id). Settle ends it.
type Released struct {
	Consumer ConsumerID
	Seq      uint64
	Tag      uint16
}

// Drop forgets a consumer and what waits for it; as Store.Forget, in the
// transaction of other changes.
type Drop struct{ Consumer ConsumerID }

func (Session) change()      {}
func (Subscription) change() {}
func (Inbound) change()      {}
func (Retained) change()     {}
func (Fact) change()         {}
func (Released) change()     {}
func (Drop) change()         {}

// Owed is a delivery that was begun before a restart or a Rewind.
type Owed struct {
	Ord      uint64
	Released bool // true: a PUBREL is owed; false: the record itself, with DUP
}
