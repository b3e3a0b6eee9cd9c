package modbus

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"busgate/config"
)

const (
	dialTimeout  = 2 * time.Second
	writeTimeout = 2 * time.Second
	keepAlive    = 15 * time.Second
)

// trouble is a connection that cannot be had or was lost, in words.
type trouble struct {
	word, text string
	err        error
}

func (t *trouble) Word() string  { return t.word }
func (t *trouble) Text() string  { return t.text }
func (t *trouble) Error() string { return t.word + ": " + t.err.Error() }
func (t *trouble) Unwrap() error { return t.err }

// dial connects to addr, host:port.
func dial(ctx context.Context, addr string) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTimeout, KeepAlive: keepAlive}
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err == nil {
		return conn, nil
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return nil, unreachable(addr, err)
}

// unreachable puts an error of connecting into words.
func unreachable(addr string, err error) *trouble {
	why := err.Error()
	dns, isDNS := errors.AsType[*net.DNSError](err)
	switch {
	case isDNS:
		why = "the name " + dns.Name + " is not known"
	case errors.Is(err, syscall.ECONNREFUSED):
		why = "connection refused"
	case errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.ENETUNREACH):
		why = "no route"
	case errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, syscall.ETIMEDOUT) || errors.Is(err, context.DeadlineExceeded):
		why = "timed out"
	}
	return &trouble{"unreachable", fmt.Sprintf("%s does not answer (%s): is Modbus TCP switched on there?", addr, why), err}
}

// closedBy is a connection that the peer closed.
func closedBy(addr string, err error) *trouble {
	return &trouble{"unreachable", addr + " has closed the connection (" + rootText(err) + ")", err}
}

// atOnce is a peer that closes each connection before it has answered anything.
func atOnce(addr string, err error) *trouble {
	host, _, splitErr := net.SplitHostPort(addr)
	if splitErr != nil {
		host = addr
	}
	return &trouble{"tcp-limit", host + " closes the connection at once: many devices serve only one client. Is another program connected?", err}
}

func rootText(err error) string {
	if e, ok := errors.AsType[syscall.Errno](err); ok {
		return e.Error()
	}
	return err.Error()
}

// dialer connects to the endpoint of a bus, over TLS where tls is set.
func dialer(b *config.Bus) (func(context.Context) (net.Conn, error), error) {
	if b.Protocol == "modbus-udp" {
		return func(ctx context.Context) (net.Conn, error) { return dialUDP(ctx, b.TCP) }, nil
	}
	if !b.TLS {
		return func(ctx context.Context) (net.Conn, error) { return dial(ctx, b.TCP) }, nil
	}
	cfg, err := tlsConfig(b)
	if err != nil {
		return nil, &trouble{"certificate", err.Error(), err}
	}
	return func(ctx context.Context) (net.Conn, error) {
		raw, err := dial(ctx, b.TCP)
		if err != nil {
			return nil, err
		}
		conn := tls.Client(raw, cfg)
		ctx, cancel := context.WithTimeout(ctx, dialTimeout)
		defer cancel()
		if err := conn.HandshakeContext(ctx); err != nil {
			raw.Close()
			return nil, handshake(b.TCP, err)
		}
		return conn, nil
	}, nil
}

// tlsConfig reads the certificates of a bus (Modbus/TCP Security v36, 5: TLS 1.2
// or newer, both sides show a certificate).
func tlsConfig(b *config.Bus) (*tls.Config, error) {
	host, _, err := net.SplitHostPort(b.TCP)
	if err != nil {
		return nil, fmt.Errorf("read address %s: %w", b.TCP, err)
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: host}
	if b.CA != "" {
		pem, err := os.ReadFile(b.CA)
		if err != nil {
			return nil, fmt.Errorf("read ca: %w", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("read ca %s: no certificate in it", b.CA)
		}
	}
	if b.Cert != "" {
		pair, err := tls.LoadX509KeyPair(b.Cert, b.Key)
		if err != nil {
			return nil, fmt.Errorf("read cert %s and key %s: %w", b.Cert, b.Key, err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return cfg, nil
}

// handshake puts an error of the TLS handshake into words.
func handshake(addr string, err error) *trouble {
	text := addr + " does not speak TLS as we do (" + err.Error() + ")"
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		text = "the certificate of " + addr + " is signed by an unknown CA: set ca"
	} else if h, ok := errors.AsType[x509.HostnameError](err); ok {
		text = fmt.Sprintf("the certificate of %s is for %s", addr, strings.Join(h.Certificate.DNSNames, ", "))
	} else if _, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		text = "the certificate of " + addr + " is not valid now: is it expired, or is our clock wrong?"
	}
	return &trouble{"certificate", text, err}
}
