package uplink

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"busgate/bridge/uplink/cloudtest"
	"busgate/embeddedbroker"
)

func TestRateIsKept(t *testing.T) {
	for _, c := range []struct {
		name  string
		set   func(*rig)
		lo    int
		hi    int
		after time.Duration
	}{
		{"90 messages a second", func(r *rig) { r.cfg.RateMsgs = 90 }, 90 * 10, 90*11 + 1, 10 * time.Second},
		{"1000 bytes a second", func(r *rig) { r.cfg.RateBytes = 1000 }, 10000 / 6, 11000/2 + 1, 10 * time.Second},
		{"a packet above the burst still goes", func(r *rig) {
			r.cfg.RateBytes = 100
			r.st.put("big", []byte(strings.Repeat("x", 1000)), embeddedbroker.KindLAN)
		}, 2000, 2001, 70 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			virtual(t, cloudtest.Options{AckDelay: time.Millisecond}, func(r *rig) {
				r.cfg.Window = 1000
				c.set(r)
				r.st.fill(2000)
				r.start()
				time.Sleep(c.after)
				got := len(r.payloads("t")) + len(r.payloads("big"))
				if c.lo >= 2000 {
					got = len(r.payloads("big")) * 2000
				}
				if got < c.lo || got > c.hi {
					t.Errorf("%d arrived in %v, want %d to %d", got, c.after, c.lo, c.hi)
				}
				if s := r.link.Status(); s.RateWait == 0 {
					t.Error("the time waited for the rate is not counted")
				}
				r.o.Grace = 0
				r.stop()
			})
		})
	}
}

func TestWindowBytes(t *testing.T) {
	virtual(t, cloudtest.Options{AckDelay: time.Second}, func(r *rig) {
		r.cfg.WindowBytes = 1000
		for range 10 {
			r.st.put("t", []byte(strings.Repeat("x", 399)), embeddedbroker.KindLAN)
		}
		r.st.put("t", []byte(strings.Repeat("y", 5000)), embeddedbroker.KindLAN)
		r.start()
		time.Sleep(500 * time.Millisecond)
		if n := len(r.payloads("t")); n != 2 {
			t.Errorf("%d in flight with 1000 bytes, want 2 of 400", n)
		}
		time.Sleep(10 * time.Second)
		if n := len(r.payloads("t")); n != 11 {
			t.Errorf("%d arrived, want 11: one packet is always allowed", n)
		}
		if s := r.link.Status(); s.WindowFull == 0 {
			t.Error("the time waited for the window is not counted")
		}
		r.stop()
	})
}

func TestPeriod(t *testing.T) {
	at := func(s string) time.Time {
		x, err := time.Parse(time.DateTime, s)
		if err != nil {
			t.Fatal(err)
		}
		return x
	}
	for _, c := range []struct {
		now, begin, end string
		day             int
	}{
		{"2026-11-21 06:00:00", "2026-11-01 00:00:00", "2026-12-01 00:00:00", 1},
		{"2026-11-01 00:00:00", "2026-11-01 00:00:00", "2026-12-01 00:00:00", 1},
		{"2026-11-14 23:59:59", "2026-10-15 00:00:00", "2026-11-15 00:00:00", 15},
		{"2026-01-03 00:00:00", "2025-12-28 00:00:00", "2026-01-28 00:00:00", 28},
	} {
		begin, end := period(at(c.now), c.day)
		if !begin.Equal(at(c.begin)) || !end.Equal(at(c.end)) {
			t.Errorf("period(%s, %d) = %v .. %v, want %s .. %s", c.now, c.day, begin, end, c.begin, c.end)
		}
	}
}

func TestMonth(t *testing.T) {
	day := 24 * time.Hour
	begin := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	m := month{cap: 3000, day: 1}
	m.count(0, begin, true)
	if p := m.pace(); p != 100 {
		t.Errorf("on the first day %d bytes of 3000 may be used, want one day ahead: 100", p)
	}
	m.count(99, begin.Add(time.Hour), true)
	if !m.allows(backlog) {
		t.Error("backlog does not go below the pace")
	}
	m.count(1000, begin.Add(6*day), true)
	if m.allows(backlog) || !m.allows(live) || !m.allows(urgent) {
		t.Errorf("1000 used on day 6 (pace %d): backlog %v, live %v, urgent %v; want false, true, true", m.pace(), m.allows(backlog), m.allows(live), m.allows(urgent))
	}
	m.count(2945, begin.Add(29*day), true)
	if m.allows(live) || !m.allows(urgent) || m.exhausted() {
		t.Error("above 98 % only what is urgent goes")
	}
	m.count(3000, begin.Add(29*day), true)
	if m.allows(urgent) || !m.exhausted() {
		t.Error("at the cap nothing goes")
	}
	m.count(3000, begin.Add(31*day), false)
	if m.used != 3000 {
		t.Error("a new period began while the clock is not known")
	}
	m.count(3010, begin.Add(31*day), true)
	if m.used != 0 && m.used != 10 || m.exhausted() {
		t.Errorf("in the new period %d are used", m.used)
	}
	var again month
	m.used = 77
	again.load(string(m.note()))
	if again.used != 77 || !again.begin.Equal(m.begin) {
		t.Errorf("noted %s, read back %d from %v", m.note(), again.used, again.begin)
	}
	for _, bad := range []string{"", "x", "2026-11-01", "2026-11-01 -5", "2026-13-01 5"} {
		var b month
		if b.load(bad); b.used != 0 {
			t.Errorf("load(%q) used %d", bad, b.used)
		}
	}
}

