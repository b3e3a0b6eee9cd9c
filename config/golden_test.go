package config

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"flag"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/fstest"
	"time"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// today is the time of all golden tests.
var today = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

var testProfiles = fstest.MapFS{
	"xy-md02.toml": {Data: []byte(`[profile]
name = "xy-md02"
maker = "XY"
model = "MD02"
defaults = { baud = 9600, format = "8N1", unit_id = 1, interval = "10s" }
answer_time = "20ms"
[points]
temperature = { input = 1, type = "int16", scale = 0.1, unit = "°C" }
humidity = { input = 2, type = "uint16", scale = 0.1, unit = "%" }
[probe]
point = "temperature"
min = -40
max = 85
`)},
}

func testEnv(host string) env {
	return env{hostname: func() (string, error) { return host, nil }, now: today, built: today.AddDate(0, -1, 0)}
}

// TestGolden compares the whole output for each file of testdata. The first
// line of a file names the row of the documents that it is about; further files
// follow after lines of the form "-- name --".
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.toml")
	if err != nil || len(files) < 60 {
		t.Fatalf("%d files: %v", len(files), err)
	}
	certs := makeCerts(t)
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".toml")
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		golden, err := filepath.Abs(strings.TrimSuffix(file, ".toml") + ".golden")
		if err != nil {
			t.Fatal(err)
		}
		t.Run(name, func(t *testing.T) {
			got := goldenOutput(t, string(text), certs)
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("got\n%swant\n%s", got, want)
			}
		})
	}
}

var fileMark = regexp.MustCompile(`(?m)^-- (\S+) --\n`)

func goldenOutput(t *testing.T, text string, certs map[string][]byte) string {
	dir := t.TempDir()
	t.Chdir(dir)
	marks := fileMark.FindAllStringSubmatchIndex(text, -1)
	name, begin := "busgate.toml", 0
	for i := 0; ; i++ {
		end := len(text)
		if i < len(marks) {
			end = marks[i][0]
		}
		write(t, name, []byte(text[begin:end]), 0o600)
		if i == len(marks) {
			break
		}
		name, begin = text[marks[i][2]:marks[i][3]], marks[i][1]
	}
	for name, data := range certs {
		mode := fs.FileMode(0o600)
		if name == "open.key" {
			mode = 0o644
		}
		write(t, filepath.Join("tls", name), data, mode)
	}
	write(t, "by-id/other", nil, 0o600)
	if err := os.Symlink("../../ttyUSB7", "by-id/usb-FTDI-port0"); err != nil {
		t.Fatal(err)
	}
	host := "plant-a"
	if _, rest, ok := strings.Cut(text, "(HOST="); ok {
		host, _, _ = strings.Cut(rest, ")")
	}
	e := testEnv(host)
	e.byID = filepath.Join(dir, "by-id")
	c, problems := newLoader(e, testProfiles).load("busgate.toml")
	if (c == nil) != HasErrors(problems) {
		t.Errorf("config is nil: %v, errors: %v", c == nil, HasErrors(problems))
	}
	var b bytes.Buffer
	if err := Print(&b, problems); err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(b.String(), dir, "DIR")
}

func write(t *testing.T, name string, data []byte, mode fs.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, data, mode); err != nil {
		t.Fatal(err)
	}
}

// makeCerts makes the files of the folder tls.
func makeCerts(t *testing.T) map[string][]byte {
	t.Helper()
	good, goodKey := newKey(t)
	other, otherKey := newKey(t)
	out := map[string][]byte{"good.key": goodKey, "open.key": goodKey, "other.key": otherKey}
	out["good.crt"] = newCert(t, good, today.AddDate(-1, 0, 0), today.AddDate(1, 0, 0))
	out["expired.crt"] = newCert(t, good, today.AddDate(-1, 0, 0), today.AddDate(0, 0, -12))
	out["soon.crt"] = newCert(t, good, today.AddDate(-1, 0, 0), today.AddDate(0, 0, 29))
	out["future.crt"] = newCert(t, good, today.AddDate(0, 0, 2), today.AddDate(1, 0, 0))
	ca := newCert(t, other, today.AddDate(-1, 0, 0), today.AddDate(1, 0, 0))
	out["wrong-order.crt"] = append(ca, out["good.crt"]...)
	return out
}

func newKey(t *testing.T) (*ecdsa.PrivateKey, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func newCert(t *testing.T, key *ecdsa.PrivateKey, from, to time.Time) []byte {
	t.Helper()
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "x"}, NotBefore: from, NotAfter: to}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
