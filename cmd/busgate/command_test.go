package main

import (
	"bytes"
	"context"
	"flag"
	"slices"
	"strings"
	"testing"
)

// call runs a command line in process.
func call(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = dispatch(t.Context(), &env{stdin: strings.NewReader(""), stdout: &out, stderr: &errs}, commands(), args)
	return code, out.String(), errs.String()
}

func TestEveryCommandIsDocumented(t *testing.T) {
	for _, c := range commands() {
		if c.short == "" || len(c.examples) < 2 {
			t.Errorf("%s: short %q, %d examples", c.name, c.short, len(c.examples))
		}
		for _, x := range c.examples {
			if !strings.HasPrefix(x, "busgate "+c.name) {
				t.Errorf("%s: example %q is of another command", c.name, x)
			}
		}
		fs := flag.NewFlagSet(c.name, flag.ContinueOnError)
		c.setup(fs)
		fs.VisitAll(func(f *flag.Flag) {
			if f.Usage == "" {
				t.Errorf("%s: flag %s has no text", c.name, f.Name)
			}
		})
		if code, out, _ := call(t, "help", c.name); code != exitOK || !strings.Contains(out, c.examples[0]) {
			t.Errorf("help %s: exit %d\n%s", c.name, code, out)
		}
	}
}

func TestUsage(t *testing.T) {
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{nil, exitUsage, "busgate help COMMAND tells more"},
		{[]string{"chekc"}, exitUsage, "unknown command `chekc` (did you mean `check`?)"},
		{[]string{"xyz"}, exitUsage, "unknown command `xyz`\n"},
		{[]string{"version", "--jso"}, exitUsage, "busgate version: flag provided but not defined: -jso (see: busgate help version)"},
		{[]string{"version", "now"}, exitUsage, "takes no arguments"},
		{[]string{"help"}, exitOK, "check"},
		{[]string{"--version"}, exitOK, "busgate dev "},
		{[]string{"version", "--json"}, exitOK, `"version":"dev"`},
	} {
		code, out, errs := call(t, c.args...)
		if code != c.code || !strings.Contains(out+errs, c.want) {
			t.Errorf("%q: exit %d, %q", c.args, code, out+errs)
		}
	}
}

func TestFlagsMayFollowArguments(t *testing.T) {
	var got []string
	var loud bool
	c := command{name: "x", args: "WORD...", setup: func(fs *flag.FlagSet) func(context.Context, *env, []string) int {
		l := fs.Bool("loud", false, "loud")
		return func(_ context.Context, _ *env, args []string) int { got, loud = args, *l; return 0 }
	}}
	for _, tc := range []struct {
		args, want []string
		loud       bool
	}{
		{[]string{"a", "--loud", "b"}, []string{"a", "b"}, true},
		{[]string{"a", "--", "--loud"}, []string{"a", "--loud"}, false},
		{[]string{"--loud"}, nil, true},
	} {
		if code := c.call(t.Context(), &env{stderr: &bytes.Buffer{}}, tc.args); code != 0 || !slices.Equal(got, tc.want) || loud != tc.loud {
			t.Errorf("%q: exit %d, %q %v", tc.args, code, got, loud)
		}
	}
}

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"chekc", "check", 1}, {"", "abc", 3}, {"run", "run", 0}, {"rnu", "run", 1}, {"demo", "memo", 1}} {
		if got := distance(c.a, c.b); got != c.want {
			t.Errorf("distance(%q, %q) = %d, want %d", c.a, c.b, got, c.want)
		}
	}
}