func TestBudgetPausesTheLink(t *testing.T) {
	virtual(t, cloudtest.Options{}, func(r *rig) {
		r.cfg.BudgetMonth, r.cfg.BudgetDay, r.cfg.Window = 1<<20, 1, 10
		r.remember(map[string][]byte{})
		var later atomic.Int64
		r.o.Clock = func() (time.Time, bool) { return time.Now().Add(time.Duration(later.Load())), true }
		r.start()
		time.Sleep(2 * time.Second)
		for range 250 {
			r.st.put("t", []byte(strings.Repeat("x", 5000)), embeddedbroker.KindLAN)
			time.Sleep(time.Second)
		}
		s := r.link.Status()
		if s.BudgetUsed < 1<<20/100*97 || s.BudgetUsed > 1<<20+10000 || s.Pending == 0 || s.BudgetWait == 0 {
			t.Errorf("used %d, %d wait, waited %v", s.BudgetUsed, s.Pending, s.BudgetWait)
		}
		for range 8 {
			r.st.put("status", []byte(strings.Repeat("x", 5000)), embeddedbroker.KindStatus)
		}
		time.Sleep(10 * time.Minute)
		if s := r.link.Status(); s.Phase != Paused || s.Word() != "draining" || s.Connects != 1 {
			t.Errorf("%v after the budget, %d connects; want paused on the same connection", s.Phase, s.Connects)
		}
		said := strings.Join(r.lines(), "\n")
		if !strings.Contains(said, "% of budget_month are used; the period ends on 2000-02-01") || len(r.fact("month")) == 0 {
			t.Errorf("said %s, kept %q", said, r.fact("month"))
		}
		later.Store(int64(31 * 24 * time.Hour))
		time.Sleep(time.Minute)
		if s := r.link.Status(); s.Phase != Online || s.Pending != 0 {
			t.Errorf("in the new month %v with %d waiting", s.Phase, s.Pending)
		}
		r.stop()
	})
}

func TestLiveFirst(t *testing.T) {
	virtual(t, cloudtest.Options{AckDelay: 100 * time.Millisecond}, func(r *rig) {
		r.cfg.Order, r.cfg.Window, r.cfg.LiveAge = "live_first", 20, time.Minute
		put := func(i int) {
			r.st.put("busgate/plant-a/grid/state", fmt.Appendf(nil, `{"ts":"x","i":%d}`, i), embeddedbroker.KindReading)
		}
		for i := range 2000 {
			put(i)
		}
		r.start()
		time.Sleep(2 * time.Second)
		put(2000)
		time.Sleep(300 * time.Millisecond)
		var history, state int
		for _, d := range r.cloud.Ledger() {
			switch d.Topic {
			case "busgate/plant-a/grid/state":
				state++
				if string(d.Payload) != `{"ts":"x","gw":"plant-a","boot":"k3qz7aa-12","n":2001,"i":2000}` {
					t.Errorf("live: %s", d.Payload)
				}
			case "busgate/plant-a/grid/history":
				history++
				if !strings.Contains(string(d.Payload), `,"h":1,`) || d.Retain {
					t.Errorf("history: %s, retained %v", d.Payload, d.Retain)
				}
			}
		}
		if state != 1 {
			t.Errorf("%d live readings after one round trip, want 1", state)
		}
		if most := 10 * 10 * 24 / 10; history < 100 || history > most {
			t.Errorf("%d of the backlog in 2.3 s, want at most half of the window: 100 a second", history)
		}
		time.Sleep(time.Minute)
		if n, _, _ := r.st.usage(); n != 0 {
			t.Errorf("%d wait", n)
		}
		seen, last := map[string]bool{}, 0
		for _, d := range r.cloud.Ledger() {
			if d.Topic == "busgate/plant-a/grid/history" {
				var i int
				fmt.Sscanf(string(d.Payload[strings.LastIndex(string(d.Payload), ":")+1:]), "%d", &i)
				if i < last || seen[string(d.Payload)] {
					t.Fatalf("%d after %d", i, last)
				}
				last = i
				seen[string(d.Payload)] = true
			}
		}
		if len(seen) != 2000 {
			t.Errorf("%d of the backlog came, want 2000", len(seen))
		}
		r.stop()
	})
}

