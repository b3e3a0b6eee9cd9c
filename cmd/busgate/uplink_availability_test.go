package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"busgate/bridge/uplink/cloudtest"
	"busgate/devices/sim"
)

// site is a gateway with one device, a LAN client and a cloud, for the table of
// who is told what when something dies.
type site struct {
	t       *testing.T
	file    string
	meter   string // address of the device
	kill    context.CancelFunc
	lanAddr string
	lan     *screen
	cloud   *cloudtest.Broker
	shut    atomic.Bool // the cloud does not let anybody in
}

func newSite(t *testing.T) *site {
	s := &site{t: t, lanAddr: fmt.Sprintf("127.0.0.1:%d", freePort(t)), meter: fmt.Sprintf("127.0.0.1:%d", freePort(t))}
	var err error
	s.cloud, err = cloudtest.Listen(cloudtest.Options{Login: func(*packets.ConnectPacket) byte {
		if s.shut.Load() {
			return packets.ErrRefusedServerUnavailable
		}
		return packets.Accepted
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.cloud.Close)
	dir := t.TempDir()
	s.file = filepath.Join(dir, "busgate.toml")
	s.put("")
	return s
}

// put writes the device map; without the device when it is called "gone".
func (s *site) put(what string) {
	s.t.Helper()
	text := fmt.Sprintf("[gateway]\nname = \"t\"\ninterval = \"100ms\"\ndata_dir = %q\n[web]\nlisten = \"\"\n[broker]\nlisten = %q\n[uplink.cloud]\naddresses = [\"mqtt://%s\"]\n",
		filepath.Join(filepath.Dir(s.file), "data"), s.lanAddr, s.cloud.Addr())
	if what != "gone" {
		text += fmt.Sprintf("[bus.roof]\ntcp = %q\ntimeout = \"100ms\"\nretries = 0\n[device.inverter]\nbus = \"roof\"\nunit_id = 3\norder = \"CDAB\"\n[device.inverter.points]\npower = { input = 5030, type = \"int32\" }\n", s.meter)
	}
	if err := os.WriteFile(s.file, []byte(text), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

// power switches the device on.
func (s *site) power() {
	s.t.Helper()
	ctx, cancel := context.WithCancel(s.t.Context())
	s.kill = cancel
	m, err := sim.ListenTCP(s.meter, 1, sim.NewInverter(3, 1))
	if err != nil {
		s.t.Fatal(err)
	}
	go m.Run(ctx)
}

// at is what is retained at the cloud on a topic of the gateway.
func (s *site) at(topic string) string {
	d, _ := s.cloud.Retained("busgate/t/" + topic)
	return string(d.Payload)
}

func (s *site) cloudSays(topic, word string) {
	s.t.Helper()
	waitFor(s.t, fmt.Sprintf("%s %q at the cloud", topic, word), waitLong, func() bool { return s.at(topic) == word })
}

// since lists what came to the cloud after the first n, states as "state" or
// "reading" when they are numbered.
func (s *site) since(n int) (out []string) {
	for _, d := range s.cloud.Ledger()[n:] {
		topic := strings.TrimPrefix(d.Topic, "busgate/t/")
		line := topic + " " + string(d.Payload)
		switch {
		case d.Will:
			line = "will " + line
		case strings.Contains(string(d.Payload), `"n":`):
			line = "reading"
		case strings.HasPrefix(string(d.Payload), "{"):
			line = topic
		}
		out = append(out, line)
	}
	return out
}

// inOrder fails unless the words stand in the list in this order.
func inOrder(t *testing.T, what string, list []string, words ...string) {
	t.Helper()
	rest := list
	for _, w := range words {
		i := slices.Index(rest, w)
		if i < 0 {
			t.Fatalf("%s: %q does not follow in\n  %s", what, w, strings.Join(list, "\n  "))
		}
		rest = rest[i+1:]
	}
}

// lines are what the LAN client saw below busgate/t/ after the first n bytes.
func (s *site) lines(from int) (out []string) {
	for l := range strings.Lines(s.lan.String()[from:]) {
		l = strings.TrimPrefix(strings.TrimSuffix(l, "\n"), "busgate/t/")
		if topic, payload, _ := strings.Cut(l, " "); strings.HasPrefix(payload, "{") {
			l = topic
		}
		out = append(out, l)
	}
	return out
}

// heard waits until the LAN client has seen a line after the first n bytes.
func (s *site) heard(from int, line string) {
	s.t.Helper()
	waitFor(s.t, line+" on the LAN", waitLong, func() bool { return slices.Contains(s.lines(from), line) })
}

// TestAvailability is the table of availability row by row, on both brokers; the
// rows of a killed gateway are in TestPeerAvailabilityOfAKilledGateway.
func TestAvailability(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.power()
	d := startDaemon(t, s.file)
	d.log.until(t, "INFO running", 1)
	_, s.lan = lanClient(t, s.lanAddr)

	// Start: birth follows CONNACK, then the device as it really is.
	s.cloudSays("inverter/status", "online")
	s.cloudSays("gateway/status", "online")
	s.heard(0, "inverter/status online")
	s.heard(0, "gateway/uplink/cloud online")
	if first := s.since(0)[0]; first != "gateway/status online" {
		t.Errorf("the cloud was told first %q", first)
	}

	// Uplink lost: the LAN goes on, the will speaks for the gateway.
	n, at := s.cloud.Len(), len(s.lan.String())
	s.shut.Store(true)
	s.cloud.Cut()
	s.cloudSays("gateway/status", "offline")
	inOrder(t, "uplink lost", s.since(n), "will gateway/status offline")
	s.heard(at, "gateway/uplink/cloud offline")
	if slices.Contains(s.lines(at), "gateway/status offline") || s.at("inverter/status") != "online" {
		t.Errorf("uplink lost: LAN %q, device at the cloud %s", s.lines(at), s.at("inverter/status"))
	}

	// Device dead meanwhile: offline, then why.
	at = len(s.lan.String())
	s.kill()
	s.heard(at, "inverter/error")
	inOrder(t, "device dead", s.lines(at), "inverter/status offline", "inverter/error")

	// Uplink back: birth, the device's death ahead of the backlog, then the backlog.
	n, at = s.cloud.Len(), len(s.lan.String())
	s.shut.Store(false)
	s.cloudSays("inverter/status", "offline")
	waitFor(t, "the backlog", waitLong, func() bool { return slices.Contains(s.since(n), "reading") })
	inOrder(t, "uplink back", s.since(n), "gateway/status online", "inverter/status offline", "reading")
	if i := slices.Index(s.since(n), "reading"); slices.Contains(s.since(n)[i:], "inverter/status online") {
		t.Error("uplink back: the device is online again behind the backlog")
	}
	s.heard(at, "gateway/uplink/cloud online")
	inOrder(t, "uplink back", s.lines(at), "gateway/uplink/cloud draining", "gateway/uplink/cloud online")

	// Device back: its state, then the error emptied, then online.
	at = len(s.lan.String())
	s.power()
	s.heard(at, "inverter/status online")
	inOrder(t, "device back", s.lines(at), "inverter/state", "inverter/error ", "inverter/status online")
	s.cloudSays("inverter/status", "online")

	// Cloud broker restarted without persistence: everything retained comes again.
	n = s.cloud.Len()
	s.cloud.Restart()
	s.cloudSays("gateway/status", "online")
	s.cloudSays("inverter/status", "online")
	waitFor(t, "info and state at the empty cloud", waitLong, func() bool {
		return s.at("inverter/info") != "" && s.at("inverter/state") != "" && s.at("gateway/info") != ""
	})
	inOrder(t, "cloud restarted", s.since(n), "gateway/status online", "inverter/status online", "inverter/info", "inverter/state")

	s.removeAndStop(d)
	if v := s.cloud.Violations(); len(v) > 0 {
		t.Errorf("violations %q", v)
	}
}

// removeAndStop are the last rows: a device that is taken off the map, and a clean stop.
func (s *site) removeAndStop(d *daemon) {
	s.t.Helper()
	// Device removed: offline, then nothing is left of it, here and there.
	at := len(s.lan.String())
	s.put("gone")
	d.signals <- syscall.SIGHUP
	d.log.until(s.t, "device inverter removed", 1)
	s.heard(at, "inverter/info ")
	inOrder(s.t, "device removed", s.lines(at), "inverter/status offline", "inverter/state ", "inverter/status ", "inverter/info ")
	for _, kind := range []string{"status", "state", "info"} {
		waitFor(s.t, "the cloud to forget "+kind, waitLong, func() bool { return s.at("inverter/"+kind) == "" })
	}

	// Clean stop: the gateway says so itself; no will is needed.
	n := s.cloud.Len()
	at = len(s.lan.String())
	d.stop()
	if code := <-d.code; code != exitOK {
		s.t.Fatalf("exit %d:\n%s", code, d.log)
	}
	s.heard(at, "gateway/status offline")
	said := s.since(n)
	if s.at("gateway/status") != "offline" || !slices.Contains(said, "gateway/status offline") || slices.Contains(said, "will gateway/status offline") {
		s.t.Errorf("clean stop: the cloud has %q and heard %q", s.at("gateway/status"), said)
	}
}

// TestPeerAvailabilityOfAKilledGateway: the cloud hears the will; at the next
// start everything is offline before anybody can listen, then online as it answers.
func TestPeerAvailabilityOfAKilledGateway(t *testing.T) {
	needPeers(t)
	s := newSite(t)
	s.power()
	args := []string{"run", "--config", s.file, "--socket", socketPath(t)}
	p := start(t, nil, program(t), args...)
	reachable(t, s.lanAddr)
	s.cloudSays("inverter/status", "online")
	s.cloudSays("gateway/status", "online")
	n := s.cloud.Len()
	s.kill() // the device dies with it, so that it cannot come back by itself
	p.end(syscall.SIGKILL)
	s.cloudSays("gateway/status", "offline")
	inOrder(t, "gateway killed", s.since(n), "will gateway/status offline")
	if s.at("inverter/status") != "online" { // the AND of both hides it
		t.Errorf("device at the cloud: %s", s.at("inverter/status"))
	}

	n = s.cloud.Len()
	start(t, nil, program(t), args...)
	reachable(t, s.lanAddr)
	_, s.lan = lanClient(t, s.lanAddr)
	s.lan.until(t, "busgate/t/inverter/status offline", 1)
	s.cloudSays("inverter/status", "offline")
	s.cloudSays("gateway/status", "online")
	inOrder(t, "started again", s.since(n), "gateway/status online", "inverter/status offline")
	if strings.Contains(s.lan.String(), "busgate/t/inverter/status online") {
		t.Errorf("a dead device was online after the start:\n%s", s.lan)
	}
	s.power()
	s.lan.until(t, "busgate/t/inverter/status online", 1)
	s.cloudSays("inverter/status", "online")
}
