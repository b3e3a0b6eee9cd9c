package uplink

import (
	"slices"
	"strings"
	"testing"
	"time"

	"busgate/config"
	"busgate/embeddedbroker"
)

func TestMatches(t *testing.T) {
	for _, c := range []struct {
		filter, topic string
		want          bool
	}{
		{"#", "a/b", true}, {"#", "$SYS/x", false}, {"+/x", "$SYS/x", false}, {"$SYS/#", "$SYS/x", true},
		{"a/#", "a", true}, {"a/#", "a/b/c", true}, {"a/#", "ab", false}, {"a/+", "a", false}, {"a/+", "a/", true},
		{"a/+/c", "a/b/c", true}, {"a/+/c", "a/b/d", false}, {"a", "a/b", false}, {"a/b", "a", false}, {"+/+", "/x", true},
		{"a/+/#", "a", false}, {"a/+/#", "a/b", true},
	} {
		if got := matches(c.filter, c.topic); got != c.want {
			t.Errorf("matches(%q, %q) = %v, want %v", c.filter, c.topic, got, c.want)
		}
	}
}

func TestWants(t *testing.T) {
	gw := &config.Gateway{Name: "plant-a", Topic: "busgate"}
	for _, c := range []struct {
		name  string
		send  []string
		topic string
		kind  embeddedbroker.Kind
		want  bool
	}{
		{"a state goes up", []string{"busgate/plant-a/#"}, "busgate/plant-a/grid/state", embeddedbroker.KindReading, true},
		{"an answer to a command goes up", []string{"busgate/plant-a/#"}, "busgate/plant-a/grid/ack", embeddedbroker.KindStatus, true},
		{"an alert goes up", []string{"busgate/plant-a/#"}, "busgate/plant-a/gateway/alert/clock", embeddedbroker.KindStatus, true},
		{"a command does not", []string{"busgate/plant-a/#"}, "busgate/plant-a/grid/set/relay1", embeddedbroker.KindLAN, false},
		{"nor one for several points", []string{"busgate/plant-a/#"}, "busgate/plant-a/grid/set", embeddedbroker.KindLAN, false},
		{"nor a get", []string{"busgate/plant-a/#"}, "busgate/plant-a/grid/get", embeddedbroker.KindLAN, false},
		{"nor the state of an uplink", []string{"busgate/plant-a/#"}, "busgate/plant-a/gateway/uplink/cloud", embeddedbroker.KindStatus, false},
		{"nor its numbers", []string{"#"}, "busgate/plant-a/gateway/uplink/cloud/stats", embeddedbroker.KindStatus, false},
		{"nor those of a bus", []string{"#"}, "busgate/plant-a/gateway/bus/meters/stats", embeddedbroker.KindStatus, false},
		{"but where send names them", []string{"busgate/plant-a/gateway/bus/+/stats"}, "busgate/plant-a/gateway/bus/meters/stats", embeddedbroker.KindStatus, true},
		{"a command that send names does", []string{"busgate/plant-a/+/set/#"}, "busgate/plant-a/grid/set/relay1", embeddedbroker.KindLAN, true},
		{"an uplink that send names does", []string{"busgate/plant-a/gateway/uplink/+"}, "busgate/plant-a/gateway/uplink/cloud", embeddedbroker.KindStatus, true},
		{"a set below another gateway is a LAN message", []string{"#"}, "busgate/plant-b/grid/set/x", embeddedbroker.KindLAN, true},
		{"the status of the gateway is the link's own", []string{"busgate/plant-a/#"}, "busgate/plant-a/gateway/status", embeddedbroker.KindStatus, false},
		{"$SYS never goes up", []string{"#", "$SYS/#"}, "$SYS/broker/uptime", embeddedbroker.KindLAN, false},
		{"what came down never goes up", []string{"#"}, "t", embeddedbroker.KindDown, false},
		{"discovery does not", []string{"#"}, "homeassistant/device/x/config", embeddedbroker.KindLAN, false},
		{"discovery under another prefix does not", []string{"#"}, "ha/device/x/config", embeddedbroker.KindStatus, false},
		{"discovery that send names does", []string{"ha/#"}, "ha/device/x/config", embeddedbroker.KindStatus, true},
	} {
		filters, want := Wants(&config.Uplink{Send: c.send}, gw)
		if got := want(&embeddedbroker.Message{Topic: c.topic, Kind: c.kind}); got != c.want {
			t.Errorf("%s: want(%s) = %v", c.name, c.topic, got)
		}
		if !slices.Equal(filters, c.send) {
			t.Errorf("%s: filters %v", c.name, filters)
		}
	}
	filters, _ := Wants(&config.Uplink{Send: []string{"a/#"}, Routes: []config.Route{{Filter: "b/#", Direction: "out"}, {Filter: "c/#", Direction: "in"}}}, gw)
	if !slices.Equal(filters, []string{"a/#", "b/#"}) {
		t.Errorf("filters %v, want those of send and of the routes out", filters)
	}
}

