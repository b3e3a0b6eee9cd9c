package main

import (
	"context"
	"strings"
	"sync"
	"time"

	"busgate/buffer"
)

// factTimeout bounds how long a room waits for a fact to be on disk.
const factTimeout = 10 * time.Second

// facts are small things that rooms remember over a restart, kept in the store
// under a prefix of the room. The store bounds them. Safe for concurrent use.
type facts struct {
	store *buffer.Store

	mu  sync.Mutex
	all map[string][]byte
}

// loadFacts reads what an earlier process left.
func loadFacts(s *buffer.Store) (*facts, error) {
	f := &facts{store: s, all: map[string][]byte{}}
	err := s.Load(func(c buffer.Change) error {
		if fact, ok := c.(buffer.Fact); ok {
			f.all[fact.Key] = fact.Value
		}
		return nil
	})
	return f, err
}

// room is the part of one room.
func (f *facts) room(prefix string) room { return room{f, prefix + "/"} }

// room is a view of facts; it is the Memory of bridge.
type room struct {
	f      *facts
	prefix string
}

// Load returns nil, nil for an unknown key.
func (r room) Load(key string) ([]byte, error) {
	r.f.mu.Lock()
	defer r.f.mu.Unlock()
	return r.f.all[r.prefix+key], nil
}

// Save returns when v is on disk.
func (r room) Save(key string, v []byte) error {
	ctx, cancel := context.WithTimeout(context.Background(), factTimeout)
	defer cancel()
	return r.put(key, v).Wait(ctx)
}

// learned is the Memory of devices: a bus does not wait for the disk, and what a
// crash loses is learned again.
type learned struct{ room }

// Save keeps v with the next commit.
func (l learned) Save(key string, v []byte) { l.Keep(key, v, nil) }

// All are the facts of the room, by their key.
func (r room) All() map[string][]byte {
	r.f.mu.Lock()
	defer r.f.mu.Unlock()
	all := map[string][]byte{}
	for key, v := range r.f.all {
		if key, ok := strings.CutPrefix(key, r.prefix); ok {
			all[key] = v
		}
	}
	return all
}

// Get is Load for those who cannot fail.
func (r room) Get(key string) []byte {
	v, _ := r.Load(key)
	return v
}

// Keep calls then when v is on disk or cannot be.
func (r room) Keep(key string, v []byte, then func(error)) {
	t := r.put(key, v)
	if then != nil {
		t.Then(then)
	}
}

func (r room) put(key string, v []byte) buffer.Ticket {
	r.f.mu.Lock()
	defer r.f.mu.Unlock()
	if v == nil {
		delete(r.f.all, r.prefix+key)
	} else {
		r.f.all[r.prefix+key] = append([]byte{}, v...)
	}
	return r.f.store.Append(nil, buffer.Fact{Key: r.prefix + key, Value: v, Gone: v == nil})
}
