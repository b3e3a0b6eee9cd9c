package uplink

import (
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"busgate/bridge/uplink/cloudtest"
	"busgate/embeddedbroker"
)

// TestPeerThingsBoardThroughMosquitto has mosquitto and a client of another make in
// the place of ThingsBoard: telemetry arrives on its topics and can be read, a call
// becomes a command, and its answer comes back under the id of the call.
func TestPeerThingsBoardThroughMosquitto(t *testing.T) {
	m := startMosquitto(t)
	var mu sync.Mutex
	got := map[string][]string{}
	client := mqtt.NewClient(mqtt.NewClientOptions().AddBroker("tcp://" + m.addr()).SetClientID("thingsboard"))
	done := func(tok mqtt.Token) {
		t.Helper()
		if !tok.WaitTimeout(10*time.Second) || tok.Error() != nil {
			t.Fatal(tok.Error())
		}
	}
	done(client.Connect())
	defer client.Disconnect(100)
	done(client.Subscribe("v1/#", 1, func(_ mqtt.Client, msg mqtt.Message) {
		mu.Lock()
		defer mu.Unlock()
		got[msg.Topic()] = append(got[msg.Topic()], string(msg.Payload()))
	}))
	wait := func(what string, is func() bool) {
		t.Helper()
		for range 1000 { // two other programs: there is nothing to wait on
			mu.Lock()
			ok := is()
			mu.Unlock()
			if ok {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
		t.Fatalf("%s: got %q", what, got)
	}

	r := newRig(t, cloudtest.Options{})
	var l lan
	r.gw.Name, r.o.Down, r.o.Dial = "gw1", l.down, (&net.Dialer{}).DialContext
	r.cfg.Addresses, r.cfg.Encode, r.cfg.MaxAge, r.cfg.Will = []string{"mqtt://" + m.addr()}, encodeThingsBoard, 50*time.Millisecond, false
	r.cfg.Accept = []string{"busgate/gw1/pumps/set/#"}
	const n = 200
	for i := range n {
		r.st.put("busgate/gw1/grid/state", fmt.Appendf(nil, `{"ts":%d,"i":%d}`, 1782000000000+i, i), embeddedbroker.KindReading)
	}
	r.st.put("busgate/gw1/pumps/status", []byte("online"), embeddedbroker.KindStatus)
	r.start()
	values := map[float64]bool{}
	wait("telemetry", func() bool {
		for _, p := range got[boardTelemetry] {
			var doc map[string][]struct{ Values map[string]float64 }
			if err := json.Unmarshal([]byte(p), &doc); err != nil {
				t.Fatal(err)
			}
			for _, e := range doc["gw1.grid"] {
				values[e.Values["i"]] = true
			}
		}
		return len(values) == n && len(got[boardConnect]) == 1 && got[boardConnect][0] == `{"device":"gw1.pumps"}`
	})
	wait("the subscription", func() bool { return strings.Contains(m.log(), "Sending SUBACK to "+r.cfg.ClientID) })
	done(client.Publish(boardRPC, 1, false, `{"device":"gw1.pumps","data":{"id":7,"method":"relay1","params":true}}`))
	wait("the command", func() bool { return len(l.seen()) == 1 })
	_, id, _ := strings.Cut(l.seen()[0], `"id":"`)
	id, _, _ = strings.Cut(id, `"`)
	r.st.put("busgate/gw1/pumps/ack", fmt.Appendf(nil, `{"id":%q,"point":"relay1","ok":true,"value":true}`, id), embeddedbroker.KindStatus)
	want := fmt.Sprintf(`{"device":"gw1.pumps","id":7,"data":{"id":%q,"point":"relay1","ok":true,"value":true}}`, id)
	wait("the answer", func() bool { return len(got[boardRPC]) == 2 && got[boardRPC][1] == want })
	r.halt()
	r.cloud.Close()
}
