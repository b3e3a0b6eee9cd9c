package uplink

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"busgate/config"
)

// The steps of a probe, in their order.
const (
	StepDNS       = "dns"
	StepTCP       = "tcp"
	StepTLS       = "tls"
	StepConnect   = "connect"
	StepSubscribe = "subscribe" // of the reader
	StepPublish   = "publish"
	StepDelivered = "delivered"
)

// Step is one step of a probe: how long it took, and when it failed, why and
// what to do.
type Step struct {
	Name   string
	Took   time.Duration
	Detail string // what was seen
	Err    error  // nil: it went well
	Advice string // what to do; only with Err
}

// ErrNotDelivered is in the last step of a probe whose message was acknowledged
// and never came back.
var ErrNotDelivered = errors.New("acknowledged, but not delivered")

// probeWait is how long a probe waits for the answer to a packet.
const probeWait = 10 * time.Second

// Probe tries an uplink by hand, beside one that runs: it takes the way of a
// connection to the first address step by step, publishes a canary that is not
// retained, and reads it back with a second client. Both have client ids of
// their own, so the session of the uplink is not touched. Each step is told when
// it has ended; the first that fails is the last. clock may be nil.
func Probe(ctx context.Context, cfg *config.Uplink, gw *config.Gateway, address int, clock func() (time.Time, bool), tell func(Step)) error {
	c := *cfg
	suffix := rand.Text()[:6]
	c.ClientID = cfg.ClientID + "-test-" + suffix
	c.Will = false
	l, err := New(&c, gw, nil, Options{Clock: clock})
	if err != nil {
		return err
	}
	p := &probe{l: l, ad: l.set.addresses[address%len(l.set.addresses)], tell: tell}
	l.stats.address = p.ad.hostport
	w, err := p.reach(ctx, true)
	if err != nil {
		return err
	}
	defer func() { _ = w.raw.Close() }()
	l.set.cfg.ClientID = cfg.ClientID + "-read-" + suffix
	reader, err := p.reach(ctx, false)
	if err != nil {
		return err
	}
	defer func() { _ = reader.raw.Close() }()
	return p.canary(w, reader, l.set.topics.remote(gw.Base()+"/gateway/canary/"+suffix))
}

// probe is one run of Probe.
type probe struct {
	l    *Link
	ad   address
	tell func(Step)
}

// step runs f and tells how it went.
func (p *probe) step(loud bool, name string, f func() (detail string, err error), advice func(error) string) error {
	began := time.Now()
	detail, err := f()
	s := Step{Name: name, Took: time.Since(began), Detail: detail, Err: err}
	if err != nil {
		s.Advice = advice(err)
	}
	if loud || err != nil {
		p.tell(s)
	}
	return err
}

// reach dials, shakes hands and logs in, one step after the other. Only what
// fails is told of the second connection.
func (p *probe) reach(ctx context.Context, loud bool) (*wire, error) {
	host, port, _ := net.SplitHostPort(p.ad.hostport)
	ips := []string{host}
	if net.ParseIP(host) == nil {
		err := p.step(loud, StepDNS, func() (string, error) {
			ctx, cancel := context.WithTimeout(ctx, probeWait)
			defer cancel()
			var err error
			if ips, err = net.DefaultResolver.LookupHost(ctx, host); err != nil {
				return "", err
			}
			return ips[0], nil
		}, func(error) string {
			return fmt.Sprintf("is %q spelt right in `addresses`? Does this computer have a name server: resolvectl query %s", host, host)
		})
		if err != nil {
			return nil, err
		}
	}
	var raw net.Conn
	err := p.step(loud, StepTCP, func() (detail string, err error) {
		ctx, cancel := context.WithTimeout(ctx, probeWait)
		defer cancel()
		raw, err = p.l.o.Dial(ctx, "tcp", p.ad.hostport)
		if err != nil {
			return "", err
		}
		return raw.RemoteAddr().String(), nil
	}, func(err error) string { return adviseTCP(err, host, port, p.ad.tls) })
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	defer stop()
	conn := raw
	if p.ad.tls {
		if conn, err = p.secure(ctx, loud, raw); err != nil {
			_ = raw.Close()
			return nil, err
		}
	}
	w := newWire(conn, p.l.set.maxIn(), probeWait)
	w.raw = raw
	err = p.step(loud, StepConnect, func() (string, error) {
		_ = conn.SetDeadline(time.Now().Add(probeWait))
		_, err := p.l.login(w, true)
		return "client_id " + p.l.set.cfg.ClientID, err
	}, p.adviseConnect)
	if err != nil {
		_ = raw.Close()
		return nil, err
	}
	return w, nil
}

func (p *probe) secure(ctx context.Context, loud bool, raw net.Conn) (net.Conn, error) {
	var conn *tls.Conn
	err := p.step(loud, StepTLS, func() (string, error) {
		cfg, err := p.l.tlsConfig(p.ad)
		if err != nil {
			return "", err
		}
		ctx, cancel := context.WithTimeout(ctx, probeWait)
		defer cancel()
		conn = tls.Client(raw, cfg)
		if err := conn.HandshakeContext(ctx); err != nil {
			return "", err
		}
		st := conn.ConnectionState()
		leaf := st.PeerCertificates[0]
		now, _ := p.l.o.Clock()
		detail := fmt.Sprintf("%s, certificate for %s, %s left", tls.VersionName(st.Version), certNames(leaf), ago(leaf.NotAfter.Sub(now)))
		if st.NegotiatedProtocol != "" {
			detail += ", ALPN " + st.NegotiatedProtocol
		}
		return detail, nil
	}, func(err error) string {
		if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
			return "this port speaks no TLS: write mqtt:// in `addresses`, or take the port for TLS, usually 8883"
		}
		if d := p.l.diagnose(err, time.Now()); d.word == "certificate" || d.word == "clock" || d.word == "tls" {
			return d.body
		}
		return "is this the port for TLS, usually 8883? Some clouds close when `sni` or `alpn` is missing"
	})
	return conn, err
}

