package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"busgate/config"
	"busgate/devices"
	"busgate/devices/profiles"
)

// askPatience is how long a check waits for the daemon.
const askPatience = 2 * time.Second

func checkCommand() command {
	return command{
		name: "check", args: "[F...]", short: "all mistakes and warnings of a device map; then what it will do",
		examples: []string{"busgate check", "busgate check ./busgate.toml", "busgate check --dump"},
		setup: func(fs *flag.FlagSet) func(context.Context, *env, []string) int {
			file := fs.String("config", defaultConfig, "the device map, `FILE`, when no other is named")
			dump := fs.Bool("dump", false, "print the effective configuration, profiles merged, secrets as ***")
			socket := fs.String("socket", defaultSocket, "control socket `FILE` of the daemon, which knows how fast the devices answer")
			asJSON := fs.Bool("json", false, "problems as a JSON list of {file,line,col,len,severity,text}")
			return func(_ context.Context, e *env, files []string) int {
				if len(files) == 0 {
					files = []string{*file}
				}
				code := exitOK
				for _, f := range files {
					code = max(code, checkFile(e, f, *socket, *dump, *asJSON))
				}
				return code
			}
		},
	}
}

// checkFile prints the problems of one file and, when none is an error, what
// the file will do.
func checkFile(e *env, file, socket string, dump, asJSON bool) int {
	cfg, problems := config.Load(file, profiles.FS)
	var loads []devices.Load
	var known learnedFacts
	if cfg != nil {
		known = askLearned(socket)
		loads = devices.Loads(cfg, drivers(), known)
		problems = append(problems, overloads(cfg, loads)...)
	}
	write := config.Print
	if asJSON {
		write = config.PrintJSON
	}
	if err := write(e.stdout, problems); err != nil {
		fmt.Fprintln(e.stderr, "busgate check: "+err.Error())
		return exitFailed
	}
	switch {
	case cfg == nil:
		return exitConfig
	case asJSON:
	case dump:
		fmt.Fprint(e.stdout, config.Dump(cfg))
	default:
		outlook(e.stdout, cfg, loads, problems, len(known) > 0)
	}
	return exitOK
}

// overloads are the warnings about buses that cannot keep their intervals, each
// at the interval of the fastest device.
func overloads(cfg *config.Config, loads []devices.Load) []config.Problem {
	var out []config.Problem
	for _, l := range loads {
		if l.Warning != "" {
			file, pos, _ := cfg.Where("device." + l.Fastest.Name + ".interval")
			out = append(out, config.Problem{File: file, Pos: pos, Len: 1, Msg: l.Warning, Warn: true})
		}
	}
	return out
}

// learnedFacts are what the running gateway has learned about its devices: a
// devices.Memory that keeps nothing. nil knows nothing.
type learnedFacts map[string][]byte

// Load returns nil, nil for an unknown key.
func (l learnedFacts) Load(key string) ([]byte, error) { return l[key], nil }

// Save is not for a check.
func (l learnedFacts) Save(string, []byte) {}

// askLearned asks the daemon, when there is one.
func askLearned(socket string) learnedFacts {
	ctx, cancel := context.WithTimeout(context.Background(), askPatience)
	defer cancel()
	var l learnedFacts
	if newControlClient(socket).call(ctx, "/v1/learned", nil, &l) != nil {
		return nil // then it is computed from the map alone
	}
	return l
}

// outlook says what a file without mistakes will do; known: with what the
// running gateway has learned.
func outlook(w io.Writer, cfg *config.Config, loads []devices.Load, problems []config.Problem, known bool) {
	fmt.Fprintf(w, "%s: ok: %s, %s, %s, %s\n", cfg.Path, count(len(cfg.Buses), "bus", "buses"), count(len(cfg.Devices), "device", "devices"),
		count(len(cfg.Uplinks), "uplink", "uplinks"), count(len(problems), "warning", "warnings"))
	if len(cfg.Devices) == 0 {
		return // a warning says so
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, l := range loads {
		wire := l.Bus.TCP
		if l.Bus.Serial != "" {
			wire = fmt.Sprintf("%d %s", l.Bus.Baud, l.Bus.Format())
		}
		if l.Requests == 0 {
			fmt.Fprintf(t, "%s\t%s\t%s\tlistens\t\t\n", l.Bus.Name, wire, count(l.Devices, "device", "devices"))
			continue
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\tround %s\t%.0f %% busy\n", l.Bus.Name, wire, count(l.Devices, "device", "devices"),
			count(l.Requests, "request", "requests"), seconds(l.Round), 100*l.U)
	}
	t.Flush()
	if known {
		fmt.Fprintln(w, "answer times as the running gateway has learned them")
	}
	names := slices.Sorted(maps.Keys(cfg.Devices))
	each := names[0]
	if len(names) > 1 {
		each = "{" + strings.Join(names, ",") + "}"
	}
	fmt.Fprintf(w, "topics  %s/%s/state\n", cfg.Gateway.Base(), each)
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// seconds prints a duration with two figures: 0.03 s, 0.6 s, 3.1 s.
func seconds(d time.Duration) string {
	if d < 100*time.Millisecond {
		return fmt.Sprintf("%.2f s", d.Seconds())
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}
