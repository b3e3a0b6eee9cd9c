package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"busgate/config"
	"busgate/devices/profiles"
)

func profilesCommand() command {
	return command{
		name: "profiles", args: "[NAME]", short: "list the device models, or print one as TOML",
		examples: []string{"busgate profiles", "busgate profiles eastron-sdm630", "busgate profiles xy-md02 > /etc/busgate/profiles/xy-md02.toml"},
		setup: func(fs *flag.FlagSet) func(context.Context, *env, []string) int {
			file := fs.String("config", defaultConfig, "device map `FILE`; profiles/*.toml beside it win over the built-in ones")
			asJSON := fs.Bool("json", false, "one JSON object")
			return func(_ context.Context, e *env, names []string) int {
				list := knownProfiles(e, *file)
				switch {
				case len(names) > 1:
					return misuse(e, "profiles", "takes one name, and there are %d", len(names))
				case len(names) == 1:
					return printProfile(e, list, names[0], *asJSON)
				case *asJSON:
					return printJSON(e, "profiles", struct {
						Profiles []profileRow `json:"profiles"`
					}{profileRows(list)})
				}
				t := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
				fmt.Fprint(t, "NAME\tMAKER\tMODEL\tPOINTS\tVERIFIED\n")
				for _, p := range list {
					fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%s\n", p.Name, orDash(p.Maker), orDash(p.Model), len(p.Points), orDash(p.Verified))
				}
				return wrote(e, "profiles", t.Flush())
			}
		},
	}
}

// knownProfiles are those beside the device map and the built-in ones; what is
// wrong with one goes to stderr.
func knownProfiles(e *env, file string) []*config.Profile {
	list, problems := config.Profiles(filepath.Join(filepath.Dir(file), "profiles"), profiles.FS)
	config.Print(e.stderr, problems)
	return list
}

// profileRow is a profile in JSON.
type profileRow struct {
	Name     string `json:"name"`
	Maker    string `json:"maker,omitempty"`
	Model    string `json:"model,omitempty"`
	Points   int    `json:"points"`
	Verified string `json:"verified,omitempty"`
	TOML     string `json:"toml,omitempty"` // of a single one
}

func profileRows(list []*config.Profile) []profileRow {
	rows := make([]profileRow, len(list))
	for i, p := range list {
		rows[i] = profileRow{Name: p.Name, Maker: p.Maker, Model: p.Model, Points: len(p.Points), Verified: p.Verified}
	}
	return rows
}

func printProfile(e *env, list []*config.Profile, name string, asJSON bool) int {
	names := make([]string, len(list))
	for i, p := range list {
		names[i] = p.Name
		if p.Name != name {
			continue
		}
		if asJSON {
			row := profileRows(list[i : i+1])[0]
			row.TOML = p.Text
			return printJSON(e, "profiles", row)
		}
		_, err := fmt.Fprint(e.stdout, p.Text)
		return wrote(e, "profiles", err)
	}
	fmt.Fprintf(e.stderr, "busgate profiles: there is no profile `%s`%s; the list: busgate profiles\n", name, meant(name, names))
	return exitFailed
}

// meant is " (did you mean `x`?)" or nothing. The first name that holds the word
// is meant when none is near: sdm630 is eastron-sdm630.
func meant(word string, names []string) string {
	near := nearest(word, names)
	if i := slices.IndexFunc(names, func(n string) bool { return len(word) > 2 && strings.Contains(n, word) }); near == "" && i >= 0 {
		near = names[i]
	}
	if near != "" {
		return fmt.Sprintf(" (did you mean `%s`?)", near)
	}
	return ""
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// misuse says that a command was called in a way that it does not know.
func misuse(e *env, name, format string, args ...any) int {
	fmt.Fprintf(e.stderr, "busgate %s %s (see: busgate help %s)\n", name, fmt.Sprintf(format, args...), name)
	return exitUsage
}

// printJSON writes one object.
func printJSON(e *env, name string, v any) int {
	enc := json.NewEncoder(e.stdout)
	enc.SetEscapeHTML(false)
	return wrote(e, name, enc.Encode(v))
}
