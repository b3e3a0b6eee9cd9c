package uplink

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"busgate/bridge/uplink/cloudtest"
	"busgate/config"
	"busgate/embeddedbroker"
)

// cloudLimits are what a kind of cloud takes.
type cloudLimits struct {
	qos       byte
	window    int // messages without an acknowledgement
	packet    int
	rate      int // messages in any second
	bare      bool
	keepAlive uint16
	private   bool
}

var cloudsOfProfiles = map[string]cloudLimits{
	"generic":         {qos: 2, window: 20, packet: 256 << 10, keepAlive: 60},
	"mosquitto":       {qos: 2, window: 20, packet: 256 << 10, keepAlive: 60, private: true},
	"aws":             {qos: 1, window: 50, packet: 128e3, rate: 100, keepAlive: 1200},
	"azure-eventgrid": {qos: 1, window: 20, packet: 512e3, bare: true, keepAlive: 1160},
	"azure-iothub":    {qos: 1, window: 16, packet: 256e3, bare: true, keepAlive: 1177},
	"emqx":            {qos: 2, window: 20, packet: 1e6, keepAlive: 60},
	"hivemq":          {qos: 2, window: 10, packet: 256e3, keepAlive: 60},
	"rabbitmq":        {qos: 1, window: 100, packet: 256 << 10, keepAlive: 60},
	"nats":            {qos: 2, window: 50, packet: 256 << 10, keepAlive: 60},
	"thingsboard":     {qos: 1, window: 20, packet: 64e3, bare: true, keepAlive: 60},
	"cumulocity":      {qos: 1, window: 20, packet: 16 << 10, bare: true, keepAlive: 60},
}

// strictCloud notes whatever a cloud with these limits would close the connection for.
type strictCloud struct {
	cloudLimits

	mu     sync.Mutex
	faults []string
	times  []time.Time // of the messages of the last second
}

func (c *strictCloud) fault(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.faults = append(c.faults, fmt.Sprintf(format, args...))
}

func (c *strictCloud) login(p *packets.ConnectPacket) byte {
	if c.bare && p.WillFlag {
		c.fault("a will")
	}
	if c.keepAlive > 60 && p.Keepalive > c.keepAlive {
		c.fault("keep-alive %d", p.Keepalive)
	}
	return packets.Accepted
}

func (c *strictCloud) publish(p *packets.PublishPacket) bool {
	switch n := 2 + len(p.TopicName) + 2 + len(p.Payload) + 3; {
	case n > c.packet:
		c.fault("a packet of %d bytes", n)
	case p.Qos > c.qos:
		c.fault("QoS %d", p.Qos)
	case c.bare && p.Retain:
		c.fault("a retained message")
	}
	c.mu.Lock()
	now := time.Now()
	c.times = append(c.times, now)
	for now.Sub(c.times[0]) >= time.Second {
		c.times = c.times[1:]
	}
	rate := len(c.times)
	c.mu.Unlock()
	if c.rate > 0 && rate > 2*c.rate { // a burst of one second is allowed
		c.fault("%d messages in a second", rate)
	}
	return true
}

// TestProfilesKeepTheLimitsOfTheirClouds: an uplink with nothing but a profile
// meets a broker that does not take more than that cloud does.
func TestProfilesKeepTheLimitsOfTheirClouds(t *testing.T) {
	for name, limits := range cloudsOfProfiles {
		t.Run(name, func(t *testing.T) {
			cfg, problems := config.Parse("busgate.toml", fmt.Sprintf("[gateway]\nname = \"plant-a\"\n[uplink.cloud]\naddresses = [\"mqtt://iot.example.com\"]\nqos = %d\nprofile = %q\nkeepalive = \"20m\"\nsend = [\"#\"]\n", limits.qos, name), nil)
			if cfg == nil {
				t.Fatal(problems)
			}
			c := &strictCloud{cloudLimits: limits}
			o := cloudtest.Options{AckDelay: 200 * time.Millisecond, Login: c.login, Publish: c.publish}
			if limits.qos == 2 { // it closes the connection when it holds more than these
				o.Max2 = limits.window
			}
			virtual(t, o, func(r *rig) {
				r.cfg, r.gw = *cfg.Uplinks["cloud"], cfg.Gateway
				for i := range 600 {
					r.st.put("busgate/plant-a/grid/state", fmt.Appendf(nil, `{"ts":"x","i":%d}`, i), embeddedbroker.KindReading)
				}
				big := strings.Repeat("x", limits.packet-200)
				topic, kind := "lan/big", embeddedbroker.KindLAN
				if r.cfg.Encode == encodeThingsBoard { // it has no place for them; this one goes as it is
					big = `{"loss":"` + big[11:] + `"}`
					topic, kind = "busgate/plant-a/gateway/loss", embeddedbroker.KindStatus
				}
				r.st.put(topic, []byte(big), kind)
				r.st.put(topic, []byte(big+strings.Repeat("x", 400)), kind)
				r.start()
				if r.link.base.private != limits.private {
					t.Errorf("CONNECT with level 0x84: %v", !limits.private)
				}
				most := 0
				for range 300 {
					time.Sleep(100 * time.Millisecond)
					most = max(most, r.link.Status().InFlight)
				}
				s := r.link.Status()
				large := map[int]int{} // by size; the name of the topic is the cloud's own with some
				for _, d := range r.cloud.Ledger() {
					large[len(d.Payload)]++
				}
				if s.Pending != 0 || s.Oversize != 1 || large[len(big)] != 1 || large[len(big)+400] != 0 {
					t.Errorf("%d wait, %d oversize, %d large ones came", s.Pending, s.Oversize, large[len(big)])
				}
				if limits.qos < 2 && most > limits.window || limits.qos == 2 && most < limits.window {
					t.Errorf("%d in flight, the cloud takes %d", most, limits.window)
				}
				if n := r.cloud.Connects(); n != 1 {
					t.Errorf("%d connects: the cloud was given more than it takes", n)
				}
				c.mu.Lock()
				if len(c.faults) > 0 {
					t.Errorf("the cloud was given %q", c.faults[:min(len(c.faults), 5)])
				}
				c.mu.Unlock()
				r.stop()
			})
		})
	}
}
