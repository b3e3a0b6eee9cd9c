package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// program is the program of this tree, built once.
var program = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "mkdeb-test")
	if err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "busgate")
	out, err := exec.Command("go", "build", "-o", bin, "../../cmd/busgate").CombinedOutput()
	if err != nil {
		os.RemoveAll(dir)
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return bin, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if bin, err := program(); err == nil {
		os.RemoveAll(filepath.Dir(bin))
	}
	os.Exit(code)
}

// ask runs the program.
func ask(t *testing.T) func(args ...string) (string, error) {
	t.Helper()
	bin, err := program()
	if err != nil {
		t.Fatal(err)
	}
	return func(args ...string) (string, error) {
		out, err := exec.Command(bin, args...).Output()
		return string(out), err
	}
}

// testBuilder is a builder of this tree with the real help.
func testBuilder(t *testing.T) *builder {
	t.Helper()
	commands, err := readCommands(ask(t))
	if err != nil {
		t.Fatal(err)
	}
	return &builder{root: "../..", commands: commands, release: release{version: "1.2.3", date: time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)}}
}

// TestContents: what is installed, where, with which modes.
func TestContents(t *testing.T) {
	files, err := testBuilder(t).contents([]byte("program"), []byte("modules"))
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	for _, f := range withFolders(files) {
		kind := "file"
		if f.body == nil {
			kind = "folder"
		}
		if f.conf {
			kind = "conffile"
		}
		fmt.Fprintf(&got, "%04o %-8s %s\n", f.mode, kind, f.path)
	}
	const golden = "testdata/contents.golden"
	if *update {
		if err := os.WriteFile(golden, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("the package contains\n%s\nwant\n%s", got.String(), want)
	}
}

func TestMember(t *testing.T) {
	var b bytes.Buffer
	addMember(&b, "a", []byte("odd"), time.Unix(1, 0))
	addMember(&b, "b", []byte("even"), time.Unix(1, 0))
	want := "a               1           0     0     100644  3         `\nodd\nb               1           0     0     100644  4         `\neven"
	if b.String() != want {
		t.Errorf("%q, want %q", b.String(), want)
	}
}

// TestConffile: as it is shipped it runs without devices; with every key taken
// out of its comment it is a device map without a mistake; and it has every line
// of the annotated example, which the room config checks against its keys.
func TestConffile(t *testing.T) {
	read := func(name string) []byte {
		t.Helper()
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	full := read("../../" + examples + "full.toml")
	shipped := conffile(read("../debian/busgate.toml.head"), full)
	check := func(name string, text []byte, want string) {
		t.Helper()
		file := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(file, text, 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := ask(t)("check", file)
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("%v: %q is not in\n%s", err, want, out)
		}
	}
	check("shipped.toml", shipped, "shipped.toml: ok: 0 buses, 0 devices, 0 uplinks, ")
	live := regexp.MustCompile(`(?m)^[^#\n\s].*$`).FindAllString(string(shipped), -1)
	if !slices.Equal(live, []string{"[gateway]"}) {
		t.Errorf("live lines: %q", live)
	}
	check("all.toml", []byte(uncommented(shipped)), "all.toml: ok: 1 bus, 1 device, 1 uplink, ")
	for line := range strings.Lines(string(full)) {
		if !strings.Contains(uncommented(shipped), "\n"+line) {
			t.Errorf("not in the conffile: %q", line)
		}
	}
}

// uncommented takes each key and table out of its comment, as an owner would,
// but not those which have no default.
func uncommented(text []byte) string {
	var b strings.Builder
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "#"); ok && strings.IndexFunc(rest, func(r rune) bool { return r == '[' || r >= 'a' && r <= 'z' }) == 0 && !strings.HasPrefix(rest, "opt ") {
			line = rest
		}
		b.WriteString(line)
	}
	return b.String()
}

// TestManual: every command and option has its place in busgate(1), and the
// statuses there and in the unit are those of the program.
func TestManual(t *testing.T) {
	b := testBuilder(t)
	text := string(manual(b.commands, b.release))
	for _, c := range b.commands {
		_, part, ok := strings.Cut(text, ".SS \"busgate "+c.name)
		if !ok {
			t.Errorf("%s is missing", c.name)
		}
		part, _, _ = strings.Cut(part, ".SS")
		if len(c.examples) == 0 || !strings.Contains(part, roff(c.examples[0])) || !strings.Contains(part, roff(c.short)) {
			t.Errorf("%s: %s", c.name, part)
		}
		for _, o := range c.options {
			if !strings.Contains(part, ".B "+roff(o.name)) || !strings.Contains(part, roff(o.text)) {
				t.Errorf("%s %s is missing", c.name, o.name)
			}
		}
	}
	source, err := os.ReadFile("../../cmd/busgate/main.go")
	if err != nil {
		t.Fatal(err)
	}
	unit, err := os.ReadFile("../debian/busgate.service")
	if err != nil {
		t.Fatal(err)
	}
	statuses := regexp.MustCompile(`(?m)^\texit(\w+) *= (\d+)$`).FindAllStringSubmatch(string(source), -1)
	if len(statuses) < 6 {
		t.Fatalf("statuses in main.go: %v", statuses)
	}
	for _, s := range statuses {
		if !strings.Contains(text, "\n.B "+s[2]+"\n") {
			t.Errorf("status %s (%s) is not in the manual", s[2], s[1])
		}
		if s[1] == "Config" && !strings.Contains(string(unit), "\nRestartPreventExitStatus="+s[2]+"\n") {
			t.Errorf("the unit starts again after status %s", s[2])
		}
	}
}

