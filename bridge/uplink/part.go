package uplink

import (
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
)

const (
	offlinePatience    = 2 * time.Second // for the PUBACK of offline
	disconnectPatience = time.Second     // for DISCONNECT to leave
)

// part ends the connection in order: for another one when nothing is in flight,
// and for good after the cloud was told offline, because DISCONNECT alone
// cancels the will. [MQTT-3.14.4-3]
func (l *Link) part(e *epoch, now time.Time) error {
	if !e.leave.IsZero() {
		if len(l.s.flights) > 0 && now.Before(e.leave) {
			return nil
		}
		l.disconnect(e)
		return &closing{reason: "update", err: errStopped}
	}
	if e.stop.IsZero() {
		return nil
	}
	if e.farewell.IsZero() {
		if now.Before(e.stop) && !l.empty() {
			return nil
		}
		e.farewell = now.Add(offlinePatience)
		e.parted = !l.base.will
		if !e.parted {
			l.s.say(l.set.topics.remote(l.set.status()), []byte("offline"), l.set.retain, func(packets.ControlPacket) { e.parted = true })
			return l.step(e, now)
		}
	}
	if !e.parted && now.Before(e.farewell) {
		return nil
	}
	l.disconnect(e)
	return &closing{reason: e.why, err: errStopped}
}

// disconnect writes DISCONNECT and waits until it has left. [MQTT-3.14.4-1]
func (l *Link) disconnect(e *epoch) {
	end := e.w.append(packets.NewControlPacket(packets.Disconnect))
	give := time.NewTimer(disconnectPatience)
	defer give.Stop()
	for {
		if _, flushed := e.w.progress(); flushed >= end || e.w.why() != nil {
			return
		}
		select {
		case <-e.w.moved:
		case <-give.C:
			return
		}
	}
}

// empty tells that nothing waits for the cloud.
func (l *Link) empty() bool {
	return len(l.ready)+len(l.late)+len(l.aside)+len(l.s.flights) == 0 && l.waiting() == 0
}

// waiting is how many records wait for the cloud, those in flight included.
func (l *Link) waiting() int {
	if l.o.Usage == nil {
		return len(l.ready) + len(l.late) + len(l.aside) + l.s.open()
	}
	n, _, _ := l.o.Usage()
	return n
}
