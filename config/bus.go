package config

import (
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// bus reads a table [bus.NAME], or the wire that device name has of its own:
// then profile is that of the device, or nil, and uart tells that it has a frame.
func (l *loader) bus(name string, n *node, own bool, profile *Profile, uart bool) *Bus {
	var t busTable
	var other *schema
	if own {
		other = deviceSchema
	}
	l.decode(n, busSchema, &t, other)
	b := &t.Bus
	b.Name, b.Own = name, own
	if profile != nil {
		layDefaults(&t, n, &profile.Defaults)
	}
	serial, tcp := n.get("serial"), n.get("tcp")
	if !own {
		switch {
		case serial == nil && tcp == nil:
			l.atKey(n, "bus `%s` has no wire: give `serial = \"/dev/...\"` or `tcp = \"host:502\"`", name)
			return b
		case serial != nil && tcp != nil:
			l.atKey(tcp, "bus `%s` has both `serial` (line %d) and `tcp`: a bus is one of them", name, serial.span.Key.Line)
			return b
		}
	}
	l.protocol(n, b, uart)
	if serial != nil && !serial.bad && !filepath.IsAbs(b.Serial) {
		l.atVal(serial, "`serial` must be the path of a device, as in \"/dev/ttyUSB0\"")
	}
	if b.Timeout == 0 {
		b.Timeout = 500 * time.Millisecond
		if tcp != nil {
			b.Timeout = 2 * time.Second
		}
	}
	l.format(n, &t)
	if tcp != nil {
		l.tcp(n, tcp, b)
	} else {
		for _, k := range []string{"tls", "ca", "cert", "key", "pipeline"} {
			if c := n.get(k); c != nil {
				l.atKey(c, "`%s` works on a `tcp` bus only", k)
			}
		}
	}
	return b
}

// layDefaults puts what the maker delivers under what is written.
func layDefaults(t *busTable, n *node, d *ProfileDefaults) {
	if d.Baud != 0 && n.get("baud") == nil {
		t.Baud = d.Baud
	}
	if d.Format != "" && n.get("format") == nil {
		t.FormatText = d.Format
	}
	if d.Timeout != 0 && n.get("timeout") == nil {
		t.Timeout = d.Timeout
	}
	if d.Gap != 0 && n.get("gap") == nil {
		t.Gap = d.Gap
	}
	if d.MaxHole >= 0 && n.get("max_hole") == nil {
		t.MaxHole = d.MaxHole
	}
	if d.MaxRead != 0 && n.get("max_read") == nil {
		t.MaxRead = d.MaxRead
	}
	if d.Pipeline != 0 && n.get("pipeline") == nil && n.get("tcp") != nil {
		t.Pipeline = d.Pipeline
	}
}

// protocol fills in what the wire means, or checks what is written against it.
func (l *loader) protocol(n *node, b *Bus, uart bool) {
	tcp := n.get("tcp") != nil
	c := n.get("protocol")
	switch {
	case c == nil && uart:
		b.Protocol = "uart"
	case c == nil && tcp:
		b.Protocol = "modbus-tcp"
	case c == nil:
		b.Protocol = "modbus-rtu"
	case (b.Protocol == "modbus-tcp" || b.Protocol == "modbus-udp") && !tcp:
		l.notOneOf("protocol", b.Protocol, c, []string{"modbus-rtu", "modbus-ascii", "uart"})
	}
}

func formatOK(s string) bool {
	return len(s) == 3 && strings.Contains("5678", s[:1]) && strings.Contains("NEO", s[1:2]) && strings.Contains("12", s[2:])
}

func (f *findings) badFormat(c *node, s string) {
	f.atVal(c, "`format` cannot be %q; write data bits, parity (N, E or O) and stop bits, as in \"8N1\" or \"8E1\"", s)
}

func (l *loader) format(n *node, t *busTable) {
	c, s := n.get("format"), t.FormatText
	if !formatOK(s) {
		if c != nil && !c.bad {
			l.badFormat(c, s)
		}
		s = "8N1"
	}
	t.DataBits, t.Parity, t.StopBits = int(s[0]-'0'), s[1], int(s[2]-'0')
}

// tcp fills in the port and checks the keys of TLS.
func (l *loader) tcp(n, c *node, b *Bus) {
	for _, k := range []string{"baud", "format", "rs485", "exclusive"} {
		if c := n.get(k); c != nil {
			l.warnKey(c, "`%s` means nothing on a `tcp` bus", k)
		}
	}
	if !c.bad {
		port := "502"
		switch {
		case b.TLS:
			port = "802"
		case b.Protocol == "uart":
			port = ""
		}
		addr, err := hostPort(b.TCP, port)
		if err != nil {
			l.atVal(c, "`tcp` cannot be %q: %v", b.TCP, err)
		}
		b.TCP = addr
	}
	if b.TLS && b.Protocol == "modbus-udp" {
		l.atKey(n.get("tls"), "`tls` does not go with modbus-udp")
		return
	}
	for _, k := range []string{"ca", "cert", "key"} {
		if c := n.get(k); c != nil && !b.TLS && !n.broken("tls") {
			l.atKey(c, "`%s` needs `tls = true`", k)
			return
		}
	}
	b.CA, b.Cert, b.Key = l.path(b.CA), l.path(b.Cert), l.path(b.Key)
	l.trust(n.get("ca"), b.CA)
	l.pair(n, "bus `"+b.Name+"`", b.Cert, b.Key)
}

// hostPort fills in the port of host, host:port, [v6]:port or a bare v6 address;
// an empty default means that the port must be given.
func hostPort(s, port string) (string, error) {
	host, given, err := net.SplitHostPort(s)
	if err != nil {
		host, given = strings.Trim(s, "[]"), port
		if net.ParseIP(host) == nil && strings.Contains(host, ":") {
			return s, fmt.Errorf("write host or host:port, as in \"192.168.1.40:502\"")
		}
	}
	if host == "" || strings.ContainsAny(host, " /@") {
		return s, fmt.Errorf("write host or host:port, as in \"192.168.1.40:502\"")
	}
	if n, err := strconv.Atoi(given); err != nil || n < 1 || n > 65535 {
		if given == "" {
			return s, fmt.Errorf("it needs a port, as in \"%s:4001\"", host)
		}
		return s, fmt.Errorf("the port must be from 1 to 65535")
	}
	return net.JoinHostPort(host, given), nil
}
