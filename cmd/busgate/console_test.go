package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"busgate/bridge"
	"busgate/bridge/uplink"
	"busgate/buffer"
	"busgate/cmd/busgate/console"
	"busgate/cmd/busgate/console/metricstest"
	"busgate/config"
	"busgate/config/report"
	"busgate/devices"
	"busgate/devices/sim"
	"busgate/embeddedbroker"
)

// rendered is what /metrics says of the samples that fn adds, read strictly.
func rendered(t *testing.T, fn func(*console.Metrics)) *metricstest.Text {
	t.Helper()
	c := console.New(config.Web{Listen: "127.0.0.1:1"}, console.Options{Log: quiet, Ladder: report.NewLadder(quiet), Metrics: func(m *console.Metrics, _ bool) { fn(m) }})
	r := httptest.NewRequest("GET", "http://localhost/metrics", nil)
	r.RemoteAddr = "127.0.0.1:1"
	w := httptest.NewRecorder()
	c.ServeHTTP(w, r)
	text, err := metricstest.Read(w.Body.Bytes())
	if err != nil {
		t.Fatalf("%v\n%s", err, w.Body)
	}
	return text
}

func names(text *metricstest.Text) (all []string) {
	for _, f := range text.Families {
		all = append(all, f.Name)
	}
	return all
}

// everything adds samples of rooms in which everything has happened once.
func everything(m *console.Metrics) {
	busMetrics(m, []devices.BusStatus{{Name: "meters"}})
	deviceMetrics(m, []devices.DeviceStatus{{Name: "grid", Bus: "meters", LastGood: time.Now()}})
	pointMetrics(m, []deviceStatus{{Name: "grid", State: "online", Values: []pointReading{{"voltage", json.Number("230.1"), "V"}}}})
	bridgeMetrics(m, bridge.Stats{Published: map[string]uint64{"state": 1}, Commands: map[bridge.CommandResult]uint64{{Device: "grid", Result: "ok"}: 1}})
	storeMetrics(m, buffer.Stats{Consumers: []buffer.ConsumerStats{{Name: "cloud", Kind: buffer.Uplink, Lost: map[string]uint64{"quota": 1}, Oldest: time.Now()}}})
	uplinkMetrics(m, &uplink.Status{Name: "cloud", Stats: uplink.Stats{Closed: map[string]uint64{"peer": 1}, Commands: map[string]uint64{"ok": 1}, CertExpires: time.Now()}})
	brokerMetrics(m, embeddedbroker.Stats{})
}