func TestTopicMap(t *testing.T) {
	m := newTopicMap(&config.Uplink{
		LocalPrefix: "busgate/", RemotePrefix: "acme/site1/",
		Routes: []config.Route{
			{Filter: "lab/#", Direction: "out", LocalPrefix: "lab/", RemotePrefix: "x/lab/"},
			{Filter: "orders/#", Direction: "in", LocalPrefix: "orders/", RemotePrefix: "acme/orders/"},
		},
	})
	for local, remote := range map[string]string{
		"busgate/plant-a/grid/state": "acme/site1/plant-a/grid/state",
		"lab/a":                      "x/lab/a",
		"other":                      "other",
	} {
		if got := m.remote(local); got != remote {
			t.Errorf("remote(%q) = %q, want %q", local, got, remote)
		}
	}
	for remote, local := range map[string]string{
		"acme/site1/plant-a/grid/set/x": "busgate/plant-a/grid/set/x",
		"acme/orders/7":                 "orders/7",
		"elsewhere":                     "elsewhere",
	} {
		if got := m.local(remote); got != local {
			t.Errorf("local(%q) = %q, want %q", remote, got, local)
		}
	}
	if got := m.remoteFilter("busgate/plant-a/+/set/#"); got != "acme/site1/plant-a/+/set/#" {
		t.Errorf("remoteFilter gives %q", got)
	}
	if got := m.remoteFilter("orders/#"); got != "acme/orders/#" {
		t.Errorf("remoteFilter of a route gives %q", got)
	}
}

func TestRoutesThatLoopAreRefused(t *testing.T) {
	cfg := &config.Uplink{Name: "cloud", Addresses: []string{"mqtt://a"}, Routes: []config.Route{
		{Filter: "a/b/#", Direction: "out"}, {Filter: "a/#", Direction: "in"},
	}}
	_, err := newSettings(cfg, &config.Gateway{Name: "g", Topic: "busgate"})
	if want := `uplink.cloud.route[1]: "a/#" in and "a/b/#" out overlap after mapping: a loop; give them different prefixes`; err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
	cfg.Routes[1].LocalPrefix, cfg.Routes[1].RemotePrefix = "a/", "from/a/"
	if _, err := newSettings(cfg, &config.Gateway{Name: "g", Topic: "busgate"}); err != nil {
		t.Errorf("with other prefixes: %v", err)
	}
}

func TestSettings(t *testing.T) {
	gw := &config.Gateway{Name: "g", Topic: "busgate"}
	for _, c := range []struct {
		name string
		cfg  config.Uplink
		err  string // part of it; "" = none
		want func(*settings) bool
	}{
		{"no address", config.Uplink{Name: "c"}, "no addresses", nil},
		{"an address without a scheme", config.Uplink{Name: "c", Addresses: []string{"a:1883"}}, "address", nil},
		{"ports are filled in", config.Uplink{Addresses: []string{"mqtts://a", "tcp://b", "tls://c:443"}}, "", func(s *settings) bool {
			return s.addresses[0].hostport == "a:8883" && s.addresses[0].tls && s.addresses[1].hostport == "b:1883" && s.addresses[2].hostport == "c:443" && s.addresses[2].tls
		}},
		{"aws caps the keep-alive", config.Uplink{Addresses: []string{"mqtts://a"}, Profile: "aws", KeepAlive: time.Hour}, "", func(s *settings) bool { return s.keepAlive == 20*time.Minute }},
		{"mosquitto is asked as a private client", config.Uplink{Addresses: []string{"mqtts://a"}, Profile: "mosquitto"}, "", func(s *settings) bool { return s.private }},
		{"QoS 2 has a window of 20", config.Uplink{Addresses: []string{"mqtt://a"}, QoS: 2}, "", func(s *settings) bool { return s.window == 20 }},
		{"a window in flight and one ready", config.Uplink{Addresses: []string{"mqtt://a"}, QoS: 1, Window: 1000}, "", func(s *settings) bool { return s.leases == 2000 }},
		{"batches lease more records", config.Uplink{Addresses: []string{"mqtt://a"}, QoS: 1, Encode: "json-batch", MaxRecords: 64}, "", func(s *settings) bool { return s.leases == 102*64 }},
		{"at most 8192", config.Uplink{Addresses: []string{"mqtt://a"}, Encode: "json-batch", Window: 1024}, "", func(s *settings) bool { return s.leases == 8192 }},
	} {
		s, err := newSettings(&c.cfg, gw)
		switch {
		case c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)):
			t.Errorf("%s: error %v, want one with %q", c.name, err, c.err)
		case c.err == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.err == "" && !c.want(s):
			t.Errorf("%s: got %+v", c.name, s)
		}
	}
}
