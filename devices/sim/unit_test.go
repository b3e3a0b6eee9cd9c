package sim

import (
	"bytes"
	"testing"
	"time"
)

func TestServe(t *testing.T) {
	u := NewUnit(1)
	u.Set(Holding, 100, 0x0012, 0x3456)
	u.SetFloat32(Input, 0, 230.1)
	for i := range uint16(10) {
		u.SetBit(Coil, i, i%3 == 0)
	}
	u.SetBit(Discrete, 5, true)
	u.Refuse(Holding, 200, 210, 4)
	u.Set(Holding, 200, make([]uint16, 20)...)
	u.Without(0x11)
	u.SetIdentity("A", "BC", "1.0")
	for _, c := range []struct {
		name      string
		ask, want []byte
	}{
		{"read holding", []byte{3, 0, 100, 0, 2}, []byte{3, 4, 0, 0x12, 0x34, 0x56}},
		{"read input float", []byte{4, 0, 0, 0, 2}, []byte{4, 4, 0x43, 0x66, 0x19, 0x9A}},
		{"read coils", []byte{1, 0, 0, 0, 10}, []byte{1, 2, 0x49, 0x02}},
		{"read discrete", []byte{2, 0, 5, 0, 1}, []byte{2, 1, 1}},
		{"hole is exception 2", []byte{3, 0, 101, 0, 2}, []byte{0x83, 2}},
		{"refusal has its own code", []byte{3, 0, 205, 0, 1}, []byte{0x83, 4}},
		{"beside the refusal", []byte{3, 0, 211, 0, 1}, []byte{3, 2, 0, 0}},
		{"quantity 0 is exception 3", []byte{3, 0, 100, 0, 0}, []byte{0x83, 3}},
		{"126 registers are exception 3", []byte{3, 0, 100, 0, 126}, []byte{0x83, 3}},
		{"end beyond 65535 is exception 2", []byte{3, 0xFF, 0xFF, 0, 2}, []byte{0x83, 2}},
		{"unknown function is exception 1", []byte{0x11}, []byte{0x91, 1}},
		{"short request is exception 3", []byte{3, 0}, []byte{0x83, 3}},
		{"write coil", []byte{5, 0, 1, 0xFF, 0}, []byte{5, 0, 1, 0xFF, 0}},
		{"coil is written", []byte{1, 0, 1, 0, 1}, []byte{1, 1, 1}},
		{"half a coil is exception 3", []byte{5, 0, 1, 0x12, 0}, []byte{0x85, 3}},
		{"write coils", []byte{15, 0, 0, 0, 10, 2, 0xFF, 0x03}, []byte{15, 0, 0, 0, 10}},
		{"coils are written", []byte{1, 0, 0, 0, 10}, []byte{1, 2, 0xFF, 0x03}},
		{"write word", []byte{6, 0, 100, 0xAB, 0xCD}, []byte{6, 0, 100, 0xAB, 0xCD}},
		{"mask", []byte{22, 0, 100, 0xF0, 0xF0, 0, 0x05}, []byte{22, 0, 100, 0xF0, 0xF0, 0, 0x05}},
		{"word is masked", []byte{3, 0, 100, 0, 1}, []byte{3, 2, 0xA0, 0xC5}},
		{"write words", []byte{16, 0, 100, 0, 2, 4, 1, 2, 3, 4}, []byte{16, 0, 100, 0, 2}},
		{"read and write", []byte{23, 0, 100, 0, 2, 0, 101, 0, 1, 2, 9, 9}, []byte{23, 4, 1, 2, 9, 9}},
		{"write into a hole is exception 2", []byte{6, 9, 9, 0, 0}, []byte{0x86, 2}},
		{"byte count must fit", []byte{16, 0, 100, 0, 2, 2, 1, 2}, []byte{0x90, 3}},
		{"identity", []byte{0x2B, 0x0E, 1, 0}, []byte{0x2B, 0x0E, 1, 1, 0, 0, 3, 0, 1, 'A', 1, 2, 'B', 'C', 2, 3, '1', '.', '0'}},
	} {
		if got := u.Serve(c.ask, time.Now()); !bytes.Equal(got, c.want) {
			t.Errorf("%s: % x, want % x", c.name, got, c.want)
		}
	}
}

func TestRelayBoard(t *testing.T) {
	u := NewRelays(3, 4)
	now := time.Now()
	u.Serve([]byte{5, 0, 255, 0xFF, 0}, now)
	if got := u.Serve([]byte{1, 0, 0, 0, 4}, now); !bytes.Equal(got, []byte{1, 1, 0x0F}) {
		t.Errorf("after all on: % x", got)
	}
	u.Serve([]byte{5, 0, 2, 0, 0}, now)
	if got := u.Serve([]byte{1, 0, 0, 0, 4}, now); !bytes.Equal(got, []byte{1, 1, 0x0B}) {
		t.Errorf("after relay 3 off: % x", got)
	}
	if got := u.Serve([]byte{1, 0, 0, 0, 5}, now); !bytes.Equal(got, []byte{0x81, 2}) {
		t.Errorf("a fifth relay: % x", got)
	}
}

func TestInverterObeysItsLimit(t *testing.T) {
	u := NewInverter(3, 1)
	u.Serve([]byte{6, 0x13, 0x8F, 0, 100}, time.Now()) // 10 % of 5 kW
	if got := u.Serve([]byte{4, 0x13, 0xA6, 0, 2}, time.Now()); !bytes.Equal(got, []byte{4, 4, 0x01, 0xF4, 0, 0}) {
		t.Errorf("power % x, want 500 with the low word first", got)
	}
}

func FuzzServe(f *testing.F) {
	f.Add([]byte{3, 0, 0, 0, 1})
	f.Add([]byte{23, 0, 0, 0, 2, 0, 1, 0, 1, 2, 9, 9})
	f.Add([]byte{0x2B, 0x0E, 1, 0})
	f.Fuzz(func(t *testing.T, pdu []byte) {
		if len(pdu) == 0 {
			return
		}
		u := NewSDM630(1, 1)
		u.Set(Holding, 0, 1, 2, 3)
		got := u.Serve(pdu, time.Now())
		if len(got) < 2 || got[0]&0x7F != pdu[0]&0x7F || len(got) > 253 {
			t.Fatalf("% x gave % x", pdu, got)
		}
	})
}
