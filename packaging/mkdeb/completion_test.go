package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// mapOf makes a folder with a device map of two files.
func mapOf(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "conf.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"busgate.toml":     "[gateway]\n[bus.meters]\nserial = \"/dev/ttyUSB0\"\n[device.grid] # the big one\n[device.grid.points]\n#[device.not-me]\n",
		"conf.d/more.toml": "[device.pv-2]\n[uplink.cloud]\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// offered is what the commands offer as arguments, of that map.
var offered = []struct{ line, want string }{
	{"write ", "grid pv-2"},
	{"read ", "grid meters pv-2"},
	{"monitor ", "meters"},
	{"scan ", "meters"},
	{"uplink test ", "cloud"},
	{"buffer export ", "cloud"},
	{"buffer ex", "export"},
	{"help sc", "scan"},
}

// TestBashCompletion asks a real bash.
func TestBashCompletion(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("no bash here")
	}
	b := testBuilder(t)
	file := filepath.Join(t.TempDir(), "busgate")
	if err := os.WriteFile(file, bashCompletion(b.commands, mapOf(t)), 0o644); err != nil {
		t.Fatal(err)
	}
	var script strings.Builder
	fmt.Fprintf(&script, "source %s\noffer() { COMP_WORDS=(\"$@\"); COMP_CWORD=$((${#COMP_WORDS[@]}-1)); _busgate; echo \"${COMPREPLY[*]}\"; }\n", file)
	fmt.Fprintln(&script, `compopt() { :; }; offer busgate ""`)
	for _, c := range b.commands {
		fmt.Fprintf(&script, "offer busgate %s -\n", c.name)
	}
	for _, o := range offered {
		fmt.Fprintf(&script, "offer busgate %s\n", strings.ReplaceAll(o.line+"$", " $", ` ""`))
	}
	fmt.Fprintf(&script, "offer busgate check %s\n", strings.TrimSuffix(file, "te"))
	out, err := exec.Command(bash, "-c", strings.ReplaceAll(script.String(), "$\n", "\n")).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(lines) != len(b.commands)+len(offered)+2 {
		t.Fatalf("%d lines:\n%s", len(lines), out)
	}
	for i, c := range b.commands {
		if !slices.Contains(strings.Fields(lines[0]), c.name) {
			t.Errorf("%s is not offered: %s", c.name, lines[0])
		}
		for _, o := range c.options {
			if !slices.Contains(strings.Fields(lines[i+1]), o.name) {
				t.Errorf("%s: %s is not offered: %s", c.name, o.name, lines[i+1])
			}
		}
	}
	for i, o := range offered {
		if got := withoutPorts(lines[len(b.commands)+1+i]); got != o.want {
			t.Errorf("%q: %q, want %q", o.line, got, o.want)
		}
	}
	if got := lines[len(lines)-1]; got != file {
		t.Errorf("%q, want %q", got, file)
	}
}

// withoutPorts sorts what was offered and leaves out the serial ports of this computer.
func withoutPorts(offer string) string {
	words := slices.DeleteFunc(strings.Fields(offer), func(w string) bool { return strings.HasPrefix(w, "/dev/") })
	slices.Sort(words)
	return strings.Join(words, " ")
}

// TestFishCompletion asks a real fish, where there is one.
func TestFishCompletion(t *testing.T) {
	b := testBuilder(t)
	text := fishCompletion(b.commands, mapOf(t))
	for _, c := range b.commands {
		if !bytes.Contains(text, []byte(c.name)) {
			t.Errorf("%s is missing", c.name)
		}
	}
	fish, err := exec.LookPath("fish")
	if err != nil {
		t.Skip("no fish here: apt-get install fish")
	}
	file := filepath.Join(t.TempDir(), "busgate.fish")
	if err := os.WriteFile(file, text, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, o := range offered {
		if strings.HasPrefix(o.line, "buffer export") || strings.HasPrefix(o.line, "uplink test") {
			continue // fish offers first and second arguments together
		}
		cmd := exec.Command(fish, "--no-config", "-c", "source "+file+"; complete -C 'busgate "+o.line+"'")
		cmd.Env = append(os.Environ(), "HOME="+t.TempDir())
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		var words []string
		for line := range strings.Lines(string(out)) {
			word, _, _ := strings.Cut(strings.TrimSpace(line), "\t")
			words = append(words, word)
		}
		for _, want := range strings.Fields(o.want) {
			if !slices.Contains(words, want) {
				t.Errorf("%q: %q is not in %q", o.line, want, words)
			}
		}
	}
}

// TestZshCompletion lets zsh parse it, and fill in the names, where there is one.
func TestZshCompletion(t *testing.T) {
	b := testBuilder(t)
	text := zshCompletion(b.commands, mapOf(t))
	for _, c := range b.commands {
		if !bytes.Contains(text, []byte(c.name)) {
			t.Errorf("%s is missing", c.name)
		}
	}
	zsh, err := exec.LookPath("zsh")
	if err != nil {
		t.Skip("no zsh here: apt-get install zsh")
	}
	file := filepath.Join(t.TempDir(), "_busgate")
	if err := os.WriteFile(file, text, 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(zsh, "-f", "-c", `_arguments() { print -r -- "$@[-1]"; }; words=(busgate write ""); CURRENT=3; f() { source `+file+` }; f`).CombinedOutput()
	if want := "*:name:(grid\npv-2)\n"; err != nil || string(out) != want {
		t.Errorf("%v: %q, want %q", err, out, want)
	}
}
