package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"syscall"

	"busgate/config"
	"busgate/devices/profiles"
)

func runCommand() command {
	return command{
		name: "run", short: "the daemon; SIGHUP reloads, SIGTERM stops after what is due is sent",
		examples: []string{"busgate run", "busgate run --config /etc/busgate/busgate.toml", "busgate run --log debug"},
		setup: func(fs *flag.FlagSet) func(context.Context, *env, []string) int {
			file := fs.String("config", defaultConfig, "the device map, `FILE`")
			socket := fs.String("socket", defaultSocket, "where other commands reach the daemon, `FILE`")
			word := fs.String("log", "", "`LEVEL`: error, warn, info, debug or trace; instead of [gateway] log")
			return func(ctx context.Context, e *env, _ []string) int { return runDaemon(ctx, e, *file, *socket, *word) }
		},
	}
}

func runDaemon(ctx context.Context, e *env, file, socket, word string) int {
	cfg, problems := config.Load(file, profiles.FS)
	if err := config.Print(e.stderr, problems); err != nil {
		return exitFailed
	}
	if cfg == nil {
		return exitConfig
	}
	var lv slog.LevelVar
	setLevel := func(cfg *config.Config) {
		if word == "" {
			lv.Set(level(cfg.Gateway.Log))
		} else {
			lv.Set(level(word))
		}
	}
	setLevel(cfg)
	log := newLog(e.stderr, &lv)
	g, err := openGateway(cfg, log, gatewayOptions{})
	if err != nil {
		log.Error(err.Error())
		return exitFailed
	}
	g.pulse = newPulse(g, log)
	defer paceHeap()()
	r := &reloader{g: g, log: log, file: file, setLevel: setLevel}
	if ln, err := openControl(socket); err != nil {
		log.Warn(err.Error() + "; busgate reload and busgate buffer will not reach this daemon")
	} else {
		g.serveControl(ln, r.reload)
	}
	hurry := make(chan struct{})
	stopped := make(chan struct{})
	signals := make(chan struct{})
	go func() {
		defer close(signals)
		for hurrying := false; ; {
			select {
			case <-stopped:
				return
			case s := <-e.signals:
				switch {
				case s == syscall.SIGHUP && ctx.Err() == nil:
					if _, err := r.reload(ctx); err != nil {
						fmt.Fprintln(e.stderr, err)
					}
				case s != syscall.SIGHUP && !hurrying:
					hurrying = true
					log.Warn("second signal: stopping without draining")
					close(hurry)
				}
			}
		}
	}()
	stopping := context.AfterFunc(ctx, func() { tell(log, "STOPPING=1\nSTATUS=sending what is due, then stopping") })
	err = g.Run(ctx, hurry, func() {
		log.Info("running", "version", version, "gateway", cfg.Gateway.Name, "devices", len(cfg.Devices), "uplinks", len(cfg.Uplinks))
		tell(log, "READY=1")
	})
	close(stopped)
	<-signals
	stopping()
	if cerr := g.Close(); cerr != nil {
		err = errors.Join(err, fmt.Errorf("close store: %w", cerr))
	}
	if err != nil {
		log.Error("stopped: " + err.Error())
		return exitFailed
	}
	log.Info("stopped")
	return exitOK
}

// tell notifies the service manager; that it cannot is worth a debug line only.
func tell(log *slog.Logger, state string) {
	if err := notify(state); err != nil {
		log.Debug("service manager", "err", err)
	}
}

// reloader puts a changed device map into force. Two reloads at a time are one
// after the other.
type reloader struct {
	g        *gateway
	log      *slog.Logger
	file     string
	setLevel func(*config.Config)

	mu sync.Mutex
}

// reload loads the file again and, if it has no mistakes, gives it to what
// runs, and says what that did. Otherwise the old configuration keeps running,
// and the error lists why.
func (r *reloader) reload(ctx context.Context) (text string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	const refused = "reload refused, the old configuration keeps running:"
	refuse := func(why string, err error) (string, error) {
		r.g.reloads.refused.Add(1) // before it is said: who hears of it may look
		r.log.Error(refused + " " + why)
		return "", err
	}
	tell(r.log, reloading())
	defer tell(r.log, "READY=1")
	cfg, problems := config.Load(r.file, profiles.FS)
	var listed strings.Builder
	if err := config.Print(&listed, problems); err != nil {
		return refuse(err.Error(), err)
	}
	if cfg == nil {
		return refuse(count(len(problems), "problem", "problems")+" in "+r.file, errors.New(refused+"\n"+listed.String()))
	}
	changes, err := r.g.Update(ctx, cfg)
	if err != nil {
		return refuse(err.Error(), fmt.Errorf("%s %w", refused, err))
	}
	r.setLevel(cfg)
	done := "reloaded: " + describe(changes, cfg)
	r.g.reloads.ok.Add(1)
	r.log.Info(done)
	return listed.String() + done, nil
}

// describe names what was restarted and counts what went on undisturbed.
func describe(d config.Changes, cfg *config.Config) string {
	var parts []string
	named := func(what string, list []config.Change) {
		for _, c := range list {
			parts = append(parts, fmt.Sprintf("%s %s %s", what, c.Name, effectWord(c.Effect)))
		}
	}
	named("bus", d.Buses)
	named("device", d.Devices)
	named("uplink", d.Uplinks)
	for _, t := range []struct {
		name string
		keys []string
	}{{"gateway", d.Gateway}, {"broker", slices.Concat(d.Listen, d.Broker)}, {"buffer", d.Buffer}, {"web", d.Web}, {"homeassistant", d.HomeAssistant}} {
		if len(t.keys) > 0 {
			parts = append(parts, fmt.Sprintf("[%s] %s", t.name, strings.Join(t.keys, ", ")))
		}
	}
	if len(parts) == 0 {
		return "nothing changed"
	}
	undisturbed := len(cfg.Devices)
	for _, c := range d.Devices {
		if c.Effect != config.Removed {
			undisturbed--
		}
	}
	return fmt.Sprintf("%s; %s went on undisturbed", strings.Join(parts, "; "), count(undisturbed, "device", "devices"))
}

func effectWord(e config.Effect) string {
	switch e {
	case config.Added:
		return "added"
	case config.Removed:
		return "removed"
	case config.Reopen:
		return "opened again"
	case config.Restart:
		return "restarted"
	}
	return "changed"
}
