package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"runtime"
	"runtime/debug"
)

// version is set by the packager: -ldflags "-X main.version=1.0.0".
var version = "dev"

// unknownCommit is what a program says that was built outside of git.
const unknownCommit = "unknown"

func versionCommand() command {
	return command{
		name: "version", short: "version, commit, Go and architecture",
		examples: []string{"busgate version", "busgate version --json"},
		setup: func(fs *flag.FlagSet) func(context.Context, *env, []string) int {
			asJSON := fs.Bool("json", false, "one JSON object")
			return func(_ context.Context, e *env, _ []string) int {
				v := buildVersion()
				if *asJSON {
					json.NewEncoder(e.stdout).Encode(v)
				} else {
					commit := ""
					if v.Commit != unknownCommit { // packages are built without git
						commit = " (" + v.Commit + ")"
					}
					fmt.Fprintf(e.stdout, "busgate %s%s %s %s/%s\n", v.Version, commit, v.Go, v.OS, v.Arch)
				}
				return exitOK
			}
		},
	}
}

type buildInfo struct {
	Version string `json:"version"`
	Commit  string `json:"commit"`
	Go      string `json:"go"`
	OS      string `json:"os"`
	Arch    string `json:"arch"`
}

func buildVersion() buildInfo {
	v := buildInfo{Version: version, Commit: unknownCommit, Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH}
	if bi, ok := debug.ReadBuildInfo(); ok {
		for _, s := range bi.Settings {
			if s.Key == "vcs.revision" && len(s.Value) >= 12 {
				v.Commit = s.Value[:12]
			}
		}
	}
	return v
}
