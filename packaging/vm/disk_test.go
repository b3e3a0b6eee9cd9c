package vm

import (
	"bytes"
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
)

// disk is a network block device (the fixed newstyle protocol of nbd) with a
// volatile cache: what was written may be lost when the power goes, unless a flush
// came after it. A disk that lies answers flushes and does nothing.
type disk struct {
	file   *os.File
	size   int64
	listen net.Listener

	mu      sync.Mutex
	lies    bool
	off     bool      // without power: what is asked now is not done
	pending []written // in the cache, oldest first
	serving sync.WaitGroup
	conns   map[net.Conn]bool
	changed *sync.Cond // something was written, or a client has gone
}

// written is one write in the cache.
type written struct {
	at   int64
	data []byte
}

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
func openDisk(t *testing.T, file, socket string) *disk {
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
	d := &disk{file: f, size: st.Size(), listen: l, conns: map[net.Conn]bool{}}
	d.changed = sync.NewCond(&d.mu)
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

// lie makes the disk ignore flushes from now on.
func (d *disk) lie() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lies = true
}

// cut is a power cut in mid-write: it waits until something is in the cache,
// stops the disk, and kills the machine. Each write that no flush has followed
// is then lost or kept, by chance. A disk that lies loses them all, which is its
// contents of a moment before: so its file system is whole and can be asked what
// it has. cut returns how many of how many writes were lost.
func (d *disk) cut(kill func()) (lost, of int, err error) {
	d.mu.Lock() // nothing is done on the disk from here on
	defer d.mu.Unlock()
	for len(d.pending) == 0 {
		d.changed.Wait()
	}
	kill()
	d.off = true // for what it had sent
	for len(d.conns) > 0 {
		d.changed.Wait()
	}
	d.off = false
	of = len(d.pending)
	for _, w := range d.pending {
		if d.lies || rand.IntN(2) == 0 {
			lost++
			continue
		}
		if _, err := d.file.WriteAt(w.data, w.at); err != nil {
			return lost, of, err
		}
	}
	d.pending = nil
	return lost, of, nil
}

var errOff = errors.New("the power is off")

func (d *disk) write(at int64, data []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.off {
		return errOff
	}
	d.pending = append(d.pending, written{at, data})
	d.changed.Broadcast()
	return nil
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
	if d.off {
		return errOff
	}
	if d.lies {
		return nil
	}
	for _, w := range d.pending {
		if _, err := d.file.WriteAt(w.data, w.at); err != nil {
			return err
		}
	}
	d.pending = nil
	return nil
}

// serve speaks with one client. An error ends the connection: the client then
// sees a broken disk and the test fails.
func (d *disk) serve(c net.Conn) {
	defer func() {
		c.Close()
		d.mu.Lock()
		delete(d.conns, c)
		d.changed.Broadcast()
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
				err = d.write(at, data)
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
	const n = 64
	for _, c := range []struct {
		name                 string
		lies                 bool
		flushed, rest, least int // sectors there after the cut: flushed, at most and at least of the others
	}{
		{name: "what was flushed survives the cut, of the rest a part", flushed: n, rest: n - 1, least: 1},
		{name: "of a disk that lies nothing does", lies: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			file := filepath.Join(dir, "img")
			if err := os.WriteFile(file, make([]byte, 1<<20), 0o644); err != nil {
				t.Fatal(err)
			}
			d := openDisk(t, file, filepath.Join(dir, "s"))
			if c.lies {
				d.lie()
			}
			write := func(first int64, value byte) {
				for i := range int64(n) {
					s := make([]byte, 512)
					s[0] = value
					if err := d.write(2*i*512+first, s); err != nil {
						t.Fatal(err)
					}
				}
			}
			count := func(first int64) (there int) {
				for i := range int64(n) {
					b := make([]byte, 1)
					if err := d.read(2*i*512+first, b); err != nil {
						t.Fatal(err)
					}
					there += min(1, int(b[0]))
				}
				return there
			}
			write(0, 1)
			if err := d.flush(); err != nil {
				t.Fatal(err)
			}
			write(512, 2)
			if count(0) != n || count(512) != n {
				t.Fatalf("before the cut %d and %d of %d are there", count(0), count(512), n)
			}
			lost, of, err := d.cut(func() {})
			flushed, rest := count(0), count(512)
			if err != nil || flushed != c.flushed || rest > c.rest || rest < c.least || lost != 2*n-flushed-rest || of != 2*n-c.flushed {
				t.Errorf("%v: %d flushed and %d others are there, %d of %d writes lost", err, flushed, rest, lost, of)
			}
		})
	}
}

// TestDiskIsStillAfterTheCut: what a machine sends while it dies, a flush too,
// is not done.
func TestDiskIsStillAfterTheCut(t *testing.T) {
	dir := t.TempDir()
	file, socket := filepath.Join(dir, "img"), filepath.Join(dir, "s")
	if err := os.WriteFile(file, make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	d := openDisk(t, file, socket)
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.ReadFull(c, make([]byte, 18)); err != nil {
		t.Fatal(err)
	}
	hello := binary.BigEndian.AppendUint32(nil, 3) // flags of a client
	hello = binary.BigEndian.AppendUint64(hello, nbdOption)
	hello = binary.BigEndian.AppendUint32(hello, optExportName)
	hello = binary.BigEndian.AppendUint32(hello, 0)
	request := func(command uint32, at uint64) []byte {
		b := binary.BigEndian.AppendUint32(nil, nbdRequest)
		b = binary.BigEndian.AppendUint32(b, command)
		b = binary.BigEndian.AppendUint64(b, 0)
		b = binary.BigEndian.AppendUint64(b, at)
		if command == cmdFlush {
			return binary.BigEndian.AppendUint32(b, 0)
		}
		b = binary.BigEndian.AppendUint32(b, 512)
		return append(b, bytes.Repeat([]byte{1}, 512)...)
	}
	const first = 64 // writes before the cut
	send := hello
	for i := range uint64(first) {
		send = append(send, request(cmdWrite, i*512)...)
	}
	if _, err := c.Write(send); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 10+first*16)); err != nil { // all are answered
		t.Fatal(err)
	}
	lost, of, err := d.cut(func() {
		if _, err := c.Write(append(request(cmdFlush, 0), request(cmdWrite, first*512)...)); err != nil {
			t.Error(err)
		}
		c.(*net.UnixConn).CloseWrite() // answers still have a reader, so that none of it fails for another reason
	})
	if err != nil || of != first || lost == 0 || lost == of {
		t.Errorf("%v: lost %d of %d writes, want some of %d", err, lost, of, first)
	}
	d.mu.Lock()
	for len(d.conns) > 0 {
		d.changed.Wait()
	}
	d.mu.Unlock()
	after := make([]byte, 1)
	if err := d.read(first*512, after); err != nil || after[0] != 0 {
		t.Errorf("%v: what was written after the cut is there", err)
	}
}
