package embeddedbroker

import (
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"busgate/config/report"
	"busgate/embeddedbroker/packet"
)

const (
	codeShutdown = packet.ServerShutdown
	codeDropped  = packet.AdminAction
)

// refuseConnect ends a connection with a CONNACK.
func refuseConnect(code byte, format string, args ...any) *ending {
	return &ending{code: code, text: fmt.Sprintf(format, args...), early: true, fault: true}
}

// handshake reads CONNECT, attaches the session and answers. An error means
// that the connection is over.
func (c *conn) handshake() error {
	limit := connectTime
	switch c.nc.(type) {
	case *tls.Conn, *wsConn:
		limit += shakeTime
	}
	c.setReadDeadline(time.Now().Add(limit))
	c.nc.SetWriteDeadline(time.Now().Add(limit)) // TLS and WebSocket write while they read
	h, body, err := c.packet(connectSize)
	var bad *packet.Error
	switch {
	case errors.As(err, &bad):
		return &ending{text: bad.Text, fault: true} // the protocol level is not known: close without a word
	case err != nil:
		return err
	}
	c.b.n.packetsIn.Add(1)
	var p packet.Connect
	if h.Type != packet.CONNECT {
		return errNotConnect // [MQTT-3.1.0-1]
	}
	if err := packet.CheckFlags(h, packet.V311); err != nil {
		return &ending{text: err.Error(), fault: true}
	}
	err = p.Decode(h, body, 0)
	c.version = p.Version
	if err == nil && h.Long && c.version == packet.V5 {
		err = &packet.Error{Code: packet.Malformed, Text: "remaining length not in its shortest form"} // [MQTT-1.5.5-1]
	}
	if err != nil {
		return err // [MQTT-3.1.4-1]
	}
	if e := c.admit(&p); e != nil {
		return e
	}
	return c.enter(&p)
}

// admit judges a CONNECT before it may touch a session.
func (c *conn) admit(p *packet.Connect) error {
	set := c.b.set.Load()
	c.id, c.bridge = p.ClientID, p.Bridge
	if p.Props.Has(packet.AuthMethod) {
		return refuseConnect(packet.BadAuthMethod, "asks for enhanced authentication")
	}
	again := c.b.connected(c.id)
	if err := c.b.gate.full(c, set.cfg.MaxClients, again); err != nil {
		return err
	}
	if err := c.login(p, set); err != nil {
		return err
	}
	if err := c.b.gate.admit(c, set.cfg.MaxClients, again); err != nil {
		return err
	}
	if p.ClientID == "" {
		if p.Version == packet.V31 || p.Version == packet.V311 && !p.CleanStart {
			return refuseConnect(packet.BadClientID, "no client id") // [MQTT-3.1.3-8]
		}
		c.id = "auto-" + randomID() // [MQTT-3.1.3-6]
	}
	if !set.acl.nameOK(c.user, "") {
		return refuseConnect(packet.NotAuthorized, "user name holds + # or /, which its access rules cannot take")
	}
	if !set.acl.nameOK(c.user, c.id) {
		return refuseConnect(packet.BadClientID, "client id holds + # or /, which its access rules cannot take") // [MQTT-3.1.3-9]
	}
	if limit := set.maxKeepAlive; limit > 0 && p.Version != packet.V5 && (p.KeepAlive == 0 || int(p.KeepAlive) > limit) {
		return refuseConnect(packet.BadClientID, "keep-alive of %d s is over max_keepalive", p.KeepAlive)
	}
	if w := p.Will; w != nil {
		if w.Retain && !set.cfg.Retain {
			return refuseConnect(packet.RetainUnsupported, "will with retain, which is off")
		}
		if c.denied(w.Topic, set) {
			return refuseConnect(packet.NotAuthorized, "may not write its will topic %q", w.Topic)
		}
	}
	return nil
}

// Bounds of what is remembered of clients that may never come back: their
// number, and their names and wills as soon as one is large.
const (
	maxSessions     = 10_000
	largeSession    = 1 << 10
	maxSessionBytes = 16 << 20
)

// crammed says whether there is no room for the session of a CONNECT.
func (b *Broker) crammed(p *packet.Connect, id string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	bytes := sessionBytes(id, willOf(p))
	if bytes >= largeSession {
		for _, s := range b.sessions {
			bytes += sessionBytes(s.id, s.will)
		}
		if bytes > maxSessionBytes {
			return true
		}
	}
	return b.sessions[id] == nil && len(b.sessions) >= max(maxSessions, 2*b.set.Load().cfg.MaxClients)
}

func sessionBytes(id string, w *Will) int {
	if w == nil {
		return len(id)
	}
	return len(id) + int(size(&w.Msg))
}

// connected says whether a client of that id is there.
func (b *Broker) connected(id string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.sessions[id]
	return s != nil && s.conn != nil
}

