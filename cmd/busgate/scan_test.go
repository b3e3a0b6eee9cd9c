package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"

	"busgate/config"
	"busgate/devices/modbus"
	"busgate/devices/port"
	"busgate/devices/profiles"
	"busgate/devices/sim"
)

// serve runs a part of a simulated plant until the test ends.
func serve(t *testing.T, run func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
}

// terminal puts units behind a pseudo terminal at the path ttyUSB1 of a folder.
func terminal(t *testing.T, units ...*sim.Unit) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ttyUSB1")
	p, err := sim.NewPty(sim.NewBus(sim.Line{Baud: 57600}, 1, units...), path)
	if err != nil {
		t.Skipf("no pseudo terminals here: %v", err)
	}
	serve(t, p.Run)
	return path
}

// mapWith writes a device map and gives its path.
func mapWith(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "busgate.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

var (
	voltage = regexp.MustCompile(`L1 2[23]\d(\.\d)? V`)
	degrees = regexp.MustCompile(`1[789](\.\d+)? °C`)
)

func TestScanPrintsWhatItFindsAndAReadyBlock(t *testing.T) {
	port := terminal(t, sim.NewSDM630(1, 1), sim.NewXYMD02(2, 1), sim.NewUnit(4))
	file := mapWith(t, "")
	code, out, errs := call(t, "scan", port, "--config", file, "--units", "1-4", "--timeout", "1s", "--baud", "9600", "--format", "8N1")
	if code != exitOK {
		t.Fatalf("exit %d\n%s%s", code, out, errs)
	}
	got := degrees.ReplaceAllString(voltage.ReplaceAllString(out, "L1 230.4 V"), "18.4 °C")
	want := `9600 8N1   unit   1   eastron-sdm630   L1 230.4 V
9600 8N1   unit   2   xy-md02          18.4 °C
9600 8N1   unit   4   answers, no profile known (exception 2 to input 0)

# add to FILE:
[bus.BUS]
serial = "PORT"
[device.sdm630-1]
bus     = "BUS"
unit_id = 1
profile = "eastron-sdm630"
[device.md02-2]
bus     = "BUS"
unit_id = 2
profile = "xy-md02"
# unit 4: no profile known; it needs points of its own
`
	real, err := filepath.EvalSymlinks(port)
	if err != nil {
		t.Fatal(err)
	}
	bus := strings.ReplaceAll(strings.TrimPrefix(real, "/dev/"), "/", "")
	want = strings.NewReplacer("FILE", file, "BUS", bus, "PORT", port).Replace(want)
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if !strings.Contains(errs, "trying 9600 8N1, units 1 to 4") {
		t.Errorf("stderr %q", errs)
	}

	_, block, _ := strings.Cut(out, "\n\n")
	cfg, problems := config.Load(mapWith(t, block), profiles.FS)
	if cfg == nil || len(cfg.Devices) != 2 || cfg.Buses[bus].Serial != port {
		t.Errorf("the block is not ready: %v\n%s", problems, block)
	}
}

func TestScanOfABusThatTheMapKnows(t *testing.T) {
	port := terminal(t, sim.NewSDM630(1, 1), sim.NewXYMD02(2, 1))
	file := mapWith(t, "[bus.meters]\nserial = \""+port+"\"\n[device.grid]\nbus = \"meters\"\nunit_id = 1\nprofile = \"eastron-sdm630\"\n"+
		"[device.md02-2]\nbus = \"meters\"\nunit_id = 9\nprofile = \"xy-md02\"\n")
	code, out, errs := call(t, "scan", "meters", "--config", file, "--units", "1,2", "--timeout", "1s", "--baud", "19200", "--format", "8E1")
	_, block, _ := strings.Cut(out, "\n\n")
	want := "# add to " + file + `:
# bus ` + "`meters`" + ` is set to 9600 8N1; what answers needs: baud = 19200, format = "8E1"
# unit 1 is there already: device ` + "`grid`" + `
[device.md02-2-meters]
bus     = "meters"
unit_id = 2
profile = "xy-md02"
`
	if code != exitOK || block != want {
		t.Errorf("exit %d\ngot\n%s\nwant\n%s\n%s", code, block, want, errs)
	}
}

func TestScanInJSON(t *testing.T) {
	srv, err := sim.ListenTCP("127.0.0.1:0", 1, sim.NewXYMD02(2, 1), sim.NewUnit(3))
	if err != nil {
		t.Fatal(err)
	}
	serve(t, srv.Run)
	code, out, errs := call(t, "scan", srv.Addr(), "--units", "1-3", "--timeout", "1s", "--json", "--config", "/none")
	var got struct {
		Wire     string
		Complete bool
		Units    []struct {
			Unit     int
			Answer   string
			Profiles []string
			Point    string
			Value    float64
		}
		Settings []struct{ Outcome string }
		TOML     string
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil || code != exitOK {
		t.Fatalf("exit %d, %v\n%s%s", code, err, out, errs)
	}
	if !got.Complete || got.Wire != srv.Addr() || len(got.Units) != 2 || len(got.Settings) != 1 || got.Settings[0].Outcome != "answers" {
		t.Fatalf("%+v", got)
	}
	if u := got.Units[0]; u.Unit != 2 || u.Answer != "exception 2 to input 0" || len(u.Profiles) != 1 || u.Profiles[0] != "xy-md02" || u.Point != "temperature" || u.Value < 17 || u.Value > 20 {
		t.Errorf("%+v", u)
	}
	if u := got.Units[1]; u.Unit != 3 || u.Profiles == nil || len(u.Profiles) != 0 || u.Point != "" {
		t.Errorf("%+v", u)
	}
	if cfg, problems := config.Load(mapWith(t, got.TOML), profiles.FS); cfg == nil || cfg.Buses["127-0-0-1"].TCP != srv.Addr() {
		t.Errorf("%v\n%s", problems, got.TOML)
	}
}

func TestScanThatIsStoppedKeepsWhatItFound(t *testing.T) {
	port := terminal(t, sim.NewXYMD02(1, 1))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var out, errs bytes.Buffer
	// Ctrl-C comes when the second setting begins.
	e := &env{stdout: &out, stderr: writerFunc(func(p []byte) (int, error) {
		if bytes.Contains(p, []byte("trying 9600 8E1")) {
			cancel()
		}
		return errs.Write(p)
	})}
	code := dispatch(ctx, e, commands(), []string{"scan", port, "--baud", "9600", "--units", "1", "--timeout", "5s", "--config", "/none"})
	if code != exitStopped || !strings.Contains(out.String(), "xy-md02") || !strings.Contains(out.String(), "profile = \"xy-md02\"") {
		t.Errorf("exit %d\n%s%s", code, &out, &errs)
	}
}

// writerFunc is an io.Writer of a function.
type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestScanOfAPortThatIsUnplugged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ttyUSB1")
	p, err := sim.NewPty(sim.NewBus(sim.Line{Baud: 57600}, 1, sim.NewXYMD02(1, 1)), path)
	if err != nil {
		t.Skipf("no pseudo terminals here: %v", err)
	}
	serve(t, p.Run)
	var out, errs bytes.Buffer
	e := &env{stderr: &errs, stdout: writerFunc(func(b []byte) (int, error) {
		if bytes.Contains(b, []byte("unit   1")) {
			p.Unplug()
		}
		return out.Write(b)
	})}
	code := dispatch(t.Context(), e, commands(), []string{"scan", path, "--units", "1-9", "--timeout", "5s", "--config", "/none"})
	if code != exitFailed || !strings.HasSuffix(errs.String(), path+" is gone (unplugged, or the USB hub lost power)\n") || !strings.Contains(out.String(), `profile = "xy-md02"`) {
		t.Errorf("exit %d\n%s%s", code, &out, &errs)
	}
}

func TestScanWithoutSuccess(t *testing.T) {
	port := terminal(t)
	garden := mapWith(t, "[bus.garden]\nserial = \"/dev/ttyUSB9\"\n[bus.truck]\nserial = \"/dev/ttyUSB8\"\nprotocol = \"uart\"\n")
	broken := mapWith(t, "[bus.garden]\nserial = 7\n")
	holder := terminal(t)
	opened, err := os.OpenFile(holder, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	if err := syscall.Flock(int(opened.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		args []string
		code int
		want string
	}{
		{"nobody answers", []string{port, "--units", "7", "--baud", "9600", "--format", "8N1", "--timeout", "20ms"}, exitNoReply, "9600 8N1   silence\n"},
		{"no such port", []string{"/dev/ttyUSB77"}, exitFailed, "there is no /dev/ttyUSB77. Ports of this computer: busgate scan"},
		{"no such port, short", []string{"ttyUSB77"}, exitFailed, "there is no /dev/ttyUSB77"},
		{"another program has the port", []string{holder}, exitFailed, " is in use by another program; see which: sudo fuser -v "},
		{"nobody listens", []string{"127.0.0.1:1"}, exitNoReply, "127.0.0.1:1 does not answer (connection refused): is Modbus TCP switched on there?"},
		{"a bus, mistyped", []string{"gardne", "--config", garden}, exitFailed, "there is no bus `gardne` in " + garden + " (did you mean `garden`?)"},
		{"a bus of a sensor", []string{"truck", "--config", garden}, exitFailed, "bus `truck` speaks uart"},
		{"a map with mistakes", []string{"garden", "--config", broken}, exitConfig, "busgate check " + broken},
		{"two wires", []string{"a", "b"}, exitUsage, "takes one port, bus or host, and there are 2"},
		{"unit 0 on a serial line", []string{port, "--units", "0-3"}, exitUsage, "write numbers from 1 to 247"},
		{"units that are none", []string{port, "--units", "1..3"}, exitUsage, "cannot use --units 1..3"},
		{"no speed", []string{port, "--baud", "fast"}, exitUsage, "cannot use --baud fast"},
		{"seven bits", []string{port, "--format", "7E1"}, exitUsage, "cannot use --format 7E1"},
		{"speed of a network", []string{"127.0.0.1", "--baud", "9600"}, exitUsage, "--baud and --format"},
		{"no host", []string{"1.2.3.4:http"}, exitUsage, "cannot use \"1.2.3.4:http\""},
		{"a timeout below zero", []string{port, "--timeout", "-1s"}, exitUsage, "must be more than 0"},
		{"flags without a wire", []string{"--fast"}, exitUsage, "needs a port"},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, out, errs := call(t, append([]string{"scan", "--config", "/none"}, c.args...)...)
			if code != c.code || !strings.Contains(out+errs, c.want) {
				t.Errorf("exit %d, want %d with %q\n%s%s", code, c.code, c.want, out, errs)
			}
		})
	}
}

func TestSettingsOfTheFlags(t *testing.T) {
	odd := &config.Bus{Serial: "/dev/ttyUSB0", Baud: 1200, DataBits: 8, Parity: 'O', StopBits: 1}
	usual := &config.Bus{Serial: "/dev/ttyUSB0", Baud: 9600, DataBits: 8, Parity: 'N', StopBits: 1}
	set := func(list ...any) (out []modbus.Setting) {
		for i := 0; i < len(list); i += 2 {
			out = append(out, modbus.Setting{Baud: list[i].(int), Format: list[i+1].(string)})
		}
		return out
	}
	for _, c := range []struct {
		name  string
		flags scanFlags
		bus   *config.Bus
		want  []modbus.Setting
	}{
		{"none", scanFlags{}, usual, modbus.DefaultSettings()},
		{"that of the bus comes first", scanFlags{}, odd, append(set(1200, "8O1"), modbus.DefaultSettings()...)},
		{"a speed in the usual formats", scanFlags{baud: "19200"}, usual, set(19200, "8E1", 19200, "8N1")},
		{"an unusual speed", scanFlags{baud: "1200"}, usual, set(1200, "8N1", 1200, "8E1")},
		{"both", scanFlags{baud: "9600,19200", format: "8n2, 8N1"}, usual, set(9600, "8N1", 19200, "8N1", 9600, "8N2", 19200, "8N2")},
	} {
		got, err := settingsOf(c.flags, c.bus)
		if err != nil || len(got) != len(c.want) {
			t.Errorf("%s: %v, want %v, %v", c.name, got, c.want, err)
			continue
		}
		for i := range got {
			if got[i] != c.want[i] {
				t.Errorf("%s: %v, want %v", c.name, got, c.want)
				break
			}
		}
	}
}

func TestBlockSaysWhatIsNotCertain(t *testing.T) {
	at, other := modbus.Setting{Baud: 19200, Format: "8E1"}, modbus.Setting{Baud: 9600, Format: "8N1"}
	a, b := &config.Profile{Name: "eastron-sdm120"}, &config.Profile{Name: "pzem-016"}
	r := &scanReport{flags: scanFlags{config: "F"}, bus: &config.Bus{Serial: "/dev/nowhere/ttyUSB3"}, units: []modbus.Sighting{
		{Setting: other, Unit: 9}, {Setting: other, Unit: 2},
		{Setting: at, Unit: 1, Fits: []modbus.Fit{{Profile: a}, {Profile: b}}},
		{Setting: at, Unit: 2, Fits: []modbus.Fit{{Profile: b}}},
		{Setting: at, Unit: 3, Damaged: true},
	}}
	want := `# add to F:
[bus.bus]
serial = "/dev/nowhere/ttyUSB3"
baud   = 19200
format = "8E1"
# unit 9 answers at 9600 8N1: a bus has one setting, give it 19200 8E1 first
# unit 1: eastron-sdm120 or pzem-016; which, its type plate says
[device.pzem-016-2]
bus     = "bus"
unit_id = 2
profile = "pzem-016"
# unit 3: give each of the two a number of its own
`
	if got := r.block(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	r.cfg = &config.Config{Buses: map[string]*config.Bus{"scale": {Name: "scale", Own: true, Serial: r.bus.Serial, Baud: 19200, DataBits: 8, Parity: 'E', StopBits: 1}}}
	if got := r.block(); strings.Contains(got, "\n[") || !strings.Contains(got, "# unit 2: this wire is that of device `scale` alone") {
		t.Errorf("a wire of one device:\n%s", got)
	}
}

func TestPortsAndWhoUsesThem(t *testing.T) {
	cfg := &config.Config{Buses: map[string]*config.Bus{"meters": {Serial: "/dev/serial/by-id/usb-FTDI-if00-port0"}, "roof": {TCP: "10.0.0.1:502"}}}
	ports := []port.Found{
		{Path: "/dev/serial/by-id/usb-FTDI-if00-port0", TTY: "ttyUSB0", Driver: "ftdi_sio", Holder: "busgate", PID: 7},
		{Path: "/dev/serial/by-id/usb-1a86-if00-port0", TTY: "ttyUSB1", Driver: "ch341"},
		{Path: "/dev/ttyAMA0", TTY: "ttyAMA0", Driver: "pl011", Console: "remove console=serial0 from cmdline.txt"},
		{Path: "/dev/ttyS1", TTY: "ttyS1", Holder: "mbmd", PID: 812},
	}
	var out bytes.Buffer
	if err := printPorts(&out, portRows(ports, cfg, "busgate.toml")); err != nil {
		t.Fatal(err)
	}
	want := "/dev/serial/by-id/usb-FTDI-if00-port0  ttyUSB0  ftdi_sio  bus `meters` of busgate.toml\n" +
		"/dev/serial/by-id/usb-1a86-if00-port0  ttyUSB1  ch341     free\n" +
		"/dev/ttyAMA0                                    pl011     in use by the Linux console (remove console=serial0 from cmdline.txt)\n" +
		"/dev/ttyS1                                                in use by mbmd (pid 812)\n"
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", &out, want)
	}
	for i, state := range []string{"bus", "free", "console", "in-use"} {
		if got := portRows(ports, cfg, "f")[i].State; got != state {
			t.Errorf("%s: %s, want %s", ports[i].TTY, got, state)
		}
	}
	out.Reset()
	if printPorts(&out, nil); !strings.Contains(out.String(), "no serial port on this computer") {
		t.Errorf("%q", &out)
	}
}

func TestScanListsThePortsOfThisComputer(t *testing.T) {
	code, out, errs := call(t, "scan", "--json", "--config", "/none")
	var got struct{ Ports []portRow }
	if err := json.Unmarshal([]byte(out), &got); err != nil || code != exitOK || got.Ports == nil {
		t.Errorf("exit %d, %v\n%s%s", code, err, out, errs)
	}
}
