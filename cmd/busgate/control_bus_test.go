package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"busgate/config"
	"busgate/devices"
	"busgate/devices/sim"
)

// field is a simulated RS-485 bus at a path, with a meter, a thermometer, relays
// and an inverter, and a device map of it.
func fieldOf(t *testing.T) (bus *sim.Bus, port, file string) {
	t.Helper()
	port = filepath.Join(t.TempDir(), "ttyUSB1")
	bus = sim.NewBus(sim.Line{Baud: 57600}, 1, sim.NewSDM630(1, 1), sim.NewXYMD02(2, 1), sim.NewRelays(3, 4), sim.NewInverter(5, 1))
	p, err := sim.NewPty(bus, port)
	if err != nil {
		t.Skipf("no pseudo terminals here: %v", err)
	}
	serve(t, p.Run)
	dir := t.TempDir()
	file = mapWith(t, fmt.Sprintf("[gateway]\nname = \"t\"\ninterval = \"200ms\"\ndata_dir = %q\n[web]\nlisten = \"\"\n[broker]\nlisten = \"127.0.0.1:%d\"\n[buffer]\nmin_free_disk = \"1MB\"\n"+
		"[bus.meters]\nserial = %q\nbaud = 57600\ntimeout = \"2s\"\n[device.grid]\nbus = \"meters\"\nunit_id = 1\nprofile = \"eastron-sdm630\"\n"+
		"[device.cellar]\nbus = \"meters\"\nunit_id = 2\nprofile = \"xy-md02\"\n[device.pumps]\nbus = \"meters\"\nunit_id = 3\nprofile = \"relay-4ch\"\n"+
		"[device.inverter]\nbus = \"meters\"\nunit_id = 5\norder = \"CDAB\"\n[device.inverter.points]\npower = { input = 5030, type = \"int32\", unit = \"W\" }\n"+
		"limit = { holding = 5007, type = \"uint16\", unit = \"%%\", scale = 0.1, write = true, min = 0, max = 100 }\n"+
		"[device.attic]\nbus = \"meters\"\nunit_id = 9\nenabled = false\n[device.attic.points]\nswitch = { coil = 0, write = true }\n", dir, freePort(t), port))
	return bus, port, file
}

// borrowed are commands that must do the same with and without a daemon.
var borrowed = []struct {
	args string
	code int
	want string // a pattern that stdout or stderr holds
}{
	{"read cellar", exitOK, `^temperature  1[789]\.\d °C\nhumidity     6\d\.\d %\n$`},
	{"read grid.voltage_l1 --json", exitOK, `^\{"device":"grid","values":\{"voltage_l1":2[23]\d(\.\d+)?\}\}\n$`},
	{"read meters 2 input 1 2 --try", exitOK, `<- looks like °C and %`},
	{"read meters 2 input 77", exitRefused, `^busgate read: unit 2 on meters refuses: exception 2, illegal data address\n$`},
	{"read meters 99 input 1", exitNoReply, `^busgate read: unit 99 on meters: no answer \(2 tries of 2 s\)\n$`},
	{"read celar", exitFailed, "there is no device `celar` in .* \\(did you mean `cellar`\\?\\)"},
	{"write inverter.limit 80 --yes", exitOK, `^inverter\.limit: wrote 80 %, reads 80\.0 % \([0-9.]+m?s\)\n$`},
	{"write inverter.limit 75 --yes --json", exitOK, `^\{"device":"inverter","point":"limit","wrote":"75","reads":"75\.0","took":\d\.\d+\}\n$`},
	{"write pumps.relay1 on --yes", exitOK, `^pumps\.relay1: wrote on, reads on \([0-9.]+m?s\)\n$`},
	{"write inverter.limit 120 --yes", exitRefused, `^busgate write: limit must be 0 to 100 %\n$`},
	{"write inverter.limit fast --yes", exitRefused, `^busgate write: limit cannot be "fast"; allowed: 0 to 100 %\n$`},
	{"write inverter.power 80 --yes", exitRefused, `^busgate write: power takes no commands \(write = false\)\n$`},
	{"write inverter.limt 80 --yes", exitFailed, "device `inverter` has no point `limt` \\(did you mean `limit`\\?\\)"},
	{"write inverter.limit 80", exitUsage, `^busgate write: nothing written: there is no terminal to ask; say --yes\n$`},
	{"write inverter 80 --yes", exitUsage, "which point of `inverter`\\?"},
	{"write inverter.limit", exitUsage, "takes DEVICE.POINT and VALUE"},
}

