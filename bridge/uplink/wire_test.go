package uplink

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/eclipse/paho.mqtt.golang/packets"
)

// readAll reads packets from bytes as a wire does.
func readAll(r io.Reader, max int) (ps []packets.ControlPacket, err error) {
	w := &wire{in: bufio.NewReaderSize(r, readBuffer), max: max}
	for {
		p, err := w.read()
		if err != nil {
			return ps, err
		}
		ps = append(ps, p)
	}
}

func TestWireReads(t *testing.T) {
	long := strings.Repeat("x", 200)
	for _, c := range []struct {
		name string
		in   string
		want string // of the packets; "" = none
		err  string // part of it; "" = EOF
	}{
		{"CONNACK", "\x20\x02\x01\x00", "CONNACK", ""},
		{"several packets in one read", "\x40\x02\x00\x07\x50\x02\x00\x08\xd0\x00", "PUBACK PUBREC PINGRESP", ""},
		{"PUBLISH of QoS 0 without payload", "\x30\x03\x00\x01a", "PUBLISH", ""},
		{"PUBLISH of QoS 1", "\x32\x07\x00\x01a\x00\x05hi", "PUBLISH", ""},
		{"a length of two bytes", "\x30\xcb\x01\x00\x01a" + long, "PUBLISH", ""},
		{"SUBACK", "\x90\x04\x00\x01\x01\x80", "SUBACK", ""},
		{"PUBREL", "\x62\x02\x00\x01", "PUBREL", ""},
		{"PUBREL with wrong flags", "\x60\x02\x00\x01", "", "PUBREL with flags 0000"},
		{"PUBACK with flags", "\x41\x02\x00\x01", "", "PUBACK with flags 0001"},
		{"PUBACK of three bytes", "\x40\x03\x00\x01\x00", "", "PUBACK of 3 bytes"},
		{"PUBLISH with QoS 3", "\x36\x05\x00\x01a\x00\x01", "", "QoS 3"},
		{"PUBLISH shorter than its topic", "\x30\x03\x00\x05a", "", "shorter than its topic"},
		{"PUBLISH without its id", "\x32\x03\x00\x01a", "", "shorter than its topic"},
		{"a length of five bytes", "\x30\xff\xff\xff\xff\x01", "", "more than four bytes"},
		{"oversize", "\x30\xff\xff\x7f", "", "packet of 2097155 bytes exceeds max_packet_in 1000"},
		{"what only clients send", "\x10\x00", "", "type 1"},
		{"type 0", "\x00\x00", "", "type 0"},
		{"type 15", "\xf0\x00", "", "type 15"},
		{"end within a packet", "\x40\x02\x00", "", "unexpected EOF"},
		{"end within the length", "\x40", "", "unexpected EOF"},
		{"SUBACK without a code", "\x90\x02\x00\x01", "", "SUBACK of 2 bytes"},
	} {
		for _, split := range []bool{false, true} {
			var r io.Reader = strings.NewReader(c.in)
			if split {
				r = iotest.OneByteReader(r)
			}
			ps, err := readAll(r, 1000)
			var names []string
			for _, p := range ps {
				b := bytes.Buffer{}
				if err := p.Write(&b); err != nil {
					t.Fatal(err)
				}
				names = append(names, packets.PacketNames[b.Bytes()[0]>>4])
			}
			if got := strings.Join(names, " "); got != c.want {
				t.Errorf("%s: read %q, want %q", c.name, got, c.want)
			}
			if c.err == "" && err != io.EOF || c.err != "" && !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: error %v, want %q", c.name, err, c.err)
			}
		}
	}
}

func TestWireKnowsWhatIsReadyToRead(t *testing.T) {
	w := &wire{in: bufio.NewReaderSize(strings.NewReader("\x40\x02\x00\x07\x40\x02\x00\x08\x40\x02\x00"), readBuffer), max: 1000}
	if w.ready() {
		t.Error("ready before anything was read from the connection")
	}
	var got []bool
	for range 2 {
		if _, err := w.read(); err != nil {
			t.Fatal(err)
		}
		got = append(got, w.ready())
	}
	if !got[0] || got[1] {
		t.Errorf("ready after the first packet %v, after the second (followed by a part) %v; want true, false", got[0], got[1])
	}
}

// FuzzWire: any bytes give packets or an error, never a panic, and never more
// memory than they announce and we allow.
func FuzzWire(f *testing.F) {
	for _, s := range []string{"\x20\x02\x01\x00", "\x32\x07\x00\x01a\x00\x05hi", "\x90\x04\x00\x01\x01\x80", "\x30\xff\xff\xff\x7f", "\x62\x02\x00\x01"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		ps, err := readAll(bytes.NewReader(in), 4096)
		if err == nil {
			t.Fatal("no error at the end")
		}
		var out bytes.Buffer
		for _, p := range ps {
			if err := p.Write(&out); err != nil {
				t.Fatal(err)
			}
		}
		again, err := readAll(&out, 8192)
		if !errors.Is(err, io.EOF) || len(again) != len(ps) {
			t.Errorf("%d packets written give %d read, %v", len(ps), len(again), err)
		}
	})
}
