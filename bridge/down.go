package bridge

import (
	"context"
	"fmt"
	"time"

	"busgate/config/report"
	"busgate/embeddedbroker"
)

// Down publishes on the LAN what came down from the cloud of an uplink, with
// KindDown, and takes it if it is a command. It is the only way in for what a
// cloud sends: a command goes to disk before Down returns, so that the cloud
// may be told. A retained command is answered and not passed on. After an error
// the cloud must send m again.
func (b *Bridge) Down(ctx context.Context, uplink string, m *embeddedbroker.Message) error {
	p, ours := parseTopic(b.base, m.Topic)
	command := ours && p.command()
	if !command || !m.Retain {
		if err := b.publishDurably(ctx, m); err != nil {
			return fmt.Errorf("publish %s: %w", report.Name(m.Topic), err)
		}
	}
	if !command {
		return nil
	}
	src := source{cloud: true, ttl: time.Minute}
	b.mu.RLock()
	if u := b.cfg.Uplinks[uplink]; u != nil {
		src.ttl, src.retry = u.CommandTTL, u.RetryUnknown
	}
	b.mu.RUnlock()
	return b.commands.take(m, src)
}

// committed is a Completion that wakes one goroutine.
type committed chan error

func (c committed) Committed(_ embeddedbroker.Seq, err error) { c <- err }

func (b *Bridge) publishDurably(ctx context.Context, m *embeddedbroker.Message) error {
	c := make(committed, 1)
	if err := b.broker.Publish(m, c); err != nil {
		return err
	}
	select {
	case err := <-c:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