// TestMetricsOfADaemon: a device that answers, one that does not, a cloud that is
// not there, a reload, a command: the numbers tell it, and together with what did
// not happen here they are the whole table.
func TestMetricsOfADaemon(t *testing.T) {
	inverter, err := sim.ListenTCP("127.0.0.1:0", 1, sim.NewInverter(3, 1))
	if err != nil {
		t.Fatal(err)
	}
	go inverter.Run(t.Context())
	dir, socket, web := t.TempDir(), socketPath(t), fmt.Sprintf("127.0.0.1:%d", freePort(t))
	file, users := filepath.Join(dir, "busgate.toml"), filepath.Join(dir, "passwd")
	write(t, users, "eva:"+embeddedbroker.HashPassword([]byte("right"), 101)+"\n")
	write(t, file, fmt.Sprintf("[gateway]\nname = \"t\"\ninterval = \"100ms\"\ndata_dir = %q\n[web]\nlisten = %q\nusers = %q\n[broker]\nlisten = \"127.0.0.1:%d\"\n"+
		"[buffer]\nmin_free_disk = \"1MB\"\n[uplink.cloud]\naddresses = [\"mqtt://127.0.0.1:1\"]\n"+
		"[device.inverter]\ntcp = %q\nunit_id = 3\n[device.inverter.points]\npower = { input = 5030, unit = \"W\" }\n"+
		"[device.lost]\ntcp = \"127.0.0.1:1\"\n[device.lost.points]\nx = { input = 1 }\n", dir, web, users, freePort(t), inverter.Addr()))
	d := startDaemon(t, file, "--socket", socket)
	d.log.until(t, "console: http://"+web, 1)
	d.signals <- syscall.SIGHUP
	d.log.until(t, "reloaded: nothing changed", 1)
	var text *metricstest.Text
	value := func(name string, labels ...string) float64 {
		v, _ := text.Value(name, labels...)
		return v
	}
	waitFor(t, "numbers of all", waitLong, func() bool {
		var err error
		if text, err = metricstest.Read([]byte(got(t, web, "/metrics?points=1", 200))); err != nil {
			t.Fatal(err)
		}
		return value("busgate_reads_total", "bus", "inverter", "device", "inverter", "result", "ok") >= 3 && value("busgate_commit_seconds_count") > 0 &&
			value("busgate_buffer_messages", "kind", "uplink", "uplink", "cloud") > 0 && value("busgate_reports_total", "err", "unreachable") > 0 &&
			value("busgate_read_seconds_count", "bus", "inverter") >= 3 && text.Family("busgate_point") != nil
	})
	for _, x := range []struct {
		want   float64
		name   string
		labels []string
	}{
		{1, "busgate_device_up", []string{"device", "inverter"}},
		{0, "busgate_device_up", []string{"device", "lost"}},
		{1, "busgate_reloads_total", []string{"result", "ok"}},
		{0, "busgate_reloads_total", []string{"result", "refused"}},
		{0, "busgate_uplink_up", []string{"uplink", "cloud"}},
		{0, "busgate_metrics_truncated", nil},
	} {
		if v, ok := text.Value(x.name, x.labels...); !ok || v != x.want {
			t.Errorf("%s %v is %v, %v", x.name, x.labels, v, ok)
		}
	}
	all := slices.Concat(names(text), names(rendered(t, everything)))
	slices.Sort(all)
	if all = slices.Compact(all); !slices.Equal(all, console.Names()) {
		for _, n := range console.Names() {
			if !slices.Contains(all, n) {
				t.Errorf("%s stands in the table, and nobody says it", n)
			}
		}
	}
	if page := got(t, web, "/", 200); !strings.Contains(page, `<th scope="row">inverter</th><td>online</td>`) || !strings.Contains(page, `<th scope="row">lost</th><td>offline</td>`) {
		t.Error(page)
	}
	if text := got(t, web, "/healthz", 200); text != "ok\n" {
		t.Error(text)
	}
	for secret, want := range map[string]int{"right": 200, "wrong": 401} { // of the network, by a proxy
		r, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+web+"/metrics", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-Forwarded-For", "192.168.1.23")
		r.SetBasicAuth("eva", secret)
		a, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: waitLong}).Do(r)
		if err != nil {
			t.Fatal(err)
		}
		a.Body.Close()
		if a.StatusCode != want {
			t.Errorf("login with the %s password: %s", secret, a.Status)
		}
	}
	d.stop()
	if code := <-d.code; code != exitOK {
		t.Errorf("exit %d:\n%s", code, d.log)
	}
}

// got is a page of the console, and fails on another status than want.
func got(t *testing.T, addr, path string, want int) string {
	t.Helper()
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: waitLong}
	r, err := c.Get("http://" + addr + path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != want {
		t.Fatalf("%s: %s, %v\n%s", path, r.Status, err, b)
	}
	return string(b)
}

// TestClientIDsAddNoSeries: a million names that clients chose, a thousand at a
// time, each with losses of its own.
func TestClientIDsAddNoSeries(t *testing.T) {
	series := func(text *metricstest.Text) (all []string) {
		for _, f := range text.Families {
			for i := range f.Samples {
				all = append(all, f.Samples[i].Series())
			}
		}
		return all
	}
	st := buffer.Stats{Consumers: make([]buffer.ConsumerStats, 1001)}
	st.Consumers[0] = buffer.ConsumerStats{Name: "cloud", Kind: buffer.Uplink}
	lost := map[string]uint64{"quota": 1}
	var first []string
	for batch := range 1000 {
		for i := range 1000 {
			st.Consumers[1+i] = buffer.ConsumerStats{Name: fmt.Sprintf("client-%d-%d", batch, i), Kind: buffer.SessionLog, Records: 2, Bytes: 3, Lost: lost}
		}
		text := rendered(t, func(m *console.Metrics) { storeMetrics(m, st) })
		if first == nil {
			first = series(text)
		}
		if now := series(text); !slices.Equal(now, first) {
			t.Fatalf("batch %d: %q", batch, now)
		}
		n, _ := text.Value("busgate_buffer_messages", "kind", "session", "uplink", "")
		drops, _ := text.Value("busgate_buffer_dropped_total", "kind", "session", "uplink", "", "reason", "quota")
		if n != 2000 || drops != 1000 {
			t.Fatalf("batch %d: %v messages, %v dropped", batch, n, drops)
		}
	}
}

