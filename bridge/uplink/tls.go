package uplink

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"time"
)

// tlsConfig is made anew for each connect, because the files may have changed.
// A new pair of certificate and key that does not load leaves the old in use.
func (l *Link) tlsConfig(ad address) (*tls.Config, error) {
	cfg := &l.set.cfg
	c := &tls.Config{
		MinVersion:         tls.VersionTLS12,
		ServerName:         cmp.Or(cfg.SNI, ad.host),
		NextProtos:         cfg.ALPN,
		InsecureSkipVerify: cfg.InsecureSkipVerify,
		ClientSessionCache: l.tickets(),
		Time:               func() time.Time { now, _ := l.o.Clock(); return now },
	}
	if cfg.InsecureSkipVerify {
		l.log.Warn("the certificate of the broker is not verified (insecure_skip_verify)", "address", ad.hostport)
	}
	if cfg.CA != "" {
		pem, err := os.ReadFile(cfg.CA)
		if err != nil {
			return nil, fmt.Errorf("read ca: %w", err)
		}
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("ca %s holds no certificate in PEM form", cfg.CA)
		}
		c.RootCAs = pool
	}
	if cfg.Cert != "" {
		pair, err := l.pair.load(cfg.Cert, cfg.Key)
		if pair == nil {
			return nil, err
		}
		if err != nil {
			l.log.Warn("keep the old certificate", "err", err)
		}
		c.Certificates = []tls.Certificate{*pair}
	}
	return c, nil
}

// tickets is the cache of TLS sessions; a resumed handshake costs fewer bytes.
// Another configuration begins with an empty one.
func (l *Link) tickets() tls.ClientSessionCache {
	if l.cache == nil {
		l.cache = tls.NewLRUClientSessionCache(4)
	}
	return l.cache
}

// pair is our certificate and key, with the last that was good.
type pair struct {
	cert, key string
	good      *tls.Certificate
}

// load reads the files. When they are bad and an earlier content of the same
// files was good, it returns that together with the error.
func (p *pair) load(cert, key string) (*tls.Certificate, error) {
	if cert != p.cert || key != p.key {
		*p = pair{cert: cert, key: key}
	}
	c, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return p.good, fmt.Errorf("certificate %s with key %s: %w", cert, key, err)
	}
	p.good = &c
	return p.good, nil
}

// expires is the end of validity of our certificate; zero without one.
func (p *pair) expires() time.Time {
	if p.good == nil || p.good.Leaf == nil {
		return time.Time{}
	}
	return p.good.Leaf.NotAfter
}
