package main

import (
	"bytes"
	_ "embed"
	"fmt"
	"strings"
)

//go:embed manual-end.roff
var manualEnd []byte

//go:embed map-head.roff
var mapHead []byte

// roff escapes a text: a hyphen is one that can be typed, and a dot or an
// apostrophe at the beginning of a line is no request.
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\(rs`, "-", `\-`, "'", `\(aq`, "`", `\(ga`, "^", `\(ha`, "~", `\(ti`).Replace(s)
	if strings.HasPrefix(s, ".") {
		s = `\&` + s
	}
	return s
}

func manualHead(b *bytes.Buffer, name, section, what string, r release) {
	fmt.Fprintf(b, ".\\\" made by packaging/mkdeb\n.TH %s %s %s \"busgate %s\" \"%s\"\n.nh\n.ad l\n.SH NAME\n%s \\- %s\n",
		strings.ToUpper(name), section, r.date.Format("2006-01-02"), r.version, "busgate manual", name, what)
}

// manual is busgate(1).
func manual(commands []command, r release) []byte {
	var b bytes.Buffer
	manualHead(&b, "busgate", "1", "serial and Modbus devices to MQTT, without loss", r)
	b.WriteString(".SH SYNOPSIS\n.B busgate\n.I COMMAND\n.RI [ options ]\n.SH DESCRIPTION\n" +
		"busgate reads meters, relays and sensors on RS\\-485, Modbus TCP and UART, serves them over an embedded MQTT broker on the LAN, " +
		"and relays them to a cloud broker over a link that comes and goes.\n.PP\n" +
		"Options stand before or after arguments. A word\n.B \\-\\-\nends them.\n.SH COMMANDS\n")
	for _, c := range commands {
		fmt.Fprintf(&b, ".SS \"busgate %s\"\n%s.\n", strings.TrimSpace(c.name+" "+roff(c.args)), roff(c.short))
		for _, o := range c.options {
			fmt.Fprintf(&b, ".TP\n.B %s", roff(o.name))
			if o.kind != "" {
				fmt.Fprintf(&b, " \\fI%s\\fR", roff(o.kind))
			}
			fmt.Fprintf(&b, "\n%s\n", roff(o.text))
		}
		b.WriteString(".PP\nExamples:\n.PP\n.nf\n.RS 4\n")
		for _, x := range c.examples {
			fmt.Fprintf(&b, "%s\n", roff(x))
		}
		b.WriteString(".RE\n.fi\n")
	}
	b.Write(manualEnd)
	return b.Bytes()
}

// mapManual is busgate.toml(5): the annotated example.
func mapManual(full []byte, r release) []byte {
	var b bytes.Buffer
	manualHead(&b, "busgate.toml", "5", "device map of busgate(1)", r)
	b.Write(mapHead)
	b.WriteString(".nf\n")
	for line := range strings.Lines(string(full)) {
		if line = strings.TrimRight(line, "\n"); line == "" {
			b.WriteString(".sp\n")
			continue
		}
		b.WriteString(roff(line) + "\n")
	}
	b.WriteString(".fi\n.SH SEE ALSO\n.BR busgate (1)\n")
	return b.Bytes()
}