// TestReloadOfWeb: on, elsewhere, refused, off.
func TestReloadOfWeb(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "busgate.toml")
	broker := freePort(t)
	put := func(listen string) {
		write(t, file, fmt.Sprintf("[gateway]\nname = \"t\"\ndata_dir = %q\n[web]\nlisten = %q\n[broker]\nlisten = \"127.0.0.1:%d\"\n[buffer]\nmin_free_disk = \"1MB\"\n", dir, listen, broker))
	}
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	put(busy.Addr().String())
	d := startDaemon(t, file)
	d.log.until(t, "INFO running", 1)
	d.log.until(t, fmt.Sprintf("ERROR console: %s is in use by another program", busy.Addr()), 1)
	first, second := fmt.Sprintf("127.0.0.1:%d", freePort(t)), fmt.Sprintf("127.0.0.1:%d", freePort(t))
	for i, addr := range []string{first, second} {
		put(addr)
		d.signals <- syscall.SIGHUP
		d.log.until(t, "reloaded: [web] listen", i+1)
		got(t, addr, "/healthz", 200)
	}
	put(busy.Addr().String())
	d.signals <- syscall.SIGHUP
	d.log.until(t, fmt.Sprintf("reload refused, the old configuration keeps running: console: %s is in use", busy.Addr()), 1)
	if text := got(t, second, "/metrics", 200); !strings.Contains(text, "\nbusgate_reloads_total{result=\"refused\"} 1\n") {
		t.Error(text)
	}
	put("")
	d.signals <- syscall.SIGHUP
	d.log.until(t, "reloaded: [web] listen", 3)
	if c, err := net.Dial("tcp", second); err == nil {
		c.Close()
		t.Error("off, and it answers")
	}
	d.stop()
	if code := <-d.code; code != exitOK {
		t.Errorf("exit %d:\n%s", code, d.log)
	}
}

func TestReportsAreCounted(t *testing.T) {
	var out bytes.Buffer
	var lv slog.LevelVar
	lv.Set(slog.LevelError)
	log, said := countReports(newLog(&out, &lv))
	log.Warn("device pumps: no answer", "err", "no-answer")
	log.With("bus", "meters").WithGroup("g").Error("bus meters: gone", "err", "port-gone")
	log.Info("device pumps: answers again", "err", "no-answer", "state", "solved")
	log.Error("a fault", "err", errors.New("no word"))
	log.Warn("a text", "err", "dial tcp: refused")
	if said.by["no-answer"] != 1 || said.by["port-gone"] != 1 || said.by["other"] != 1 || len(said.by) != 3 {
		t.Errorf("%v", said.by)
	}
	if n := strings.Count(out.String(), "\n"); n != 2 || log.Enabled(context.Background(), slog.LevelInfo) {
		t.Errorf("the log has %d lines:\n%s", n, &out)
	}
	for i := range 3 * maxWords {
		said.note(fmt.Sprint("word-", i))
	}
	if n := len(said.by); n > maxWords+1 {
		t.Errorf("%d words", n)
	}
}

// TestPageShowsTheStatus: each cell of busgate status stands on the page, too.
func TestPageShowsTheStatus(t *testing.T) {
	s := gatewayStatus{Gateway: "plant-a", Version: "1.0", Devices: []deviceStatus{{Name: "grid", State: "online", Age: some(1)}},
		Buses: []busStatus{{Name: "meters"}}, Uplinks: []uplinkStatus{{Name: "cloud", State: "offline", Error: "refused"}}}
	var out bytes.Buffer
	s.print(&out)
	shown := s.shown()
	if len(shown.Tables) != 3 || shown.Summary != s.sentence() {
		t.Fatalf("%+v", shown)
	}
	text := out.String()
	for _, table := range shown.Tables {
		for _, row := range append([][]string{table.Head}, table.Rows...) {
			if len(row) != len(table.Head) {
				t.Errorf("%q has %d cells", row, len(row))
			}
			for _, cell := range row {
				_, rest, ok := strings.Cut(text, cell)
				if !ok {
					t.Errorf("%q is not in busgate status, or in another order", cell)
				}
				text = rest
			}
		}
	}
}
