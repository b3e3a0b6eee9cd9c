package modbus

import (
	"bytes"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	gb "github.com/goburrow/modbus"

	"busgate/config"
	"busgate/devices"
)

// need skips a test that other programs are missing for.
func need(t *testing.T, programs ...string) {
	t.Helper()
	if os.Getenv("BUSGATE_PEERS") == "" {
		t.Skip("runs other programs in real time: BUSGATE_PEERS=1 go test -run Peer ./devices/modbus")
	}
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("needs %s: apt-get install socat mbpoll python3-pymodbus python3-serial-asyncio libmodbus-dev gcc pkg-config", p)
		}
	}
}

// run starts a program that is stopped at the end of the test.
func run(t *testing.T, name string, args ...string) {
	t.Helper()
	var out strings.Builder
	c := exec.Command(name, args...)
	c.Stdout, c.Stderr = &out, &out
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Process.Kill()
		c.Wait()
		if t.Failed() {
			t.Logf("%s: %s", name, out.String())
		}
	})
}

// ptys is a pair of pseudo terminals with socat between them.
func ptys(t *testing.T) (ours, theirs string) {
	t.Helper()
	dir := t.TempDir()
	ours, theirs = filepath.Join(dir, "a"), filepath.Join(dir, "b")
	run(t, "socat", "pty,raw,echo=0,link="+ours, "pty,raw,echo=0,link="+theirs)
	until(t, func() bool {
		_, a := os.Stat(ours)
		_, b := os.Stat(theirs)
		return a == nil && b == nil
	})
	return ours, theirs
}

