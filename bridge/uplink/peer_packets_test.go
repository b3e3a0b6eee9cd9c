package uplink

import (
	"encoding/binary"
	"fmt"
	"net"
	"sync"

	"github.com/eclipse/paho.mqtt.golang/packets"
)

// exchanges are the packets that went over the wire for each message, in order:
// ours (>) and the answers (<), with the connection that they went over.
type exchanges struct {
	mu     sync.Mutex
	conns  int
	text   map[uint16]string   // payload of the PUBLISH that uses an id now
	of     map[string][]string // packets by payload
	closed map[string]bool     // PUBACK or PUBCOMP came
}

func newExchanges() *exchanges {
	return &exchanges{text: map[uint16]string{}, of: map[string][]string{}, closed: map[string]bool{}}
}

// tap notes every packet of a connection that has to do with a message.
func (x *exchanges) tap(c net.Conn) net.Conn {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.conns++
	return &tapped{Conn: c, x: x, n: x.conns}
}

// lost says of messages how far their exchange came; broken are those whose end
// the broker never confirmed.
func (x *exchanges) lost(payloads []string) (told []string, broken int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, p := range payloads {
		if !x.closed[p] {
			broken++
		}
		told = append(told, fmt.Sprintf("%s: %v", p, x.of[p]))
	}
	return told, broken
}

func (x *exchanges) note(conn int, dir string, kind, flags byte, body []byte) {
	x.mu.Lock()
	defer x.mu.Unlock()
	var id uint16
	switch kind {
	case packets.Publish:
		if flags>>1&3 == 0 || dir != ">" {
			return
		}
		at := 2 + int(binary.BigEndian.Uint16(body))
		id = binary.BigEndian.Uint16(body[at:])
		x.text[id] = string(body[at+2:])
	case packets.Puback, packets.Pubrec, packets.Pubrel, packets.Pubcomp:
		id = binary.BigEndian.Uint16(body)
	default:
		return
	}
	p, ok := x.text[id]
	if !ok {
		return
	}
	name := packets.PacketNames[kind]
	if kind == packets.Publish && flags&8 != 0 {
		name += " (DUP)"
	}
	x.of[p] = append(x.of[p], fmt.Sprintf("%s %s on connection %d", dir, name, conn))
	if dir == "<" && (kind == packets.Puback || kind == packets.Pubcomp) {
		x.closed[p] = true
	}
}

// tapped is a connection whose packets are noted.
type tapped struct {
	net.Conn
	x       *exchanges
	n       int
	in, out []byte // the beginning of a packet
}

func (t *tapped) Read(b []byte) (int, error) {
	n, err := t.Conn.Read(b)
	t.in = t.cut("<", append(t.in, b[:n]...))
	return n, err
}

func (t *tapped) Write(b []byte) (int, error) {
	t.out = t.cut(">", append(t.out, b...))
	return t.Conn.Write(b)
}

// cut notes the whole packets of b and returns the rest.
func (t *tapped) cut(dir string, b []byte) []byte {
	for len(b) >= 2 {
		length, n := binary.Uvarint(b[1:])
		if n <= 0 || uint64(len(b)-1-n) < length {
			break
		}
		end := 1 + n + int(length)
		t.x.note(t.n, dir, b[0]>>4, b[0]&0x0f, b[1+n:end])
		b = b[end:]
	}
	return append([]byte(nil), b...)
}