func adviseTCP(err error, host, port string, secure bool) string {
	usual := "1883"
	if secure {
		usual = "8883"
	}
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Sprintf("%s answers, but nothing listens on port %s (usual is %s)", host, port, usual)
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETDOWN):
		return "this computer has no route there: ip route; is the modem or cable up?"
	}
	return fmt.Sprintf("no answer from port %s: a firewall, here or there, drops it, or the host is down; from another network try: nc -vz %s %s", port, host, port)
}

func (p *probe) adviseConnect(err error) string {
	if _, ok := errors.AsType[*refusal](err); ok {
		d := p.l.diagnose(err, time.Now())
		return d.body + "; some clouds admit only the client_id of the gateway itself: then trust the state of the uplink in busgate's log instead"
	}
	if closedEarly(err) {
		if p.ad.tls {
			return "the broker closed in place of an answer: it may want a client certificate (`cert` and `key`), `sni`, or admit only known client ids"
		}
		return "the broker closed in place of an answer: is this a port for TLS? Then write mqtts:// in `addresses`"
	}
	return p.l.diagnose(err, time.Now()).body
}

// canary publishes a message and reads it back.
func (p *probe) canary(w, reader *wire, topic string) error {
	subscribed := false
	err := p.step(true, StepSubscribe, func() (string, error) {
		sub := packets.NewControlPacket(packets.Subscribe).(*packets.SubscribePacket)
		sub.MessageID, sub.Topics, sub.Qoss = 1, []string{topic}, []byte{1}
		answer, err := exchange(reader, sub, func(a packets.ControlPacket) bool { _, ok := a.(*packets.SubackPacket); return ok })
		if err != nil {
			return "", err
		}
		if code := answer.(*packets.SubackPacket).ReturnCodes[0]; code > 2 {
			return "refused: what is published cannot be read back", nil
		}
		subscribed = true
		return topic, nil
	}, func(error) string {
		return "the broker closes the connection of who subscribes to " + topic + ": ask for the rights"
	})
	if err != nil {
		return err
	}
	text := []byte("busgate uplink test " + rand.Text())
	err = p.step(true, StepPublish, func() (string, error) {
		return fmt.Sprintf("QoS %d", p.l.set.qos), publishOnce(w, topic, text, p.l.set.qos)
	}, func(err error) string {
		if closedEarly(err) {
			return "the broker closes the connection in place of an acknowledgement: no right to publish on " + topic + ", or no QoS " + fmt.Sprint(p.l.set.qos)
		}
		return "no acknowledgement: the broker takes messages and does not answer for them; nothing would be lost, and nothing would leave"
	})
	if err != nil || !subscribed {
		return err
	}
	return p.step(true, StepDelivered, func() (string, error) {
		_ = reader.conn.SetDeadline(time.Now().Add(probeWait)) // publishing had a time of its own
		_, err := awaitPacket(reader, func(a packets.ControlPacket) bool {
			m, ok := a.(*packets.PublishPacket)
			return ok && bytes.Equal(m.Payload, text)
		})
		if err != nil {
			return "", fmt.Errorf("%w in %v (%v)", ErrNotDelivered, probeWait, err)
		}
		return "", nil
	}, func(error) string {
		return "the broker acknowledges and drops: the rights (ACL) of this user for " + topic + ", or a quota. MQTT 3.1.1 has no other way to say no"
	})
}

// publishOnce publishes one message and completes its exchange.
func publishOnce(w *wire, topic string, payload []byte, qos byte) error {
	m := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	m.TopicName, m.Payload, m.Qos, m.MessageID = topic, payload, qos, 2
	switch qos {
	case 0:
		ping := packets.NewControlPacket(packets.Pingreq) // its answer says that the message was read
		if err := send(w, m); err != nil {
			return err
		}
		_, err := exchange(w, ping, func(a packets.ControlPacket) bool { _, ok := a.(*packets.PingrespPacket); return ok })
		return err
	case 1:
		_, err := exchange(w, m, func(a packets.ControlPacket) bool { _, ok := a.(*packets.PubackPacket); return ok })
		return err
	}
	if _, err := exchange(w, m, func(a packets.ControlPacket) bool { _, ok := a.(*packets.PubrecPacket); return ok }); err != nil {
		return err
	}
	rel := packets.NewControlPacket(packets.Pubrel).(*packets.PubrelPacket)
	rel.MessageID = 2
	_, err := exchange(w, rel, func(a packets.ControlPacket) bool { _, ok := a.(*packets.PubcompPacket); return ok })
	return err
}

func send(w *wire, p packets.ControlPacket) error {
	var b bytes.Buffer
	if err := p.Write(&b); err != nil {
		return err
	}
	_ = w.conn.SetDeadline(time.Now().Add(probeWait)) // a dead connection shows in Write
	_, err := w.conn.Write(b.Bytes())
	return err
}

// exchange sends a packet and waits for the one that answers it.
func exchange(w *wire, p packets.ControlPacket, answers func(packets.ControlPacket) bool) (packets.ControlPacket, error) {
	if err := send(w, p); err != nil {
		return nil, err
	}
	return awaitPacket(w, answers)
}

// awaitPacket reads until the packet that is waited for.
func awaitPacket(w *wire, fits func(packets.ControlPacket) bool) (packets.ControlPacket, error) {
	for {
		a, err := w.read()
		if err != nil {
			return nil, err
		}
		if fits(a) {
			return a, nil
		}
	}
}
