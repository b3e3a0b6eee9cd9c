package config

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// cloud is what a profile of an uplink sets where the owner did not.
type cloud struct {
	maxQoS    byte
	window    int // 0 = auto
	rateMsgs  int
	rateBytes int64
	maxPacket int64 // 0 = the usual default
	bare      bool  // takes neither wills nor retained messages
}

var clouds = map[string]cloud{
	"generic":         {maxQoS: 2},
	"mosquitto":       {maxQoS: 2},
	"aws":             {maxQoS: 1, window: 50, rateMsgs: 90, rateBytes: 512 << 10, maxPacket: 128e3},
	"azure-eventgrid": {maxQoS: 1, window: 20, maxPacket: 512e3, bare: true},
	"azure-iothub":    {maxQoS: 1, window: 16, maxPacket: 256e3, bare: true},
	"emqx":            {maxQoS: 2, window: 20, maxPacket: 1e6},
	"hivemq":          {maxQoS: 2, window: 10, maxPacket: 256e3},
	"rabbitmq":        {maxQoS: 1, window: 100},
	"nats":            {maxQoS: 2, window: 50},
	"thingsboard":     {maxQoS: 1, window: 20, maxPacket: 64e3, bare: true},
	"cumulocity":      {maxQoS: 1, window: 20, maxPacket: 16 << 10, bare: true},
}

func cloudNames() []string { return slices.Sorted(maps.Keys(clouds)) }

// uplinks reads all [uplink.NAME].
func (l *loader) uplinks(n *node) {
	l.named("uplink", n, func(name string, c *node) {
		var t uplinkTable
		l.decode(c, uplinkSchema, &t, nil)
		u := &t.Uplink
		u.Name = name
		l.cfg.Uplinks[name] = u
		l.limits(c, u)
		l.addresses(c, u)
		l.identity(c, u)
		l.filters(c, u)
		l.routes(t.RouteNode, u)
		l.loops(c, u)
		l.template(c, u)
		if c.has("encode") && u.Encode == "sparkplug" {
			l.atVal(c.get("encode"), "`encode` cannot be \"sparkplug\": not built yet")
		}
		if u.Compress == "" {
			u.Compress = "none"
			if u.Encode == "json-batch" {
				u.Compress = "deflate"
			}
		}
		l.thingsboard(c, u)
	})
}

// thingsboard says what has no effect, or would not be understood, at ThingsBoard.
func (l *loader) thingsboard(n *node, u *Uplink) {
	if n.has("encode") && u.Profile == "thingsboard" && u.Encode != "thingsboard" {
		l.warnVal(n.get("encode"), "ThingsBoard does not read the topics and payloads of %q without rules of your own; leave `encode` out", u.Encode)
	}
	if u.Encode != "thingsboard" {
		return
	}
	for _, key := range []string{"local_prefix", "remote_prefix", "route", "topic_template"} {
		if n.has(key) {
			l.warnVal(n.get(key), "`%s` changes nothing while `encode` is \"thingsboard\": the topics are those of ThingsBoard", key)
		}
	}
	if u.Compress == "deflate" {
		l.atVal(n.get("compress"), "`compress` cannot be \"deflate\" while `encode` is \"thingsboard\": it takes plain JSON only")
	}
	if c := n.get("send"); n.has("send") && !c.bad {
		for i, s := range u.Send {
			if !covers(l.cfg.Gateway.Base()+"/#", s) {
				l.warnVal(c.list[i], "ThingsBoard has no place for messages of LAN clients: only those below %s are sent", l.cfg.Gateway.Base())
			}
		}
	}
}

// limits fills in what the profile of the cloud sets.
func (l *loader) limits(n *node, u *Uplink) {
	cl := clouds[u.Profile]
	unset := func(key string) bool { return n.get(key) == nil }
	if unset("window") {
		u.Window = cl.window
	}
	if unset("rate_msgs") {
		u.RateMsgs = cl.rateMsgs
	}
	if unset("rate_bytes") {
		u.RateBytes = cl.rateBytes
	}
	if unset("max_packet") && cl.maxPacket != 0 {
		u.MaxPacket = cl.maxPacket
	}
	if u.Profile == "thingsboard" && unset("encode") {
		u.Encode = "thingsboard"
	}
	u.Will = u.Will && !(cl.bare && unset("will"))
	u.Retain = u.Retain && !(cl.bare && unset("retain"))
	switch c := n.get("qos"); {
	case !n.has("qos"):
	case u.QoS > cl.maxQoS:
		l.warnVal(c, "%s takes QoS %d at most: that is used", u.Profile, cl.maxQoS)
		u.QoS = cl.maxQoS
	case u.QoS == 2:
		l.warnVal(c, "QoS 2 is exactly once only if the broker writes to disk before it acknowledges; most do not, and then QoS 1 loses less")
	}
}

