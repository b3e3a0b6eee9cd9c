package config

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestDocumentation: every key of the structs is in full.toml, and the other way round.
func TestDocumentation(t *testing.T) {
	b, err := os.ReadFile("testdata/examples/full.toml")
	if err != nil {
		t.Fatal(err)
	}
	root := func(k string) *schema { return rootSchema.fields[k].sub }
	tables := map[string]*schema{"gateway": root("gateway"), "bus.example": busSchema, "device.example": deviceSchema, "device.example.points": pointSchema,
		"device.NAME.points": pointSchema, "device.NAME.frame": frameSchema, "broker": root("broker"), "broker.tls": root("broker").fields["tls"].sub,
		"broker.websocket": root("broker").fields["websocket"].sub, "uplink.example": uplinkSchema, "buffer": root("buffer"), "web": root("web"),
		"homeassistant": root("homeassistant"), "profile": profileSchema.fields["profile"].sub, "probe": probeSchema}
	head := regexp.MustCompile(`^(?:# )?\[([A-Za-z.]+)\]`)
	key := regexp.MustCompile(`^(?:#opt |# +)?([a-z0-9_]+) *= `)
	inner := regexp.MustCompile(`[{,] *([a-z_]+) = `)
	written := map[*schema]map[string]bool{}
	table := ""
	for i, line := range strings.Split(string(b), "\n") {
		if m := head.FindStringSubmatch(line); m != nil {
			table = m[1]
			continue
		}
		m, s := key.FindStringSubmatch(line), tables[table]
		if m == nil || s == nil || table == "device.example.points" && m[1] == "voltage" {
			continue
		}
		note := func(s *schema, k string) {
			if written[s] == nil {
				written[s] = map[string]bool{}
			}
			written[s][k] = true
			if s.fields[k] == nil {
				t.Errorf("full.toml:%d: there is no key %s in %s", i+1, k, table)
			}
		}
		note(s, m[1])
		for _, sub := range inner.FindAllStringSubmatch(line, -1) {
			switch m[1] {
			case "route":
				note(routeSchema, sub[1])
			case "defaults":
				note(defaultsSchema, sub[1])
			}
		}
	}
	for _, word := range regexp.MustCompile(`[a-z_]+`).FindAllString(section(string(b), "and timeout gap", "[points]"), -1) {
		if defaultsSchema.fields[word] != nil {
			written[defaultsSchema][word] = true
		}
	}
	for name, s := range map[string]*schema{"route": routeSchema, "defaults": defaultsSchema, "bus": busSchema, "point": pointSchema} {
		tables[name] = s
	}
	for name, s := range tables {
		for _, k := range s.known {
			sub := s.fields[k].kind == isTable || s.fields[k].kind == isNode && s.fields[k].form == "" && k != "words" && k != "defaults"
			if !written[s][k] && !sub {
				t.Errorf("%s of %s is not in full.toml", k, name)
			}
		}
	}
}

// section is the text from one mark to another.
func section(text, from, to string) string {
	_, text, _ = strings.Cut(text, from)
	text, _, _ = strings.Cut(text, to)
	return from + text
}
