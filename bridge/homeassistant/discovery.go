package homeassistant

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"net"
	"slices"
	"strings"
	"time"

	"busgate/config"
)

// Announcement is one discovery message: retained, QoS 1.
type Announcement struct {
	Topic      string
	Payload    []byte
	Components []string // platform and name: "sensor voltage_l1"

	whole announcement
}

// Without is the payload to publish first when before, the Components of an
// earlier announcement, had some that a has not; nil when it had none. Home
// Assistant keeps an entity that is merely named no more: it goes when its
// component has nothing but a platform.
func (a Announcement) Without(before []string) []byte {
	var gone components
	for _, c := range before {
		platform, key, _ := strings.Cut(c, " ")
		if !slices.Contains(a.Components, c) {
			gone = append(gone, component{key: key, Platform: platform})
		}
	}
	if gone == nil {
		return nil
	}
	w := a.whole
	w.Components = slices.Clone(gone)
	for _, c := range a.whole.Components {
		if !slices.ContainsFunc(gone, func(g component) bool { return g.key == c.key }) { // else it comes again as another platform
			w.Components = append(w.Components, c)
		}
	}
	return encode(w)
}

// software is the origin of the messages.
const software = "busgate"

// Origin says who announces.
type Origin struct {
	Version string // of busgate
	URL     string // of its home page; "" = not told
}

// gatewayDevice is the name under which the gateway stands among its devices.
const gatewayDevice = "gateway"

// All announces the gateway and every device of a configuration, in the order of
// their names, the gateway first. It gives nothing while discovery is off.
func All(cfg *config.Config, o Origin) []Announcement {
	if !cfg.HomeAssistant.Discovery {
		return nil
	}
	s := site{cfg: cfg, from: o, base: cfg.Gateway.Base()}
	out := []Announcement{s.gateway()}
	for _, name := range slices.Sorted(maps.Keys(cfg.Devices)) {
		out = append(out, s.device(cfg.Devices[name]))
	}
	return out
}

// StatusTopic is where Home Assistant says online after a start: then all is to
// be published again.
func StatusTopic(cfg *config.Config) string { return cfg.HomeAssistant.Prefix + "/status" }

// site is what all messages of a gateway have in common.
type site struct {
	cfg  *config.Config
	from Origin
	base string
}

// announcement has the abbreviated keys of the discovery format, in the order
// in which they are written.
type announcement struct {
	Device       about          `json:"dev"`
	Origin       origin         `json:"o"`
	Availability []availability `json:"avty"`
	Mode         string         `json:"avty_mode"`
	State        string         `json:"stat_t"`
	QoS          int            `json:"qos"`
	Components   components     `json:"cmps"`
}

type about struct {
	IDs     []string `json:"ids"`
	Name    string   `json:"name"`
	Maker   string   `json:"mf,omitempty"`
	Model   string   `json:"mdl,omitempty"`
	Version string   `json:"sw,omitempty"`
	Via     string   `json:"via_device,omitempty"`
	URL     string   `json:"cu,omitempty"`
}

type origin struct {
	Name    string `json:"name"`
	Version string `json:"sw,omitempty"`
	URL     string `json:"url,omitempty"`
}

type availability struct {
	Topic string `json:"t"`
}

// component is one entity. Keys that say nothing are left out.
type component struct {
	key      string
	Platform string   `json:"p"`
	ID       string   `json:"uniq_id,omitempty"` // empty: it is taken back
	Name     string   `json:"name,omitempty"`
	Class    string   `json:"dev_cla,omitempty"`
	Kind     string   `json:"stat_cla,omitempty"`
	Unit     string   `json:"unit_of_meas,omitempty"`
	State    string   `json:"stat_t,omitempty"`
	Template string   `json:"val_tpl,omitempty"`
	Command  string   `json:"cmd_t,omitempty"`
	On       string   `json:"pl_on,omitempty"`
	Off      string   `json:"pl_off,omitempty"`
	Min      *float64 `json:"min,omitempty"`
	Max      *float64 `json:"max,omitempty"`
	Step     float64  `json:"step,omitempty"`
	Options  []string `json:"ops,omitempty"`
	Digits   *int     `json:"suggested_display_precision,omitempty"`
	Expire   int      `json:"exp_aft,omitempty"` // seconds
	Category string   `json:"ent_cat,omitempty"`
}

