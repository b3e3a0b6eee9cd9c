package uplink

import (
	"fmt"
	"log/slog"
	"os"
	"time"

	"busgate/config/report"
)

const (
	filesEvery = time.Minute         // between two looks at the files of credentials
	renewSoon  = 14 * 24 * time.Hour // before a certificate ends, it is time to say so
)

// stamp is how a file looked.
type stamp struct {
	mod  time.Time
	size int64
}

// files watches what is read at each connect: certificates, keys, passwords.
type files struct {
	paths  []string
	stamps []stamp
	looked time.Time
}

func watchFiles(set *settings) files {
	f := files{}
	for _, p := range []string{set.cfg.CA, set.cfg.Cert, set.cfg.Key, set.cfg.PasswordFile} {
		if p != "" {
			f.paths = append(f.paths, p)
		}
	}
	f.stamps = f.now()
	return f
}

func (f *files) now() []stamp {
	out := make([]stamp, len(f.paths))
	for i, p := range f.paths {
		if fi, err := os.Stat(p); err == nil {
			out[i] = stamp{fi.ModTime(), fi.Size()}
		}
	}
	return out
}

// changed looks at most once a minute whether a file is another than when it was
// read last.
func (f *files) changed(now time.Time) bool {
	if len(f.paths) == 0 || now.Sub(f.looked) < filesEvery {
		return false
	}
	f.looked = now
	for i, s := range f.now() {
		if !s.mod.Equal(f.stamps[i].mod) || s.size != f.stamps[i].size {
			return true
		}
	}
	return false
}

// renew reconnects a drained link when its credentials have changed, any link when
// a fifth is left of the life of its token, and says when its certificate ends soon.
func (l *Link) renew(e *epoch, now time.Time) {
	if !e.renew && l.files.changed(now) {
		e.renew = true
		if _, err := l.pair.load(l.set.cfg.Cert, l.set.cfg.Key); l.set.cfg.Cert != "" && err != nil {
			l.log.Warn("keep the old certificate", "err", err)
			l.files.stamps, e.renew = l.files.now(), false // until it changes again
		}
	}
	if e.renew && e.leave.IsZero() && len(l.s.flights) == 0 && len(l.ready) == 0 {
		e.leave = now
	}
	const word = "certificate-expires"
	ends := l.pair.expires()
	wall, known := l.o.Clock()
	if known && presets[l.set.cfg.Profile].hub && !l.tokenEnds.IsZero() && e.leave.IsZero() && l.tokenEnds.Sub(wall) < tokenLife/5 {
		e.leave = now.Add(drainPatience)
	}
	if ends.IsZero() || !known {
		return
	}
	if left := ends.Sub(wall); left < renewSoon {
		l.ladder.Fail(report.Report{Err: word, Level: slog.LevelWarn, Who: l.who,
			Text: fmt.Sprintf("our certificate %s ends in %s (%s)", l.set.cfg.Cert, ago(left), ends.UTC().Format(time.DateOnly))},
			slog.String("uplink", l.name))
		return
	}
	l.ladder.Solve(word, l.who, func(time.Duration, uint64) string { return "our certificate is renewed" })
}
