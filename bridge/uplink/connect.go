package uplink

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"crypto/tls"

	"github.com/eclipse/paho.mqtt.golang/packets"
)

// refusal is a CONNACK with a return code other than 0.
type refusal struct{ code byte }

func (r *refusal) Error() string {
	if t := packets.ConnackReturnCodes[r.code]; t != "" {
		return t
	}
	return fmt.Sprintf("CONNACK with return code %d", r.code)
}

// opened is a connection that the broker has accepted.
type opened struct {
	w       *wire
	present bool // the broker has kept our session
	at      time.Time
}

// connection makes one connection and serves it to its end. The error says why
// it ended or did not come about.
func (l *Link) connection(ctx context.Context) error {
	l.update(nil)
	ad := l.set.addresses[l.at%len(l.set.addresses)]
	l.lastDial = time.Now()
	l.stats.address = ad.hostport
	l.files = watchFiles(l.set)
	l.enter(Dialing, l.state.Why)
	if l.clean != "" {
		err := l.forget(ctx, ad)
		if !errors.Is(err, errStopped) {
			l.at++
		}
		return err
	}
	c, err := l.open(ctx, ad, false)
	if err != nil {
		if l.set.private && unwelcome(err) {
			l.suspect.off[private], l.suspect.since = true, time.Now()
			l.adopt()
			return &closing{reason: "private", err: errStopped}
		}
		if l.set.will && closedEarly(err) {
			l.judge([]feature{will}, false, time.Now())
		} else if l.suspect.trial == will && closedEarly(err) {
			l.judge(nil, false, time.Now())
		}
		l.at++
		return err
	}
	err = l.serve(ctx, c)
	if l.s.acked == l.stats.ackedAtDial && !errors.Is(err, errStopped) {
		l.at++ // this address brought us nowhere
	}
	l.stats.ackedAtDial = l.s.acked
	return err
}

// unwelcome tells that a broker did not like how CONNECT began: CONNACK 1, or a
// close before CONNACK.
func unwelcome(err error) bool {
	r, ok := errors.AsType[*refusal](err)
	return ok && r.code == packets.ErrRefusedBadProtocolVersion || closedEarly(err)
}

// closedEarly tells that the broker closed in place of CONNACK.
func closedEarly(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET)
}

// forget makes the broker forget the session of this client id: one connection
// with CleanSession, closed at once. [MQTT-3.1.2-6] It returns why it ended, as
// serve does.
func (l *Link) forget(ctx context.Context, ad address) error {
	c, err := l.open(ctx, ad, true)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	_ = packets.NewControlPacket(packets.Disconnect).Write(&b)
	_ = c.w.conn.SetWriteDeadline(time.Now().Add(l.timing.write)) // a dead connection shows in Write
	if _, err = c.w.conn.Write(b.Bytes()); err == nil {
		l.clean = ""
		l.stats.sessionReset++
		err = errStopped
	}
	why := &closing{reason: "reset", err: err}
	c.w.close(why)
	return why
}

// open dials, shakes hands and logs in, all within timing.connect.
func (l *Link) open(ctx context.Context, ad address, clean bool) (*opened, error) {
	ctx, cancel := context.WithTimeout(ctx, l.timing.connect)
	defer cancel()
	raw, err := l.o.Dial(ctx, "tcp", ad.hostport)
	if err != nil {
		return nil, err
	}
	tune(raw, max(10*time.Second, l.set.keepAlive), l.set.cfg.Congestion)
	var conn net.Conn = &counted{Conn: raw, c: &l.bytes}
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	defer stop()
	if ad.tls {
		cfg, err := l.tlsConfig(ad)
		if err != nil {
			_ = raw.Close()
			return nil, err
		}
		t := tls.Client(conn, cfg)
		if err := t.HandshakeContext(ctx); err != nil {
			_ = raw.Close()
			return nil, expired(ctx, err)
		}
		conn = t
	}
	w := newWire(conn, l.set.maxIn(), l.timing.write)
	w.raw = raw
	present, err := l.login(w, clean)
	if err != nil {
		_ = raw.Close()
		return nil, expired(ctx, err)
	}
	if !stop() {
		return nil, context.Cause(ctx)
	}
	return &opened{w: w, present: present, at: time.Now()}, nil
}

// expired prefers the deadline over the error that it caused by closing the connection.
func expired(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// login sends CONNECT and waits for CONNACK.
func (l *Link) login(w *wire, clean bool) (present bool, err error) {
	p, err := l.connect(clean)
	if err != nil {
		return false, err
	}
	var b bytes.Buffer
	if err := p.Write(&b); err != nil {
		return false, err
	}
	if _, err := w.conn.Write(b.Bytes()); err != nil {
		// A broker that refuses our certificate says so after our side of a TLS
		// 1.3 handshake and closes: its alert may be there to be read.
		if _, rerr := w.conn.Read(make([]byte, 1)); remoteAlert(rerr) {
			err = rerr
		}
		return false, err
	}
	answer, err := w.read()
	if err != nil {
		return false, err
	}
	ack, ok := answer.(*packets.ConnackPacket)
	if !ok { // [MQTT-3.2.0-1]
		return false, fmt.Errorf("%w: %T before CONNACK", errMalformed, answer)
	}
	if ack.ReturnCode != packets.Accepted {
		return false, &refusal{ack.ReturnCode}
	}
	if ack.SessionPresent && clean { // [MQTT-3.2.2-1]
		return false, fmt.Errorf("%w: CONNACK says session present after CleanSession", errMalformed)
	}
	return ack.SessionPresent, nil
}

// remoteAlert says that err is an alert of the other side of a TLS connection.
func remoteAlert(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "remote error"
}

// connect is our CONNECT. The password is read from its file each time.
func (l *Link) connect(clean bool) (*packets.ConnectPacket, error) {
	cfg := &l.set.cfg
	p := packets.NewControlPacket(packets.Connect).(*packets.ConnectPacket)
	p.ProtocolName, p.ProtocolVersion = "MQTT", 4
	p.CleanSession = clean
	p.ClientIdentifier = cfg.ClientID
	p.Keepalive = uint16(min(l.set.keepAlive/time.Second, 65535))
	if l.set.private {
		p.ProtocolVersion |= 0x80
	}
	if l.set.will && !clean {
		p.WillFlag, p.WillQos, p.WillRetain = true, 1, l.set.retain
		p.WillTopic, p.WillMessage = l.set.topics.remote(l.set.status()), []byte("offline")
	}
	if cfg.User != "" {
		p.UsernameFlag, p.Username = true, cfg.User
	}
	if cfg.PasswordFile != "" {
		secret, err := os.ReadFile(cfg.PasswordFile)
		if err != nil {
			return nil, fmt.Errorf("read the password: %w", err)
		}
		p.PasswordFlag, p.Password = true, bytes.TrimRight(secret, "\r\n")
	}
	if presets[cfg.Profile].hub && p.PasswordFlag {
		now, known := l.o.Clock()
		password, until, err := token(string(p.Password), cfg.User, now, known)
		if err != nil {
			return nil, fmt.Errorf("make the token of the device: %w", err)
		}
		p.Password, l.tokenEnds = []byte(password), until
	}
	return p, nil
}