func TestCommandsWithAndWithoutADaemon(t *testing.T) {
	bus, port, file := fieldOf(t)
	socket := socketPath(t)
	all := func(t *testing.T) {
		for _, c := range borrowed {
			code, out, errs := call(t, append(strings.Fields(c.args), "--config", file, "--socket", socket)...)
			if code != c.code || !regexp.MustCompile(c.want).MatchString(out) && !regexp.MustCompile(c.want).MatchString(errs) {
				t.Errorf("%s: exit %d, want %d with %s\n%s%s", c.args, code, c.code, c.want, out, errs)
			}
		}
	}
	t.Run("without", all)
	d := startDaemon(t, file, "--socket", socket)
	d.log.until(t, "INFO running", 1)
	waitFor(t, "devices that answer", waitLong, func() bool {
		code, _, _ := call(t, "read", "cellar", "--config", file, "--socket", socket)
		return code == exitOK
	})
	t.Run("with", all) // a command that opened the port itself would be refused: the daemon has it
	t.Run("scan", func(t *testing.T) { scanBorrowed(t, port, file, socket) })
	t.Run("monitor", func(t *testing.T) { monitorBorrowed(t, bus, file, socket) })
	d.stop()
	if code := <-d.code; code != exitOK {
		t.Fatalf("exit %d:\n%s", code, d.log)
	}
}

// A check asks the running gateway what it has learned, and does without where
// there is none.
func TestCheckAsksWhatWasLearned(t *testing.T) {
	file := mapWith(t, "[gateway]\nname = \"t\"\n[device.grid]\nserial = \"/dev/ttyUSB7\"\nprofile = \"eastron-sdm630\"\n")
	socket := socketPath(t)
	ln, err := openControl(socket)
	if err != nil {
		t.Fatal(err)
	}
	c := &control{learned: func() map[string][]byte { return map[string][]byte{"modbus//dev/ttyUSB7/1": []byte("{}")} }}
	serve(t, func(ctx context.Context) error {
		return serveControl(ctx, slog.New(slog.DiscardHandler), ln, c.handler())
	})
	const line = "answer times as the running gateway has learned them\n"
	for where, want := range map[string]bool{socket: true, socket + "-of-nobody": false} {
		code, out, errs := call(t, "check", file, "--socket", where)
		if code != exitOK || strings.Contains(out, line) != want || !strings.Contains(out, " % busy\n") {
			t.Errorf("%s: exit %d\n%s%s", where, code, out, errs)
		}
	}
}

// scanBorrowed searches the bus of a running daemon, by its name and by its port.
func scanBorrowed(t *testing.T, port, file, socket string) {
	for _, where := range []string{"meters", port} {
		code, out, errs := call(t, "scan", where, "--units", "2", "--timeout", "2s", "--config", file, "--socket", socket)
		if code != exitOK || !strings.Contains(out, "57600 8N1  unit   2   xy-md02          1") || !strings.Contains(out, "# unit 2 is there already: device `cellar`\n") || strings.Contains(out, "unit   7") {
			t.Errorf("%s: exit %d\n%s%s", where, code, out, errs)
		}
		if !strings.Contains(errs, "bus meters of the running gateway is searched between its polls, in a quarter of its time, at 57600 8N1 only (") {
			t.Errorf("said %q", errs)
		}
	}
	code, _, errs := call(t, "scan", "meters", "--baud", "9600", "--config", file, "--socket", socket)
	if code != exitRefused || !regexp.MustCompile(`bus meters is in use at 57600 8N1 \(\d devices answer\); stop the service to scan other speeds`).MatchString(errs) {
		t.Errorf("another speed: exit %d, %s", code, errs)
	}
}

