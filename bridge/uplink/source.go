package uplink

import (
	"context"

	"busgate/buffer"
)

// Source is what a link needs of its consumer; *buffer.Consumer is the one.
//
// Ords are dense: the first record ever delivered has ord 1, the next 2. The
// methods are called from one goroutine while another waits in Next.
type Source interface {
	// Next leases up to max records in order, waiting until there is one. After
	// Rewind what is leased and not released comes again first, under the same
	// ords, with Dup set. An Exact consumer returns when the lease is durable.
	Next(ctx context.Context, max int) ([]buffer.Record, error)

	// Ack says that the cloud has completed these ords, in any order; it is
	// kept lazily.
	Ack(ords ...uint64)

	// Release says that the cloud has taken these ords over (PUBREC). PUBREL
	// may leave when the ticket has fired.
	Release(ords ...uint64) buffer.Ticket

	// Unrelease takes all releases back: the cloud has lost its session.
	Unrelease() buffer.Ticket

	// Rewind makes Next start again with what is leased.
	Rewind()

	// Owed lists what is leased and not acknowledged, in rising ord.
	Owed() []buffer.Owed
}

// backlogSource is a Source that can give the newest first. What is there is
// returned even when ctx is done.
type backlogSource interface {
	Live() // Next jumps to the head: it gives new records from now on
	NextBacklog(ctx context.Context, max int) ([]buffer.Record, error)
}

// source is Source with callbacks in place of tickets, which only the store can
// make. A callback is called once, on another goroutine or at once.
type source interface {
	Next(ctx context.Context, max int) ([]buffer.Record, error)
	Ack(ords ...uint64)
	Release(then func(error), ords ...uint64)
	Unrelease(then func(error))
	Rewind()
	Owed() []buffer.Owed
}

type ticketed struct{ Source }

func (t ticketed) Release(then func(error), ords ...uint64) { t.Source.Release(ords...).Then(then) }
func (t ticketed) Unrelease(then func(error))               { t.Source.Unrelease().Then(then) }
