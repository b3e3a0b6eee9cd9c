package embeddedbroker

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"busgate/config"
	"busgate/embeddedbroker/packet"
)

// nap lets virtual time pass and everything that is due happen.
func nap(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestKeepAlive(t *testing.T) {
	covers(t, "5", "MQTT-3.1.2-22", "MQTT-3.2.2-22", "MQTT-3.12.4-1")
	covers(t, "311", "MQTT-3.1.2-24", "MQTT-3.12.4-1")
	synctest.Test(t, func(t *testing.T) {
		r := start(t, NewMemory())
		for _, v := range versions {
			c := r.connect(v, "c", keep(10))
			for range 5 {
				nap(14 * time.Second)
				c.ping()
			}
			began := time.Now()
			if v == packet.V5 {
				if d := expect[*packet.Disconnect](c); d.Code != packet.KeepAliveTimeout {
					t.Errorf("code 0x%02X", d.Code)
				}
			}
			c.ended()
			if d := time.Since(began); d < 15*time.Second || d > 16500*time.Millisecond {
				t.Errorf("version %d: closed after %v", v, d)
			}
		}
	})
}

// 1.5 x 43691 overflows 16 bits to 0.
func TestKeepAlive43691(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, NewMemory())
		c := r.connect(packet.V311, "c", keep(43691))
		top := r.connect(packet.V311, "top", keep(65535))
		forever := r.connect(packet.V311, "forever", keep(0))
		nap(43691 * time.Second)
		c.ping()
		nap(24 * time.Hour)
		c.ended()
		nap(5 * time.Hour)
		top.ended()
		forever.ping()
	})
}

// A time in which the server does not listen is no silence of the client.
func TestKeepAliveWhileTheReaderWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFaulty()
		r := start(t, f)
		r.connect(packet.V311, "keeper", persistent).subscribe("t", 1)
		c := r.connect(packet.V311, "c", keep(4))
		f.set(func(f *faulty) { f.refuse = ErrFull })
		c.send(&packet.Publish{Topic: []byte("t"), QoS: 1, PID: 1})
		nap(8 * time.Second) // its answer is withheld for that long
		f.set(func(f *faulty) { f.refuse = nil })
		c.acked(packet.PUBACK, 1)
		nap(5 * time.Second)
		c.ping()

		const many = 12 // more than may be unanswered
		f.set(func(f *faulty) { f.hold = true })
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			for i := range uint16(many) {
				c.nc.Write((&packet.Publish{Topic: []byte("t"), QoS: 1, PID: i + 1, Payload: make([]byte, 100<<10)}).Append(nil, packet.V311))
			}
		}()
		nap(20 * time.Second)
		f.set(func(f *faulty) { f.hold = false; f.flushLocked() })
		for i := range uint16(many) {
			c.acked(packet.PUBACK, i+1)
		}
		<-sent
		nap(5 * time.Second)
		c.ping()
		began := time.Now()
		c.ended()
		if d := time.Since(began); d < 6*time.Second || d > 7*time.Second {
			t.Errorf("closed after %v", d)
		}
	})
}

func TestServerKeepAlive(t *testing.T) {
	covers(t, "5", "MQTT-3.2.2-21")
	synctest.Test(t, func(t *testing.T) {
		r := start(t, NewMemory(), func(c *config.Broker, _ *Options) { c.MaxKeepAlive = time.Minute })
		c := r.connect(packet.V5, "c", keep(120))
		if v, ok := c.ack.Props.Uint(packet.ServerKeepAlive); !ok || v != 60 {
			t.Errorf("server keep alive %d %v", v, ok)
		}
		old := r.dial(packet.V311)
		old.send(&packet.Connect{Version: packet.V311, ClientID: "o", CleanStart: true, KeepAlive: 120})
		if a := expect[*packet.Connack](old); a.Code != packet.Refused3ClientID {
			t.Errorf("code %d", a.Code)
		}
		old.ended()
		began := time.Now()
		expect[*packet.Disconnect](c)
		if d := time.Since(began); d < 90*time.Second || d > 92*time.Second {
			t.Errorf("closed after %v", d) // of the server's keep-alive, not of its own
		}
	})
}

func TestConnectTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, NewMemory())
		c := r.dial(packet.V311)
		began := time.Now()
		c.raw(0x10, 0x20, 0, 4) // never goes on
		c.ended()
		if d := time.Since(began); d != connectTime {
			t.Errorf("closed after %v", d)
		}
	})
}

func TestSessionExpiry(t *testing.T) {
	covers(t, "5", "MQTT-3.1.2-5", "MQTT-3.1.2-6", "MQTT-3.1.2-23", "MQTT-3.2.2-3", "MQTT-4.1.0-2")
	covers(t, "311", "MQTT-3.2.2-3")
	synctest.Test(t, func(t *testing.T) {
		store := NewMemory()
		r := start(t, store)
		present := func(v byte) bool {
			t.Helper()
			c := r.connect(v, "c", persistent)
			defer func() {
				c.send(&packet.Disconnect{})
				c.ended()
				synctest.Wait()
			}()
			return c.ack.SessionPresent
		}
		if present(packet.V311) || !present(packet.V311) || present(packet.V31) {
			t.Error("session present")
		}
		nap(7*24*time.Hour - time.Second)
		if !present(packet.V311) {
			t.Error("gone before session_expiry")
		}
		nap(7*24*time.Hour + time.Second)
		if present(packet.V311) {
			t.Error("there after session_expiry")
		}
		r.b.DropSession("c")
		if present(packet.V5) {
			t.Error("session present without a session")
		}
		nap(3599 * time.Second)
		if !present(packet.V5) {
			t.Error("gone before the interval")
		}
		nap(3601 * time.Second)
		if present(packet.V5) {
			t.Error("there after the interval")
		}
		if n := r.b.Stats().SessionsExpired; n != 2 {
			t.Errorf("%d expired", n)
		}
		// The rest of the time counts over a restart.
		nap(3000 * time.Second)
		r.stop()
		r = start(t, store)
		nap(700 * time.Second)
		if present(packet.V5) {
			t.Error("there after the interval and a restart")
		}
	})
}

// As long as a client is connected its session has no end.
func TestSessionLastsWhileItIsConnected(t *testing.T) {
	covers(t, "5", "MQTT-4.1.0-1")
	covers(t, "311", "MQTT-4.1.0-2")
	synctest.Test(t, func(t *testing.T) {
		r := start(t, NewMemory())
		var all []*client
		for _, v := range versions {
			for i, open := range []option{clean, persistent} {
				c := r.connect(v, n(n("c", int(v)), i), open)
				c.subscribe("t", 1)
				all = append(all, c)
			}
		}
		nap(8 * 24 * time.Hour) // session_expiry is 7 days
		r.connect(packet.V5, "pub").publish("t", "x", 1, 1)
		for _, c := range all {
			c.take("t", "x")
		}
	})
}

func TestDisconnectChangesTheExpiry(t *testing.T) {
	covers(t, "5", "MQTT-3.14.2-2")
	synctest.Test(t, func(t *testing.T) {
		r := start(t, NewMemory())
		c := r.connect(packet.V5, "c", persistent)
		c.send(&packet.Disconnect{Props: packet.Props{}.WithUint(packet.SessionExpiry, 5)})
		c.ended()
		nap(6 * time.Second)
		if c = r.connect(packet.V5, "c", persistent); c.ack.SessionPresent {
			t.Error("session is there")
		}
		c.close()
		c = r.connect(packet.V5, "d")
		c.send(&packet.Disconnect{Props: packet.Props{}.WithUint(packet.SessionExpiry, 5)})
		if d := expect[*packet.Disconnect](c); d.Code != packet.ProtocolError {
			t.Errorf("0 to 5: code 0x%02X", d.Code)
		} else if len(d.Props) > 0 {
			t.Errorf("DISCONNECT has % x", d.Props)
		}
	})
}