// components is written as an object in the order of the points.
type components []component

// MarshalJSON implements json.Marshaler.
func (cs components) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, c := range cs {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "%q:", c.key) // [a-z0-9_-]: no escapes
		raw, err := marshal(c)
		if err != nil {
			return nil, err
		}
		b.Write(raw)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// marshal is json.Marshal without escapes for HTML.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// id is the identity of a device of this gateway.
func (s *site) id(device string) string { return "busgate_" + s.cfg.Gateway.Name + "_" + device }

func (s *site) announce(device string, a announcement) Announcement {
	a.Device.IDs = []string{s.id(device)}
	a.Device.URL = s.console(device)
	a.Origin = origin{Name: software, Version: s.from.Version, URL: s.from.URL}
	a.Mode, a.QoS = "all", 1
	a.State = s.base + "/" + device + "/state"
	out := Announcement{Topic: s.cfg.HomeAssistant.Prefix + "/device/" + s.id(device) + "/config", Payload: encode(a),
		Components: []string{}, whole: a}
	for _, c := range a.Components {
		out.Components = append(out.Components, c.Platform+" "+c.key)
	}
	return out
}

func encode(a announcement) []byte {
	raw, err := marshal(a)
	if err != nil {
		panic(fmt.Sprintf("homeassistant: encode %s: %v", a.Device.Name, err)) // strings and finite numbers only
	}
	return raw
}

// console is the page of a device, "" when the console is off or answers on
// this computer only.
func (s *site) console(device string) string {
	host, port, err := net.SplitHostPort(s.cfg.Web.Listen)
	if err != nil {
		return ""
	}
	switch ip := net.ParseIP(host); {
	case host == "localhost" || ip.IsLoopback():
		return ""
	case host == "" || ip.IsUnspecified():
		host = s.cfg.Gateway.Name + ".local"
	}
	page := "/#/device/" + device
	if device == gatewayDevice {
		page = "/#/"
	}
	return "http://" + net.JoinHostPort(host, port) + page
}

// gateway is the gateway's own device, with numbers for diagnosis.
func (s *site) gateway() Announcement {
	a := announcement{Device: about{Name: "busgate " + s.cfg.Gateway.Name, Maker: software, Version: s.from.Version},
		Availability: []availability{{s.base + "/gateway/status"}}}
	add := func(c component, key, name string) {
		c.key, c.ID, c.Name, c.Category = key, s.id(gatewayDevice)+"_"+key, name, "diagnostic"
		a.Components = append(a.Components, c)
	}
	for _, name := range slices.Sorted(maps.Keys(s.cfg.Uplinks)) {
		add(component{Platform: "binary_sensor", Class: "connectivity", State: s.base + "/gateway/uplink/" + name,
			Template: "{{ 'OFF' if value == 'offline' else 'ON' }}"}, "uplink_"+name, "Uplink "+name)
	}
	for _, n := range []struct{ key, name, class, kind, unit string }{
		{"queue", "Queue", "", "measurement", ""},
		{"queue_oldest", "Oldest in the queue", "duration", "measurement", "s"},
		{"online", "Devices online", "", "measurement", ""},
		{"bus_errors_1h", "Bus errors in an hour", "", "measurement", ""},
	} {
		add(component{Platform: "sensor", Class: n.class, Kind: n.kind, Unit: n.unit, Template: "{{ " + valueOf(n.key) + " }}",
			Expire: 180}, n.key, n.name) // gateway/state comes each minute
	}
	return s.announce(gatewayDevice, a)
}

// device is a device with all its points.
func (s *site) device(d *config.Device) Announcement {
	a := announcement{Device: about{Name: d.Label, Maker: d.Maker, Model: d.Model, Via: s.id(gatewayDevice)},
		Availability: []availability{{s.base + "/gateway/status"}, {s.base + "/" + d.Name + "/status"}}, Components: components{}}
	for i := range d.Points {
		a.Components = append(a.Components, s.point(d, &d.Points[i]))
	}
	return s.announce(d.Name, a)
}

