package buffer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"busgate/config/report"
)

// Store is the durable store. All methods are safe for concurrent use.
type Store struct {
	path    string
	o       Options
	sys     *system
	reports *report.Ladder
	locked  *os.File
	notes   notes

	wake    chan struct{} // the committer's plan changed
	bell    chan struct{} // callbacks wait
	running sync.WaitGroup
	rescues sync.WaitGroup
	ending  chan struct{} // closed by Close
	gone    chan struct{} // closed when the committer has left

	// owned by the committer
	wal       wal
	deflate   codec
	unflushed bool // committed since the last flush
	walPages  int  // written since the last checkpoint, about

	// io guards the connection. It is never asked for while mu is held.
	io      sync.Mutex
	db      *db // nil: none could be opened
	inflate codec

	mu         sync.Mutex // guards all below
	room       sync.Cond  // the batch was taken
	limits     Limits
	batch      *batch
	committing *batch  // being written, or waiting for another try
	failed     *commit // waits for another try
	retryAt    time.Time
	expect     int // waiters that the next commit may have: those of the last and those who came meanwhile
	servedAt   time.Time
	pace       time.Duration // that commits with waiters take, about
	nextSeq    uint64
	head       uint64 // everything below is committed
	scratch    []byte
	vacant     [][]byte // where the records of builders that were packed lay
	setBuf     [maxConsumers / 8]byte

	lanes     [lanes]lane
	cache     cache
	trims     []*header // dead, still on disk
	trimSpace int64     // of the file that they, and those of a running commit, occupy
	segments  int
	records   int64
	stored    int64 // bytes of the rows
	space     int64 // of the file that segments occupy, about
	use       usage
	measured  time.Time
	dropped   time.Time   // last loss by a bound
	aged      []*header   // older than MaxAge
	over      []*Consumer // that may be over their quota
	thinned   thinning
	fullErr   error // not nil: appends are refused

	state    state
	spent    bool          // the reserve is gone
	backoff  time.Duration // of the next try to write
	ram      []segment     // visible, not on disk
	ramBytes int64

	slots    [maxConsumers]*Consumer
	leaving  [maxConsumers]bool // forgotten, the commit is to come
	lastSlot int
	names    map[string]*Consumer

	tables     tables
	streams    []*Stream // by id-1
	boots      map[int64]*boot
	boot       *boot
	epoch      string // of the file; "": there was none yet
	clock      clock
	losses     []*loss
	lossesGone []int64
	owing      bool // the file has another ledger
	lastLoss   int64

	closingBoot string // Closing's answer, fixed at Open
	closingLast map[string]uint64

	dirtySince time.Time
	hurry      bool
	saveAt     time.Time // not zero: the next commit saves cursors, then at the latest
	fired      []then
	jobs       []func() // for the committer
	closing    bool     // Close was called
	stopped    bool     // the last commit is done
	notified   bool     // the notifier has left
	count      counters
}

// Defaults of Options.
const (
	defaultMaxBytes    = 512 << 20
	defaultMaxMessages = 20_000_000
	defaultMinFree     = 256 << 20
	defaultRetained    = 50_000
	defaultRetainedMiB = 16 << 20
	defaultSync        = time.Second
	defaultMaxMessage  = 1 << 20
)

func (l Limits) withDefaults() Limits {
	set := func(v *int64, d int64) {
		if *v == 0 {
			*v = d
		}
	}
	set(&l.MaxBytes, defaultMaxBytes)
	set(&l.MaxMessages, defaultMaxMessages)
	set(&l.MinFreeDisk, defaultMinFree)
	set(&l.MaxRetainedBytes, defaultRetainedMiB)
	if l.MaxRetained == 0 {
		l.MaxRetained = defaultRetained
	}
	if l.Sync <= 0 {
		l.Sync = defaultSync
	}
	return l
}

// Open opens the store at path, creating the file and its folder if they are
// missing. A damaged file is put aside, and what can be rescued of it comes back
// in the background; without a disk that can be written the store keeps the
// newest readings in RAM until there is one. So the only error is *InUseError
// (and a path that cannot be made absolute). Close must be called.
func Open(path string, o Options) (*Store, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	if o.sys == nil {
		o.sys = machine()
	}
	if o.Reserve == 0 {
		o.Reserve = defaultReserve
	}
	if o.MaxMessage <= 0 || o.MaxMessage > defaultMaxMessage {
		o.MaxMessage = defaultMaxMessage
	}
	s := &Store{
		path: path, o: o, sys: o.sys, reports: report.NewLadder(o.Log), limits: o.Limits.withDefaults(),
		wake: make(chan struct{}, 1), bell: make(chan struct{}, 1), ending: make(chan struct{}), gone: make(chan struct{}),
		batch: newBatch(), names: map[string]*Consumer{}, tables: newTables(), boots: map[int64]*boot{},
		wal: wal{path: path + "-wal", sys: o.sys},
	}
	s.room.L = &s.mu
	for l := range s.lanes {
		s.lanes[l].no = l
	}
	os.MkdirAll(s.dir(), 0o750) // what this means is found out below
	if s.locked, err = lock(path); err != nil {
		return nil, err
	}
	s.notes = openNotes(path)
	s.begin()
	s.running.Add(2)
	go func() { defer s.running.Done(); s.run() }()
	go func() { defer s.running.Done(); s.notify() }()
	return s, nil
}

