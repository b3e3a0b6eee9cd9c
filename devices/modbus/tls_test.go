package modbus

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"busgate/config"
	"busgate/devices"
	"busgate/devices/sim"
)

// selfSigned writes a certificate for host with its key.
func selfSigned(t *testing.T, host string) (cert, key string) {
	t.Helper()
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: host}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	if ip := net.ParseIP(host); ip != nil {
		tmpl.IPAddresses = []net.IP{ip}
	} else {
		tmpl.DNSNames = []string{host}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &priv.PublicKey, priv)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(t.TempDir(), "cert.pem"), filepath.Join(t.TempDir(), "key.pem")
	os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600)
	os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}), 0o600)
	return cert, key
}

func TestModbusOverTLS(t *testing.T) {
	serverCert, serverKey := selfSigned(t, "127.0.0.1")
	wrongCert, wrongKey := selfSigned(t, "meter.example")
	clientCert, clientKey := selfSigned(t, "busgate")
	pool := x509.NewCertPool()
	b, _ := os.ReadFile(clientCert)
	pool.AppendCertsFromPEM(b)
	serve := func(t *testing.T, cert, key string) string {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool})
		if err != nil {
			t.Fatal(err)
		}
		srv := sim.NewTCP(1, counting(1, 1000))
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				wg.Go(func() { srv.ServeConn(ctx, c) })
			}
		})
		t.Cleanup(func() { cancel(); l.Close(); wg.Wait() })
		return l.Addr().String()
	}
	good, wrong := serve(t, serverCert, serverKey), serve(t, wrongCert, wrongKey)
	tests := []struct {
		name string
		set  func(b *config.Bus)
		want string // of the trouble; "" = it works
	}{
		{"both sides show a certificate", func(b *config.Bus) {}, ""},
		{"a server of an unknown CA", func(b *config.Bus) { b.CA = clientCert }, "the certificate of " + good + " is signed by an unknown CA: set ca"},
		{"a server of another name", func(b *config.Bus) { b.TCP, b.CA = wrong, wrongCert }, "the certificate of " + wrong + " is for meter.example"},
		{"a CA that is not there", func(b *config.Bus) { b.CA = "/nowhere.pem" }, "read ca: open /nowhere.pem: no such file or directory"},
		{"a CA without a certificate", func(b *config.Bus) { b.CA = serverKey }, "read ca " + serverKey + ": no certificate in it"},
		{"a key of another certificate", func(b *config.Bus) { b.Key = serverKey }, "read cert " + clientCert + " and key " + serverKey},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := tcpBus(good)
			cfg.TLS, cfg.CA, cfg.Cert, cfg.Key, cfg.Timeout = true, serverCert, clientCert, clientKey, 5*time.Second
			tt.set(cfg)
			dev := testDevice(1, 3)
			var d Driver
			f, err := d.Open(t.Context(), devices.Wire{Bus: cfg, Devices: []*config.Device{dev}, Log: slog.New(slog.DiscardHandler)})
			if tt.want != "" {
				tr, ok := errors.AsType[devices.Trouble](err)
				if !ok || tr.Word() != "certificate" || !strings.Contains(tr.Text(), tt.want) {
					t.Errorf("got %v, want %s", err, tt.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if a, err := f.Poll(t.Context(), groupOf(dev), noPause); err != nil || texts(a) != "holding-3=1003" {
				t.Errorf("%v %s", err, texts(a))
			}
		})
	}
}