// randomID is a version 4 UUID.
func randomID() string {
	var u [16]byte
	rand.Read(u[:])
	u[6], u[8] = u[6]&0x0f|0x40, u[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

// enter attaches the session and answers with CONNACK.
func (c *conn) enter(p *packet.Connect) error {
	set := c.b.set.Load()
	ack := packet.Connack{}
	keep := int(p.KeepAlive)
	limit := set.cfg.SessionExpiry
	expiry := limit
	if p.CleanStart {
		expiry = 0
	}
	recv := uint16(0)
	if p.Version == packet.V5 {
		expiry, recv = c.limits5(p, set, &ack, &keep)
	}
	c.window = windowOf(recv, set.cfg.MaxInflight)
	c.keep = time.Duration(keep) * time.Second * 3 / 2 // [MQTT-3.1.2-22]
	if p.Version == packet.V5 {
		c.open = map[uint16]struct{}{}
	}
	if expiry != 0 && c.b.crammed(p, c.id) {
		c.b.n.refusedConnects.Add(1)
		return refuseConnect(packet.QuotaExceeded, "no room for another session that outlives its connection: shorten session_expiry")
	}
	c.b.n.connectionsAll.Add(1)
	var present bool
	err := c.whenReady(fullWait, func() (err error) {
		defer c.b.ids.lock(c.id)()
		present, err = c.b.attach(c, p, expiry)
		return err
	})
	if err != nil {
		c.b.n.refusedConnects.Add(1)
		if errors.Is(err, ErrBusy) {
			c.b.ladder.Fail(report.Report{Err: "store-busy", Level: slog.LevelWarn, Who: "broker", Text: c.who() + " is refused: for " + report.Duration(fullWait) +
				" too much has waited for the disk, which is slow or hangs; look at busgate status and at dmesg"})
		}
		if c.sess != nil {
			c.b.detach(c, &ending{})
			c.sess = nil
		}
		return &ending{code: refusal(err), text: err.Error(), early: true}
	}
	ack.SessionPresent = present && p.Version != packet.V31
	c.setReadDeadline(time.Time{})
	c.renew()
	if c.b.gate.mayTell(c) {
		c.b.log.Info("client connected", "client", c.id, "addr", c.addr, "user", c.user, "version", c.version, "session", present)
	}
	answer := ack.Append(nil, c.version)
	if c.maxOut > 0 && len(answer) > c.maxOut { // [MQTT-3.1.2-24]
		return &ending{text: fmt.Sprintf("takes packets of %d bytes only", c.maxOut)}
	}
	answer = c.sess.owed(answer, c.version)
	c.mu.Lock()
	c.ctl = append(c.ctl, answer...)
	c.b.n.answers.Add(1)
	c.ready = true
	kicked := c.kicked
	c.mu.Unlock()
	if kicked != nil {
		return kicked
	}
	c.wake()
	return nil
}

// limits5 takes what a 5.0 client announced and writes what it must know.
func (c *conn) limits5(p *packet.Connect, set *settings, ack *packet.Connack, keep *int) (expiry time.Duration, recv uint16) {
	asked, _ := p.Props.Uint(packet.SessionExpiry)
	want := time.Duration(asked) * time.Second
	limit := set.cfg.SessionExpiry
	if expiry = want; want > limit {
		expiry = limit
		ack.Props = ack.Props.WithUint(packet.SessionExpiry, uint32(limit/time.Second))
	}
	ack.Props = ack.Props.WithUint(packet.ReceiveMaximum, receiveMax)
	if !set.cfg.Retain {
		ack.Props = ack.Props.WithUint(packet.RetainAvailable, 0)
	}
	ack.Props = ack.Props.WithUint(packet.MaximumPacketSize, uint32(set.maxPacket))
	if p.ClientID == "" {
		ack.Props = ack.Props.WithBytes(packet.AssignedClientID, []byte(c.id)) // [MQTT-3.2.2-16]
	}
	ack.Props = ack.Props.WithUint(packet.TopicAliasMaximum, inboundAlias)
	if top := set.maxKeepAlive; top > 0 && (*keep == 0 || *keep > top) {
		*keep = top
		ack.Props = ack.Props.WithUint(packet.ServerKeepAlive, uint32(top)) // [MQTT-3.2.2-21]
	}
	if v, ok := p.Props.Uint(packet.ReceiveMaximum); ok {
		recv = uint16(v)
	}
	if v, ok := p.Props.Uint(packet.MaximumPacketSize); ok {
		c.maxOut = int(v)
	}
	if v, ok := p.Props.Uint(packet.TopicAliasMaximum); ok {
		c.aliasMax = uint16(min(v, outboundAlias))
	}
	return expiry, recv
}

// keyLocks is one mutex for each client id that is connecting.
type keyLocks struct {
	mu sync.Mutex
	m  map[string]*keyLock
}

type keyLock struct {
	sync.Mutex
	users int
}

// lock waits for the key and returns how to let it go.
func (k *keyLocks) lock(key string) (unlock func()) {
	k.mu.Lock()
	if k.m == nil {
		k.m = map[string]*keyLock{}
	}
	l := k.m[key]
	if l == nil {
		l = &keyLock{}
		k.m[key] = l
	}
	l.users++
	k.mu.Unlock()
	l.Lock()
	return func() {
		l.Unlock()
		k.mu.Lock()
		if l.users--; l.users == 0 {
			delete(k.m, key)
		}
		k.mu.Unlock()
	}
}
