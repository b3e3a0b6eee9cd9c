package embeddedbroker

import (
	"fmt"
	"sync/atomic"
	"time"

	"busgate/config"
	"busgate/embeddedbroker/packet"
)

// What queue_full can say.
const (
	queueDropOldest = "drop_oldest"
	queueRefuse     = "refuse"
	queueEndSession = "end_session"
)

type settingsPointer = atomic.Pointer[settings]

// settings are one configuration, judged and unpacked. Immutable.
type settings struct {
	cfg          config.Broker
	maxPacket    int
	maxKeepAlive int // seconds, 0 = none
	users        *Users
	acl          *acl
}

func newSettings(cfg config.Broker) (*settings, error) {
	s := &settings{cfg: cfg, maxPacket: int(cfg.MaxPacket), maxKeepAlive: int(cfg.MaxKeepAlive / time.Second), acl: newACL(cfg.ACL)}
	if s.maxPacket <= 0 || s.maxPacket > packet.MaxLength+5 {
		s.maxPacket = packet.MaxLength + 5
	}
	if s.cfg.QueueFull == "" {
		s.cfg.QueueFull = queueDropOldest
	}
	if cfg.Users != "" {
		u, err := LoadUsers(cfg.Users)
		if err != nil {
			return nil, fmt.Errorf("users: %w", err)
		}
		s.users = u
	}
	return s, nil
}

// quota is what may wait for one persistent session.
func (s *settings) quota() ConsumerOptions {
	return ConsumerOptions{MaxMessages: s.cfg.MaxQueued, MaxBytes: s.cfg.MaxQueuedSize}
}

// sessionOptions are what the store is told: it drops only where that is the rule.
func (s *settings) sessionOptions() ConsumerOptions {
	if s.cfg.QueueFull != queueDropOldest {
		return ConsumerOptions{}
	}
	return s.quota()
}

// apply makes settings the current ones. Subscriptions are judged again with
// every delivery; users that are gone are disconnected.
func (b *Broker) apply(set *settings) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.applyLocked(set)
}

// replace is apply for settings that were made from others; false: those are the
// current ones no more, and what has replaced them stays.
func (b *Broker) replace(old, set *settings) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.set.Load() != old {
		return false
	}
	b.applyLocked(set)
	return true
}

func (b *Broker) applyLocked(set *settings) {
	b.set.Store(set)
	b.subs.forget()
	if set.users == nil {
		return
	}
	for _, s := range b.sessions {
		if c := s.conn; c != nil && c.user != "" && !set.users.Has(c.user) {
			c.kick(&ending{code: packet.NotAuthorized, text: "its user was removed"})
		}
	}
}
