package config

import (
	"fmt"
	"strings"
)

// flow is a filter of one direction with its mapping.
type flow struct {
	at     *node
	where  string // uplink.cloud.route[1]
	filter string // of local topics
	local  string // prefix
	remote string
}

// there is the filter as the cloud sees it.
func (f flow) there() string {
	if rest, ok := strings.CutPrefix(f.filter, f.local); ok {
		return f.remote + rest
	}
	return f.filter
}

// loops finds messages that come down, go up again and so come down for ever.
func (l *loader) loops(n *node, u *Uplink) {
	if n.wrong() {
		return
	}
	where := "uplink." + u.Name
	var in, out []flow
	for i, s := range u.Accept {
		e := n.get("accept").list[i]
		in = append(in, flow{e, fmt.Sprintf("%s.accept[%d]", where, i), s, u.LocalPrefix, u.RemotePrefix})
	}
	for i, s := range u.Send {
		at := n
		if c := n.get("send"); c != nil {
			at = c.list[i]
		}
		out = append(out, flow{at, fmt.Sprintf("%s.send[%d]", where, i), s, u.LocalPrefix, u.RemotePrefix})
	}
	for i, r := range u.Routes {
		f := flow{n.get("route").list[i], fmt.Sprintf("%s.route[%d]", where, i), r.Filter, r.LocalPrefix, r.RemotePrefix}
		if r.Direction == "in" {
			in = append(in, f)
		} else {
			out = append(out, f)
		}
	}
	for _, i := range in {
		for _, o := range out {
			if overlap(i.filter, o.filter) && overlap(i.there(), o.there()) && !l.heldBack(i.filter, o.filter) {
				l.atVal(i.at, "%s: %q in and %q out overlap after mapping: a loop; give them different prefixes", i.where, i.filter, o.filter)
			}
		}
	}
}

// heldBack tells whether all that comes down through in is never sent up by out:
// commands do not go up unless a filter names them.
func (l *loader) heldBack(in, out string) bool {
	base := l.cfg.Gateway.Base()
	for _, word := range []string{"set", "get"} {
		own := covers(base+"/+/"+word+"/#", in) || covers(base+"/+/"+word, in)
		if own && !levelIs(out, word) {
			return true
		}
	}
	return false
}

// templateWords are the placeholders of topic_template.
var templateWords = []string{"{gateway}", "{device}", "{point}", "{bus}", "{unit_id}", "{label}"}

// template checks topic_template: known placeholders, and no topic twice.
func (l *loader) template(n *node, u *Uplink) {
	c := n.get("topic_template")
	if c == nil || c.bad {
		return
	}
	t := u.TopicTemplate
	if at, _ := filterFault(t); t == "" || at >= 0 || strings.ContainsAny(t, "+#") {
		l.atVal(c, "`topic_template` must be a topic without + and #")
		return
	}
	rest := t
	for _, w := range templateWords {
		rest = strings.ReplaceAll(rest, w, "")
	}
	if x := unknownBrace(rest); x != "" {
		l.atVal(c, "unknown placeholder %s%s; there are %s", x, meantPlain(x, templateWords), strings.Join(templateWords, " "))
		return
	}
	if u.Encode == "json-batch" && !strings.Contains(t, "{point}") {
		l.warnVal(c, "`topic_template` changes nothing while `encode` is \"json-batch\": the readings of all devices go in batches to %s/gateway/history", l.cfg.Gateway.Base())
	} else if u.Encode == "json-batch" {
		l.warnVal(c, "`encode` = \"json-batch\" does nothing beside a `topic_template` with {point}: each value goes on a topic of its own")
	}
	l.twice(c, t)
}

func (l *loader) twice(c *node, t string) {
	seen := map[string]string{}
	for _, d := range sortedDevices(l.cfg.Devices) {
		topic := strings.NewReplacer("{gateway}", l.cfg.Gateway.Name, "{device}", d.Name, "{bus}", d.Bus,
			"{unit_id}", fmt.Sprint(d.UnitID), "{label}", d.Label).Replace(t)
		points := []Point{{Name: ""}}
		if strings.Contains(topic, "{point}") {
			points = d.Points
		}
		for i := range points {
			is := strings.ReplaceAll(topic, "{point}", points[i].Name)
			who := strings.TrimSuffix(d.Name+"."+points[i].Name, ".")
			if old, ok := seen[is]; ok {
				l.atVal(c, "`%s` and `%s` would have one topic, %q", old, who, is)
				return
			}
			seen[is] = who
		}
	}
}
