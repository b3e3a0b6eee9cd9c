package buffer

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"modernc.org/libc"
	"modernc.org/sqlite/lib"
)

var cuts = flag.Int("cuts", 120, "power cuts of TestPowerCutInMemory")

// crashVFS is a shim over SQLite's "unix" VFS, registered as "crash", that
// records every write, truncate, sync and delete. state makes of the record
// what a power cut leaves: all that was synced, and a random part of the rest.
type crashVFS struct {
	mu    sync.Mutex
	trace []diskOp
	names map[uintptr]string
	real  map[uintptr]*sqlite3.Tsqlite3_io_methods // our table -> the original's
	clone map[uintptr]uintptr                      // original table -> ours
	orig  *sqlite3.Tsqlite3_vfs
	keep  []any
}

type diskOp struct {
	kind byte // w write, t truncate, s sync, d delete
	name string
	off  int64
	data []byte
}

// crash is one for the process: SQLite knows it by name.
var crash = sync.OnceValue(func() *crashVFS {
	v := &crashVFS{names: map[uintptr]string{}, real: map[uintptr]*sqlite3.Tsqlite3_io_methods{}, clone: map[uintptr]uintptr{}}
	tls := libc.NewTLS()
	v.orig = cPointer[sqlite3.Tsqlite3_vfs](sqlite3.Xsqlite3_vfs_find(tls, 0))
	p := libc.Xmalloc(tls, libc.Tsize_t(unsafe.Sizeof(sqlite3.Tsqlite3_vfs{})))
	vfs := cPointer[sqlite3.Tsqlite3_vfs](p)
	*vfs = *v.orig
	vfs.FpNext = 0
	vfs.FzName, _ = libc.CString("crash")
	setFn(v, &vfs.FxOpen, v.xOpen)
	setFn(v, &vfs.FxDelete, v.xDelete)
	if rc := sqlite3.Xsqlite3_vfs_register(tls, p, 0); rc != 0 {
		panic(rc)
	}
	return v
})

func getFn[T any](p *uintptr) T { return *(*T)(unsafe.Pointer(p)) }

// setFn writes a Go function into a table of C. keep holds the closure, which
// the garbage collector would not find there.
func setFn[T any](v *crashVFS, p *uintptr, f T) {
	v.keep = append(v.keep, f)
	*(*T)(unsafe.Pointer(p)) = f
}

// cPointer is a pointer to memory of SQLite, which no garbage collector moves.
func cPointer[T any](p uintptr) *T { return *(**T)(unsafe.Pointer(&p)) }

func methods(file uintptr) *uintptr {
	return &cPointer[sqlite3.Tsqlite3_file](file).FpMethods
}

func (v *crashVFS) xOpen(tls *libc.TLS, _, zName, file uintptr, flags int32, out uintptr) int32 {
	open := getFn[func(*libc.TLS, uintptr, uintptr, uintptr, int32, uintptr) int32](&v.orig.FxOpen)
	rc := open(tls, uintptr(unsafe.Pointer(v.orig)), zName, file, flags, out)
	if rc != 0 || *methods(file) == 0 {
		return rc
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	m := *methods(file)
	if v.clone[m] == 0 {
		n := libc.Xmalloc(tls, libc.Tsize_t(unsafe.Sizeof(sqlite3.Tsqlite3_io_methods{})))
		t := cPointer[sqlite3.Tsqlite3_io_methods](n)
		*t = *cPointer[sqlite3.Tsqlite3_io_methods](m)
		t.FiVersion = 2 // no memory-mapped reads
		setFn(v, &t.FxWrite, v.xWrite)
		setFn(v, &t.FxTruncate, v.xTruncate)
		setFn(v, &t.FxSync, v.xSync)
		v.clone[m], v.real[n] = n, cPointer[sqlite3.Tsqlite3_io_methods](m)
	}
	*methods(file) = v.clone[m]
	v.names[file] = filepath.Base(libc.GoString(zName))
	return rc
}

func (v *crashVFS) of(file uintptr) (*sqlite3.Tsqlite3_io_methods, string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.real[*methods(file)], v.names[file]
}

func (v *crashVFS) add(o diskOp) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.trace = append(v.trace, o)
}

func (v *crashVFS) len() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.trace)
}

func (v *crashVFS) xWrite(tls *libc.TLS, file, buf uintptr, n int32, off int64) int32 {
	m, name := v.of(file)
	v.add(diskOp{'w', name, off, append([]byte(nil), unsafe.Slice(cPointer[byte](buf), n)...)})
	return getFn[func(*libc.TLS, uintptr, uintptr, int32, int64) int32](&m.FxWrite)(tls, file, buf, n, off)
}

