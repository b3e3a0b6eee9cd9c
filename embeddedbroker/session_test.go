package embeddedbroker

import (
	"testing"

	"busgate/embeddedbroker/packet"
)

var versions = []byte{packet.V31, packet.V311, packet.V5}

func TestMessageReachesSubscriberAtEveryQoS(t *testing.T) {
	covers(t, "5", "MQTT-3.3.2-3", "MQTT-3.3.4-1", "MQTT-3.8.4-1", "MQTT-3.8.4-8", "MQTT-4.2.0-1",
		"MQTT-4.3.1-1", "MQTT-4.3.2-2", "MQTT-4.3.2-4", "MQTT-4.3.3-2", "MQTT-4.3.3-4", "MQTT-4.3.3-8", "MQTT-4.3.3-11",
		"MQTT-2.2.1-5", "MQTT-3.1.4-5", "MQTT-3.3.1-2", "MQTT-3.6.2-1", "MQTT-3.7.2-1",
		"MQTT-3.1.2-29", "MQTT-3.8.4-7")
	covers(t, "311", "MQTT-3.3.2-3", "MQTT-3.3.4-1", "MQTT-3.8.4-1", "MQTT-3.8.4-6", "MQTT-4.3.1-1",
		"MQTT-4.3.2-2", "MQTT-2.3.1-6", "MQTT-3.1.4-4", "MQTT-3.3.1-2",
		"MQTT-7.0.0-2", "MQTT-7.1.1-1")
	for _, v := range versions {
		for i := range byte(9) {
			qos, granted := i/3, i%3
			r := start(t, NewMemory())
			s := r.connect(v, "sub")
			s.subscribe("a/+", granted)
			p := r.connect(v, "pub")
			p.publish("b/b", "not asked for", qos, 6)
			p.publish("a/b", "x", qos, 7)
			want := min(qos, granted)
			if m := s.take("a/b", "x"); m.QoS != want || m.Retain || m.Dup || want > 0 && m.PID != 1 || want == 0 && m.PID != 0 {
				t.Errorf("version %d QoS %d to QoS %d: got %+v", v, qos, granted, m)
			}
			s.ping()
			s.silent()
		}
	}
}

// OfflineMany: what waits for a sleeper, far beyond what memory and window hold,
// is all there, in order, and never said to be a repetition.
func TestOfflineMany(t *testing.T) {
	const total = 20_000
	for _, v := range versions {
		r := start(t, NewMemory())
		s := r.connect(v, "sub", persistent)
		s.subscribe("a/#", 2)
		s.send(&packet.Disconnect{})
		s.ended()
		p := r.connect(v, "pub")
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			var raw []byte
			for i := range total {
				raw = (&packet.Publish{Topic: []byte("a/b"), QoS: 1, PID: uint16(i + 1), Payload: []byte(n("", i))}).Append(raw[:0], v)
				p.nc.Write(raw)
			}
		}()
		for i := range total {
			p.acked(packet.PUBACK, uint16(i+1))
		}
		<-sent
		if u := r.b.Clients(); u[1].ID != "sub" || u[1].Queued != total {
			t.Errorf("%+v", u)
		}
		s = r.connect(v, "sub", persistent)
		for i := range total {
			if m := s.take("a/b", n("", i)); m.Dup || m.PID != uint16(i+1) {
				t.Fatalf("version %d message %d: DUP %v id %d", v, i, m.Dup, m.PID)
			}
		}
		s.ping()
		s.silent()
		if u := r.b.Clients(); u[1].Queued != 0 || u[1].Inflight != 0 || u[1].Dropped != 0 {
			t.Errorf("%+v", u[1])
		}
		r.stop()
	}
}

func TestOfflineOrder(t *testing.T) {
	covers(t, "5", "MQTT-3.2.0-1", "MQTT-4.5.0-1")
	covers(t, "311", "MQTT-3.2.0-1", "MQTT-3.1.2-4", "MQTT-3.1.2-5", "MQTT-3.2.2-2", "MQTT-4.1.0-1", "MQTT-4.5.0-1")
	const total = 700
	for _, v := range versions {
		r := start(t, NewMemory())
		s := r.connect(v, "sub", persistent)
		s.subscribe("a/#", 2)
		s.send(&packet.Disconnect{})
		s.ended()
		p := r.connect(v, "pub")
		for i := range total {
			p.publish("a/b", n("", i), byte(1+i%2), uint16(i+1))
		}
		s = r.connect(v, "sub", persistent)
		if s.ack.SessionPresent != (v != packet.V31) {
			t.Errorf("version %d: session present is %v", v, s.ack.SessionPresent)
		}
		for i := range total {
			m := s.receive("a/b", n("", i))
			if m.Dup || m.QoS != byte(1+i%2) || m.PID != uint16(i+1) {
				t.Fatalf("version %d message %d: %+v", v, i, m)
			}
			s.complete(m)
		}
		s.ping()
		s.silent()
		r.stop()
	}
}
