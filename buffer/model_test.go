package buffer

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"time"
)

var (
	seed  = flag.Uint64("seed", 0, "seed of TestModel; 0: by the clock")
	steps = flag.Int("steps", 10000, "operations of TestModel")
)

// wanted is a record that the model says a consumer must still get.
type wanted struct {
	seq      uint64
	lane     uint8
	text     string
	ord      uint64 // 0: not leased
	released bool
	done     bool
}

// modelled is a consumer of the store and what the model knows of it.
type modelled struct {
	c     *Consumer
	o     ConsumerOptions
	all   []*wanted // in order of seq
	ord   uint64
	again uint64 // leases from here on must come again before anything new
	floor uint64
	live  [lanes]uint64 // Next gives readings from here on
}

// model is a store beside plain slices.
type model struct {
	t     *testing.T
	rnd   *rand.Rand
	path  string
	s     *Store
	by    map[string]*modelled
	names []string
	n     int
	trail []string

	mono      atomic.Int64
	rewritten int
}

// TestModel runs random operations against a store and against slices.
func TestModel(t *testing.T) {
	seed := *seed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	m := &model{t: t, rnd: rand.New(rand.NewPCG(seed, 0)), path: shm(t) + "/b.db", by: map[string]*modelled{}}
	defer func() {
		if t.Failed() {
			t.Logf("repeat with -seed %d; the last steps: %v", seed, m.trail[max(len(m.trail)-12, 0):])
		}
	}()
	m.s = open(t, m.path, m.options())
	for range *steps {
		m.step()
		if t.Failed() {
			return
		}
	}
	m.reopen()
	for _, name := range m.names {
		m.drain(name)
	}
	m.sync()
	if m.rewritten == 0 {
		t.Error("no segment was ever rewritten")
	}
	if st := m.s.Stats(); st.Segments != 0 || st.Records != 0 || st.Bytes != 0 {
		t.Errorf("after all was acknowledged %d segments are left", st.Segments)
	}
}

// options of a store that rewrites early; age makes its segments old.
func (m *model) options() Options {
	sys := quiet()
	sys.mono = func() time.Duration { return time.Duration(m.mono.Load()) }
	sys.youngest, sys.manySmall = 1, 2
	return Options{sys: sys}
}

// age lets segments become old enough to be joined.
func (m *model) age() {
	m.mono.Add(int64(2 * oldAfter))
	before := m.s.Stats().Segments
	m.sync()
	m.rewritten += before - m.s.Stats().Segments
}

func (m *model) step() {
	ops := []struct {
		weight int
		name   string
		do     func()
	}{
		{30, "append", m.append}, {20, "next", m.next}, {15, "ack", m.ack}, {4, "release", m.release},
		{3, "rewind", m.rewind}, {2, "live", m.live}, {6, "backlog", m.backlog}, {2, "age", m.age}, {15, "read", m.read}, {12, "settle", m.settle},
		{2, "consumer", m.consumer}, {1, "forget", m.forget}, {1, "reopen", m.reopen},
	}
	total := 0
	for _, o := range ops {
		total += o.weight
	}
	k := m.rnd.IntN(total)
	for _, o := range ops {
		if k -= o.weight; k < 0 {
			m.trail = append(m.trail, o.name)
			o.do()
			break
		}
	}
	if m.rnd.IntN(40) == 0 {
		m.check()
	}
}

func (m *model) errorf(format string, a ...any) {
	m.t.Helper()
	m.t.Errorf(format, a...)
}

func (m *model) sync() {
	if err := m.s.Sync(bg); err != nil {
		m.errorf("sync: %v", err)
	}
}

// pick chooses a consumer of a kind; nil: there is none.
func (m *model) pick(kind Kind) *modelled {
	var ks []*modelled
	for _, name := range m.names {
		if c := m.by[name]; c.o.Kind == kind {
			ks = append(ks, c)
		}
	}
	if len(ks) == 0 {
		return nil
	}
	return ks[m.rnd.IntN(len(ks))]
}

func (m *model) consumer() {
	if len(m.names) >= 12 {
		return
	}
	m.n++
	name := fmt.Sprintf("c%d", m.n)
	o := ConsumerOptions{Kind: Kind(m.rnd.IntN(2)), Window: 1 + m.rnd.IntN(60), Exact: m.rnd.IntN(3) == 0, QuotaRecords: -1, QuotaBytes: -1}
	if m.rnd.IntN(4) == 0 {
		o.Window = maxWindow
	}
	c, err := m.s.Consumer(name, o)
	if err != nil {
		m.errorf("%v", err)
		return
	}
	m.by[name] = &modelled{c: c, o: o, again: 1}
	m.names = append(m.names, name)
}