func (v *crashVFS) xTruncate(tls *libc.TLS, file uintptr, size int64) int32 {
	m, name := v.of(file)
	v.add(diskOp{'t', name, size, nil})
	return getFn[func(*libc.TLS, uintptr, int64) int32](&m.FxTruncate)(tls, file, size)
}

func (v *crashVFS) xSync(tls *libc.TLS, file uintptr, flags int32) int32 {
	m, name := v.of(file)
	rc := getFn[func(*libc.TLS, uintptr, int32) int32](&m.FxSync)(tls, file, flags)
	v.add(diskOp{'s', name, 0, nil})
	return rc
}

func (v *crashVFS) xDelete(tls *libc.TLS, _, zName uintptr, dirSync int32) int32 {
	v.add(diskOp{'d', filepath.Base(libc.GoString(zName)), 0, nil})
	return getFn[func(*libc.TLS, uintptr, uintptr, int32) int32](&v.orig.FxDelete)(tls, uintptr(unsafe.Pointer(v.orig)), zName, dirSync)
}

// state is what the first k operations leave after a power cut.
func (v *crashVFS) state(k int, rnd *rand.Rand) map[string][]byte {
	synced := map[string]int{}
	for i, o := range v.trace[:k] {
		if o.kind == 's' {
			synced[o.name] = i
		}
	}
	files := map[string][]byte{}
	for i, o := range v.trace[:k] {
		if last, ok := synced[o.name]; (!ok || i > last) && o.kind != 'd' && rnd.IntN(2) == 0 {
			continue
		}
		b := files[o.name]
		switch o.kind {
		case 'w':
			if end := o.off + int64(len(o.data)); int64(len(b)) < end {
				b = append(b, make([]byte, end-int64(len(b)))...)
			}
			copy(b[o.off:], o.data)
			files[o.name] = b
		case 't':
			if int64(len(b)) > o.off {
				files[o.name] = b[:o.off]
			}
		case 'd':
			delete(files, o.name)
		}
	}
	return files
}

// event of the workload of a cut test, with the length of the trace after it.
type event struct {
	at       int
	n        int  // records 1..n were acknowledged to their publisher
	acked    int  // the uplink's acknowledgements were begun up to here
	released int  // ords up to here were released durably
	leased   int  // ords up to here were handed out
	done     bool // the store was closed
}

