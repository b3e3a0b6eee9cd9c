package config

import (
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// broker checks [broker] and its sub-tables.
func (l *loader) broker(n *node, t *brokerTable) {
	l.cfg.Broker = t.Broker
	b := &l.cfg.Broker
	if n.has("users") {
		b.Users = l.path(b.Users)
		l.readable(n.get("users"), b.Users)
	}
	if n.has("listen") && l.listen(n.get("listen"), b.Listen) {
		l.lan(n, n.get("listen"), b.Listen, b)
	}
	if b.Socket != "" && !strings.HasPrefix(b.Socket, "/") {
		l.atVal(n.get("socket"), "`socket` cannot be %q; write a whole path, as in \"/run/busgate/mqtt.sock\"", b.Socket)
	}
	l.brokerTLS(n, n.get("tls"), b)
	if ws := n.get("websocket"); ws.has("listen") && b.WebSocket.Listen != "" && l.listen(ws.get("listen"), b.WebSocket.Listen) {
		l.lan(n, ws.get("listen"), b.WebSocket.Listen, b)
	}
	for i, o := range b.WebSocket.Origins {
		if o == "" || strings.ContainsAny(o, " *?#@") || strings.HasSuffix(o, "/") {
			l.atVal(n.get("websocket").get("origins").list[i], "an origin is a host, host:port or scheme://host:port, not %q", o)
		}
	}
	if t.ACLNode != nil {
		b.ACL = l.acl(n, t.ACLNode, b)
	}
}

// listen checks an address to listen at.
func (l *loader) listen(c *node, addr string) bool {
	host, port, err := net.SplitHostPort(addr)
	p, numErr := strconv.Atoi(port)
	if err != nil || numErr != nil || p < 1 || p > 65535 || strings.ContainsAny(host, " /@") {
		l.atVal(c, "`%s` cannot be %q; write an address and a port, as in \"127.0.0.1:1883\", or \":1883\" for the whole network", c.key(), addr)
		return false
	}
	return true
}

// loopback tells whether only programs on this machine reach an address.
func loopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// lan refuses a listener that anybody on the network could use without a password.
func (l *loader) lan(n, c *node, addr string, b *Broker) {
	if loopback(addr) || b.Users != "" || b.Anonymous || n.broken("users", "anonymous", "enabled") || !b.Enabled {
		return
	}
	l.atVal(c, "this would open the broker to everyone on the network: add `users` (busgate passwd NAME), or `anonymous = true` if that is what you want")
}

func (l *loader) brokerTLS(n, c *node, b *Broker) {
	if c == nil || c.broken("listen", "cert", "key") {
		return
	}
	t := &b.TLS
	t.Cert, t.Key, t.ClientCA = l.path(t.Cert), l.path(t.Key), l.path(t.ClientCA)
	if t.Listen == "" && t.Cert == "" && t.Key == "" {
		if t.ClientCA != "" {
			l.atKey(c.get("client_ca"), "`client_ca` needs `listen`, `cert` and `key`")
		}
		return
	}
	if t.Listen == "" && b.WebSocket.Listen == "" || t.Cert == "" || t.Key == "" {
		l.atKey(c, "[broker.tls] needs `listen`, `cert` and `key`, all three")
		return
	}
	if t.Listen != "" && l.listen(c.get("listen"), t.Listen) && t.ClientCA == "" {
		l.lan(n, c.get("listen"), t.Listen, b)
	}
	l.pair(c, "[broker.tls]", t.Cert, t.Key)
	l.trust(c.get("client_ca"), t.ClientCA)
}

// acl reads [broker.acl].
func (l *loader) acl(n, c *node, b *Broker) map[string][]Rule {
	out := map[string][]Rule{}
	users, known := map[string]bool{}, false
	if b.Users != "" && b.TLS.ClientCA == "" && !n.broken("users") {
		users, known = userNames(b.Users)
	}
	places := map[string][]*node{}
	for _, name := range c.names() {
		e := c.table[name]
		if name == "" || len(name) > 1 && strings.ContainsAny(name, ":+#/\x00") {
			l.atKey(e, "a user name holds none of : + # /")
			continue
		}
		if known && name != "*" && !users[name] {
			l.atKey(e, "[broker.acl] `%s`: there is no such user in %s; add: busgate passwd %s", name, b.Users, name)
		}
		if e.list == nil || e.array {
			l.mustBe(name, e, "a list, as in [ ... ]")
			continue
		}
		out[name] = []Rule{}
		for _, r := range e.list {
			if rule, ok := l.rule(r); ok {
				out[name] = append(out[name], rule)
				places[name] = append(places[name], r)
			}
		}
	}
	l.hidden(out, places)
	return out
}

// rule reads "read F", "write F", "readwrite F" or "deny F".
func (l *loader) rule(c *node) (Rule, bool) {
	s, ok := c.value.(string)
	verb, filter, two := strings.Cut(s, " ")
	skip := len(verb) + 1 + len(filter) - len(strings.TrimLeft(filter, " "))
	filter = strings.Trim(filter, " ")
	if !ok || !two || !slices.Contains([]string{"read", "write", "readwrite", "deny"}, verb) {
		l.atVal(c, "a rule is \"read F\", \"write F\", \"readwrite F\" or \"deny F\", where F is a topic filter")
		return Rule{}, false
	}
	if !l.filter(c, filter, skip) {
		return Rule{}, false
	}
	for _, level := range strings.Split(filter, "/") {
		if level != "%u" && level != "%c" && (strings.Contains(level, "%u") || strings.Contains(level, "%c")) {
			l.atVal(c, "%q: `%%u` and `%%c` stand alone between two `/`", filter)
			return Rule{}, false
		}
	}
	return Rule{verb, filter}, true
}

// hidden warns of rules that a deny of the same user, or of everybody, makes void.
func (l *loader) hidden(acl map[string][]Rule, places map[string][]*node) {
	for name, rules := range acl {
		for i, r := range rules {
			if r.Verb == "deny" {
				continue
			}
			for _, by := range []string{name, "*"} {
				for j, d := range acl[by] {
					if d.Verb == "deny" && covers(d.Filter, r.Filter) {
						l.warnVal(places[name][i], "`deny` of %s hides this rule", places[name][i].ref(places[by][j]))
					}
				}
			}
		}
	}
}

// userNames reads the names of a file of users; false when it cannot be read.
func userNames(path string) (map[string]bool, bool) {
	text, err := readFile(path)
	if err != nil {
		return nil, false
	}
	names := map[string]bool{}
	for line := range strings.Lines(text) {
		if name, _, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			names[name] = true
		}
	}
	return names, true
}