// until asks again and again until it is so. Other programs start in their own
// time and tell nobody: this is the one place that sleeps.
func until(t *testing.T, so func() bool) {
	t.Helper()
	for range 3000 {
		if so() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("it never came")
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// libmodbusServer builds testdata/peer.c.
func libmodbusServer(t *testing.T) string {
	t.Helper()
	flags, err := exec.Command("pkg-config", "--cflags", "--libs", "libmodbus").Output()
	if err != nil {
		t.Skip("needs libmodbus-dev")
	}
	bin := filepath.Join(t.TempDir(), "peer")
	if out, err := exec.Command("gcc", append([]string{"-O2", "-o", bin, "testdata/peer.c"}, strings.Fields(string(flags))...)...).CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v %s", err, out)
	}
	return bin
}

// pymodbus starts testdata/peer.py.
func pymodbus(t *testing.T, args ...string) {
	t.Helper()
	need(t, "/usr/bin/python3")
	if exec.Command("/usr/bin/python3", "-c", "import pymodbus.server, serial_asyncio").Run() != nil {
		t.Skip("needs python3-pymodbus and python3-serial-asyncio")
	}
	run(t, "/usr/bin/python3", append([]string{"testdata/peer.py"}, args...)...)
}

// The wires that pymodbus speaks beside RTU and Modbus TCP.
func TestPeerOtherWires(t *testing.T) {
	over := func(t *testing.T, kind, protocol string, more ...string) *config.Bus {
		need(t)
		port := freePort(t)
		pymodbus(t, append([]string{kind, port}, more...)...)
		cfg := tcpBus("127.0.0.1:" + port)
		cfg.Protocol, cfg.Timeout, cfg.Retries = protocol, 5*time.Second, 3
		return cfg
	}
	t.Run("ASCII", func(t *testing.T) {
		need(t, "socat")
		ours, theirs := ptys(t)
		pymodbus(t, "ascii", theirs)
		talk(t, &config.Bus{Name: "meters", Serial: ours, Protocol: "modbus-ascii", Baud: 19200, DataBits: 8, Parity: 'N', StopBits: 1,
			Timeout: 5 * time.Second, Retries: 3, MaxRead: 125, MaxHole: 124, Exclusive: true, RS485: "off"})
	})
	t.Run("RTU over TCP", func(t *testing.T) { talk(t, over(t, "rtu-tcp", "modbus-rtu")) })
	t.Run("UDP", func(t *testing.T) { talk(t, over(t, "udp", "modbus-udp")) })
	t.Run("TLS", func(t *testing.T) {
		need(t)
		cert, key := selfSigned(t, "127.0.0.1")
		clientCert, clientKey := selfSigned(t, "busgate")
		cfg := over(t, "tls", "modbus-tcp", cert, key, clientCert)
		cfg.TLS, cfg.CA, cfg.Cert, cfg.Key = true, cert, clientCert, clientKey
		talk(t, cfg)
	})
}

func TestPeerServers(t *testing.T) {
	libmodbus := func(t *testing.T, args ...string) {
		need(t, "gcc", "pkg-config")
		run(t, libmodbusServer(t), args...)
	}
	for _, peer := range []struct {
		name  string
		start func(*testing.T, ...string)
	}{{"pymodbus", pymodbus}, {"libmodbus", libmodbus}} {
		t.Run(peer.name+" RTU", func(t *testing.T) {
			need(t, "socat")
			ours, theirs := ptys(t)
			peer.start(t, "rtu", theirs)
			talk(t, &config.Bus{Name: "meters", Serial: ours, Protocol: "modbus-rtu", Baud: 19200, DataBits: 8, Parity: 'N', StopBits: 1,
				Timeout: 5 * time.Second, Retries: 3, MaxRead: 125, MaxHole: 124, Exclusive: true, RS485: "off"})
		})
		t.Run(peer.name+" TCP", func(t *testing.T) {
			need(t)
			port := freePort(t)
			peer.start(t, "tcp", port)
			cfg := tcpBus("127.0.0.1:" + port)
			cfg.Timeout, cfg.Retries = 5*time.Second, 3
			talk(t, cfg)
		})
	}
}

// talk reads all tables of a peer and writes with every function.
func talk(t *testing.T, cfg *config.Bus) {
	dev := testDevice(1, 0, 1, 90, 300)
	dev.AnswerTime = time.Millisecond
	dev.Points = append(dev.Points, point("input", 7, "uint32"), point("coil", 3, "bool"), point("coil", 4, "bool"), point("discrete", 300, "bool"))
	var d Driver
	soon := *cfg // until it is there: what is sent before its start is lost
	soon.Timeout = 200 * time.Millisecond
	w := devices.Wire{Bus: &soon, Devices: []*config.Device{dev}, Log: slog.New(slog.DiscardHandler)}
	until(t, func() bool {
		f, err := d.Open(t.Context(), w)
		if err != nil {
			return false
		}
		defer f.Close()
		return f.Probe(t.Context(), dev) == nil
	})
	w.Bus = cfg
	f, err := d.Open(t.Context(), w)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const want = "holding-0=100\nholding-1=101\nholding-90=190\nholding-300=400\ninput-7=7012460\ncoil-3=true\ncoil-4=false\ndiscrete-300=true"
	for range 20 {
		if a, err := f.Poll(t.Context(), groupOf(dev), noPause); err != nil || texts(a) != want {
			t.Fatalf("%v\n%s\nwant\n%s", err, texts(a), want)
		}
	}
	largest(t, f.(*field), dev)
	check := func(p config.Point, text string, many bool) {
		t.Helper()
		raw, mask, err := devices.Encode(&p, text, 0)
		if err != nil {
			t.Fatal(err)
		}
		target := *dev
		if many {
			target.WriteFC = 16
		}
		err = f.Set(t.Context(), &target, []devices.Item{{Point: &p, Raw: raw, Mask: mask}})
		if cfg.Protocol == "modbus-udp" { // a datagram may come twice: there nothing is written
			if !errors.Is(err, errors.ErrUnsupported) {
				t.Errorf("%s = %s over UDP: %v", p.Name, text, err)
			}
			return
		}
		if err != nil {
			t.Errorf("%s = %s: %v", p.Name, text, err)
			return
		}
		back, err := f.Get(t.Context(), dev, &p)
		if err != nil {
			t.Error(err)
			return
		}
		if v, _, err := devices.Decode(&p, back); err != nil || v.String() != text {
			t.Errorf("%s: wrote %s, reads %v %v", p.Name, text, v, err)
		}
	}
	check(point("coil", 10, "bool"), "true", false)      // function 5
	check(point("holding", 20, "uint16"), "4711", false) // function 6
	check(point("coil", 11, "bool"), "true", true)       // function 15
	check(point("holding", 21, "uint16"), "815", true)   // function 16
	check(point("holding", 30, "float32"), "230.1", false)
	bit := point("holding", 40, "uint16")
	bit.Bit = 9
	check(bit, "true", false)
	beyond := point("holding", 600, "uint16")
	if _, err := f.Get(t.Context(), dev, &beyond); err == nil {
		t.Error("a register that is not there was read")
	} else if x, ok := errors.AsType[*devices.Exception](err); !ok || x.Code != 2 || x.Error() != "exception 2, illegal data address" {
		t.Errorf("a register that is not there: %v", err)
	}
	if c := f.Counts(); c.Bad+c.Foreign+c.Stray != 0 {
		t.Errorf("%+v", c)
	}
}

// largest makes the largest reads that there are, and function 23, which reads
// what it has just written (Modbus AP v1.1b3, 6.1 to 6.4, 6.17).
func largest(t *testing.T, f *field, dev *config.Device) {
	t.Helper()
	u := f.unitOf(dev)
	for _, c := range []struct {
		table string
		n     int
	}{{"coil", 2000}, {"discrete", 2000}, {"coil", 1993}, {"holding", 125}, {"input", 125}} {
		raw, _, err := f.again(t.Context(), u, span{c.table, 0, c.n})
		if err != nil {
			t.Errorf("%s %d: %v", c.table, c.n, err)
			continue
		}
		for i := range c.n {
			if isBits(c.table) {
				if got := raw[i/8]>>(i%8)&1 == 1; got != (i%3 == 0) {
					t.Fatalf("%s %d is %v", c.table, i, got)
				}
			} else if got := int(raw[2*i])<<8 | int(raw[2*i+1]); got != i+100 {
				t.Fatalf("%s %d is %d", c.table, i, got)
			}
		}
	}
	for _, n := range []uint16{1, 2, 121} { // 121: the most that it can write
		values := make([]byte, 2*n)
		for i := range values {
			values[i] = byte(int(n) + i)
		}
		raw, err := f.do(t.Context(), u, u.patience(f.bus, f.timing), func(c gb.Client) ([]byte, error) {
			return c.ReadWriteMultipleRegisters(349, n+2, 350, n, values)
		})
		if want := join([]byte{449 >> 8, 449 & 255}, values); err != nil || !bytes.Equal(raw[:len(want)], want) || len(raw) != len(want)+2 {
			t.Errorf("function 23, %d registers: % x, %v", n, raw, err)
		}
	}
}
