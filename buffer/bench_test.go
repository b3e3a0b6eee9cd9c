package buffer

import (
	"context"
	"database/sql"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// reading is a message as a poller makes it.
func reading(i int) Record {
	return Record{Lane: LaneLive, Topic: "busgate/gw1/meter1/state", Kind: 1, Thinnable: true, Mono: time.Duration(i) * 100 * time.Millisecond,
		Payload: fmt.Appendf(nil, `{"ts":%d,"clk":"ntp","n":%d,"energy":%.1f,"power":%d,"voltage":%.1f}`, int64(1782000000000)+int64(i)*100, i, 1000+float64(i)/10, 200+i%50, 230+float64(i%20)/10)}
}

func batchOf(n int, to ...ConsumerID) []Record {
	rs := make([]Record, n)
	for i := range rs {
		rs[i] = reading(i)
		rs[i].To = to
	}
	return rs
}

func benchStore(b *testing.B, path string, o Options) (*Store, *Consumer) {
	o.Reserve, o.MinFreeDisk = -1, -1
	s, err := Open(path, o)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close(context.Background()) })
	c, err := s.Consumer("up", ConsumerOptions{Window: maxWindow})
	if err != nil {
		b.Fatal(err)
	}
	return s, c
}

// meter sums the time between start and stop, and what the process, its
// collector included, spends of the CPUs meanwhile.
type meter struct {
	cpu, time time.Duration
	cpu0      time.Duration
	time0     time.Time
}

func (m *meter) start() { m.cpu0, m.time0 = cpuTime(), time.Now() }
func (m *meter) stop()  { m.cpu += cpuTime() - m.cpu0; m.time += time.Since(m.time0) }

func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkAppend is the CPU time of a message in commits of so many, the disk
// left out: the store, a plain log, and a row of SQLite for each message, in
// turns. x-log and x-rows are how often the store's cost goes into theirs.
func BenchmarkAppend(b *testing.B) {
	for _, n := range []int{1, 10, 100, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s, c := benchStore(b, filepath.Join(shm(b), "b.db"), Options{sys: quiet()})
			l, q := newPlainLog(b, shm(b)), newRows(b, shm(b))
			rs := batchOf(n, c.ID())
			var own, log, rows meter
			const turns = 50
			for b.Loop() {
				own.start()
				for range turns {
					if err := s.Append(rs).Wait(bg); err != nil {
						b.Fatal(err)
					}
				}
				own.stop()
				log.start()
				for range turns {
					l.append(b, rs)
				}
				log.stop()
				rows.start()
				for range turns {
					q.append(b, rs)
				}
				rows.stop()
			}
			b.ReportMetric(float64(own.cpu)/float64(b.N*turns*n), "cpu-ns/msg")
			b.ReportMetric(float64(log.cpu)/float64(own.cpu), "x-log")
			b.ReportMetric(float64(rows.cpu)/float64(own.cpu), "x-rows")
		})
	}
}

// rows is a queue as most make it: a row of SQLite for each message, through
// database/sql, with the pragmas of the store, statements prepared, no flush.
type rows struct {
	d                   *sql.DB
	insert, oldest, del *sql.Stmt
}

func newRows(b *testing.B, dir string) *rows {
	must := func(err error) {
		if err != nil {
			b.Fatal(err)
		}
	}
	d, err := sql.Open("sqlite", "file:"+filepath.Join(dir, "r.db")+
		"?_pragma=journal_mode(WAL)&_pragma=synchronous(NORMAL)&_pragma=wal_autocheckpoint(2000)&_pragma=cache_size(-512)")
	must(err)
	b.Cleanup(func() { d.Close() })
	d.SetMaxOpenConns(1)
	_, err = d.Exec("CREATE TABLE q(id INTEGER PRIMARY KEY, topic TEXT, payload BLOB)")
	must(err)
	q := &rows{d: d}
	q.insert, err = d.Prepare("INSERT INTO q(topic,payload) VALUES(?,?)")
	must(err)
	q.oldest, err = d.Prepare("SELECT id,topic,payload FROM q ORDER BY id LIMIT 1")
	must(err)
	q.del, err = d.Prepare("DELETE FROM q WHERE id=?")
	must(err)
	return q
}