// point is the component of a point.
func (s *site) point(d *config.Device, p *config.Point) component {
	v := valueOf(p.Name)
	c := component{key: p.Name, ID: s.id(d.Name) + "_" + p.Name, Name: label(p), Class: p.Class, Template: "{{ " + v + " }}"}
	command := s.base + "/" + d.Name + "/set/" + p.Name
	numeric := len(p.Enum) == 0 && len(p.Flags) == 0 && p.Type != "string" && p.Type != "hex" && !strings.HasPrefix(p.Type, "unix")
	switch isBool := p.Type == "bool" || p.Bit >= 0; {
	case isBool && p.Write:
		c.Platform, c.Command, c.On, c.Off = "switch", command, "true", "false"
		c.Template = words(v, "true", "false")
	case isBool:
		c.Platform, c.Template = "binary_sensor", words(v, "ON", "OFF")
	case p.Write && len(p.Enum) > 0:
		c.Platform, c.Command, c.Class = "select", command, ""
		for _, w := range p.Enum {
			c.Options = append(c.Options, w.Text)
		}
	case p.Write && numeric && p.Min != nil && p.Max != nil:
		c.Platform, c.Command, c.Unit = "number", command, p.Unit
		c.Min, c.Max, c.Step = p.Min, p.Max, step(p)
	default:
		c.Platform, c.Expire = "sensor", expire(d, p)
		if numeric {
			c.Kind, c.Unit = p.Kind, p.Unit
			if p.Digits >= 0 {
				c.Digits = &p.Digits
			}
		}
		if len(p.Flags) > 0 {
			c.Template = "{{ " + v + " | join(', ') }}"
		}
	}
	return c
}

// words is a template for a bool. A value that is null, or missing, is unknown,
// never off.
func words(v, on, off string) string {
	return fmt.Sprintf("{{ '%s' if %s is true else '%s' if %s is false else 'None' }}", on, v, off, v)
}

// methods are names that Jinja would take for methods of the dictionary.
var methods = []string{"clear", "copy", "fromkeys", "get", "items", "keys", "pop", "popitem", "setdefault", "update", "values"}

// valueOf is the expression for a key of the state: value_json.power, or
// value_json['a-b'] for a name that is no identifier.
func valueOf(name string) string {
	if strings.Contains(name, "-") || name[0] <= '9' || name[0] == '_' || slices.Contains(methods, name) {
		return "value_json['" + name + "']"
	}
	return "value_json." + name
}

// label is what people read: voltage_l1 becomes Voltage L1 when the point has no
// label of its own.
func label(p *config.Point) string {
	if p.Label != "" && p.Label != p.Name {
		return p.Label
	}
	words := strings.FieldsFunc(p.Name, func(r rune) bool { return r == '_' || r == '-' })
	for i, w := range words {
		if i == 0 || strings.ContainsAny(w, "0123456789") {
			words[i] = strings.ToUpper(w[:1]) + w[1:]
		}
	}
	if len(words) == 0 {
		return p.Name
	}
	return strings.Join(words, " ")
}

// step is the smallest change of a number: one unit of the last decimal.
func step(p *config.Point) float64 {
	const smallest = 3 // decimals, as Home Assistant takes them
	switch {
	case p.Digits >= 0:
		return math.Pow10(-min(p.Digits, smallest))
	case strings.HasPrefix(p.Type, "float"):
		return math.Pow10(-smallest)
	case p.Scale.E < 0:
		return math.Pow10(max(p.Scale.E, -smallest))
	}
	return 1
}

// expire is after how many seconds without a message a value is unknown: three
// of the intervals in which it is sure to come.
func expire(d *config.Device, p *config.Point) int {
	every := p.Interval
	if every <= 0 {
		every = d.Interval
	}
	if d.Publish == "change" {
		every = max(every, d.Heartbeat)
	}
	return max(int((3*every+time.Second-1)/time.Second), 1)
}
