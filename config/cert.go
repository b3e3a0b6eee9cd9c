package config

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"math"
	"os"
	"slices"
	"syscall"
	"time"
)

// soon is when an expiring certificate is told; at run time it is told 14 days before.
const soon = 30 * 24 * time.Hour

// readable reads a file that the service needs, and says when it cannot.
func (l *loader) readable(c *node, path string) (string, bool) {
	if c == nil || c.bad || path == "" {
		return "", false
	}
	text, err := readFile(path)
	if err == nil && l.env.service != nil && !l.env.service.reads(path) {
		err = fs.ErrPermission
	}
	if err != nil && l.env.stranger && errors.Is(err, fs.ErrPermission) {
		l.warnVal(c, "cannot read %s: %s; root or the service can check it", path, reason(err))
		return "", false
	}
	if err != nil {
		l.atVal(c, "cannot read %s: %s", path, reason(err))
		return "", false
	}
	return text, true
}

// reads tells whether the account may read a file, as far as its mode says.
func (a *account) reads(path string) bool {
	info, err := os.Stat(path)
	if err != nil {
		return false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	switch mode := info.Mode().Perm(); {
	case !ok || a.uid == 0:
		return true
	case st.Uid == a.uid:
		return mode&0o400 != 0
	case slices.Contains(a.gids, st.Gid):
		return mode&0o040 != 0
	default:
		return mode&0o004 != 0
	}
}

// secret warns when everybody can read a file.
func (l *loader) secret(c *node, path string) {
	if info, err := os.Stat(path); err == nil && info.Mode().Perm()&0o004 != 0 {
		l.warnVal(c, "%s can be read by every user: chmod 600 %s", path, path)
	}
}

// trust checks a file of certificates that we trust.
func (l *loader) trust(c *node, path string) {
	text, ok := l.readable(c, path)
	if !ok {
		return
	}
	certs := parseCerts(text)
	if len(certs) == 0 {
		l.atVal(c, "cannot read %s: it holds no certificate (PEM)", path)
		return
	}
	for _, cert := range certs {
		l.validity(c, path, cert)
	}
}

// pair checks cert and key of table n. who is how messages call it.
func (l *loader) pair(n *node, who, cert, key string) {
	c, k := n.get("cert"), n.get("key")
	if n.broken("cert", "key") || cert == "" && key == "" {
		return
	}
	if cert == "" || key == "" {
		one := c
		if cert == "" {
			one = k
		}
		l.atKey(one, "%s has only one of `cert` and `key`: mutual TLS needs both", who)
		return
	}
	certText, okCert := l.readable(c, cert)
	keyText, okKey := l.readable(k, key)
	if !okCert || !okKey {
		return
	}
	l.secret(k, key)
	certs := parseCerts(certText)
	if len(certs) == 0 {
		l.atVal(c, "cannot read %s: it holds no certificate (PEM)", cert)
		return
	}
	if block, _ := pem.Decode([]byte(keyText)); block == nil {
		l.atVal(k, "cannot read %s: it holds no key (PEM)", key)
		return
	}
	if _, err := tls.X509KeyPair([]byte(certText), []byte(keyText)); err != nil {
		if belongsLater(certs, keyText) {
			l.atVal(c, "%s has its certificates in the wrong order: the one of %s comes first", cert, key)
		} else {
			l.atVal(c, "%s and %s do not belong together", cert, key)
		}
		return
	}
	l.validity(c, cert, certs[0])
}

// belongsLater tells whether the key fits a certificate that is not the first.
func belongsLater(certs []*x509.Certificate, key string) bool {
	for _, cert := range certs[1:] {
		one := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
		if _, err := tls.X509KeyPair(one, []byte(key)); err == nil {
			return true
		}
	}
	return false
}

// validity warns of a certificate that has expired or soon will. While the clock
// is not set (before the program was built) nothing can be said.
func (l *loader) validity(c *node, path string, cert *x509.Certificate) {
	now := l.env.now
	if now.Before(l.env.built) {
		return
	}
	date := cert.NotAfter.UTC().Format(time.DateOnly)
	left := cert.NotAfter.Sub(now)
	days := int(math.Abs(left.Hours()) / 24)
	switch {
	case left < 0:
		l.warnVal(c, "%s expired %d days ago (%s)", path, days, date)
	case left < soon:
		l.warnVal(c, "%s expires in %d days (%s)", path, days, date)
	case now.Before(cert.NotBefore):
		l.warnVal(c, "%s is not valid before %s", path, cert.NotBefore.UTC().Format(time.DateOnly))
	}
}

func parseCerts(text string) []*x509.Certificate {
	var out []*x509.Certificate
	rest := []byte(text)
	for {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil {
			return out
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		if cert, err := x509.ParseCertificate(block.Bytes); err == nil {
			out = append(out, cert)
		}
	}
}
