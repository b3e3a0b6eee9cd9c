package embeddedbroker

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"busgate/config"
)

// lookInterval is how often files are looked at for a change.
const lookInterval = 10 * time.Second

// secrets are certificate, key and CA of the TLS listeners. They are read again
// when a file has changed; a bad pair keeps the old one.
type secrets struct {
	cfg config.BrokerTLS
	log *slog.Logger

	mu     sync.Mutex
	conf   *tls.Config
	looked time.Time
	stamps [3]stamp
}

// stamp tells versions of a file apart.
type stamp struct {
	time time.Time
	size int64
}

func stampOf(path string) stamp {
	i, err := os.Stat(path)
	if err != nil {
		return stamp{}
	}
	return stamp{i.ModTime(), i.Size()}
}

func newSecrets(cfg config.BrokerTLS, log *slog.Logger) (*secrets, error) {
	s := &secrets{cfg: cfg, log: log}
	s.stamps = s.stampsNow()
	conf, err := s.load()
	if err != nil {
		return nil, fmt.Errorf("broker.tls: %w", err)
	}
	s.conf, s.looked = conf, time.Now()
	return s, nil
}

func (s *secrets) stampsNow() [3]stamp {
	return [3]stamp{stampOf(s.cfg.Cert), stampOf(s.cfg.Key), stampOf(s.cfg.ClientCA)}
}

func (s *secrets) load() (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(s.cfg.Cert, s.cfg.Key)
	if err != nil {
		return nil, err
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}, NextProtos: []string{"mqtt", "http/1.1"}}
	if s.cfg.ClientCA != "" {
		pem, err := os.ReadFile(s.cfg.ClientCA)
		if err != nil {
			return nil, err
		}
		conf.ClientCAs = x509.NewCertPool()
		if !conf.ClientCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s: no certificate in it", s.cfg.ClientCA)
		}
		conf.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return conf, nil
}

// current is the configuration for the next handshake.
func (s *secrets) current() *tls.Config {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if now.Sub(s.looked) < lookInterval {
		return s.conf
	}
	s.looked = now
	stamps := s.stampsNow()
	if stamps == s.stamps {
		return s.conf
	}
	s.stamps = stamps
	conf, err := s.load()
	if err != nil {
		s.log.Error("broker.tls: the changed files are not usable, the old certificate stays", "err", err)
		return s.conf
	}
	s.log.Info("broker.tls: new certificate", "cert", s.cfg.Cert)
	s.conf = conf
	return s.conf
}

// listen wraps a listener; the handshake is made by the first read.
func (s *secrets) listen(l net.Listener) net.Listener {
	return tls.NewListener(l, &tls.Config{MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return s.current(), nil }})
}

// commonName is the user name that a client's certificate gives it; "" = none.
// The handshake is over when CONNECT has been read.
func commonName(nc net.Conn) string {
	if w, ok := nc.(*wsConn); ok {
		nc = w.Conn
	}
	t, ok := nc.(*tls.Conn)
	if !ok {
		return ""
	}
	chains := t.ConnectionState().VerifiedChains
	if len(chains) == 0 {
		return ""
	}
	return chains[0][0].Subject.CommonName
}
