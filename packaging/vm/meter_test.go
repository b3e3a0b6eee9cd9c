package vm

import (
	"encoding/binary"
	"io"
	"math"
	"net"
	"testing"
)

// meter answers as an SDM630 at unit 1 does: function 4, float32, high word first.
// It is written after the data sheet and shares no code with the program.
type meter struct{ line net.Conn }

// volts is what input register 0 says: voltage of line 1.
const volts = 230.5

// connectMeter waits for the other end of the emulated adapter.
func connectMeter(t *testing.T, socket string) {
	t.Helper()
	var line net.Conn
	waitFor(t, patience, "the adapter's socket", func() (err error) { line, err = net.Dial("unix", socket); return err })
	done := make(chan struct{})
	go func() {
		defer close(done)
		(&meter{line}).run()
	}()
	t.Cleanup(func() {
		line.Close()
		<-done
	})
}

// run answers requests of 8 bytes until the line is closed. Bytes that begin no
// request for unit 1 are skipped.
func (m *meter) run() {
	var window []byte
	b := make([]byte, 1)
	for {
		if _, err := io.ReadFull(m.line, b); err != nil {
			return
		}
		if window = append(window, b[0]); len(window) > 8 {
			window = window[1:]
		}
		if len(window) == 8 && window[0] == 1 && crc(window[:6]) == binary.LittleEndian.Uint16(window[6:]) {
			if _, err := m.line.Write(answer(window)); err != nil {
				return
			}
			window = nil
		}
	}
}

func answer(request []byte) []byte {
	first, n := binary.BigEndian.Uint16(request[2:]), binary.BigEndian.Uint16(request[4:])
	if request[1] != 4 || n == 0 || n > 125 {
		return sealed([]byte{1, request[1] | 0x80, 1})
	}
	a := []byte{1, 4, byte(2 * n)}
	for r := first; r < first+n; r++ {
		value := math.Float32bits(volts + float32(r/2))
		if r%2 == 0 {
			value >>= 16
		}
		a = binary.BigEndian.AppendUint16(a, uint16(value))
	}
	return sealed(a)
}

func sealed(b []byte) []byte { return binary.LittleEndian.AppendUint16(b, crc(b)) }

// crc is that of Modbus over serial line 1.02, 6.2.2.
func crc(b []byte) uint16 {
	c := uint16(0xffff)
	for _, x := range b {
		c ^= uint16(x)
		for range 8 {
			odd := c&1 != 0
			if c >>= 1; odd {
				c ^= 0xa001
			}
		}
	}
	return c
}

func TestMeter(t *testing.T) {
	// Modbus over serial line 1.02, appendix B has no example; this one is common.
	if got := sealed([]byte{1, 4, 0, 0, 0, 2}); got[6] != 0x71 || got[7] != 0xcb {
		t.Errorf("% x", got)
	}
	a := answer(sealed([]byte{1, 4, 0, 0, 0, 2}))
	if got := math.Float32frombits(binary.BigEndian.Uint32(a[3:])); len(a) != 9 || got != volts {
		t.Errorf("% x: %v", a, got)
	}
	if a := answer(sealed([]byte{1, 3, 0, 0, 0, 2})); len(a) != 5 || a[1] != 0x83 {
		t.Errorf("% x", a)
	}
}
