package vm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// disk is a network block device (the fixed newstyle protocol of nbd) with a
// volatile cache: what was written is lost when the power goes, unless a flush
// came after it. A disk that lies answers flushes at once and writes later.
type disk struct {
	file   *os.File
	size   int64
	lies   bool
	listen net.Listener

	mu      sync.Mutex
	pending []written // in the cache, oldest first
	flushes int
	serving sync.WaitGroup
	conns   map[net.Conn]bool
}

// written is one write in the cache.
type written struct {
	at   int64
	data []byte
	when time.Time
}

// lateness is how long a disk that lies keeps writes in its cache.
const lateness = 4 * time.Second

// Numbers of the protocol.
const (
	nbdMagic       = 0x4e42444d41474943 // "NBDMAGIC"
	nbdOption      = 0x49484156454f5054 // "IHAVEOPT"
	nbdOptionReply = 0x0003e889045565a9
	nbdRequest     = 0x25609513
	nbdReply       = 0x67446698

	optExportName = 1
	optAbort      = 2
	optInfo       = 6
	optGo         = 7
	replyAck      = 1
	replyInfo     = 3
	replyUnsup    = 1<<31 | 1

	cmdRead, cmdWrite, cmdDisconnect, cmdFlush = 0, 1, 2, 3
	hasFlags, sendsFlush                       = 1, 4
)

// openDisk serves file at a unix socket until the test ends.
func openDisk(t *testing.T, file, socket string, lies bool) *disk {
	t.Helper()
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	d := &disk{file: f, size: st.Size(), lies: lies, listen: l, conns: map[net.Conn]bool{}}
	d.serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			d.mu.Lock()
			d.conns[c] = true
			d.mu.Unlock()
			d.serving.Go(func() { d.serve(c) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		d.mu.Lock()
		for c := range d.conns {
			c.Close()
		}
		d.mu.Unlock()
		d.serving.Wait()
		f.Close()
	})
	return d
}

// cut is what a power cut does to the cache: each write that no flush has
// followed is lost or kept, by chance. It returns how many were lost. The
// machine must be dead.
func (d *disk) cut() (lost int, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, w := range d.pending {
		if rand.IntN(2) == 0 {
			lost++
			continue
		}
		if _, err := d.file.WriteAt(w.data, w.at); err != nil {
			return lost, err
		}
	}
	d.pending = nil
	return lost, nil
}

func (d *disk) write(at int64, data []byte, now time.Time) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.pending = append(d.pending, written{at, data, now})
	if !d.lies {
		return nil
	}
	return d.settleLocked(func(w written) bool { return now.Sub(w.when) >= lateness })
}

// read sees the cache.
func (d *disk) read(at int64, b []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, err := d.file.ReadAt(b, at); err != nil {
		return err
	}
	for _, w := range d.pending {
		lo, hi := max(at, w.at), min(at+int64(len(b)), w.at+int64(len(w.data)))
		if lo < hi {
			copy(b[lo-at:hi-at], w.data[lo-w.at:])
		}
	}
	return nil
}

func (d *disk) flush() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.flushes++
	if d.lies {
		return nil
	}
	return d.settleLocked(func(written) bool { return true })
}

// settleLocked makes the oldest writes durable, as long as due says so.
func (d *disk) settleLocked(due func(written) bool) error {
	for len(d.pending) > 0 && due(d.pending[0]) {
		if _, err := d.file.WriteAt(d.pending[0].data, d.pending[0].at); err != nil {
			return err
		}
		d.pending = d.pending[1:]
	}
	return nil
}

// serve speaks with one client. An error ends the connection: the client then
// sees a broken disk and the test fails.
func (d *disk) serve(c net.Conn) {
	defer func() {
		c.Close()
		d.mu.Lock()
		delete(d.conns, c)
		d.mu.Unlock()
	}()
	if err := d.greet(c); err != nil {
		return
	}
	for {
		var head [28]byte
		if _, err := io.ReadFull(c, head[:]); err != nil || binary.BigEndian.Uint32(head[:]) != nbdRequest {
			return
		}
		cmd, at, size := binary.BigEndian.Uint16(head[6:]), int64(binary.BigEndian.Uint64(head[16:])), binary.BigEndian.Uint32(head[24:])
		if cmd == cmdDisconnect || at < 0 || size > 64<<20 || at+int64(size) > d.size {
			return
		}
		answer := binary.BigEndian.AppendUint32(nil, nbdReply)
		answer = append(binary.BigEndian.AppendUint32(answer, 0), head[8:16]...)
		data := make([]byte, size)
		var err error
		switch cmd {
		case cmdRead:
			err = d.read(at, data)
			answer = append(answer, data...)
		case cmdWrite:
			if _, err = io.ReadFull(c, data); err == nil {
				err = d.write(at, data, time.Now())
			}
		case cmdFlush:
			err = d.flush()
		default:
			err = errors.New("unknown command")
		}
		if err == nil {
			_, err = c.Write(answer)
		}
		if err != nil {
			return
		}
	}
}

