package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// command is one row of the table of commands.
type command struct {
	name, args, short string
	examples          []string // printed first in the help

	// setup registers the flags and returns what runs with them. The returned
	// function gives the exit status.
	setup func(*flag.FlagSet) func(ctx context.Context, e *env, args []string) int
}

// dispatch finds the command of args, parses its flags and runs it.
func dispatch(ctx context.Context, e *env, table []command, args []string) int {
	if len(args) == 0 {
		usage(e.stderr, table)
		return exitUsage
	}
	name, rest := args[0], args[1:]
	switch name {
	case "-h", "-help", "--help":
		usage(e.stdout, table)
		return exitOK
	case "help":
		if len(rest) == 0 {
			usage(e.stdout, table)
			return exitOK
		}
		name, rest = rest[0], []string{"--help"}
	case "-version", "--version":
		name = "version"
	}
	for _, c := range table {
		if c.name == name {
			return c.call(ctx, e, rest)
		}
	}
	names := make([]string, len(table))
	for i, c := range table {
		names[i] = c.name
	}
	hint := ""
	if near := nearest(name, names); near != "" {
		hint = fmt.Sprintf(" (did you mean `%s`?)", near)
	}
	fmt.Fprintf(e.stderr, "unknown command `%s`%s\n", name, hint)
	return exitUsage
}

// call parses flags wherever they stand among the arguments: package flag alone
// stops at the first argument. A word -- ends the flags.
func (c command) call(ctx context.Context, e *env, args []string) int {
	fs := flag.NewFlagSet(c.name, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	run := c.setup(fs)
	var words []string
	for {
		err := fs.Parse(args)
		if errors.Is(err, flag.ErrHelp) {
			c.help(e.stdout, fs)
			return exitOK
		}
		if err != nil {
			fmt.Fprintf(e.stderr, "busgate %s: %v (see: busgate help %s)\n", c.name, err, c.name)
			return exitUsage
		}
		rest := fs.Args()
		if len(rest) == 0 {
			break
		}
		if n := len(args) - len(rest); n > 0 && args[n-1] == "--" {
			words = append(words, rest...)
			break
		}
		words, args = append(words, rest[0]), rest[1:]
	}
	if len(words) > 0 && c.args == "" {
		fmt.Fprintf(e.stderr, "busgate %s takes no arguments, and there is %q (see: busgate help %s)\n", c.name, words[0], c.name)
		return exitUsage
	}
	return run(ctx, e, words)
}

// help prints examples first: they are what is looked for.
func (c command) help(w io.Writer, fs *flag.FlagSet) {
	fmt.Fprintf(w, "busgate %s: %s\n\n", strings.TrimSpace(c.name+" "+c.args), c.short)
	for _, x := range c.examples {
		fmt.Fprintf(w, "  %s\n", x)
	}
	first := true
	fs.VisitAll(func(f *flag.Flag) {
		if first {
			fmt.Fprintln(w)
			first = false
		}
		kind, text := flag.UnquoteUsage(f)
		name := "--" + f.Name
		if kind != "" {
			name += " " + kind
		}
		if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "0s" {
			text += fmt.Sprintf(" (default %s)", f.DefValue)
		}
		fmt.Fprintf(w, "  %-18s %s\n", name, text)
	})
}

func usage(w io.Writer, table []command) {
	fmt.Fprintf(w, "busgate: serial and Modbus devices to MQTT, without loss\n\n")
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, c := range table {
		fmt.Fprintf(t, "  %s\t%s\n", c.name, c.short)
	}
	t.Flush()
	fmt.Fprintf(w, "\nbusgate help COMMAND tells more.\n")
}

// nearest is the name that differs from word by at most two letters and by no
// more than half of the longer one, or "".
func nearest(word string, names []string) string {
	best, bestD := "", 3
	for _, n := range names {
		if d := distance(word, n); d < bestD && 2*d <= max(len(word), len(n)) {
			best, bestD = n, d
		}
	}
	return best
}

// distance is the optimal string alignment of a and b: insert, delete, replace
// and the swap of neighbours cost one each.
func distance(a, b string) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}