func (m *model) forget() {
	if len(m.names) < 3 {
		return
	}
	i := m.rnd.IntN(len(m.names))
	name := m.names[i]
	wait(m.t, m.s.Forget(name))
	if _, err := m.by[name].c.Next(bg, 1); err != ErrForgotten {
		m.errorf("next of a forgotten consumer: %v", err)
	}
	m.names = slices.Delete(m.names, i, i+1)
	delete(m.by, name)
}

func (m *model) reopen() {
	shut(m.t, m.s)
	m.s = open(m.t, m.path, m.options())
	for _, name := range m.names {
		k := m.by[name]
		c, err := m.s.Consumer(name, k.o)
		if err != nil {
			m.errorf("%v", err)
			return
		}
		k.c, k.again, k.live = c, 1, [lanes]uint64{}
	}
	m.check()
}

func (m *model) append() {
	var rs []Record
	var to [][]*modelled
	for range m.rnd.IntN(5) {
		m.n++
		r := Record{Lane: uint8(m.rnd.IntN(4)), Topic: fmt.Sprint("t", m.rnd.IntN(5)), Payload: fmt.Append(nil, m.n)}
		if m.rnd.IntN(8) == 0 {
			r.Payload = append(r.Payload, random(m.rnd.IntN(40000))...)
		}
		var ks []*modelled
		for _, name := range m.names {
			if m.rnd.IntN(3) == 0 {
				ks = append(ks, m.by[name])
				r.To = append(r.To, m.by[name].c.ID())
			}
		}
		rs, to = append(rs, r), append(to, ks)
	}
	var k Ticket
	if m.rnd.IntN(2) == 0 {
		k = m.s.AppendLazy(rs)
	} else {
		k = m.s.Append(rs)
		defer wait(m.t, k)
	}
	for i, r := range rs {
		for _, c := range to[i] {
			c.all = append(c.all, &wanted{seq: k.Seq() + uint64(i), lane: r.Lane, text: string(r.Payload)})
		}
	}
}

// next takes records and demands that they are what must come.
func (m *model) next() {
	if k := m.pick(Uplink); k != nil {
		m.take(k, false, func(w *wanted) bool { return w.seq >= k.live[w.lane] })
	}
}

// live jumps over the readings that wait.
func (m *model) live() {
	if k := m.pick(Uplink); k != nil {
		m.sync()
		k.c.Live()
		for l := LaneLive; l < lanes; l++ {
			k.live[l] = m.s.head
		}
	}
}

func (m *model) backlog() {
	if k := m.pick(Uplink); k != nil {
		m.take(k, true, func(w *wanted) bool { return w.seq < k.live[w.lane] })
	}
}

// check compares all that can be counted.
func (m *model) check() {
	m.sync()
	if err := audit(m.s); err != nil {
		m.errorf("%v", err)
	}
	for _, k := range m.by {
		waiting := 0
		for _, w := range k.all {
			if !w.done {
				waiting++
			}
		}
		if n, _ := k.c.Pending(); n != waiting {
			m.errorf("%s: %d wait, the model has %d", k.c.name, n, waiting)
		}
		if k.o.Kind == Uplink {
			m.checkOwed(k)
		}
	}
}

func (m *model) checkOwed(k *modelled) {
	want := map[uint64]bool{}
	for _, w := range k.byOrd() {
		if !w.done {
			want[w.ord] = w.released
		}
	}
	got := map[uint64]bool{}
	for _, o := range k.c.Owed() {
		got[o.Ord] = o.Released
	}
	if !maps.Equal(want, got) {
		m.errorf("%s: owed %v, the model has %v", k.c.name, got, want)
	}
}

// drain takes everything and demands that nothing is missing.
func (m *model) drain(name string) {
	k := m.by[name]
	if k.o.Kind == SessionLog {
		if len(k.all) > 0 {
			k.c.Settle(k.all[len(k.all)-1].seq+1, nil)
		}
		return
	}
	for _, w := range k.all {
		if w.released {
			k.c.Ack(w.ord)
			w.done = true
		}
	}
	k.forgetDone()
	for {
		before := k.ord
		m.take(k, false, func(*wanted) bool { return true })
		ws := k.byOrd()
		for _, w := range ws {
			w.done = true
			k.c.Ack(w.ord)
		}
		k.forgetDone()
		if m.t.Failed() {
			return
		}
		if before == k.ord && len(ws) == 0 {
			break
		}
	}
	if len(k.all) != 0 {
		m.errorf("%s: %d records never came", name, len(k.all))
	}
}
