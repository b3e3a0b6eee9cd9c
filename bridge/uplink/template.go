package uplink

import (
	"strconv"
	"strings"

	"busgate/config"
)

// pointWord is the placeholder that makes scalars go up in place of states.
const pointWord = "{point}"

// PerPoint tells whether an uplink sends each point on a topic of its own: then
// the scalars of state/<point> go up, and the states as JSON do not.
func PerPoint(cfg *config.Uplink) bool {
	return strings.Contains(cfg.TopicTemplate, pointWord) && cfg.Encode != encodeThingsBoard
}

// Templates are the topics of an uplink's readings by device, with only {point}
// left to fill in; nil without topic_template. Signs of a label that mean
// something in a topic become a dash.
func Templates(cfg *config.Config, u *config.Uplink) map[string]string {
	if u.TopicTemplate == "" {
		return nil
	}
	out := make(map[string]string, len(cfg.Devices))
	for name, d := range cfg.Devices {
		out[name] = strings.NewReplacer("{gateway}", cfg.Gateway.Name, "{device}", name, "{bus}", d.Bus, "{unit_id}", strconv.Itoa(int(d.UnitID)),
			"{label}", strings.NewReplacer("/", "-", "+", "-", "#", "-", "\x00", "-").Replace(d.Label)).Replace(u.TopicTemplate)
	}
	return out
}

// stateOf splits a topic of readings, {base}/<device>/state or
// {base}/<device>/state/<point>.
func stateOf(base, topic string) (device, point string, ok bool) {
	rest, ok := strings.CutPrefix(topic, base+"/")
	if !ok {
		return "", "", false
	}
	device, kind, _ := strings.Cut(rest, "/")
	kind, point, deep := strings.Cut(kind, "/")
	return device, point, kind == "state" && device != "gateway" && deep == (point != "") && !strings.Contains(point, "/")
}

// rename is the topic in the cloud of a message of the LAN: that of the template
// for readings, else as routes and prefixes say.
func (l *Link) rename(topic string) string {
	if l.o.Template != nil {
		if device, point, ok := stateOf(l.gw.Base(), topic); ok && (point != "") == PerPoint(&l.set.cfg) {
			if t := l.o.Template(device); t != "" {
				return l.set.topics.wrap(strings.ReplaceAll(t, pointWord, point))
			}
		}
	}
	return l.set.topics.remote(topic)
}
