package buffer

import (
	"context"
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

// BenchmarkAppend is one commit of so many readings, without the disk: the
// store, a plain log, and a row of SQLite for each message.
func BenchmarkAppend(b *testing.B) {
	for _, n := range []int{1, 10, 100, 1000} {
		per := func(b *testing.B) { b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/msg") }
		b.Run(fmt.Sprint(n, "/store"), func(b *testing.B) {
			s, c := benchStore(b, filepath.Join(shm(b), "b.db"), Options{sys: quiet()})
			rs := batchOf(n, c.ID())
			b.ReportAllocs()
			for b.Loop() {
				if err := s.Append(rs).Wait(bg); err != nil {
					b.Fatal(err)
				}
			}
			per(b)
		})
		b.Run(fmt.Sprint(n, "/log"), func(b *testing.B) {
			l := newPlainLog(b, shm(b))
			rs := batchOf(n)
			for b.Loop() {
				l.append(b, rs)
			}
			per(b)
		})
		b.Run(fmt.Sprint(n, "/rows"), func(b *testing.B) {
			d, _, err := openDB(filepath.Join(shm(b), "r.db"), quiet(), false)
			if err != nil {
				b.Fatal(err)
			}
			defer d.close()
			if err := d.run("CREATE TABLE q(id INTEGER PRIMARY KEY, topic TEXT, payload BLOB)"); err != nil {
				b.Fatal(err)
			}
			rs := batchOf(n)
			for b.Loop() {
				err := d.transaction(func() error {
					for i := range rs {
						if err := d.exec("INSERT INTO q(topic,payload) VALUES(?,?)", rs[i].Topic, rs[i].Payload); err != nil {
							return err
						}
					}
					return nil
				})
				if err != nil {
					b.Fatal(err)
				}
			}
			per(b)
		})
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

// BenchmarkWaiters is the rate of 1,000 publishers that each wait for a flush of 10 ms.
func BenchmarkWaiters(b *testing.B) {
	sys := quiet()
	sys.fdatasync = func(*os.File) error { time.Sleep(10 * time.Millisecond); return nil }
	s, c := benchStore(b, filepath.Join(shm(b), "b.db"), Options{sys: sys})
	const publishers = 1000
	for b.Loop() {
		var wg sync.WaitGroup
		for p := range publishers {
			wg.Go(func() {
				rs := []Record{reading(p)}
				rs[0].To = []ConsumerID{c.ID()}
				for range 400 { // the -wal file has its size then
					if err := s.Append(rs).Wait(bg); err != nil {
						b.Error(err)
					}
				}
			})
		}
		wg.Wait()
	}
	b.ReportMetric(float64(b.N*publishers*50)/b.Elapsed().Seconds(), "msg/s")
}

// BenchmarkDrain takes and acknowledges a backlog.
func BenchmarkDrain(b *testing.B) {
	for _, n := range []int{10_000, 1_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s, c := benchStore(b, filepath.Join(shm(b), "b.db"), Options{sys: quiet()})
			rs := batchOf(1000, c.ID())
			took := 0
			for b.Loop() {
				b.StopTimer()
				for range n / 1000 {
					s.AppendLazy(rs)
				}
				if err := s.Sync(bg); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				ords := make([]uint64, 0, 1000)
				for left := n; left > 0; {
					got, err := c.Next(bg, 1000)
					if err != nil {
						b.Fatal(err)
					}
					ords = ords[:0]
					for i := range got {
						ords = append(ords, got[i].Ord)
					}
					c.Ack(ords...)
					left -= len(got)
					took += len(got)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(took), "ns/msg")
		})
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
		sb.put(nil, &r, []byte{1})
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
			for range 400 { // the -wal file has its size then
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