func TestBacklogGetsATenthWhenLiveAloneExceedsTheRate(t *testing.T) {
	virtual(t, cloudtest.Options{AckDelay: time.Millisecond}, func(r *rig) {
		r.cfg.Order, r.cfg.Window, r.cfg.LiveAge, r.cfg.RateMsgs = "live_first", 20, time.Hour, 20
		put := func() {
			r.st.put("busgate/plant-a/grid/state", []byte(`{"ts":"x"}`), embeddedbroker.KindReading)
		}
		for range 2000 {
			put()
		}
		r.start()
		time.Sleep(time.Second)
		count := func() (live, late int) {
			return len(r.payloads("busgate/plant-a/grid/state")), len(r.payloads("busgate/plant-a/grid/history"))
		}
		stream := func(n int) {
			for range n {
				put() // 30 a second
				time.Sleep(time.Second / 30)
			}
		}
		stream(150)
		live0, late0 := count()
		stream(450)
		live, late := count()
		live, late = live-live0, late-late0
		if share := float64(late) / float64(live+late); share < 0.08 || share > 0.25 {
			t.Errorf("%d live and %d of the backlog: a share of %.2f, want about a tenth", live, late, share)
		}
		r.o.Grace = 0
		r.stop()
	})
}

func TestOldReadingsAreHistoryOnlyWithLiveFirst(t *testing.T) {
	for order, topic := range map[string]string{"fifo": "busgate/plant-a/grid/state", "live_first": "busgate/plant-a/grid/history"} {
		virtual(t, cloudtest.Options{}, func(r *rig) {
			r.cfg.Order = order
			r.st.put("busgate/plant-a/grid/state", []byte(`{"ts":"x"}`), embeddedbroker.KindReading)
			r.st.put("lan/topic", []byte(`x`), embeddedbroker.KindLAN)
			r.st.put("busgate/plant-a/lan/state", []byte(`{"ts":"x"}`), embeddedbroker.KindLAN)
			r.st.records[0].Retain = true
			time.Sleep(2 * time.Minute)
			r.start()
			time.Sleep(5 * time.Second)
			if got := r.payloads(topic); len(got) != 1 {
				t.Errorf("%s: %d on %s", order, len(got), topic)
			}
			if _, kept := r.cloud.Retained(topic); kept != (order == "fifo") {
				t.Errorf("%s: retained on %s: %v; history never is", order, topic, kept)
			}
			if got := r.payloads("lan/topic"); len(got) != 1 {
				t.Errorf("%s: a message of the LAN changed its topic", order)
			}
			if got := r.payloads("busgate/plant-a/lan/state"); len(got) != 1 {
				t.Errorf("%s: a message of the LAN that looks like a reading changed its topic", order)
			}
			r.stop()
		})
	}
}

func TestLazyStart(t *testing.T) {
	virtual(t, cloudtest.Options{}, func(r *rig) {
		r.cfg.Start = "lazy"
		var oldest, bytes atomic.Int64
		r.o.Usage = func() (int, int64, time.Duration) {
			n, _, _ := r.st.usage()
			return n, bytes.Load(), time.Duration(oldest.Load())
		}
		r.st.fill(3)
		r.start()
		time.Sleep(time.Hour)
		if n := r.cloud.Connects(); n != 0 {
			t.Errorf("%d connects for 3 messages", n)
		}
		bytes.Store(64 << 10)
		time.Sleep(30 * time.Second)
		if got := r.payloads("t"); len(got) != 3 || r.cloud.Connects() != 1 {
			t.Errorf("%d messages, %d connects after 64 KiB waited", len(got), r.cloud.Connects())
		}
		bytes.Store(0)
		time.Sleep(2 * time.Minute)
		if s := r.link.Status(); s.State.Connected() || s.Closed["lazy"] != 1 {
			t.Errorf("%v, closed %v: want no connection after a minute without anything", s.Phase, s.Closed)
		}
		if d, _ := r.cloud.Retained("busgate/plant-a/gateway/status"); string(d.Payload) != "offline" || d.Will {
			t.Errorf("the cloud says %q", d.Payload)
		}
		r.st.fill(1)
		oldest.Store(int64(10 * time.Minute))
		time.Sleep(10 * time.Second)
		if r.cloud.Connects() != 2 {
			t.Errorf("%d connects after something waited for 10 min, want 2", r.cloud.Connects())
		}
		r.stop()
	})
}

func TestGateFillsUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := gate{msgs: bucket{rate: 10}}
		now := time.Now()
		for i := range 10 {
			if !g.pass(1, now) {
				t.Fatalf("message %d of the burst waits", i)
			}
		}
		if g.pass(1, now) {
			t.Fatal("message 11 does not wait")
		}
		began := time.Now()
		<-g.wake()
		if d := time.Since(began); d != 100*time.Millisecond || !g.pass(1, time.Now()) {
			t.Errorf("woken after %v, want 100 ms", d)
		}
		time.Sleep(time.Hour) // a burst is one second's worth, however long nothing came
		n := 0
		for g.pass(1, time.Now()) {
			n++
		}
		if n != 10 {
			t.Errorf("%d pass at once after an hour, want 10", n)
		}
	})
}
