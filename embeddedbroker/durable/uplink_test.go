package durable

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"busgate/buffer"
	"busgate/embeddedbroker"
)

// told is a Completion that can be waited for.
type told chan error

func (c told) Committed(_ embeddedbroker.Seq, err error) { c <- err }

func open(t *testing.T) (*Store, *buffer.Store) {
	t.Helper()
	b, err := buffer.Open(filepath.Join(t.TempDir(), "store.db"), buffer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close(context.Background()) })
	return New(b), b
}

// What an uplink reads is what goes up: nothing of the sessions' is in it.
func TestUplinkGetsTheBareMessage(t *testing.T) {
	d, b := open(t)
	mine, err := b.Consumer("cloud", buffer.ConsumerOptions{Kind: buffer.Uplink, Stream: "cloud", Window: 7})
	if err != nil {
		t.Fatal(err)
	}
	d.Uplink(mine)
	up, err := d.Register("cloud", embeddedbroker.ConsumerOptions{Uplink: true})
	if err != nil || up != embeddedbroker.ConsumerID(mine.ID()) {
		t.Fatalf("registered as %d %v, it is %d", up, err, mine.ID())
	}
	session, err := d.Register(sessionPrefix+"cloud", embeddedbroker.ConsumerOptions{}) // the same name, somebody else
	if err != nil || session == up {
		t.Fatal(session, err)
	}
	at := time.Date(2026, 11, 21, 6, 1, 2, 0, time.UTC)
	props := []byte{1, 1}
	kinds := []embeddedbroker.Kind{embeddedbroker.KindReading, embeddedbroker.KindStatus, embeddedbroker.KindLAN, embeddedbroker.KindReading}
	for i, k := range kinds {
		m := &embeddedbroker.Message{Topic: "t", Payload: []byte{byte(i)}, QoS: 1, Retain: true, Kind: k, Props: props, Wall: at, Mono: time.Duration(i+1) * time.Second, From: "x"}
		done := make(told, 1)
		e := embeddedbroker.Entry{Msg: m, Wait: true, Done: done, Targets: []embeddedbroker.Target{
			{Consumer: session, Ord: uint64(i + 1), QoS: 1}, {Consumer: up}}}
		if err := d.Append(&e); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	var got []buffer.Record
	for len(got) < len(kinds) {
		rs, err := mine.Next(context.Background(), 10)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, rs...)
	}
	lanes := map[embeddedbroker.Kind]uint8{embeddedbroker.KindReading: buffer.LaneLive, embeddedbroker.KindStatus: buffer.LaneState, embeddedbroker.KindLAN: buffer.LaneLAN}
	next := uint64(0)
	for _, r := range got {
		i := int(r.Payload[0])
		k := kinds[i]
		if r.Lane != lanes[k] || r.Kind != uint8(k) || !slices.Equal(r.Props, props) || !r.Retain || r.QoS != 1 || !r.At.Equal(at) || r.Mono != time.Duration(i+1)*time.Second {
			t.Errorf("%+v", r)
		}
		if numbered := len(r.Numbers) == 1; numbered != (k == embeddedbroker.KindReading) {
			t.Errorf("kind %d has numbers %v", k, r.Numbers)
		} else if numbered {
			if next++; r.Numbers[0].N != next {
				t.Errorf("number %d, want %d", r.Numbers[0].N, next)
			}
		}
	}
	w := embeddedbroker.Window{MaxMessages: 10, MaxBytes: 1 << 20}
	if err := d.Read(session, 0, &w); err != nil || len(w.Deliveries) != len(kinds) {
		t.Fatalf("the session has %d %v", len(w.Deliveries), err)
	}
	for i, dl := range w.Deliveries {
		if dl.Msg.Payload[0] != byte(i) || !slices.Equal(dl.Msg.Props, props) || dl.Msg.From != "x" {
			t.Errorf("%+v", dl.Msg)
		}
	}
	d.Forget(up)
	if u := d.Usage(up); u.Messages != 0 {
		t.Errorf("%+v", u)
	}
}

