package embeddedbroker

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"busgate/config"
	"busgate/embeddedbroker/packet"
)

// keyPair writes a certificate of a name and its key; parent nil: self-signed CA.
type keyPair struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pair tls.Certificate
	dir  string
}

func newKeyPair(t *testing.T, name string, parent *keyPair) *keyPair {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true, IsCA: parent == nil}
	signer, by := key, tmpl
	if parent != nil {
		signer, by = parent.key, parent.cert
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, by, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	k := &keyPair{key: key, dir: t.TempDir()}
	k.cert, _ = x509.ParseCertificate(der)
	raw, _ := x509.MarshalECPrivateKey(key)
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	secret := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: raw})
	os.WriteFile(filepath.Join(k.dir, "cert.pem"), cert, 0o600)
	os.WriteFile(filepath.Join(k.dir, "key.pem"), secret, 0o600)
	if k.pair, err = tls.X509KeyPair(cert, secret); err != nil {
		t.Fatal(err)
	}
	return k
}

func (k *keyPair) file(name string) string { return filepath.Join(k.dir, name) }

// listenAll serves every listener of a configuration.
func listenAll(t *testing.T, change func(*config.Broker)) (b *Broker, ls []net.Listener) {
	t.Helper()
	cfg := testConfig()
	change(&cfg)
	b, err := New(cfg, NewMemory(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if ls, err = Listen(cfg, nil); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { b.Run(ctx) })
	for _, l := range ls {
		wg.Go(func() { b.Serve(ctx, l) })
	}
	t.Cleanup(func() { cancel(); wg.Wait() })
	return b, ls
}

// talk connects over any stream and sends a message through the broker.
func talk(t *testing.T, nc net.Conn, id string) {
	t.Helper()
	c := newClient(t, nc, packet.V311)
	c.send(&packet.Connect{Version: packet.V311, ClientID: id, CleanStart: true})
	if a := expect[*packet.Connack](c); a.Code != 0 {
		t.Fatalf("code %d", a.Code)
	}
	c.subscribe("t", 1)
	payload := strings.Repeat("x", 100_000)
	c.publish2("t", payload)
	c.ping()
	c.send(&packet.Disconnect{})
	c.ended()
}

// publish2 sends at QoS 1 and takes acknowledgement and message in any order.
func (c *client) publish2(topic, payload string) {
	c.t.Helper()
	c.send(&packet.Publish{Topic: []byte(topic), Payload: []byte(payload), QoS: 1, PID: 1})
	c.find(packet.PUBACK, 1)
	c.take(topic, payload)
}

func TestTLS(t *testing.T) {
	ca := newKeyPair(t, "ca", nil)
	server, client := newKeyPair(t, "server", ca), newKeyPair(t, "joe", ca)
	b, ls := listenAll(t, func(c *config.Broker) {
		c.TLS.Listen, c.TLS.Cert, c.TLS.Key, c.TLS.ClientCA = "127.0.0.1:0", server.file("cert.pem"), server.file("key.pem"), ca.file("cert.pem")
	})
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	conf := &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{client.pair}}
	nc, err := tls.Dial("tcp", ls[0].Addr().String(), conf)
	if err != nil {
		t.Fatal(err)
	}
	talk(t, nc, "tls")
	nc, err = tls.Dial("tcp", ls[0].Addr().String(), conf)
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(t, nc, packet.V311)
	c.send(&packet.Connect{Version: packet.V311, ClientID: "named", CleanStart: true})
	expect[*packet.Connack](c)
	if i := b.Clients(); len(i) != 1 || i[0].User != "joe" {
		t.Errorf("the name in the certificate is not the user: %+v", i)
	}
	if nc, err := tls.Dial("tcp", ls[0].Addr().String(), &tls.Config{RootCAs: pool}); err == nil {
		if _, err := nc.Read(make([]byte, 1)); err == nil {
			t.Error("no certificate was asked for")
		}
		nc.Close()
	}
	if _, err := tls.Dial("tcp", ls[0].Addr().String(), &tls.Config{RootCAs: pool, MaxVersion: tls.VersionTLS11}); err == nil {
		t.Error("TLS 1.1 is accepted")
	}
}

func TestCertificateIsReadAgain(t *testing.T) {
	first, second := newKeyPair(t, "first", nil), newKeyPair(t, "second", nil)
	cfg := config.BrokerTLS{Cert: first.file("cert.pem"), Key: first.file("key.pem")}
	s, err := newSecrets(cfg, discard)
	if err != nil {
		t.Fatal(err)
	}
	name := func() string {
		s.looked = time.Time{}
		c, _ := x509.ParseCertificate(s.current().Certificates[0].Certificate[0])
		return c.Subject.CommonName
	}
	if name() != "first" {
		t.Fatal(name())
	}
	if err := os.WriteFile(first.file("cert.pem"), []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	if name() != "first" {
		t.Error("a broken file replaced a good one")
	}
	for _, f := range []string{"cert.pem", "key.pem"} {
		b, _ := os.ReadFile(second.file(f))
		if err := os.WriteFile(first.file(f), b, 0o600); err != nil {
			t.Fatal(err)
		}
		os.Chtimes(first.file(f), time.Now(), time.Now().Add(time.Minute))
	}
	if name() != "second" {
		t.Error("the new certificate is not used")
	}
	if _, err := newSecrets(config.BrokerTLS{Cert: "/nowhere", Key: "/nowhere"}, discard); err == nil {
		t.Error("a missing file at start is no error")
	}
}

func TestUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mqtt.sock")
	_, ls := listenAll(t, func(c *config.Broker) { c.Socket = path })
	if i, err := os.Stat(path); err != nil || i.Mode().Perm() != socketMode {
		t.Errorf("%v %v", i.Mode(), err)
	}
	if _, err := bindUnix(path); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a second listener: %v", err)
	}
	nc, err := net.Dial("unix", ls[0].Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	talk(t, nc, "unix")
	stale := filepath.Join(t.TempDir(), "stale.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	again, err := bindUnix(stale)
	if err != nil {
		t.Fatalf("a stale socket: %v", err)
	}
	again.Close()
	file := filepath.Join(t.TempDir(), "file")
	os.WriteFile(file, []byte("mine"), 0o600)
	if _, err := bindUnix(file); err == nil {
		t.Error("a file was replaced")
	}
}

func TestAddressInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cfg := testConfig()
	cfg.Listen = l.Addr().String()
	_, err = Listen(cfg, nil)
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("broker: %s is in use by", cfg.Listen)) {
		t.Fatal(err)
	}
	if name, pid := ownerOf(cfg.Listen); pid != 0 && pid != os.Getpid() {
		t.Errorf("owner %s %d", name, pid)
	}
}