// begin attaches the file; one that is damaged is put aside, a disk that is full
// gets the reserve, and without a disk that can be written the store begins in
// RAM.
func (s *Store) begin() {
	s.finishAside()
	err := s.attach()
	for range 2 { // another program reads the file: it will be done soon
		if code(err) == codeBusy {
			s.forgetAll()
			err = s.attach()
		}
	}
	gave := s.outOfRoom(err) && s.spendReserve()
	if gave {
		s.forgetAll()
		err = s.attach()
	}
	_, newer := errors.AsType[*versionError](err)
	if wounded(err) || newer {
		var aside string
		cause, kind := err, asideRescue
		if newer {
			kind = asideKept // nothing in it is ours to read
		}
		if aside, err = s.setAside(kind); err == nil {
			s.forgetAll()
			err = s.attach()
		}
		if err == nil {
			s.sayAside(aside, cause)
		}
	}
	if err == nil {
		s.measure()
		if gave {
			s.sayDiskFull(0)
		}
		s.keepReserve()
		return
	}
	s.forgetAll()
	s.boot = &boot{id: 1, kernel: s.sys.bootID(), label: bootLabel(newEpoch(), 1), dirty: true}
	s.boots[1] = s.boot
	s.failed = &commit{b: newBatch()}
	s.readOnly(fmt.Errorf("open store %s: %w", s.path, err))
	s.retryAt = time.Now().Add(s.backoff)
}

// forgetAll makes RAM as it is before a file is loaded.
func (s *Store) forgetAll() {
	s.names, s.tables, s.boots = map[string]*Consumer{}, newTables(), map[int64]*boot{}
	s.slots, s.streams, s.losses, s.over = [maxConsumers]*Consumer{}, nil, nil, nil
	s.lastLoss, s.lastSlot, s.epoch = 0, 0, ""
	s.nextSeq, s.head = 1, 1
	for l := range s.lanes {
		s.lanes[l].segs = nil
	}
	s.trims, s.trimSpace, s.segments, s.records, s.stored, s.space = nil, 0, 0, 0, 0, 0
}

// attach opens the file, loads what RAM keeps of it and starts a new boot.
func (s *Store) attach() (err error) {
	var odd []string
	if s.db, odd, err = openDB(s.path, s.sys, s.o.Full); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			s.db.close() // the first error tells more
			s.db = nil
			s.wal.close()
		}
	}()
	s.count.pragmas = odd
	if err := s.db.migrate(); err != nil {
		return err
	}
	if err := s.loadAll(); err != nil {
		return err
	}
	if err := s.startBoot(); err != nil {
		return err
	}
	if err := s.sys.syncDir(s.dir()); err != nil {
		return fmt.Errorf("flush folder: %w", err)
	}
	if err := s.wal.flush(); err != nil {
		return err
	}
	return s.resumeSalvage()
}

// Close takes no more work, commits and flushes what is there, and closes the
// file. Appends from now on get ErrClosed. When ctx ends before the disk has
// answered its error is returned and the closing goes on.
func (s *Store) Close(ctx context.Context) error {
	s.mu.Lock()
	again := s.closing
	s.closing = true
	s.room.Broadcast()
	s.mu.Unlock()
	if again {
		return ErrClosed
	}
	signal(s.wake)
	close(s.ending)
	done := make(chan error, 1)
	go func() { done <- s.shut() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("close store %s: %w", s.path, ctx.Err())
	}
}

// shut waits for the committer and the notifier and closes the file.
func (s *Store) shut() error {
	s.running.Wait()
	s.rescues.Wait()
	err := s.checkpoint("TRUNCATE")
	s.io.Lock()
	if s.db != nil {
		err = errors.Join(err, s.db.close())
		s.db = nil
	}
	s.io.Unlock()
	s.wal.close()
	s.notes.close()
	s.unlock()
	if err != nil {
		return fmt.Errorf("close store %s: %w", s.path, err)
	}
	return nil
}

func (s *Store) unlock() {
	if s.locked != nil {
		s.locked.Close()
	}
}

// stop ends the life of readers and of the notifier.
func (s *Store) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = true
	close(s.gone)
	for _, c := range s.slots {
		if c != nil {
			c.wakeUp()
		}
	}
	signal(s.bell)
}

// SetLimits changes the bounds; zero values mean the defaults.
func (s *Store) SetLimits(l Limits) {
	s.mu.Lock()
	s.limits = l.withDefaults()
	s.hurryLocked()
	s.mu.Unlock()
}