// cutWorkload runs a store on the crash VFS and returns what it promised when.
func cutWorkload(t *testing.T, path string, o Options) []event {
	v := crash()
	v.mu.Lock()
	v.trace = nil
	v.mu.Unlock()
	s := open(t, path, o)
	up := consumer(t, s, "up", ConsumerOptions{Exact: true, Window: 8})
	lan := consumer(t, s, "lan", ConsumerOptions{Kind: SessionLog})
	rnd := rand.New(rand.NewPCG(1, 1))
	var events []event
	var e event
	for i := range 150 {
		var rs []Record
		for range 1 + rnd.IntN(4) {
			e.n++
			rs = append(rs, Record{To: []ConsumerID{up.ID(), lan.ID()}, Topic: "t", Payload: append(fmt.Appendf(nil, "%d ", e.n), random(rnd.IntN(300))...)})
		}
		wait(t, s.Append(rs, Retained{Topic: fmt.Sprint(i % 5), Payload: fmt.Append(nil, i)}))
		e.at = v.len()
		events = append(events, e)
		if i%3 == 0 {
			var ords []uint64
			for _, r := range there(t, up, 8) {
				ords = append(ords, r.Ord)
				e.leased = int(r.Ord)
			}
			e.at = v.len()
			events = append(events, e)
			if len(ords) > 0 {
				wait(t, up.Release(ords...))
				e.released, e.at = int(ords[len(ords)-1]), v.len()
				events = append(events, e)
				e.acked = e.released
				events = append(events, e)
				up.Ack(ords...)
			}
			if err := s.Sync(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if i%25 == 24 {
			if err := s.checkpoint("PASSIVE"); err != nil {
				t.Fatal(err)
			}
		}
	}
	if s.Stats().Rewritten == 0 {
		t.Error("nothing was rewritten")
	}
	shut(t, s)
	e.at, e.done = v.len(), true
	return append(events, e)
}

// checkCut opens what a cut left and says what of the promises is broken.
func checkCut(path string, before, after event) error {
	s, err := Open(path, Options{sys: quiet(), Reserve: -1})
	if err != nil {
		return err
	}
	defer s.Close(bg)
	if err := audit(s); err != nil {
		return err
	}
	up, err := s.Consumer("up", ConsumerOptions{Exact: true, Window: 1024})
	if err != nil {
		return err
	}
	for _, o := range up.Owed() {
		if int(o.Ord) <= before.released && !o.Released {
			return fmt.Errorf("the release of %d is lost", o.Ord)
		}
	}
	if int(up.ord) < before.leased {
		return fmt.Errorf("leases up to %d are lost: %d", before.leased, up.ord)
	}
	var got, last int
	for _, e := range up.open {
		if e.state == stateReleased {
			got = int(e.ord)
		}
	}
	for {
		rs, err := poll(up, false, 100)
		if err != nil {
			return err
		}
		if len(rs) == 0 {
			break
		}
		for _, r := range rs {
			fmt.Sscan(string(r.Payload), &got)
			if int(r.Ord) != got { // one lane, one consumer: both count from 1
				return fmt.Errorf("record %d has ord %d", got, r.Ord)
			}
			if last != 0 && got != last+1 {
				return fmt.Errorf("record %d follows %d", got, last)
			}
			if last == 0 && got > after.acked+1 && got > after.released+1 {
				return fmt.Errorf("first record is %d, acked up to %d", got, after.acked)
			}
			last = got
			up.Ack(r.Ord)
		}
	}
	if max(last, got) < before.n && before.acked < before.n {
		return fmt.Errorf("records up to %d were promised, the last is %d", before.n, max(last, got))
	}
	rs, _, err := mustSession(s).ReadFrom(0, 1<<20, 1<<30)
	if err != nil {
		return err
	}
	if len(rs) < before.n {
		return fmt.Errorf("session has %d of %d", len(rs), before.n)
	}
	return nil
}

func mustSession(s *Store) *Consumer {
	c, err := s.Consumer("lan", ConsumerOptions{Kind: SessionLog})
	if err != nil {
		panic(err)
	}
	return c
}

// countCuts cuts at random moments and counts the broken promises.
func countCuts(t *testing.T, events []event, n int, seed uint64) (broken int, first error) {
	v := crash()
	dir := shm(t)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for i := range n {
		k := events[0].at + rnd.IntN(events[len(events)-1].at-events[0].at)
		before, after := events[0], events[len(events)-1]
		for _, e := range events {
			if e.at <= k {
				before = e
			} else {
				after = e
				break
			}
		}
		sub := filepath.Join(dir, fmt.Sprint(i))
		if err := os.Mkdir(sub, 0o700); err != nil {
			t.Fatal(err)
		}
		for name, b := range v.state(k, rnd) {
			if strings.HasSuffix(name, "-shm") {
				continue
			}
			if err := os.WriteFile(filepath.Join(sub, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := checkCut(filepath.Join(sub, "b.db"), before, after); err != nil {
			broken++
			if first == nil {
				first = fmt.Errorf("cut %d at %d: %w", i, k, err)
			}
		}
		os.RemoveAll(sub)
	}
	return broken, first
}

// shm is a temporary folder in memory where there is one.
func shm(t testing.TB) string {
	dir, err := os.MkdirTemp("/dev/shm", "buffer")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// onCrash gives a system whose flush of the -wal file is noted in the trace.
func onCrash(flush bool) *system {
	v := crash()
	sys := machine()
	sys.query = "&vfs=crash"
	sys.youngest, sys.manySmall = 1, 5 // segments are joined under way
	var mono atomic.Int64
	sys.mono = func() time.Duration { return time.Duration(mono.Add(int64(10 * time.Second))) }
	sys.syncDir = func(string) error { return nil }
	sys.fdatasync = func(f *os.File) error {
		if flush {
			v.add(diskOp{'s', filepath.Base(f.Name()), 0, nil})
		}
		return nil
	}
	return sys
}

// TestPowerCutInMemory cuts the power thousands of times. The control runs
// show that the cuts find what they are to find.
func TestPowerCutInMemory(t *testing.T) {
	for _, c := range []struct {
		fact  string
		o     Options
		n     int
		loses bool
	}{
		{"own flush keeps every promise", Options{sys: onCrash(true)}, *cuts, false},
		{"durability full keeps every promise", Options{sys: onCrash(false), Full: true}, *cuts / 5, false},
		{"without a flush promises are broken", Options{sys: onCrash(false)}, 50, true},
	} {
		t.Run(c.fact, func(t *testing.T) {
			path := filepath.Join(shm(t), "b.db")
			events := cutWorkload(t, path, c.o)
			broken, first := countCuts(t, events, c.n, 1)
			t.Logf("%d cuts, %d broken: %v", c.n, broken, first)
			if c.loses && broken < c.n/2 || !c.loses && broken > 0 {
				t.Errorf("%d of %d cuts broke a promise: %v", broken, c.n, first)
			}
		})
	}
}
