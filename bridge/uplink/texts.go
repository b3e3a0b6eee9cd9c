package uplink

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"busgate/config/report"
)

// starving says that the store does not give what waits, and that it does again.
func (l *Link) starving(err error) {
	const word = "lease"
	if err != nil {
		l.ladder.Fail(report.Report{Err: word, Level: slog.LevelWarn, Who: l.who,
			Text: "the store does not give what waits (" + err.Error() + "); asking again each second"}, slog.String("uplink", l.name))
		return
	}
	l.ladder.Solve(word, l.who, func(lasted time.Duration, _ uint64) string {
		return "the store gives again what waits after " + report.Duration(lasted)
	})
}

// diagnosis is what a failure says.
type diagnosis struct {
	word  string // stable
	level slog.Level
	phase Phase // in which the link waits
	body  string
	next  bool // the text ends with the next try and what waits
	usage func() (int, int64, time.Duration)
}

// text is the line of the report; wait is the time to the next try.
func (d diagnosis) text(wait time.Duration) string {
	if !d.next {
		return d.body
	}
	t := d.body + ". Next try in " + report.Duration(max(wait, time.Second))
	if d.usage != nil {
		if n, _, _ := d.usage(); n > 0 {
			what := "messages wait"
			if n == 1 {
				what = "message waits"
			}
			t += fmt.Sprintf("; %s %s, nothing is lost", report.Count(n), what)
		}
	}
	return t
}

func (d diagnosis) attrs(uplink string, cause error) []slog.Attr {
	return []slog.Attr{slog.String("uplink", uplink), slog.String("cause", report.Line(cause.Error()))}
}

// diagnose translates the end of a connection, or of a try, into what it means
// and what to do. The libraries' own text stays in the attribute cause.
func (l *Link) diagnose(err error, now time.Time) diagnosis {
	ad := l.dialled()
	d := diagnosis{level: slog.LevelWarn, phase: Idle, next: true, usage: l.o.Usage}
	if r, ok := errors.AsType[*refusal](err); ok {
		return l.diagnoseRefusal(d, r, ad.host)
	}
	if x, ok := l.diagnoseTLS(d, err, ad); ok {
		return x
	}
	if c, ok := errors.AsType[*closing](err); ok {
		return l.diagnoseClosing(d, c, ad, now)
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok && dns.IsNotFound {
		d.word, d.level, d.next = "no-route", slog.LevelInfo, false
		d.body = fmt.Sprintf("no route: the name %s is not known; waiting for the link", ad.host)
		return d
	} else if ok || errors.Is(err, syscall.ENETUNREACH) || errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.ENETDOWN) {
		d.word, d.level, d.next = "no-route", slog.LevelInfo, false
		d.body = "no route (network is down); waiting for the link"
		return d
	}
	if errors.Is(err, errNoClock) {
		d.word, d.phase, d.next = "clock", WaitingClock, false
		d.body = errNoClock.Error() + "; waiting for the clock"
		return d
	}
	d.word = "unreachable"
	d.body = fmt.Sprintf("%s does not answer (%s)", ad.hostport, plain(err))
	if errors.Is(err, errToken) {
		d.word, d.level, d.body = "credentials", slog.LevelError, err.Error()
	}
	if _, ok := errors.AsType[*os.PathError](err); ok {
		d.word, d.level, d.body = "credentials", slog.LevelError, err.Error()
	}
	return d
}

// plain is an error of the network without the addresses around it.
func plain(err error) string {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, syscall.ETIMEDOUT) {
		return "timed out"
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return "it closed the connection"
	}
	if no, ok := errors.AsType[syscall.Errno](err); ok {
		return no.Error()
	}
	return err.Error()
}

// dialled is the address of the last try.
func (l *Link) dialled() address {
	for _, a := range l.set.addresses {
		if a.hostport == l.stats.address {
			return a
		}
	}
	return l.set.addresses[0]
}

func (l *Link) diagnoseRefusal(d diagnosis, r *refusal, host string) diagnosis {
	d.level, d.phase = slog.LevelError, Refused
	cfg := &l.set.cfg
	switch r.code {
	case packets.ErrRefusedBadUsernameOrPassword:
		d.word = "login"
		d.body = fmt.Sprintf("%s refused user %q (bad user name or password)", host, cfg.User)
	case packets.ErrRefusedNotAuthorised:
		d.word = "not-authorised"
		d.body = fmt.Sprintf("not authorised: ask for the rights of client_id %q", cfg.ClientID)
		if cfg.User != "" { // mosquitto says so to a wrong password, too
			d.body = fmt.Sprintf("%s refused user %q (not authorised): a wrong password, or no rights for client_id %q", host, cfg.User, cfg.ClientID)
		}
	case packets.ErrRefusedIDRejected:
		d.word, d.next = "client-id", false
		d.body = fmt.Sprintf("%s does not accept client_id %q", host, cfg.ClientID)
	case packets.ErrRefusedServerUnavailable:
		d.word, d.level, d.phase = "unreachable", slog.LevelWarn, Idle
		d.body = host + " says that its service is not available"
	default:
		d.word = "protocol"
		d.body = fmt.Sprintf("%s does not speak MQTT 3.1.1 with us (%v)", host, r)
	}
	return d
}