// monitorBorrowed watches the bus of a running daemon.
func monitorBorrowed(t *testing.T, bus *sim.Bus, file, socket string) {
	watch := func(args ...string) (int, string) {
		t.Helper()
		code, out, errs := call(t, append([]string{"monitor", "meters", "--config", file, "--socket", socket}, args...)...)
		if code != exitOK {
			t.Errorf("%v: exit %d, %s", args, code, errs)
		}
		return code, out
	}
	out := ""
	for _, pattern := range []string{`->  unit   2  04  cellar: reads input 1\.\.2\n`, `<-  unit   2  04  cellar: temperature 1\d\.\d °C, humidity 6\d\.\d %`, `unit   5  asked \d+ times?, answered \d+   device inverter`} {
		waitFor(t, pattern, waitLong, func() bool {
			if out == "" || !regexp.MustCompile(pattern).MatchString(out) {
				_, out = watch("--for", "700ms")
			}
			return regexp.MustCompile(pattern).MatchString(out)
		})
	}
	if strings.Contains(out, "another master") || strings.Contains(out, "NOT OURS") {
		t.Errorf("our own frames are somebody else's:\n%s", out)
	}
	_, out = watch("--for", "500ms", "--json")
	for line := range strings.Lines(out) {
		var row monitorRow
		if err := json.Unmarshal([]byte(line), &row); err != nil || row.Hex == "" && row.Kind != "silence" || row.TS.IsZero() {
			t.Fatalf("%v: %s", err, line)
		}
	}
	if _, out = watch("--for", "500ms", "--listen-only"); !strings.Contains(out, "nothing was heard: nobody else talks on this bus") {
		t.Errorf("a quiet bus:\n%s", out)
	}
	bus.SetFaults(sim.Faults{SecondMaster: 200 * time.Millisecond})
	defer bus.SetFaults(sim.Faults{})
	out = ""
	for _, pattern := range []string{`->  unit   4  03  reads holding \d+\.\.\d+\n +04 03 `, `<-  unit   4  03  holding \d+\.\.\d+ = \d+ \d+   \[\d+ ms\]`, `unit   4  asked \d+ times?, answered \d+\n`,
		`a master asks on this bus \(\d+ times?\), and it is not busgate: RS-485 allows one`} {
		waitFor(t, pattern, waitLong, func() bool { // on a busy machine a frame may come in pieces
			if out == "" || !regexp.MustCompile(pattern).MatchString(out) {
				_, out = watch("--for", "2500ms", "--listen-only", "--hex")
			}
			return regexp.MustCompile(pattern).MatchString(out)
		})
	}
}

func TestMonitorWithoutADaemonOnlyListens(t *testing.T) {
	bus, port, file := fieldOf(t)
	before := bus.Stats().Requests
	code, out, errs := call(t, "monitor", port, "--baud", "57600", "--for", "300ms", "--config", file, "--socket", socketPath(t))
	if code != exitOK || !strings.Contains(out, "nothing was heard: nobody talks, or A and B are swapped, or this is the wrong port\n") ||
		!strings.Contains(errs, "only listening at 57600 8N1, nothing is sent") || bus.Stats().Requests != before {
		t.Errorf("exit %d\n%s%s", code, out, errs)
	}
	for _, c := range []struct {
		args string
		code int
		want string
	}{
		{"monitor", exitUsage, "takes one bus or port"},
		{"monitor /dev/ttyUSB77", exitFailed, "there is no /dev/ttyUSB77"},
		{"monitor 127.0.0.1:1", exitFailed, "no running gateway asks it: there is nothing to hear"},
		{"monitor meters --baud fast", exitUsage, "cannot use --baud fast"},
	} {
		code, out, errs := call(t, append(strings.Fields(c.args), "--config", file, "--socket", "/none")...)
		if code != c.code || !strings.Contains(errs, c.want) {
			t.Errorf("%s: exit %d, want %d with %q\n%s%s", c.args, code, c.code, c.want, out, errs)
		}
	}
}

