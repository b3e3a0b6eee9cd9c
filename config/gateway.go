package config

import (
	"path/filepath"
	"strings"
)

// gateway checks [gateway] and fills in its name.
func (l *loader) gateway(n *node) {
	g := &l.cfg.Gateway
	if !n.broken("name") {
		l.gatewayName(n, g)
	}
	if c := n.get("topic"); n.has("topic") {
		for _, level := range strings.Split(g.Topic, "/") {
			if !nameOK(level) {
				l.atVal(c, "%s", badName(level))
				break
			}
		}
	}
	if c := n.get("data_dir"); n.has("data_dir") && !filepath.IsAbs(g.DataDir) {
		l.atVal(c, "`data_dir` must be an absolute path, as in \"/var/lib/busgate\"")
	}
}

// gatewayName replaces {hostname}. A host name with other characters is made to
// fit and told; a name that was written is not touched.
func (l *loader) gatewayName(n *node, g *Gateway) {
	c := n.get("name")
	written := g.Name
	if strings.Contains(written, "{hostname}") {
		host, err := l.env.hostname()
		if err != nil || host == "" {
			host = "busgate"
		}
		fit := host
		if !nameOK(host) {
			fit = suggestName(host)
			p := Problem{File: l.cfg.Path, Len: 1, Warn: true,
				Msg: "the host name " + host + " does not fit into a topic: the gateway is called `" + fit + "`; `name` in [gateway] chooses another"}
			if c != nil {
				l.warnVal(c, "%s", p.Msg)
			} else {
				l.add(p)
			}
		}
		g.Name = strings.ReplaceAll(written, "{hostname}", fit)
	}
	if !nameOK(g.Name) {
		if x := unknownBrace(g.Name); x != "" {
			l.atVal(c, "unknown placeholder %s%s; there are {hostname}", x, meantPlain(x, []string{"{hostname}"}))
			return
		}
		l.atVal(c, "%s", badName(g.Name))
	}
}

// placeholders replaces {base}, {name} and {hostname} in a text of an uplink.
func (l *loader) placeholders(c *node, s string) string {
	host, _ := l.env.hostname()
	g := &l.cfg.Gateway
	out := strings.NewReplacer("{base}", g.Base(), "{name}", g.Name, "{hostname}", host).Replace(s)
	if x := unknownBrace(out); x != "" && c != nil {
		all := []string{"{base}", "{name}", "{hostname}"}
		l.atVal(c, "unknown placeholder %s%s; there are %s", x, meantPlain(x, all), strings.Join(all, " "))
	}
	return out
}

// unknownBrace finds {word} in a text; "" when there is none.
func unknownBrace(s string) string {
	open := strings.IndexByte(s, '{')
	if open < 0 {
		return ""
	}
	shut := strings.IndexByte(s[open:], '}')
	if shut < 0 {
		return ""
	}
	return s[open : open+shut+1]
}

// meantPlain is meant without the quotes of code.
func meantPlain(word string, words []string) string {
	if m := nearest(word, words); m != "" {
		return " (did you mean " + m + "?)"
	}
	return ""
}

// web checks [web].
func (l *loader) web(n *node) {
	w := &l.cfg.Web
	if w.Users == "" {
		w.Users = l.cfg.Broker.Users
	} else if n.has("users") {
		w.Users = l.path(w.Users)
		l.readable(n.get("users"), w.Users)
	}
	if n.has("listen") && w.Listen != "" && l.listen(n.get("listen"), w.Listen) && !loopback(w.Listen) && w.Users == "" && !n.broken("users") {
		l.atVal(n.get("listen"), "this would open the console to everyone on the network: add `users` (busgate passwd NAME)")
	}
}

// homeAssistant checks [homeassistant].
func (l *loader) homeAssistant(n *node) {
	if p := l.cfg.HomeAssistant.Prefix; n.has("prefix") && (p == "" || strings.ContainsAny(p, "+#") || strings.Contains("/"+p+"/", "//")) {
		l.atVal(n.get("prefix"), "`prefix` must be a topic without wildcards, as in \"homeassistant\"")
	}
}