func TestAppendDoesNotWaitForASlowDisk(t *testing.T) {
	d, _ := open(t)
	d.pending.Store(maxPending + 1)
	err := d.Append(&embeddedbroker.Entry{Msg: &embeddedbroker.Message{Topic: "t"}})
	if !errors.Is(err, embeddedbroker.ErrBusy) {
		t.Errorf("got %v", err)
	}
	for _, e := range []embeddedbroker.Entry{{}, {Msg: &embeddedbroker.Message{Topic: "t"}, Part: true}} { // a pure change of state; what is begun
		if err := d.Append(&e); err != nil {
			t.Error(err)
		}
	}
}

func TestDamagedNotesAreAnError(t *testing.T) {
	good := appendTags(nil, []embeddedbroker.Target{{Consumer: 1, Ord: 5, QoS: 2, SubIDs: []uint32{7}}}, &embeddedbroker.Message{From: "x", Props: []byte{1, 1}})
	if _, err := decodeDelivery(&buffer.Record{Props: good}, 1); err != nil {
		t.Fatal(err)
	}
	if _, err := decodeDelivery(&buffer.Record{Props: good}, 2); !errors.Is(err, errTags) {
		t.Errorf("another session: %v", err)
	}
	for cut := range len(good) - 2 { // without the properties
		if _, err := decodeDelivery(&buffer.Record{Props: good[:cut]}, 1); !errors.Is(err, errTags) {
			t.Errorf("%d bytes: %v", cut, err)
		}
	}
}

// Whatever is to be written counts, so that the buffer never has to block: large
// filters and wills, small messages, both rows of a retained message.
func TestEverythingThatIsToBeWrittenCounts(t *testing.T) {
	d, _ := open(t)
	id, err := d.Register("session/c", embeddedbroker.ConsumerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	big := strings.Repeat("x", 10_000)
	to := []embeddedbroker.Target{{Consumer: id, Ord: 1}}
	for _, c := range []struct {
		name string
		e    embeddedbroker.Entry
		want int64
	}{
		{"nothing", embeddedbroker.Entry{}, entryWeight},
		{"a message", embeddedbroker.Entry{Msg: &embeddedbroker.Message{Topic: "t"}, Targets: to}, 2*entryWeight + 1},
		{"a session with a will", embeddedbroker.Entry{Ops: []embeddedbroker.Op{embeddedbroker.SaveSession{Session: embeddedbroker.Session{Client: "c", Consumer: id, Will: &embeddedbroker.Will{Msg: embeddedbroker.Message{Topic: "w", Payload: []byte(big)}}}}}}, int64(len(big))},
		{"a filter", embeddedbroker.Entry{Ops: []embeddedbroker.Op{embeddedbroker.SaveSubscription{Client: "c", Subscription: embeddedbroker.Subscription{Filter: big}}}}, 2 * int64(len(big))},
		{"a filter that goes", embeddedbroker.Entry{Ops: []embeddedbroker.Op{embeddedbroker.DropSubscription{Client: "c", Filter: big}}}, int64(len(big))},
		{"a retained message that somebody waits for", embeddedbroker.Entry{Msg: &embeddedbroker.Message{Topic: "r", Payload: []byte(big)}, Targets: to, Ops: []embeddedbroker.Op{embeddedbroker.SaveRetained{}}}, 2 * int64(len(big))},
	} {
		e := c.e
		if got := weigh(d.records(&e), d.changes(&e)); got < c.want || got > 2*c.want {
			t.Errorf("%s weighs %d, want some %d", c.name, got, c.want)
		}
		e.Wait = true
		done := make(told, 1)
		e.Done = done
		if err := d.Append(&e); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if got := d.pending.Load(); got != 0 {
			t.Errorf("%s: %d wait when it is written", c.name, got)
		}
	}
}