func TestWriteToADeviceThatIsDead(t *testing.T) {
	bus, port, file := fieldOf(t)
	bus.Unit(5).SetFaults(sim.Faults{Dead: true})
	code, _, errs := call(t, "write", "inverter.limit", "80", "--yes", "--config", file, "--socket", "/none")
	if code != exitNoReply || errs != "busgate write: inverter.limit: no answer: whether it was done is unknown: the device may have taken it; and does not answer a read either\n" {
		t.Errorf("exit %d, %s", code, errs)
	}
	// it takes the value, but its answers are lost for a while
	bus.Unit(5).SetFaults(sim.Faults{Except: 1, Code: 4})
	code, _, errs = call(t, "write", "inverter.limit", "70", "--yes", "--config", file, "--socket", "/none")
	if code != exitRefused || errs != "busgate write: inverter.limit: exception 4, device failure\n" {
		t.Errorf("exit %d, %s", code, errs)
	}
	os.Remove(port)
	code, _, errs = call(t, "write", "inverter.limit", "70", "--yes", "--config", file, "--socket", "/none")
	if code != exitFailed || errs != "busgate write: there is no "+port+". Ports of this computer: busgate scan\n" {
		t.Errorf("exit %d, %s", code, errs)
	}
}

func TestWhatIsAskedBeforeAWrite(t *testing.T) {
	scale := config.Decimal{M: 1, E: -1}
	for _, c := range []struct {
		p     config.Point
		value string
		want  string
	}{
		{config.Point{Name: "limit", Table: "holding", Addr: 5007, Type: "uint16", Scale: scale, Bit: -1, ScaleReg: -1, Digits: -1}, "80", "holding 5007, raw 800"},
		{config.Point{Name: "relay", Table: "coil", Addr: 3, Type: "bool", Bit: -1, ScaleReg: -1, Digits: -1}, "on", "coil 3, on"},
		{config.Point{Name: "set", Table: "holding", Addr: 7, Type: "float32", Order: "ABCD", Scale: config.Decimal{M: 1}, Bit: -1, ScaleReg: -1, Digits: -1}, "1.5", "holding 7..8, raw 3F C0 00 00"},
		{config.Point{Name: "set", Table: "holding", Addr: 7, Type: "int16", Bit: -1, ScaleReg: 9, Digits: -1}, "1.5", "holding 7"},
	} {
		if got := rawText(&c.p, c.value); got != c.want {
			t.Errorf("%s: %q, want %q", c.p.Name, got, c.want)
		}
	}
	if isTerminal(strings.NewReader("y")) {
		t.Error("a text is a terminal")
	}
}

func TestGuestOfAClosedBusIsToldWhy(t *testing.T) {
	_, port, file := fieldOf(t)
	socket := socketPath(t)
	d := startDaemon(t, file, "--socket", socket)
	d.log.until(t, "INFO running", 1)
	waitFor(t, "devices that answer", waitLong, func() bool {
		code, _, _ := call(t, "read", "cellar", "--config", file, "--socket", socket)
		return code == exitOK
	})
	os.Remove(port)
	real := newControlClient(socket)
	var rows []busRow
	if err := real.call(t.Context(), "/v1/buses", nil, &rows); err != nil || len(rows) != 1 || rows[0].Name != "meters" || rows[0].Baud != 57600 || !rows[0].Open {
		t.Errorf("%+v %v", rows, err)
	}
	for path, want := range map[string]string{
		"/v1/monitor?bus=roof": `no bus "roof"`,
	} {
		if _, err := real.stream(t.Context(), path, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
	}
	for _, c := range []struct {
		path string
		body any
		want string
	}{
		{"/v1/read", map[string]any{"device": "none"}, "the running gateway has no device `none`; reload it: busgate reload"},
		{"/v1/read", map[string]any{"device": "cellar", "points": []int{7}}, "another device map"},
		{"/v1/exchange", map[string]any{"bus": "roof"}, "bus \"roof\" has no devices"},
		{"/v1/exchange", map[string]any{"bus": "meters", "adu": []byte{1, 6, 0, 0, 0, 1, 0, 0}}, "a guest may only read"},
		{"/v1/write", map[string]any{"device": "attic", "point": "switch", "value": "on"}, "device attic is switched off"},
	} {
		var answer json.RawMessage
		if err := real.call(t.Context(), c.path, c.body, &answer); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %v: %v %s", c.path, c.body, err, answer)
		}
	}
	d.stop()
	<-d.code
}