func TestRoff(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"a-b", `a\-b`}, {".start", `\&.start`}, {"it's `x`", `it\(aqs \(gax\(ga`}, {`C:\x`, `C:\(rsx`}, {"'x", `\(aqx`},
	} {
		if got := roff(c.in); got != c.want {
			t.Errorf("%q: %q, want %q", c.in, got, c.want)
		}
	}
}

func TestReadCommand(t *testing.T) {
	c, err := readCommand("scan", "busgate scan [HOST[:PORT]]: finds things: units\n\n  busgate scan\n\n  --fast             only some\n  --format LIST      only these, LIST as in 8N1\n  --c                make it\n  -t, --x\n")
	want := command{name: "scan", args: "[HOST[:PORT]]", short: "finds things: units", examples: []string{"busgate scan", "-t, --x"},
		options: []option{{"--fast", "", "only some"}, {"--format", "LIST", "only these, LIST as in 8N1"}, {"-c", "", "make it"}}}
	if err != nil || fmt.Sprint(c) != fmt.Sprint(want) {
		t.Errorf("%v\n%v\n%v", err, c, want)
	}
	for _, text := range []string{"usage: scan", "busgate read: reads", "busgate scan: x\nsomething else"} {
		if _, err := readCommand("scan", text); err == nil {
			t.Errorf("%q is taken for a help", text)
		}
	}
}

func TestNewestRelease(t *testing.T) {
	r, err := newestRelease("../changelog")
	if err != nil || r.version == "" || r.date.IsZero() {
		t.Errorf("%v, %v", r, err)
	}
	file := filepath.Join(t.TempDir(), "changelog")
	for _, c := range []struct{ text, want string }{
		{"busgate (2.0~rc1) unstable; urgency=medium\n\n  * x\n\n -- a <b>  Sat, 21 Nov 2026 16:00:00 +0100\n\nbusgate (1.0) unstable\n", "2.0~rc1 2026-11-21T15:00:00Z"},
		{"busgate (2.0) unstable; urgency=medium\n\n  * x\n", ""},
		{"busgate (2.0) unstable; urgency=medium\n\n -- a <b>  today\n", ""},
		{"", ""},
	} {
		if err := os.WriteFile(file, []byte(c.text), 0o644); err != nil {
			t.Fatal(err)
		}
		r, err := newestRelease(file)
		if got := r.version + " " + r.date.Format(time.RFC3339); c.want != "" && got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%q: %q, %v", c.text, got, err)
		}
	}
	for _, c := range []struct{ epoch, want string }{{"", "1970-01-01"}, {"1000000000", "2001-09-09"}, {"today", ""}} {
		r := release{date: time.Unix(0, 0).UTC()}
		if err := r.redate(c.epoch); err == nil && (r.date.Format(time.DateOnly) != c.want || r.date.Location() != time.UTC) || (err == nil) != (c.want != "") {
			t.Errorf("SOURCE_DATE_EPOCH=%s: %v, %v", c.epoch, r.date, err)
		}
	}
}

// TestModules: each module that is linked in is named, with its terms.
func TestModules(t *testing.T) {
	b := testBuilder(t)
	text, err := b.modules([]string{"GOARCH=arm", "GOARM=6"})
	if err != nil {
		t.Fatal(err)
	}
	if err := addTerms(&bytes.Buffer{}, "example.org/x", "v1", t.TempDir()); err == nil {
		t.Error("a module without terms is taken")
	}
	for _, want := range []string{"==== go ", "==== modernc.org/sqlite v", "==== github.com/BurntSushi/toml v", "Permission is hereby granted"} {
		if !bytes.Contains(text, []byte(want)) {
			t.Errorf("%q is not in modules.txt", want)
		}
	}
	var names []string
	for _, m := range regexp.MustCompile(`(?m)^==== (\S+ v\S+): `).FindAllStringSubmatch(string(text), -1) {
		names = append(names, m[1])
	}
	if len(names) < 5 || !slices.IsSorted(names) {
		t.Errorf("not in order: %q", names)
	}
}