// greet agrees on the one export there is.
func (d *disk) greet(c net.Conn) error {
	hello := binary.BigEndian.AppendUint64(nil, nbdMagic)
	hello = binary.BigEndian.AppendUint64(hello, nbdOption)
	hello = binary.BigEndian.AppendUint16(hello, 3) // fixed newstyle, no zeroes
	if _, err := c.Write(hello); err != nil {
		return err
	}
	var flags [4]byte
	if _, err := io.ReadFull(c, flags[:]); err != nil {
		return err
	}
	export := binary.BigEndian.AppendUint64(nil, uint64(d.size))
	export = binary.BigEndian.AppendUint16(export, hasFlags|sendsFlush)
	for {
		var head [16]byte
		if _, err := io.ReadFull(c, head[:]); err != nil {
			return err
		}
		option, size := binary.BigEndian.Uint32(head[8:]), binary.BigEndian.Uint32(head[12:])
		if binary.BigEndian.Uint64(head[:]) != nbdOption || size > 4096 {
			return fmt.Errorf("not nbd: % x", head)
		}
		if _, err := io.CopyN(io.Discard, c, int64(size)); err != nil {
			return err
		}
		reply := func(kind uint32, data []byte) error {
			b := binary.BigEndian.AppendUint64(nil, nbdOptionReply)
			b = binary.BigEndian.AppendUint32(b, option)
			b = binary.BigEndian.AppendUint32(b, kind)
			b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
			_, err := c.Write(append(b, data...))
			return err
		}
		var err error
		switch option {
		case optExportName:
			_, err = c.Write(export)
			return err
		case optInfo, optGo:
			if err = reply(replyInfo, append([]byte{0, 0}, export...)); err == nil {
				err = reply(replyAck, nil)
			}
			if option == optGo {
				return err
			}
		case optAbort:
			return errors.New("the client left")
		default:
			err = reply(replyUnsup, nil)
		}
		if err != nil {
			return err
		}
	}
}

// TestDisk: the disk itself keeps what was flushed, and may lose the rest.
func TestDisk(t *testing.T) {
	for _, c := range []struct {
		name string
		lies bool
		lost bool // of what was flushed
	}{
		{name: "what was flushed survives every cut"},
		{name: "of a disk that lies it does not", lies: true, lost: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			file := filepath.Join(dir, "img")
			if err := os.WriteFile(file, make([]byte, 1<<20), 0o644); err != nil {
				t.Fatal(err)
			}
			d := openDisk(t, file, filepath.Join(dir, "s"), c.lies)
			now := time.Now()
			sector := func(b byte) []byte {
				s := make([]byte, 512)
				s[0] = b
				return s
			}
			lost, kept := 0, 0
			for i := range 64 {
				at := int64(i) * 1024
				if err := errors.Join(d.write(at, sector(1), now), d.flush(), d.write(at+512, sector(2), now)); err != nil {
					t.Fatal(err)
				}
				seen := make([]byte, 1024)
				if err := d.read(at, seen); err != nil || seen[0] != 1 || seen[512] != 2 {
					t.Fatalf("%v: before the cut all is there: %d %d", err, seen[0], seen[512])
				}
			}
			d.flush()
			if err := d.write(1<<19, sector(3), now); err != nil {
				t.Fatal(err)
			}
			if _, err := d.cut(); err != nil {
				t.Fatal(err)
			}
			for i := range 128 {
				seen := make([]byte, 1)
				if err := d.read(int64(i)*512, seen); err != nil {
					t.Fatal(err)
				}
				if seen[0] == 0 {
					lost++
				} else {
					kept++
				}
			}
			if c.lost != (lost > 0) || kept == 0 {
				t.Errorf("%d lost, %d kept", lost, kept)
			}
		})
	}
}
