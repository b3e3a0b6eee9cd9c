package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"busgate/devices/sim"
)

// TestMeasure prints what the README says of size and rest. It asserts nothing:
// machines are shared. The load comes from this process, so that the figures
// are those of busgate alone.
func TestMeasure(t *testing.T) {
	if os.Getenv("BUSGATE_MEASURE") == "" {
		t.Skip("takes five minutes and asserts nothing: BUSGATE_MEASURE=1 go test -v -run Measure ./cmd/busgate")
	}
	st, err := os.Stat(shipped(t, "arm64"))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("arm64, stripped: %.1f MB", float64(st.Size())/1e6)
	bin := shipped(t, runtime.GOARCH)
	for _, load := range []struct {
		name string
		text string
	}{
		{"the realistic example as it stands, about 29 points/s in 14 requests a round", realistic(t, "9600", "2s")},
		{"100 registers of one device each second over Modbus TCP", registers(t)},
		{"the realistic example with grid each 500 ms at 115200 baud, about 107 points/s in 8 serial requests/s", realistic(t, "115200", "500ms")},
	} {
		rss, cpu, took := measure(t, bin, load.text)
		t.Logf("%s: VmRSS %.1f MB, %.2f %% of one core over %.0f s", load.name, rss, 100*cpu.Seconds()/took.Seconds(), took.Seconds())
	}
}

// shipped builds busgate as it is released.
func shipped(t *testing.T, arch string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "busgate-"+arch)
	build := exec.Command("go", "build", "-trimpath", "-tags", "nethttpomithttp2", "-ldflags", "-s -w", "-o", file, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH="+arch)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return file
}

// measure runs a device map for a minute and a half and gives resident memory
// in MB and the processor time of the last minute.
func measure(t *testing.T, bin, text string) (rss float64, cpu, took time.Duration) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "busgate.toml")
	write(t, file, text)
	p := start(t, nil, bin, "run", "--config", file, "--socket", filepath.Join(filepath.Dir(file), "s"))
	p.until(t, "that it runs", has("INFO running"))
	wait := func(d time.Duration) {
		select {
		case <-time.After(d):
		case <-p.done:
			t.Fatalf("the gateway ended:\n%s", strings.Join(p.lines(), "\n"))
		}
	}
	wait(30 * time.Second)
	before, began := cpuTime(t, p), time.Now()
	wait(time.Minute)
	cpu, took = cpuTime(t, p)-before, time.Since(began)
	rss = residentMB(t, p)
	p.end(syscall.SIGTERM)
	return rss, cpu, took
}

// registers is a device map of one device with 100 points.
func registers(t *testing.T) string {
	t.Helper()
	unit := sim.NewUnit(1)
	var b strings.Builder
	for i := range uint16(100) {
		unit.Set(sim.Input, i, i)
		fmt.Fprintf(&b, "p%d = { input = %d }\n", i, i)
	}
	server, err := sim.ListenTCP("127.0.0.1:0", 1, unit)
	if err != nil {
		t.Fatal(err)
	}
	go server.Run(t.Context())
	return fmt.Sprintf("[gateway]\nname = \"t\"\ninterval = \"1s\"\ndata_dir = %q\n[web]\nlisten = \"\"\n[broker]\nlisten = \"127.0.0.1:%d\"\n"+
		"[uplink.cloud]\naddresses = [\"mqtt://127.0.0.1:1\"]\n[device.meter]\ntcp = %q\n[device.meter.points]\n%s", t.TempDir(), freePort(t), server.Addr(), b.String())
}

// realistic is the example of that name on simulated wires. Its cloud is not
// there: the readings wait.
func realistic(t *testing.T, baud, interval string) string {
	t.Helper()
	dir := t.TempDir()
	rate, err := strconv.Atoi(baud)
	if err != nil {
		t.Fatal(err)
	}
	pty := func(name string, b *sim.Bus) string {
		p, err := sim.NewPty(b, filepath.Join(dir, name))
		if err != nil {
			t.Skip(err)
		}
		go p.Run(t.Context())
		return p.Path()
	}
	inverter, err := sim.ListenTCP("127.0.0.1:0", 1, sim.NewInverter(3, 1))
	if err != nil {
		t.Fatal(err)
	}
	go inverter.Run(t.Context())
	example, err := os.ReadFile("../../config/testdata/examples/realistic.toml")
	if err != nil {
		t.Fatal(err)
	}
	cert, key := certificate(t, dir)
	users := filepath.Join(dir, "passwd")
	secret := "$7$101$AAAAAAAAAAAAAAAA$" + strings.Repeat("A", 86) + "=="
	write(t, users, "homeassistant:"+secret+"\ngrafana:"+secret+"\nnodered:"+secret+"\n")
	return strings.NewReplacer(
		"/dev/serial/by-id/usb-FTDI_FT232R_USB_UART_A10K7XYZ-if00-port0", pty("meters", sim.NewBus(sim.Line{Baud: rate}, 1, sim.NewSDM630(1, 1), sim.NewXYMD02(2, 1))),
		"/dev/serial/by-id/usb-1a86_USB2.0-Ser_-if00-port0", pty("relays", sim.NewBus(sim.Line{Baud: 19200, Format: "8E1"}, 1, sim.NewRelays(1, 4))),
		"/dev/ttyAMA0", pty("truck", sim.NewTalker(sim.Line{Baud: 9600}, 1, time.Second, sim.NMEA(1))),
		"/dev/ttyAMA2", pty("air", sim.NewTalker(sim.Line{Baud: 9600}, 1, time.Second, sim.PMS5003(1))),
		"192.168.10.40:502", inverter.Addr(),
		"/etc/busgate/passwd", users,
		"127.0.0.1:1883", fmt.Sprintf("127.0.0.1:%d", freePort(t)),
		`":8883"`, fmt.Sprintf("\"127.0.0.1:%d\"", freePort(t)),
		"/etc/busgate/tls/plant-a.crt", cert, "/etc/busgate/tls/plant-a.key", key,
		"/etc/busgate/tls/cloud-ca.crt", cert, "/etc/busgate/tls/plant-a-client.crt", cert, "/etc/busgate/tls/plant-a-client.key", key,
		"iot.example.com:8883", "127.0.0.1:1",
		"baud   = 9600", "baud   = "+baud, `interval = "2s"`, fmt.Sprintf("interval = %q", interval),
		"interval = \"10s\" ", fmt.Sprintf("interval = \"10s\"\ndata_dir = %q ", dir),
	).Replace(string(example))
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// cpuTime is user and system time of a process: proc(5), stat fields 14 and 15.
func cpuTime(t *testing.T, p *process) time.Duration {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		t.Fatalf("%s is gone: %v; it said:\n%s", p.name, err, strings.Join(p.lines(), "\n"))
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	ticks := 0
	for _, s := range f[11:13] {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

func residentMB(t *testing.T, p *process) float64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	kb, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return float64(kb) * 1024 / 1e6
}

// certificate writes a self-signed pair for 127.0.0.1.
func certificate(t *testing.T, dir string) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "plant-a"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(365 * 24 * time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	kder, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	write(t, cert, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	write(t, key, string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: kder})))
	return cert, key
}
