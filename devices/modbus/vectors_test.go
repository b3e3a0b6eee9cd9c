package modbus

import (
	"bytes"
	"encoding/csv"
	"encoding/hex"
	"errors"
	"os"
	"testing"
	"testing/synctest"

	gb "github.com/goburrow/modbus"

	"busgate/devices"
)

// vectorUse says what a vector of Modbus is: what we send for a call, or what a
// Line takes as the answer to a request.
var vectorUse = map[string]struct {
	unit byte
	send func(gb.Client) ([]byte, error)
	to   string // request that it answers, without check
	want error  // of the exchange
}{
	"mb-relay-on":    {unit: 1, send: func(c gb.Client) ([]byte, error) { return c.WriteSingleCoil(0, 0xFF00) }},
	"mb-relay-off":   {unit: 1, send: func(c gb.Client) ([]byte, error) { return c.WriteSingleCoil(0, 0) }},
	"mb-md02-temp":   {unit: 1, send: span{"input", 1, 2}.ask},
	"mb-read-float":  {unit: 10, send: span{"holding", 0x1004, 0x1006}.ask},
	"mb-read-float2": {unit: 10, send: span{"holding", 0x106A, 0x106C}.ask},
	"mb-write-reg":   {unit: 1, send: func(c gb.Client) ([]byte, error) { return c.WriteSingleRegister(1, 3) }},
	"mb-float-zero":  {to: "0A0310040002"},
	"mb-fc2-answer":  {to: "FF0200000001"},
	"mb-exception-2": {to: "010400010001"},
	"mb-bad-crc":     {to: "010400010001", want: devices.ErrBadFrame},
}

func TestVectors(t *testing.T) {
	f, err := os.Open("../uart/testdata/vectors.csv")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rows, err := csv.NewReader(f).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, r := range rows[1:] {
		if r[1] != "modbus-rtu" {
			continue
		}
		seen++
		t.Run(r[0], func(t *testing.T) {
			frame, err := hex.DecodeString(r[3])
			if err != nil {
				t.Fatal(err)
			}
			use, known := vectorUse[r[0]]
			if !known {
				t.Fatalf("the row has no use here; it says: %s", r[6])
			}
			if good := crc(frame) == 0; good != (r[5] == "yes") {
				t.Errorf("check good: %v", good)
			}
			if use.send != nil {
				pack := &rtuPackager{}
				pack.unit(use.unit)
				var sent []byte
				_, err := use.send(gb.NewClient2(pack, sender(func(adu []byte) ([]byte, error) {
					sent = bytes.Clone(adu)
					return frame, nil // the answer to a write is the same frame
				})))
				if !bytes.Equal(sent, frame) || mirrors(frame[1]) && err != nil {
					t.Errorf("sent % x, %v", sent, err)
				}
				return
			}
			req, err := hex.DecodeString(use.to)
			if err != nil {
				t.Fatal(err)
			}
			synctest.Test(t, func(t *testing.T) {
				l := scripted(&script{answers: [][][]byte{{frame}}})
				ans, err := l.exchange(t.Context(), seal(req), wait)
				if !errors.Is(err, use.want) || err == nil && !bytes.Equal(ans, frame) {
					t.Errorf("% x, %v", ans, err)
				}
			})
		})
	}
	if seen != len(vectorUse) {
		t.Errorf("%d rows, %d uses", seen, len(vectorUse))
	}
}
