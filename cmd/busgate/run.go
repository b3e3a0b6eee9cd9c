package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"slices"
	"strings"
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
			word := fs.String("log", "", "`LEVEL`: error, warn, info, debug or trace; instead of [gateway] log")
			return func(ctx context.Context, e *env, _ []string) int { return runDaemon(ctx, e, *file, *word) }
		},
	}
}

func runDaemon(ctx context.Context, e *env, file, word string) int {
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
	if len(cfg.Devices) == 0 {
		log.Info("no devices yet: busgate scan")
	}
	g, err := openGateway(cfg, log, gatewayOptions{})
	if err != nil {
		log.Error(err.Error())
		return exitFailed
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
					reload(ctx, e, g, log, file, setLevel)
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
		tell(log, "READY=1\nSTATUS="+summary(cfg))
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

func summary(cfg *config.Config) string {
	return fmt.Sprintf("%d devices on %d buses, %d uplinks", len(cfg.Devices), len(cfg.Buses), len(cfg.Uplinks))
}

// tell notifies the service manager; that it cannot is worth a debug line only.
func tell(log *slog.Logger, state string) {
	if err := notify(state); err != nil {
		log.Debug("service manager", "err", err)
	}
}

// reload loads the file again and, if it has no mistakes, gives it to what
// runs. Otherwise the old configuration keeps running.
func reload(ctx context.Context, e *env, g *gateway, log *slog.Logger, file string, setLevel func(*config.Config)) {
	tell(log, reloading())
	defer tell(log, "READY=1")
	cfg, problems := config.Load(file, profiles.FS)
	if cfg == nil {
		log.Error("reload refused, the old configuration keeps running:")
		config.Print(e.stderr, problems)
		return
	}
	config.Print(e.stderr, problems)
	changes, err := g.Update(ctx, cfg)
	if err != nil {
		log.Error("reload refused, the old configuration keeps running: " + err.Error())
		return
	}
	setLevel(cfg)
	log.Info("reloaded: " + describe(changes, cfg))
	tell(log, "STATUS="+summary(cfg))
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
	return fmt.Sprintf("%s; %d devices went on undisturbed", strings.Join(parts, "; "), undisturbed)
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