func (q *rows) append(b *testing.B, rs []Record) {
	tx, err := q.d.Begin()
	if err != nil {
		b.Fatal(err)
	}
	insert := tx.Stmt(q.insert)
	for i := range rs {
		if _, err := insert.Exec(rs[i].Topic, rs[i].Payload); err != nil {
			b.Fatal(err)
		}
	}
	if err := tx.Commit(); err != nil {
		b.Fatal(err)
	}
}

// take reads the oldest row and deletes it.
func (q *rows) take(b *testing.B) {
	var id int64
	var topic string
	var payload []byte
	if err := q.oldest.QueryRow().Scan(&id, &topic, &payload); err != nil {
		b.Fatal(err)
	}
	if _, err := q.del.Exec(id); err != nil {
		b.Fatal(err)
	}
}

// plainLog is the least that could be done: a length and the bytes of each
// message, one fdatasync a batch.
type plainLog struct {
	f   *os.File
	buf []byte
}

func newPlainLog(b *testing.B, dir string) *plainLog {
	f, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { f.Close() })
	return &plainLog{f: f}
}

func (l *plainLog) append(b *testing.B, rs []Record) {
	l.buf = l.buf[:0]
	for i := range rs {
		r := &rs[i]
		l.buf = binary.AppendUvarint(l.buf, uint64(len(r.Topic)))
		l.buf = append(l.buf, r.Topic...)
		l.buf = binary.AppendUvarint(l.buf, uint64(len(r.Payload)))
		l.buf = append(l.buf, r.Payload...)
	}
	if _, err := l.f.Write(l.buf); err != nil {
		b.Fatal(err)
	}
	if err := syscall.Fdatasync(int(l.f.Fd())); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkWaiters is 1,000 publishers that each wait for a flush of 10 ms, and
// the part of what is possible that they get: all of them in each flush, 5 ms
// of linger between two.
func BenchmarkWaiters(b *testing.B) {
	const publishers, each, flush = 1000, 400, 10 * time.Millisecond
	sys := quiet()
	sys.fdatasync = func(*os.File) error { time.Sleep(flush); return nil }
	s, c := benchStore(b, filepath.Join(shm(b), "b.db"), Options{sys: sys})
	for b.Loop() {
		var wg sync.WaitGroup
		for p := range publishers {
			wg.Go(func() {
				rs := []Record{reading(p)}
				rs[0].To = []ConsumerID{c.ID()}
				for range each {
					if err := s.Append(rs).Wait(bg); err != nil {
						b.Error(err)
					}
				}
			})
		}
		wg.Wait()
	}
	rate := float64(b.N*publishers*each) / b.Elapsed().Seconds()
	b.ReportMetric(rate, "msg/s")
	b.ReportMetric(100*rate/(publishers/(flush+linger).Seconds()), "%-of-bound")
}

// BenchmarkDrain takes and acknowledges a backlog on the disk of the machine.
// x-rows is how many times faster it is than SELECT one, DELETE one there, and
// x-rows-cpu how many times cheaper.
func BenchmarkDrain(b *testing.B) {
	const few = 5000
	for _, n := range []int{10_000, 1_000_000, 10_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s, c := benchStore(b, temp(b), Options{})
			q := newRows(b, b.TempDir())
			rs := batchOf(1000, c.ID())
			var own, rows meter
			for b.Loop() {
				for range n / len(rs) {
					s.AppendLazy(rs)
				}
				if err := s.Sync(bg); err != nil {
					b.Fatal(err)
				}
				own.start()
				drain(b, c, n)
				if err := s.Sync(bg); err != nil { // cursors and trims are part of it
					b.Fatal(err)
				}
				own.stop()
				for range few / len(rs) {
					q.append(b, rs)
				}
				rows.start()
				for range few {
					q.take(b)
				}
				rows.stop()
			}
			per := float64(b.N * n)
			b.ReportMetric(float64(own.cpu)/per, "cpu-ns/msg")
			b.ReportMetric(float64(rows.time)/float64(b.N*few)/(float64(own.time)/per), "x-rows")
			b.ReportMetric(float64(rows.cpu)/float64(b.N*few)/(float64(own.cpu)/per), "x-rows-cpu")
		})
	}
}

