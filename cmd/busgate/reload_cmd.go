package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
)

func reloadCommand() command {
	return command{
		name: "reload", short: "check the device map, then put it into force; all of it or nothing",
		examples: []string{"busgate reload", "busgate reload --json"},
		setup: func(fs *flag.FlagSet) func(context.Context, *env, []string) int {
			socket := fs.String("socket", defaultSocket, "the daemon's socket, `FILE`")
			asJSON := fs.Bool("json", false, "one JSON object")
			return func(ctx context.Context, e *env, _ []string) int {
				var res struct {
					Text string `json:"text"`
				}
				err := newControlClient(*socket).call(ctx, "/v1/reload", struct{}{}, &res)
				var refused *commandError
				switch {
				case errors.As(err, &refused):
					fmt.Fprintln(e.stderr, refused)
					return exitConfig
				case err != nil:
					return controlExit(e, "reload", err)
				case *asJSON:
					json.NewEncoder(e.stdout).Encode(res)
				default:
					fmt.Fprintln(e.stdout, res.Text)
				}
				return exitOK
			}
		},
	}
}
