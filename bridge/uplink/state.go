package uplink

import (
	"slices"
	"time"
)

// Phase is the state of a link.
type Phase uint8

// The phases of a link. Connected phases are those from Resuming on.
const (
	Stopped      Phase = iota // not running
	Idle                      // back-off runs
	Dialing                   // TCP, TLS, CONNECT
	Refused                   // credentials or certificate refused: retried slowly
	WaitingClock              // the certificate is not yet valid and the clock is not known
	Resuming                  // connected; what is in doubt is sent again
	Draining                  // connected; more than one window waits
	Online                    // connected; acknowledged progress, or nothing waits
	Paused                    // connected; the month's bytes are used up
)

var phaseNames = [...]string{"stopped", "idle", "dialing", "refused", "waiting-clock", "resuming", "draining", "online", "paused"}

// String is the name of the phase, as in status and metrics.
func (p Phase) String() string { return phaseNames[p] }

// Phases are the names of all phases, in their order.
func Phases() []string { return slices.Clone(phaseNames[:]) }

// State is the phase of a link.
type State struct {
	Phase Phase
	Since time.Time // of Word: tries that fail do not begin an outage anew
	Why   string    // last error; "" when none since the last progress
}

// Word is what the LAN topic gateway/uplink/<name> says: online, offline or
// draining. A link that is connected and has something to do is draining.
func (s State) Word() string {
	switch s.Phase {
	case Online:
		return "online"
	case Resuming, Draining, Paused:
		return "draining"
	}
	return "offline"
}

// Connected tells whether the cloud broker has accepted the connection.
func (s State) Connected() bool { return s.Phase >= Resuming }

// enter changes the phase and tells it.
func (l *Link) enter(p Phase, why string) {
	if l.state.Phase == p {
		l.state.Why = why
		l.publishStatus()
		return
	}
	next := State{Phase: p, Since: time.Now(), Why: why}
	if next.Word() == l.state.Word() {
		next.Since = l.state.Since
	}
	l.state = next
	l.publishStatus()
	if l.o.Notify != nil {
		l.o.Notify(l.state)
	}
}