func TestDemoFaultsCanAllBeSwitchedOn(t *testing.T) {
	dir := t.TempDir()
	p, err := openPlant(dir)
	if err != nil || p.rs485 == nil || p.gps == nil {
		t.Skip("no pseudo terminals here")
	}
	t.Cleanup(p.close)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, len(p.parts))
	for _, part := range p.parts {
		go func() { ended <- part(ctx) }()
	}
	t.Cleanup(func() {
		cancel()
		for range p.parts {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	})
	for _, f := range demoFaults {
		for word := range strings.SplitSeq(f.example, ", ") {
			var list faultList
			if err := list.Set(word); err != nil {
				t.Errorf("%s: %v", word, err)
				continue
			}
			show, err := newFaultShow(p, list)
			if err != nil {
				t.Errorf("%s: %v", word, err)
				continue
			}
			lines, err := show.step(time.Hour)
			if err != nil || len(lines) == 0 || len(show.todo) != 0 {
				t.Errorf("%s: %v, %d left, %q", word, err, len(show.todo), lines)
			}
			if cfg, problems := config.Parse("demo.toml", p.config(dir, "127.0.0.1:1", "127.0.0.1:3", "127.0.0.1:2", list), nil); cfg == nil && f.name != "auth" {
				_ = problems // profiles are not given here: the syntax is what counts
			}
		}
	}
	var list faultList
	if err := list.Set("crv=5%"); err == nil || !strings.Contains(err.Error(), "did you mean `crc`?") {
		t.Errorf("a fault that is none: %v", err)
	}
	var b bytes.Buffer
	if err := printFaults(&b); err != nil || strings.Count(b.String(), "\n") != len(demoFaults) {
		t.Errorf("%v\n%s", err, &b)
	}
}

func TestMonitorTellsWhatItMeans(t *testing.T) {
	var out bytes.Buffer
	m := newMonitor(&env{stdout: &out}, monitorFlags{}, nil, &config.Bus{Name: "meters", Serial: "/dev/ttyUSB0", Baud: 9600, DataBits: 8, Parity: 'N', StopBits: 1}, true)
	m.begin = time.Time{}
	at := time.Date(2026, 11, 21, 10, 0, 5, 123e6, time.Local)
	req := []byte{4, 3, 0, 0x10, 0, 2, 0xC5, 0x9B}
	for _, f := range []devices.Frame{
		{At: at, Out: true, Data: []byte{1, 4, 0, 0, 0, 2, 0x71, 0xCB}, Gap: 1500 * time.Millisecond, Mark: devices.MarkOK},
		{At: at, Gap: 500 * time.Millisecond, RTT: 500 * time.Millisecond, Mark: devices.MarkSilence},
		{At: at, Data: req, Gap: 20 * time.Millisecond, Mark: devices.MarkForeign},
		{At: at, Data: []byte{1, 2, 3}, Gap: time.Minute, RTT: time.Millisecond, Mark: devices.MarkCRC},
		{At: at, Data: []byte{0}, Mark: devices.MarkStray},
	} {
		m.show(f)
	}
	m.summary(65 * time.Second)
	want := `10:00:05.123  +1500 ms  ->  unit   1  04  reads input 0..1
10:00:05.123   +500 ms  <-  unit   1  04  no answer   SILENCE for 500 ms
10:00:05.123    +20 ms  ->  unit   4  03  reads holding 16..17   NOT OURS
10:00:05.123       +1m  ??  01 02 03   DAMAGED
10:00:05.123            ??  00   STRAY

1m05s: 4 frames, 1 damaged, 1 not ours, 1 stray, 1 without answer
unit   1  asked 1 time, answered 0
unit   4  asked 1 time, answered 0   1 time by another master
somebody else talks on this bus: RS-485 allows one master
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", &out, want)
	}
}