// addresses checks the URLs and fills in ports; tcp and tls are other names of mqtt and mqtts.
func (l *loader) addresses(n *node, u *Uplink) {
	c := n.get("addresses")
	if len(u.Addresses) == 0 && (c == nil || !c.bad) {
		l.atKey(cmp.Or(c, n), "uplink `%s` has no `addresses`, as in [\"mqtts://host:8883\"]", u.Name)
		return
	}
	if c.bad {
		return
	}
	clear := false
	for i, s := range u.Addresses {
		e := c.list[i]
		if strings.Contains(s, "@") {
			l.atVal(e, "put the password in a file of its own and write `password_file = \"...\"`, and the user as `user`")
			continue
		}
		scheme, rest, _ := strings.Cut(s, "://")
		port := map[string]string{"mqtt": "1883", "tcp": "1883", "mqtts": "8883", "tls": "8883"}[scheme]
		if port == "" {
			l.atVal(e, "%q must begin with mqtt://, mqtts://, tcp:// or tls://", s)
			continue
		}
		addr, err := hostPort(strings.TrimSuffix(rest, "/"), port)
		if err != nil {
			l.atVal(e, "%q: %v", s, err)
			continue
		}
		if port == "1883" && !loopback(addr) {
			clear = true
		}
		u.Addresses[i] = map[string]string{"1883": "mqtt://", "8883": "mqtts://"}[port] + addr
	}
	if clear && n.has("password_file") {
		l.warnVal(c, "the password of uplink `%s` goes over the network in clear text; use mqtts://", u.Name)
	}
}

// identity checks who the uplink says it is: client id, password, certificates.
func (l *loader) identity(n *node, u *Uplink) {
	u.ClientID = l.placeholders(n.get("client_id"), u.ClientID)
	if u.ClientID == "" {
		l.atVal(n.get("client_id"), "`client_id` must not be empty: the session of the cloud follows it")
	}
	if n.has("password_file") {
		c := n.get("password_file")
		l.password(c, u)
		if u.User == "" && n.get("user") == nil {
			l.atKey(c, "`password_file` needs `user`")
		}
	}
	u.CA, u.Cert, u.Key = l.path(u.CA), l.path(u.Cert), l.path(u.Key)
	l.trust(n.get("ca"), u.CA)
	l.pair(n, "uplink `"+u.Name+"`", u.Cert, u.Key)
	if u.InsecureSkipVerify {
		l.warnKey(n.get("insecure_skip_verify"), "uplink `%s` talks to anybody who answers: the certificate of the server is not checked", u.Name)
	}
}

// password finds the password file and checks it. A credential is handed to the
// service by systemd, so the mode of the file in credentials/ says nothing about
// who will read it.
func (l *loader) password(c *node, u *Uplink) {
	handed := !filepath.IsAbs(u.PasswordFile)
	u.PasswordFile = l.credential(u.PasswordFile)
	if handed {
		service := l.env.service
		l.env.service = nil
		defer func() { l.env.service = service }()
	}
	if _, ok := l.readable(c, u.PasswordFile); ok {
		l.secret(c, u.PasswordFile)
	}
}

// credential finds a password file. A relative name is one of systemd's
// credentials (those of a folder carry the name of the service), or, outside of
// the service, stands in credentials/ beside the main file.
func (l *loader) credential(name string) string {
	if name == "" || filepath.IsAbs(name) {
		return name
	}
	if l.env.credentials == "" {
		return filepath.Join(l.dir, "credentials", name)
	}
	path := filepath.Join(l.env.credentials, name)
	if _, err := os.Stat(path); err != nil {
		if p := filepath.Join(l.env.credentials, "busgate_"+name); fileExists(p) {
			return p
		}
	}
	return path
}

func fileExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// filters replaces placeholders and checks send, accept and the prefixes.
func (l *loader) filters(n *node, u *Uplink) {
	u.Send = slices.Clone(u.Send) // the default is shared
	for key, list := range map[string][]string{"send": u.Send, "accept": u.Accept} {
		c := n.get(key)
		for i, s := range list {
			var e *node
			if c != nil {
				if c.bad {
					break
				}
				e = c.list[i]
				if !l.filter(e, s, 0) {
					continue
				}
			}
			list[i] = l.placeholders(e, s)
		}
	}
	u.LocalPrefix = l.prefix(n.get("local_prefix"), u.LocalPrefix)
	u.RemotePrefix = l.prefix(n.get("remote_prefix"), u.RemotePrefix)
}

func (l *loader) prefix(c *node, s string) string {
	if c == nil || c.bad {
		return s
	}
	if strings.ContainsAny(s, "+#") {
		l.atVal(c, "`%s` must not hold + or #", c.key())
	}
	return l.placeholders(c, s)
}

// routes reads route = [{ ... }].
func (l *loader) routes(n *node, u *Uplink) {
	if n == nil {
		return
	}
	for i, e := range n.list {
		if e.table == nil {
			l.mustBe(fmt.Sprintf("route[%d]", i), e, "a table")
			continue
		}
		var r Route
		l.decode(e, routeSchema, &r, nil)
		if e.get("qos") == nil {
			r.QoS = u.QoS
		}
		if e.get("local_prefix") == nil {
			r.LocalPrefix = u.LocalPrefix
		}
		if e.get("remote_prefix") == nil {
			r.RemotePrefix = u.RemotePrefix
		}
		r.LocalPrefix = l.prefix(e.get("local_prefix"), r.LocalPrefix)
		r.RemotePrefix = l.prefix(e.get("remote_prefix"), r.RemotePrefix)
		switch c := e.get("filter"); {
		case c == nil:
			l.atKey(e, "route[%d] needs `filter`", i)
		case !c.bad && l.filter(c, r.Filter, 0):
			r.Filter = l.placeholders(c, r.Filter)
		}
		u.Routes = append(u.Routes, r)
	}
}