// diagnoseTLS knows what verification and handshakes complain about.
func (l *Link) diagnoseTLS(d diagnosis, err error, ad address) (diagnosis, bool) {
	d.word, d.level, d.phase, d.next = "certificate", slog.LevelError, Refused, false
	now, known := l.o.Clock()
	if e, ok := errors.AsType[x509.HostnameError](err); ok {
		d.body = fmt.Sprintf("the certificate is for %s, not %s", certNames(e.Certificate), e.Host)
		return d, true
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		d.body = fmt.Sprintf("the certificate is signed by an unknown CA: set ca in [uplink.%s]", l.name)
		return d, true
	}
	if e, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		switch {
		case e.Reason == x509.Expired && now.Before(e.Cert.NotBefore) && !known:
			d.word, d.level, d.phase = "clock", slog.LevelWarn, WaitingClock
			d.body = fmt.Sprintf("the certificate is valid from %s, and the clock is not set; waiting for the clock", e.Cert.NotBefore.UTC().Format(time.DateOnly))
		case e.Reason == x509.Expired && now.Before(e.Cert.NotBefore):
			d.body = fmt.Sprintf("the certificate is valid only from %s", e.Cert.NotBefore.UTC().Format(time.DateOnly))
		case e.Reason == x509.Expired:
			d.body = fmt.Sprintf("the certificate expired %s ago (%s)", ago(now.Sub(e.Cert.NotAfter)), e.Cert.NotAfter.UTC().Format(time.DateOnly))
		default:
			d.body = "the certificate is not valid: " + e.Error()
		}
		return d, true
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" && strings.HasPrefix(op.Err.Error(), "tls: ") {
		alert := strings.TrimPrefix(op.Err.Error(), "tls: ")
		switch {
		case !strings.Contains(alert, "certificate"):
			d.word, d.phase, d.next = "tls", Idle, true
			d.body = fmt.Sprintf("%s ended the TLS handshake (%s)", ad.host, alert)
		case l.set.cfg.Cert == "":
			d.body = fmt.Sprintf("%s wants a certificate of ours: set cert and key in [uplink.%s]", ad.host, l.name)
		default:
			d.body = fmt.Sprintf("%s refused our certificate %s", ad.host, l.set.cfg.Cert)
		}
		return d, true
	}
	return d, false
}

// ago is a time that has passed; days are spelt out.
func ago(d time.Duration) string {
	if days := int(d / (24 * time.Hour)); days == 1 {
		return "1 day"
	} else if days > 1 {
		return fmt.Sprintf("%d days", days)
	}
	return report.Duration(d)
}

func certNames(c *x509.Certificate) string {
	switch {
	case len(c.DNSNames) > 0:
		return strings.Join(c.DNSNames[:min(len(c.DNSNames), 4)], ", ")
	case len(c.IPAddresses) > 0:
		return c.IPAddresses[0].String()
	}
	return c.Subject.CommonName
}

// diagnoseClosing says why a connection that stood has ended.
func (l *Link) diagnoseClosing(d diagnosis, c *closing, ad address, now time.Time) diagnosis {
	switch c.reason {
	case "ack-timeout", "ack-oldest", "ping-timeout", "write-timeout":
		d.word, d.next = "stuck", false
		d.body = c.err.Error() + "; connecting again"
		if c.reason == "ack-timeout" {
			d.body = fmt.Sprintf("nothing acknowledged for %s; connecting again", report.Duration(l.timing.ack))
		}
	case "peer", "write", "closed":
		if n := l.trouble.thrown(now, l.connected, l.set.keepAlive, l.struck); n >= 3 {
			d.word, d.level, d.next = "client-id-clash", slog.LevelError, false
			d.body = fmt.Sprintf("connected and thrown out %d times in a minute: another client uses client_id %q", n, l.set.cfg.ClientID)
			return d
		}
		d.word = "disconnected"
		d.body = fmt.Sprintf("the connection to %s broke after %s (%s)", ad.hostport, report.Duration(now.Sub(l.connected)), plain(c.err))
	case "protocol":
		d.word, d.level = "protocol", slog.LevelError
		d.body = fmt.Sprintf("%s does not keep to MQTT 3.1.1 (%v)", ad.hostport, c.err)
	default: // the store, the downlink
		d.word = c.reason
		d.body = c.err.Error()
	}
	return d
}

// trouble is what was said since the link was well.
type trouble struct {
	words []string // in the order in which they were said first
	since time.Time
	outs  []time.Time // short connections that the peer closed, of the last minute
}

func (t *trouble) add(word string, now time.Time) {
	if len(t.words) == 0 {
		t.since = now
	}
	for _, w := range t.words {
		if w == word {
			return
		}
	}
	t.words = append(t.words, word)
}

// thrown notes that the peer closed a connection that began at since, and counts
// how often that happened in the last minute sooner than the keep-alive and not
// for something that was sent.
func (t *trouble) thrown(now, since time.Time, keepAlive time.Duration, struck bool) int {
	kept := t.outs[:0]
	for _, at := range t.outs {
		if now.Sub(at) < time.Minute {
			kept = append(kept, at)
		}
	}
	t.outs = kept
	if now.Sub(since) < keepAlive && !struck {
		t.outs = append(t.outs, now)
	}
	return len(t.outs)
}

// recovered says that the link is well again, once.
func (l *Link) recovered(e *epoch, waiting int, now time.Time) {
	if len(l.trouble.words) == 0 {
		return
	}
	text := "back after " + report.Duration(e.at.Sub(l.trouble.since))
	if n := l.s.acked - e.ackedThen; n > 0 && waiting == 0 {
		text += fmt.Sprintf("; %s waiting messages sent in %s", report.Count(n), report.Duration(now.Sub(e.at)))
	} else if n > 0 {
		text += fmt.Sprintf("; %s messages sent in %s, %s wait", report.Count(n), report.Duration(now.Sub(e.at)), report.Count(waiting))
	}
	for i, w := range l.trouble.words {
		l.ladder.Solve(w, l.who, func(lasted time.Duration, _ uint64) string {
			if i == 0 {
				return text
			}
			return fmt.Sprintf("%s is over after %s", w, report.Duration(lasted))
		})
	}
	l.trouble.words = nil
}
