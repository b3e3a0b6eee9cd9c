package devices

import (
	"log/slog"
	"sync"
	"testing"
	"time"

	"busgate/config"
)

// TestRefreshBesideTheBus says something under the race detector, and by the map
// of the requests, which stops the program when two use it at once.
func TestRefreshBesideTheBus(t *testing.T) {
	f := &Fleet{o: Options{Log: slog.New(slog.DiscardHandler)}, epoch: time.Now()}
	d := &config.Device{Name: "grid", Bus: "meters", Interval: time.Second, MaxRead: 125}
	b := newBus(f, &config.Bus{Name: "meters", Protocol: "modbus-rtu"}, []*config.Device{d})
	var wg sync.WaitGroup
	wg.Go(func() {
		for range 100_000 {
			b.readMail(t.Context())
		}
	})
	for range 100_000 {
		b.refresh("grid")
	}
	wg.Wait()
}

// manyJobs is a bus whose queue is full of commands.
func manyJobs(f *Fleet) (*bus, []*job) {
	d := &config.Device{Name: "grid", Bus: "meters", Interval: time.Second, MaxRead: 125}
	b := newBus(f, &config.Bus{Name: "meters", Protocol: "modbus-rtu"}, []*config.Device{d})
	jobs := make([]*job, maxQueue)
	for i := range jobs {
		jobs[i] = &job{device: "grid", entry: &idEntry{done: make(chan struct{})}}
		b.enqueue(jobs[i])
	}
	return b, jobs
}

// TestClientsLeaveWhileTheBusEnds: each command is answered, or its client has it
// back, and never both. Under the race detector it also says that nobody reads
// the queue without its lock.
func TestClientsLeaveWhileTheBusEnds(t *testing.T) {
	f := &Fleet{o: Options{Log: slog.New(slog.DiscardHandler)}, epoch: time.Now()}
	for range 1000 {
		b, jobs := manyJobs(f)
		var wg sync.WaitGroup
		left := make([]bool, len(jobs))
		const clients = 4
		for k := range clients {
			wg.Go(func() {
				for i := k; i < len(jobs); i += clients {
					left[i] = b.abandon(jobs[i])
				}
			})
		}
		b.refuseAll(true)
		wg.Wait()
		for i, j := range jobs {
			answered := false
			select {
			case <-j.entry.done:
				answered = true
			default:
			}
			if answered == left[i] {
				t.Fatalf("command %d: answered %v, its client has it back %v", i, answered, left[i])
			}
		}
	}
}

// A bus that a reload takes away before Run has come to start it stays away: a
// second one may have its wire.
func TestABusThatIsStoppedBeforeItBegan(t *testing.T) {
	f := &Fleet{o: Options{Log: slog.New(slog.DiscardHandler)}, epoch: time.Now()}
	b, jobs := manyJobs(f)
	w := &visit{done: make(chan error, 1)}
	if err := b.invite(w); err != nil {
		t.Fatal(err)
	}
	b.stop()
	if b.begin(func() {}) {
		t.Error("it begins all the same")
	}
	for _, j := range jobs {
		<-j.entry.done
	}
	if err := <-w.done; err != errStopped {
		t.Errorf("who waited hears %v", err)
	}
	if r := b.enqueue(&job{}); r.Text != "the bus meters is closed" {
		t.Errorf("a command after it: %+v", r)
	}
	if err := b.invite(w); err != errStopped {
		t.Errorf("a visit after it: %v", err)
	}
}
