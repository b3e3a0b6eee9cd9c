package uplink

import (
	"slices"
	"strings"
	"testing"
	"time"

	"busgate/bridge/uplink/cloudtest"
	"busgate/config"
	"busgate/embeddedbroker"
)

func TestTopicTemplate(t *testing.T) {
	device := &config.Device{Name: "grid", Bus: "meters", UnitID: 7, Label: "Grid +1/2"}
	for _, c := range []struct {
		template string
		want     []string // topics at the cloud, sorted; the newest state comes at birth, too
	}{
		{"plants/{gateway}/{device}", []string{
			"busgate/plant-a/grid/status", "busgate/plant-a/other/state", "lan/x", "plants/plant-a/grid", "plants/plant-a/grid"}},
		{"{bus}/{unit_id}/{label}/{point}", []string{
			"busgate/plant-a/grid/status", "lan/x", "meters/7/Grid -1-2/power"}},
		{"", []string{
			"busgate/plant-a/grid/state", "busgate/plant-a/grid/state", "busgate/plant-a/grid/status", "busgate/plant-a/other/state", "lan/x"}},
	} {
		t.Run(c.template, func(t *testing.T) {
			virtual(t, cloudtest.Options{}, func(r *rig) {
				r.cfg.TopicTemplate, r.cfg.Send = c.template, []string{"#"}
				all := &config.Config{Gateway: r.gw, Devices: map[string]*config.Device{"grid": device}}
				templates := Templates(all, &r.cfg)
				r.o.Template = func(d string) string { return templates[d] }
				r.o.Birth = func() []*embeddedbroker.Message {
					return []*embeddedbroker.Message{{Topic: "busgate/plant-a/grid/state", Payload: []byte(`{"ts":"old"}`), QoS: 1, Retain: true, Kind: embeddedbroker.KindReading}}
				}
				_, want := Wants(&r.cfg, &r.gw)
				for _, m := range []struct {
					topic, payload string
					kind           embeddedbroker.Kind
				}{
					{"busgate/plant-a/grid/state/power", "871.1", embeddedbroker.KindStatus},
					{"busgate/plant-a/grid/state", `{"ts":"x","power":871.1}`, embeddedbroker.KindReading},
					{"busgate/plant-a/grid/status", "online", embeddedbroker.KindStatus},
					{"busgate/plant-a/other/state", `{"ts":"x"}`, embeddedbroker.KindReading}, // a device that is gone
					{"lan/x", "1", embeddedbroker.KindLAN},
				} {
					if want(&embeddedbroker.Message{Topic: m.topic, Kind: m.kind}) {
						r.st.put(m.topic, []byte(m.payload), m.kind)
					}
				}
				r.start()
				time.Sleep(time.Second)
				var got []string
				for _, d := range r.cloud.Ledger() {
					if !strings.HasSuffix(d.Topic, "gateway/status") {
						got = append(got, d.Topic)
					}
				}
				slices.Sort(got)
				if !slices.Equal(got, c.want) {
					t.Errorf("the cloud has\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(c.want, "\n  "))
				}
				r.stop()
			})
		})
	}
}

func TestStateOf(t *testing.T) {
	for topic, want := range map[string]string{
		"b/g/grid/state": "grid||true", "b/g/grid/state/power": "grid|power|true", "b/g/grid/state/": "grid||false", "b/g/grid/states": "grid||false",
		"b/g/gateway/state": "gateway||false", "b/g/grid/state/a/b": "grid|a/b|false", "x/g/grid/state": "||false", "b/g/grid/status": "grid||false",
	} {
		d, p, ok := stateOf("b/g", topic)
		got := d + "|" + p + "|" + map[bool]string{true: "true", false: "false"}[ok]
		if got != want {
			t.Errorf("%s is %s, want %s", topic, got, want)
		}
	}
}