// drain takes n records in windows and acknowledges them.
func drain(b *testing.B, c *Consumer, n int) {
	ords := make([]uint64, 0, maxWindow)
	for n > 0 {
		got, err := c.Next(bg, maxWindow)
		if err != nil {
			b.Fatal(err)
		}
		ords = ords[:0]
		for i := range got {
			ords = append(ords, got[i].Ord)
		}
		c.Ack(ords...)
		n -= len(got)
	}
}

// BenchmarkOpen opens a store with so many segments.
func BenchmarkOpen(b *testing.B) {
	for _, n := range []int{0, 60000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			path := filepath.Join(shm(b), "b.db")
			s, c := benchStore(b, path, Options{sys: quiet()})
			for range n {
				s.mu.Lock()
				s.batch.open = [lanes]*builder{} // each a segment of its own
				s.mu.Unlock()
				s.AppendLazy(batchOf(10, c.ID()))
			}
			if err := s.Close(bg); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				s, err := Open(path, Options{sys: quiet(), Reserve: -1})
				if err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if st := s.Stats(); st.Segments < n*8/10 {
					b.Fatal(st.Segments)
				}
				s.Close(bg)
				b.StartTimer()
			}
		})
	}
}

// BenchmarkPack deflates a segment of 100 readings.
func BenchmarkPack(b *testing.B) {
	sb := &builder{}
	for i := range 100 {
		r := reading(i)
		r.Seq = uint64(i + 1)
		at, _ := sb.place([]byte{1}, 0)
		sb.put(nil, &r, []byte{1}, at)
	}
	var c codec
	size := 0
	b.ReportAllocs()
	for b.Loop() {
		size = len(c.pack(sb.raw))
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*100), "ns/msg")
	b.ReportMetric(float64(len(sb.raw))/float64(size), "x")
}

// BenchmarkDevice counts what a block device is asked to write, for one commit
// each 10 ms: bytes a message, against a log that is not compressed, and flushes
// a commit. It needs root.
func BenchmarkDevice(b *testing.B) {
	const commits = 1000
	for _, n := range []int{1, 10, 100, 1000} {
		bytesOf := func(b *testing.B, d *disk, commit func()) (bytes, flushes float64) {
			for range 1600 { // the -wal file has been through a checkpoint and has its size then
				commit()
			}
			w0, f0 := d.written(b)
			for range commits {
				commit()
				time.Sleep(10 * time.Millisecond)
			}
			w1, f1 := d.written(b)
			return float64(w1-w0) / float64(commits*n), float64(f1-f0) / commits
		}
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			d := newDisk(b)
			for b.Loop() {
				s, c := benchStore(b, filepath.Join(d.dir, "b.db"), Options{})
				rs := batchOf(n, c.ID())
				lag := 0
				own, flushes := bytesOf(b, d, func() {
					if err := s.Append(rs).Wait(bg); err != nil {
						b.Fatal(err)
					}
					for lag += n; lag > 20*n; {
						got, err := c.Next(bg, maxWindow)
						if err != nil {
							b.Fatal(err)
						}
						for _, r := range got {
							c.Ack(r.Ord)
						}
						lag -= len(got)
					}
				})
				if err := s.Close(bg); err != nil {
					b.Fatal(err)
				}
				l := newPlainLog(b, d.dir)
				plain, _ := bytesOf(b, d, func() { l.append(b, rs) })
				b.ReportMetric(own, "B/msg")
				b.ReportMetric(own/plain, "x-log")
				b.ReportMetric(flushes, "flushes/commit")
			}
		})
	}
}
