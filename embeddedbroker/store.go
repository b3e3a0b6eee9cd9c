package embeddedbroker

import (
	"errors"
	"time"
)

// Seq is the place of an entry in the one order of the broker, from 1.
type Seq uint64

// ConsumerID names somebody durable that messages wait for: an uplink or a
// persistent session. The Store gives them out; 0 is nobody.
type ConsumerID uint32

// What Append can refuse, before anything is kept.
var (
	ErrFull     = errors.New("store full")
	ErrReadOnly = errors.New("store read-only")
	ErrBusy     = errors.New("too much waits for the disk already") // try again
)

// Store keeps what must outlive the process. embeddedbroker/durable implements
// it on package buffer, Memory in RAM. All methods are safe for concurrent use
// except Restore, which is called once, before anything else.
type Store interface {
	// Restore hands out what an earlier process left: sessions with their
	// subscriptions, retained messages, open inbound packet ids. o is for the
	// consumers of the sessions, which need no Register then.
	Restore(o ConsumerOptions, v Visitor) error

	// Register makes a consumer durable, or resumes the one of that name; it
	// returns when that is on disk. Uplinks and sessions have names of their own.
	Register(name string, o ConsumerOptions) (ConsumerID, error)

	// Forget removes an uplink and what waits for it; joins the next commit.
	Forget(c ConsumerID)

	// Busy says whether so much waits for the disk that a change of state for a
	// client should wait, too: Append takes it nevertheless.
	Busy() bool

	// Append orders and queues an entry. It never waits for the disk. e.Seq is
	// set and e.Done will be called, in Seq order, unless an error is returned.
	// The store keeps no reference to e; it may keep e.Msg. The broker calls it
	// under its routing lock, so calls come one after the other.
	Append(e *Entry) error

	// Read fills w with deliveries of c from seq on, in order, as far as its
	// bounds allow (one message may pass MaxBytes alone), and leaves nothing
	// open. Only committed entries are returned. Those that were settled are
	// left out, those marked with MarkOut may be.
	Read(c ConsumerID, from Seq, w *Window) error

	// Settle says that c needs nothing below floor any more, nor what is in
	// done. It joins the next commit; a crash before that re-sends.
	Settle(c ConsumerID, floor Seq, done []Seq)

	// Usage is what waits for c.
	Usage(c ConsumerID) Usage
}

// ConsumerOptions say what a consumer is.
type ConsumerOptions struct {
	Uplink bool // else a persistent session

	// What may wait for a session; beyond that the oldest messages go and are
	// counted in Usage.Dropped. 0 = no limit of its own.
	MaxMessages int
	MaxBytes    int64
}

// Usage is what waits for a consumer and what it lost.
type Usage struct {
	Messages int
	Bytes    int64
	Dropped  uint64 // by its own limits or those of the store, since the process began
}

// Entry is one step of the broker: a message with who durable wants it, or
// changes of state, or both, kept in one transaction.
type Entry struct {
	Ops     []Op
	Msg     *Message   // nil for a pure change of state
	Targets []Target   // no consumer twice
	Wait    bool       // somebody waits for the flush: commit now
	Part    bool       // of the publication whose first entry was kept: never ErrBusy
	Done    Completion // nil: nobody asks
	Seq     Seq        // set by Append
}

// Target is one durable consumer of a message.
type Target struct {
	Consumer ConsumerID
	Ord      uint64 // number of the delivery in its session, from 1, fixed here: the packet id follows from it; 0 for an uplink
	QoS      byte
	Retain   bool // the RETAIN flag of the delivery (retained copy, or retain-as-published)
	Shared   bool // by a shared subscription: if the session ends, another member gets it
	SubIDs   []uint32
}

// Completion is told that an entry is on disk (err == nil) or never will be.
// It runs on the committer: it may fill slots and wake goroutines, nothing else.
type Completion interface{ Committed(seq Seq, err error) }

// Delivery is a message that waits for one consumer.
type Delivery struct {
	Seq    Seq
	Msg    *Message
	Ord    uint64
	QoS    byte
	Retain bool
	Shared bool
	SubIDs []uint32
}

// Window is what Read fills. The caller sets the bounds and owns the slice.
type Window struct {
	MaxMessages int
	MaxBytes    int
	Deliveries  []Delivery
	Next        Seq // where the next Read goes on
}

// Op is a change of durable state that belongs to an Entry. Exactly one of the
// types below.
type Op interface{ op() }

// SaveSession creates or replaces the durable part of a session.
type SaveSession struct{ Session Session }

// DropSession removes a session, its subscriptions, its packet ids and its
// consumer with what waits for it.
type DropSession struct {
	Client   string
	Consumer ConsumerID
}

// SaveSubscription adds or replaces one subscription of a persistent session.
type SaveSubscription struct {
	Client       string
	Subscription Subscription
}

// DropSubscription removes one.
type DropSubscription struct{ Client, Filter string }

// SaveRetained keeps Entry.Msg as the retained message of its topic; an empty
// payload deletes it.
type SaveRetained struct{}

// DropRetained removes a retained message.
type DropRetained struct{ Topic string }

// MarkIn notes that the client's QoS 2 packet id was received; Drop takes the
// note back at PUBREL.
type MarkIn struct {
	Client string
	PID    uint16
	Drop   bool
}

// MarkOut notes that the client answered PUBREC for the delivery Seq: from now
// on only PUBREL is owed.
type MarkOut struct {
	Consumer ConsumerID
	Seq      Seq
	PID      uint16
}

func (SaveSession) op()      {}
func (DropSession) op()      {}
func (SaveSubscription) op() {}
func (DropSubscription) op() {}
func (SaveRetained) op()     {}
func (DropRetained) op()     {}
func (MarkIn) op()           {}
func (MarkOut) op()          {}

// Session is what of a session survives a restart.
type Session struct {
	Client   string
	Consumer ConsumerID
	User     string
	Version  byte          // 3, 4 or 5
	Expiry   time.Duration // after the connection ended; negative = never
	Left     time.Time     // when it ended; zero while connected
	Sent     Seq           // the last delivery that was written to the client before it left
	NextOrd  uint64        // no delivery from here on was numbered yet; numbers may be left out
	Will     *Will
}

// Will is what a connection leaves behind.
type Will struct {
	Msg      Message // Expires is not set: it counts from the publishing
	Delay    time.Duration
	Expires  bool          // the message has a Lifetime
	Lifetime time.Duration // message expiry interval
}

// Subscription is one filter with its options.
type Subscription struct {
	Filter            string
	QoS               byte
	NoLocal           bool
	RetainAsPublished bool
	RetainHandling    byte
	ID                uint32 // 0 = none
}

// Visitor receives what Restore finds. An error stops the restoring.
type Visitor interface {
	Session(s Session, subs []Subscription, in []uint16, out []MarkOut) error
	Retained(m *Message) error
}