func TestMessageExpiry(t *testing.T) {
	covers(t, "5", "MQTT-3.3.2-5", "MQTT-3.3.2-6")
	synctest.Test(t, func(t *testing.T) {
		r := start(t, NewMemory())
		c := r.connect(packet.V5, "c", persistent)
		c.subscribe("t", 1)
		c.close()
		synctest.Wait()
		p := r.connect(packet.V5, "pub")
		send := func(payload string, expiry uint32, retain bool) {
			p.send(&packet.Publish{Topic: []byte("t"), QoS: 1, PID: 1, Payload: []byte(payload), HasExpiry: expiry > 0, Expiry: expiry, Retain: retain})
			p.acked(packet.PUBACK, 1)
		}
		send("short", 5, false)
		send("long", 100, false)
		send("never", 0, false)
		nap(10 * time.Second)
		c = r.connect(packet.V5, "c", persistent)
		if m := c.take("t", "long"); m.Expiry != 90 || m.PID != 2 {
			t.Errorf("%+v", m)
		}
		if m := c.take("t", "never"); m.HasExpiry { // NoInventedExpiry
			t.Errorf("%+v", m)
		}
		c.ping()
		c.silent()
		send("kept", 20, true)
		c.take("t", "kept")
		nap(5 * time.Second)
		d := r.connect(packet.V5, "d")
		d.subscribe("t", 0)
		if m := d.receive("t", "kept"); m.Expiry != 15 {
			t.Errorf("%+v", m)
		}
		nap(20 * time.Second)
		e := r.connect(packet.V5, "e")
		e.subscribe("t", 0)
		e.ping()
		e.silent()
	})
}

func TestSysIsPublishedWhenItChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, NewMemory(), func(c *config.Broker, o *Options) { c.SysInterval = 10 * time.Second; o.Version = "1.2.3" })
		nap(time.Second)
		c := r.connect(packet.V311, "c")
		c.subscribe("$SYS/broker/version", 0)
		if m := c.receive("$SYS/broker/version", "busgate version 1.2.3"); !m.Retain {
			t.Error("not retained")
		}
		c.subscribe("$SYS/broker/clients/connected", 0)
		c.receive("$SYS/broker/clients/connected", "0")
		nap(10 * time.Second)
		c.receive("$SYS/broker/clients/connected", "1")
		nap(20 * time.Second)
		c.silent()
		all := r.connect(packet.V311, "all")
		all.subscribe("#", 0)
		nap(20 * time.Second)
		all.silent() // wildcards do not match $SYS
		r.b.UplinkState("cloud", true)
		names := strings.Fields(`version uptime clients/total clients/connected clients/disconnected clients/active clients/inactive clients/maximum
			clients/expired messages/received messages/sent messages/stored messages/inflight publish/messages/received publish/messages/sent
			publish/messages/dropped publish/bytes/received publish/bytes/sent bytes/received bytes/sent subscriptions/count
			shared_subscriptions/count store/messages/count store/messages/bytes heap/current heap/maximum connection/cloud/state
			busgate/refused_full busgate/withheld busgate/failed_logins busgate/refused_connects busgate/paced_connects busgate/slowed busgate/slow_closed busgate/commit_ms`)
		names = append(names, "retained messages/count")
		for _, load := range strings.Fields("messages/received messages/sent publish/received publish/sent publish/dropped bytes/received bytes/sent connections sockets") {
			names = append(names, "load/"+load+"/1min", "load/"+load+"/5min", "load/"+load+"/15min")
		}
		for _, name := range names {
			if len(r.b.Retained("$SYS/broker/"+name)) != 1 {
				t.Errorf("no %s", name)
			}
		}
		if got := len(r.b.Retained("$SYS/#")); got != len(names) {
			t.Errorf("%d topics, want %d", got, len(names))
		}
	})
}

// A commit that was faster than the publisher is not timed until the next one.
func TestCommitTimeOfAFastStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, NewMemory()) // which commits in Append
		c := r.connect(packet.V311, "c", persistent)
		c.subscribe("t", 1)
		for i := range 3 {
			c.publish2("t", n("", i))
			nap(time.Hour)
		}
		if d := time.Duration(r.b.rel.average.Load()); d != 0 {
			t.Errorf("a commit takes %v", d)
		}
	})
}
