package sim

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"time"
)

// NMEA is a GPS receiver in a truck that drives a circle of 1 km around Berlin
// at about 50 km/h: RMC, GGA and VTG each time. Made for NewTalker.
func NMEA(seed uint64) func(n uint64, t time.Duration) []byte {
	begin := time.Now().UTC()
	const radius = 1000.0 // m
	speed := newWave(newRand(seed), 13.9, 3, 2*time.Minute)
	return func(_ uint64, t time.Duration) []byte {
		angle := speed.sum(t) / radius
		lat := 52.52 + radius*math.Sin(angle)/111_320
		lon := 13.405 + radius*math.Cos(angle)/(111_320*math.Cos(52.52*math.Pi/180))
		course := math.Mod(360-angle*180/math.Pi, 360)
		if course < 0 {
			course += 360
		}
		v := speed.at(t)
		now := begin.Add(t)
		clock := now.Format("150405.00")
		pos := degrees(lat, 2, 'N', 'S') + "," + degrees(lon, 3, 'E', 'W')
		var out []byte
		out = append(out, sentence(fmt.Sprintf("GPRMC,%s,A,%s,%.2f,%.1f,%s,,,A", clock, pos, v*3.6/1.852, course, now.Format("020106")))...)
		out = append(out, sentence(fmt.Sprintf("GPGGA,%s,%s,1,09,0.9,%.1f,M,44.0,M,,", clock, pos, 34+2*math.Sin(angle)))...)
		return append(out, sentence(fmt.Sprintf("GPVTG,%.1f,T,,M,%.2f,N,%.2f,K,A", course, v*3.6/1.852, v*3.6))...)
	}
}

// degrees writes a coordinate as NMEA 0183 does: ddmm.mmmm and the hemisphere.
func degrees(v float64, width int, plus, minus byte) string {
	side := plus
	if v < 0 {
		v, side = -v, minus
	}
	units := math.Round(v * 60 * 10000) // ten-thousandths of a minute
	deg := math.Floor(units / 600000)
	return fmt.Sprintf("%0*.0f%07.4f,%c", width, deg, (units-deg*600000)/10000, side)
}

// sentence wraps the text between $ and *.
func sentence(body string) []byte {
	var sum byte
	for i := range len(body) {
		sum ^= body[i]
	}
	return fmt.Appendf(nil, "$%s*%02X\r\n", body, sum)
}

// PMS5003 is a Plantower dust sensor: 32 bytes, a sum over the first 30.
func PMS5003(seed uint64) func(n uint64, t time.Duration) []byte {
	dust := newWave(newRand(seed), 14, 6, 3*time.Minute)
	return func(_ uint64, t time.Duration) []byte {
		pm := dust.at(t)
		out := []byte{0x42, 0x4D, 0, 28}
		for _, v := range []float64{pm * 0.7, pm, pm * 1.2, pm * 0.7, pm, pm * 1.2, pm * 180, pm * 52, pm * 9, pm, pm * 0.4, pm * 0.1, 0x9700} {
			out = binary.BigEndian.AppendUint16(out, uint16(v))
		}
		var sum uint16
		for _, b := range out {
			sum += uint16(b)
		}
		return binary.BigEndian.AppendUint16(out, sum)
	}
}

// P1 is the consumer port of a DSMR 5 meter. Its check is CRC16/ARC over all
// from the slash to the exclamation mark. DSMR 5.0.2, 5.2.
func P1(seed uint64) func(n uint64, t time.Duration) []byte {
	begin := time.Now().UTC()
	house := newPhase(newRand(seed), 420, 1581)
	return func(_ uint64, t time.Duration) []byte {
		var b bytes.Buffer
		b.WriteString("/BSG5METER\r\n\r\n1-3:0.2.8(50)\r\n")
		fmt.Fprintf(&b, "0-0:1.0.0(%sW)\r\n", begin.Add(t).Format("060102150405"))
		fmt.Fprintf(&b, "1-0:1.8.1(%010.3f*kWh)\r\n", house.imported(t))
		fmt.Fprintf(&b, "1-0:2.8.1(%010.3f*kWh)\r\n", house.exported(t))
		fmt.Fprintf(&b, "1-0:1.7.0(%06.3f*kW)\r\n", house.active(t)/1000)
		fmt.Fprintf(&b, "1-0:32.7.0(%05.1f*V)\r\n", house.voltage(t))
		b.WriteString("0-1:24.2.1(260101120000W)(00012.345*m3)\r\n!")
		return fmt.Appendf(b.Bytes(), "%04X\r\n", reflected(b.Bytes(), 0, 0xA001))
	}
}

