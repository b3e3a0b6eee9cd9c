package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"busgate/bridge/uplink/cloudtest"
	"busgate/config"
	"busgate/devices/profiles"
	"busgate/devices/sim"
)

// numbersOf counts the numbered states of a device at a cloud; it fails on a
// gap, a repetition, or a number out of order.
func numbersOf(t *testing.T, c *cloudtest.Broker, topic string) (last uint64) {
	t.Helper()
	for _, d := range c.Ledger() {
		if d.Topic != topic {
			continue
		}
		_, a, err := canonical(d.Payload)
		if err != nil {
			t.Fatalf("%s: %v", d.Payload, err)
		}
		if a.n == 0 { // the newest state, said at birth
			continue
		}
		if uint64(a.n) != last+1 {
			t.Fatalf("n = %d after %d", a.n, last)
		}
		last = uint64(a.n)
	}
	return last
}

// threeClouds are brokers called one, two and three.
func threeClouds(t *testing.T) map[string]*cloudtest.Broker {
	t.Helper()
	clouds := map[string]*cloudtest.Broker{}
	for _, name := range []string{"one", "two", "three"} {
		c, err := cloudtest.Listen(cloudtest.Options{AtPublish: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		clouds[name] = c
	}
	return clouds
}

// TestUplinkThatCannotBeChanged: the change fails when the old link has ended
// already; the old configuration brings it back, and after a stop nobody waits for
// the links.
func TestUplinkThatCannotBeChanged(t *testing.T) {
	t.Parallel()
	text := fmt.Sprintf("[gateway]\nname = \"t\"\ndata_dir = %q\n[web]\nlisten = \"\"\n[broker]\nlisten = \"127.0.0.1:%d\"\n"+
		"[uplink.cloud]\naddresses = [\"mqtt://127.0.0.1:1\"]\n", t.TempDir(), freePort(t))
	cfg, problems := config.Parse("busgate.toml", text, profiles.FS)
	if cfg == nil {
		t.Fatal(problems)
	}
	g, err := openGateway(cfg, quiet, gatewayOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	ctx, stop := context.WithCancel(t.Context())
	run := make(chan error, 1)
	go func() { run <- g.uplinks.Run(ctx) }()
	bad, u := *cfg, *cfg.Uplinks["cloud"]
	u.QoS, u.Addresses = 2, nil
	bad.Uplinks = map[string]*config.Uplink{"cloud": &u}
	changed := []config.Change{{Name: "cloud", Effect: config.Restart}}
	if err := g.uplinks.Update(t.Context(), &bad, changed); err == nil || !strings.Contains(err.Error(), "no addresses") {
		t.Errorf("without an address: %v", err)
	}
	if err := g.uplinks.Update(t.Context(), cfg, changed); err != nil || g.uplinks.links["cloud"] == nil {
		t.Errorf("back to the old configuration: %v", err)
	}
	stop()
	if err := <-run; err != nil {
		t.Error(err)
	}
	limit, cancel := context.WithTimeout(t.Context(), waitLong)
	defer cancel()
	if err := g.uplinks.Update(limit, cfg, []config.Change{{Name: "cloud", Effect: config.Removed}}); err != errStopping {
		t.Errorf("after the stop: %v", err)
	}
}

// TestReloadOfUplinks changes an uplink from QoS 1 to 2, adds one and removes
// one, in a daemon that goes on reading: the numbers of each go on without a gap,
// what waits for a removed one stays, and is sent when it comes back.
func TestReloadOfUplinks(t *testing.T) {
	t.Parallel()
	clouds := threeClouds(t)
	inverter, err := sim.ListenTCP("127.0.0.1:0", 1, sim.NewInverter(3, 1))
	if err != nil {
		t.Fatal(err)
	}
	go inverter.Run(t.Context())
	dir := t.TempDir()
	file := filepath.Join(dir, "busgate.toml")
	lanAddr := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	put := func(uplinks ...string) {
		t.Helper()
		write(t, file, fmt.Sprintf("[gateway]\nname = \"t\"\ninterval = \"100ms\"\ndata_dir = %q\n[web]\nlisten = \"\"\n[broker]\nlisten = %q\n"+
			"[bus.roof]\ntcp = %q\n[device.inverter]\nbus = \"roof\"\nunit_id = 3\norder = \"CDAB\"\n[device.inverter.points]\npower = { input = 5030, type = \"int32\" }\n%s",
			filepath.Join(dir, "data"), lanAddr, inverter.Addr(), strings.Join(uplinks, "")))
	}
	uplink := func(name string, qos int) string {
		return fmt.Sprintf("[uplink.%s]\naddresses = [\"mqtt://%s\"]\nqos = %d\n", name, clouds[name].Addr(), qos)
	}
	const topic = "busgate/t/inverter/state"
	reach := func(name string, more uint64) {
		t.Helper()
		want := numbersOf(t, clouds[name], topic) + more
		waitFor(t, fmt.Sprintf("reading %d at cloud %s", want, name), waitLong, func() bool { return numbersOf(t, clouds[name], topic) >= want })
	}
	put(uplink("one", 1), uplink("two", 1))
	d := startDaemon(t, file)
	d.log.until(t, "INFO running", 1)
	_, lan := lanClient(t, lanAddr)
	reach("one", 5)
	reach("two", 5)

	put(uplink("one", 2), uplink("three", 1))
	d.signals <- syscall.SIGHUP
	d.log.until(t, "uplink one", 1)
	d.log.until(t, "uplink three added", 1)
	d.log.until(t, "uplink two removed", 1)
	d.log.until(t, "what waits for it stays in the buffer", 1)
	reach("one", 10)
	reach("three", 5)
	last := clouds["one"].Ledger()
	for _, x := range last[len(last)-3:] {
		if x.Topic == topic && x.QoS != 2 {
			t.Errorf("after the reload %s came with QoS %d", x.Topic, x.QoS)
		}
	}
	lan.until(t, "busgate/t/gateway/uplink/two \n", 1) // emptied: it is gone
	lan.until(t, "busgate/t/gateway/uplink/three online", 1)

	before := numbersOf(t, clouds["two"], topic)
	put(uplink("one", 2), uplink("two", 1), uplink("three", 1))
	d.signals <- syscall.SIGHUP
	d.log.until(t, "uplink two added", 1)
	reach("two", 5)
	if n := numbersOf(t, clouds["two"], topic); n <= before {
		t.Errorf("the uplink that came back has %d, had %d", n, before)
	}
	reach("one", 5)

	// A mistake changes nothing.
	put(uplink("one", 2), "[uplink.bad]\n")
	d.signals <- syscall.SIGHUP
	d.log.until(t, "reload refused, the old configuration keeps running:", 1)
	reach("one", 3)
	reach("three", 3)
	reach("two", 3)
	d.stop()
	if code := <-d.code; code != exitOK {
		t.Errorf("exit %d:\n%s", code, d.log)
	}
	for name, c := range clouds {
		if v := c.Violations(); len(v) > 0 {
			t.Errorf("cloud %s: %q", name, v)
		}
		numbersOf(t, c, topic)
	}
}
