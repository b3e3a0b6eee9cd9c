package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"time"

	"busgate/bridge/uplink"
	"busgate/config"
	"busgate/devices/profiles"
)

func uplinkCommand() command {
	return command{
		name: "uplink", args: "test NAME", short: "try the way to a cloud step by step, with a message that is read back",
		examples: []string{"busgate uplink test cloud", "busgate uplink test cloud --json", "busgate uplink test cloud --config ./busgate.toml"},
		setup: func(fs *flag.FlagSet) func(context.Context, *env, []string) int {
			file := fs.String("config", defaultConfig, "the device map, `FILE`")
			asJSON := fs.Bool("json", false, "one JSON object for each address")
			return func(ctx context.Context, e *env, args []string) int {
				if len(args) != 2 || args[0] != "test" {
					fmt.Fprintln(e.stderr, "busgate uplink: write `busgate uplink test NAME`, NAME as in [uplink.NAME] (see: busgate help uplink)")
					return exitUsage
				}
				return testUplink(ctx, e, *file, args[1], *asJSON)
			}
		},
	}
}

// testUplink tries every address of an uplink. It needs no daemon and disturbs
// none: the clients have ids of their own.
func testUplink(ctx context.Context, e *env, file, name string, asJSON bool) int {
	cfg, problems := config.Load(file, profiles.FS)
	if cfg == nil {
		if err := config.Print(e.stderr, problems); err != nil {
			return exitFailed
		}
		return exitConfig
	}
	u := cfg.Uplinks[name]
	if u == nil {
		names := slices.Sorted(maps.Keys(cfg.Uplinks))
		hint := "; there is none in " + file
		if len(names) > 0 {
			hint = "; there are " + strings.Join(names, ", ")
		}
		if near := nearest(name, names); near != "" {
			hint = fmt.Sprintf(" (did you mean `%s`?)", near)
		}
		fmt.Fprintf(e.stderr, "busgate uplink: there is no uplink %q%s\n", name, hint)
		return exitUsage
	}
	code := exitOK
	for i, a := range u.Addresses {
		t := uplinkTest{Uplink: name, Address: a, Steps: []uplinkStep{}}
		if !asJSON {
			fmt.Fprintf(e.stdout, "uplink %s: %s\n", name, a)
		}
		var last uplink.Step
		err := uplink.Probe(ctx, u, &cfg.Gateway, i, nil, func(s uplink.Step) {
			last = s
			t.Steps = append(t.Steps, stepOf(s))
			if !asJSON {
				printStep(e, s)
			}
		})
		t.Result = resultOf(err, last)
		if asJSON {
			json.NewEncoder(e.stdout).Encode(t)
		} else {
			fmt.Fprintf(e.stdout, "  %s\n", resultTexts[t.Result])
		}
		code = max(code, resultCodes[t.Result])
	}
	return code
}

// uplinkTest is what --json prints.
type uplinkTest struct {
	Uplink  string       `json:"uplink"`
	Address string       `json:"address"`
	Result  string       `json:"result"`
	Steps   []uplinkStep `json:"steps"`
}

type uplinkStep struct {
	Step   string  `json:"step"`
	OK     bool    `json:"ok"`
	MS     float64 `json:"ms"`
	Detail string  `json:"detail,omitempty"`
	Error  string  `json:"error,omitempty"`
	Advice string  `json:"advice,omitempty"`
}

func stepOf(s uplink.Step) uplinkStep {
	o := uplinkStep{Step: s.Name, OK: s.Err == nil, MS: float64(s.Took.Microseconds()) / 1000, Detail: s.Detail, Advice: s.Advice}
	if s.Err != nil {
		o.Error = reasonOf(s.Err)
	}
	return o
}

func printStep(e *env, s uplink.Step) {
	took := fmt.Sprintf("%.0f ms", float64(s.Took)/float64(time.Millisecond))
	if s.Err == nil {
		fmt.Fprintln(e.stdout, strings.TrimRight(fmt.Sprintf("  %-10s ok      %8s  %s", s.Name, took, s.Detail), " "))
		return
	}
	fmt.Fprintf(e.stdout, "  %-10s FAILED  %8s  %s\n  %10s %s\n", s.Name, took, reasonOf(s.Err), "", s.Advice)
}

// reasonOf is an error of the network without the addresses around it.
func reasonOf(err error) string {
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Err != nil && op.Op != "remote error" {
		return op.Err.Error()
	}
	return err.Error()
}

// The outcomes of a test.
const (
	uplinkDelivered    = "delivered"
	uplinkUnread       = "acknowledged, not read back"
	uplinkDropped      = "acknowledged, not delivered"
	uplinkNotTaken     = "refused"
	uplinkNotReachable = "unreachable"
)

var resultTexts = map[string]string{
	uplinkDelivered:    "delivered: what busgate sends arrives",
	uplinkUnread:       "acknowledged; whether it is delivered cannot be seen, because this user may not subscribe to it",
	uplinkDropped:      "acknowledged but not delivered",
	uplinkNotTaken:     "refused by the broker",
	uplinkNotReachable: "not reachable",
}

var resultCodes = map[string]int{
	uplinkDelivered: exitOK, uplinkUnread: exitOK, uplinkDropped: exitFailed, uplinkNotTaken: exitRefused, uplinkNotReachable: exitNoReply,
}

func resultOf(err error, last uplink.Step) string {
	switch {
	case err == nil && last.Name == uplink.StepDelivered:
		return uplinkDelivered
	case err == nil:
		return uplinkUnread
	case errors.Is(err, uplink.ErrNotDelivered):
		return uplinkDropped
	case last.Name == uplink.StepDNS || last.Name == uplink.StepTCP:
		return uplinkNotReachable
	}
	return uplinkNotTaken
}