// SML is an electricity meter of BSI TR-03109-1, SML 1.04: an open response, a
// list and a close response between escape sequences, CRC16/X.25 everywhere.
func SML(seed uint64) func(n uint64, t time.Duration) []byte {
	house := newPhase(newRand(seed), 420, 1581)
	return func(n uint64, t time.Duration) []byte {
		group := byte(n)
		out := []byte{0x1B, 0x1B, 0x1B, 0x1B, 1, 1, 1, 1}
		server := []byte{0x0B, 0x0A, 0x01, 'B', 'S', 'G', 0, 1, 2, 3, 4}
		out = append(out, smlMessage(group, 0x0101, smlList(
			[]byte{1}, []byte{1}, []byte{5, group, 0, 0, 1}, server, []byte{1}, []byte{1}))...)
		values := smlList(
			smlEntry([6]byte{1, 0, 1, 8, 0, 255}, 30, -1, uint64(house.imported(t)*1e4)),
			smlEntry([6]byte{1, 0, 2, 8, 0, 255}, 30, -1, uint64(house.exported(t)*1e4)),
			smlEntry([6]byte{1, 0, 16, 7, 0, 255}, 27, 0, uint64(house.active(t))),
		)
		out = append(out, smlMessage(group+1, 0x0701, smlList(
			[]byte{1}, server, []byte{1}, []byte{1}, values, []byte{1}, []byte{1}))...)
		out = append(out, smlMessage(group+2, 0x0201, smlList([]byte{1}))...)
		pad := -len(out) & 3
		out = append(out, make([]byte, pad)...)
		out = append(out, 0x1B, 0x1B, 0x1B, 0x1B, 0x1A, byte(pad))
		c := ^reflected(out, 0xFFFF, 0x8408)
		return append(out, byte(c), byte(c>>8))
	}
}

func smlList(items ...[]byte) []byte {
	return append([]byte{0x70 | byte(len(items))}, bytes.Join(items, nil)...)
}

// smlMessage is transaction, group, abort code, body, check and end.
func smlMessage(group byte, kind uint16, body []byte) []byte {
	out := []byte{0x76, 5, group, 0, 0, 0, 0x62, 0, 0x62, 0, 0x72, 0x63, byte(kind >> 8), byte(kind)}
	out = append(out, body...)
	c := ^reflected(out, 0xFFFF, 0x8408)
	return append(out, 0x63, byte(c), byte(c>>8), 0)
}

// smlEntry is one value: name, status, time, unit, scaler, value, signature.
func smlEntry(obis [6]byte, unit byte, scaler int8, v uint64) []byte {
	out := append([]byte{0x77, 7}, obis[:]...)
	out = append(out, 1, 1, 0x62, unit, 0x52, byte(scaler), 0x69)
	return append(binary.BigEndian.AppendUint64(out, v), 1)
}

// reflected is a 16-bit CRC that shifts to the right.
func reflected(p []byte, start, poly uint16) uint16 {
	c := start
	for _, b := range p {
		c ^= uint16(b)
		for range 8 {
			if c&1 != 0 {
				c = c>>1 ^ poly
			} else {
				c >>= 1
			}
		}
	}
	return c
}

// MHZ19 answers the request for CO2 of a Winsen MH-Z19, its check is the
// negative sum of bytes 1 to 7. Made for NewPolled.
func MHZ19(seed uint64) func(request []byte, t time.Duration) []byte {
	co2 := newWave(newRand(seed), 640, 180, 5*time.Minute)
	ask := []byte{0xFF, 0x01, 0x86, 0, 0, 0, 0, 0, 0x79}
	return func(request []byte, t time.Duration) []byte {
		if !bytes.Equal(request, ask) {
			return nil
		}
		v := uint16(co2.at(t))
		out := []byte{0xFF, 0x86, byte(v >> 8), byte(v), 0x3C, 4, 0x3C, 0xC1}
		var sum byte
		for _, b := range out[1:] {
			sum += b
		}
		return append(out, -sum)
	}
}
