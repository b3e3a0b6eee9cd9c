package main

import (
	"bytes"
	"compress/zlib"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"busgate/bridge/uplink/cloudtest"
	"busgate/config"
	"busgate/devices/profiles"
	"busgate/devices/sim"
)

// TestMachineWithoutAClock is the whole way on a machine that wakes up in 1970: the
// readings of before the step arrive with their true time, marked, and the TLS
// uplink waits and says so.
func TestMachineWithoutAClock(t *testing.T) {
	t.Parallel()
	inverter, err := sim.ListenTCP("127.0.0.1:0", 1, sim.NewInverter(3, 1))
	if err != nil {
		t.Fatal(err)
	}
	go inverter.Run(t.Context())
	cloud, address, ca := secureCloud(t)
	lanAddr := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	text := fmt.Sprintf("[gateway]\nname = \"t\"\ninterval = \"100ms\"\ndata_dir = %q\n[web]\nlisten = \"\"\n[broker]\nlisten = %q\n"+
		"[bus.roof]\ntcp = %q\n[device.inverter]\nbus = \"roof\"\nunit_id = 3\norder = \"CDAB\"\n[device.inverter.points]\npower = { input = 5030, type = \"int32\" }\n"+
		"[uplink.cloud]\naddresses = [%q]\nca = %q\nencode = \"json-batch\"\nmax_age = \"1s\"\n",
		t.TempDir(), lanAddr, inverter.Addr(), address, ca)
	cfg, problems := config.Parse("busgate.toml", text, profiles.FS)
	if cfg == nil {
		t.Fatal(problems)
	}
	f := newFakeKernel()
	f.up = time.Duration(clockGet(unix.CLOCK_BOOTTIME)) // CLOCK_BOOTTIME: that of the devices and the store
	f.start = time.Now()
	k := f.kernel()
	log := newScreen()
	g, err := openGateway(cfg, slog.New(slog.NewTextHandler(log, nil)), gatewayOptions{kernel: &k})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	run := make(chan error, 1)
	ctx, stop := context.WithCancel(t.Context())
	go func() { run <- g.Run(ctx, nil, func() {}) }()

	log.until(t, "this computer believes it is 1970-01-01", 1)
	log.until(t, "the clock is not set; waiting for the clock", 1)
	_, lan := lanClient(t, lanAddr)
	lan.until(t, `busgate/t/gateway/alert/clock {"uptime":`, 1)
	lan.until(t, `busgate/t/inverter/state {"uptime":`, 5)
	lan.until(t, `"clock":"unset"`, 1)
	if strings.Contains(lan.String(), `inverter/state {"ts":`) {
		t.Error("a reading was dated without a clock")
	}
	f.set(time.Now())
	f.mu.Lock()
	offset := f.offset
	f.mu.Unlock()
	log.until(t, "clock: set (+", 1)
	lan.until(t, `busgate/t/inverter/state {"ts":`, 5)
	lan.until(t, "busgate/t/gateway/alert/clock \n", 1)
	lan.until(t, `"clock":"ntp"`, 1)

	waitFor(t, "readings of before and after the step at the cloud", waitLong, func() bool {
		was, is := clocksOf(t, cloud)
		return len(was) >= 5 && len(is) >= 1
	})
	stop()
	if err := <-run; err != nil {
		t.Error(err)
	}
	trueTimes(t, cloud, lan.String(), offset)
}

// trueTimes compares the re-dated readings at the cloud with what the LAN saw
// with its uptime; offset is that of UTC to the uptime.
func trueTimes(t *testing.T, cloud *cloudtest.Broker, lan string, offset time.Duration) {
	t.Helper()
	redated, _ := clocksOf(t, cloud)
	uptimes := map[int64]bool{} // true times in ms of what the LAN saw with its uptime
	for l := range strings.Lines(lan) {
		if body, ok := strings.CutPrefix(l, "busgate/t/inverter/state {\"uptime\":"); ok {
			var up float64
			fmt.Sscan(strings.SplitN(body, ",", 2)[0], &up)
			uptimes[(offset + time.Duration(up*1e9)).Milliseconds()] = true
		}
	}
	hit := 0
	for _, ts := range redated {
		for d := int64(-1); d <= 1; d++ {
			if uptimes[ts+d] {
				hit++
				break
			}
		}
	}
	if hit < 4 { // the LAN client came later than the first readings
		t.Errorf("%d of %d re-dated readings have the true time of what the LAN saw", hit, len(redated))
	}
}

// clocksOf are the times of the readings at the cloud, by how they are known.
func clocksOf(t *testing.T, cloud *cloudtest.Broker) (redated, clocked []int64) {
	for _, d := range cloud.Ledger() {
		if d.Topic != "busgate/t/gateway/history" {
			continue
		}
		p := d.Payload
		if p[0] == 0x78 {
			r, err := zlib.NewReader(bytes.NewReader(p))
			if err != nil {
				t.Fatal(err)
			}
			if p, err = io.ReadAll(r); err != nil {
				t.Fatal(err)
			}
		}
		var m struct {
			D map[string][]struct {
				TS  int64
				Clk string
			}
		}
		if err := json.Unmarshal(p, &m); err != nil {
			t.Fatal(err)
		}
		for _, e := range m.D["inverter"] {
			if e.Clk == "redated" {
				redated = append(redated, e.TS)
			} else if e.Clk == "ntp" {
				clocked = append(clocked, e.TS)
			} else {
				t.Errorf("a reading went up with clk %q", e.Clk)
			}
		}
	}
	return redated, clocked
}

// secureCloud is a cloud on a port of the loopback that speaks TLS.
func secureCloud(t *testing.T) (cloud *cloudtest.Broker, address, ca string) {
	t.Helper()
	cert, key := certificate(t, t.TempDir())
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	far, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}})
	if err != nil {
		t.Fatal(err)
	}
	cloud = cloudtest.New(cloudtest.Options{})
	t.Cleanup(func() { far.Close(); cloud.Close() })
	go func() {
		for {
			c, err := far.Accept()
			if err != nil {
				return
			}
			go cloud.ServeConn(c)
		}
	}()
	_, port, _ := net.SplitHostPort(far.Addr().String())
	return cloud, "mqtts://localhost:" + port, cert
}
