package main

import (
	"bytes"
	"crypto/md5"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

const (
	docs     = "/usr/share/doc/busgate/"
	examples = "config/testdata/examples/"

	mapFolder = "/etc/busgate"
)

// contents is everything that the package installs.
func (b *builder) contents(program, modules []byte) ([]file, error) {
	full, err := b.read(examples + "full.toml")
	if err != nil {
		return nil, err
	}
	head, err := b.read("packaging/debian/busgate.toml.head")
	if err != nil {
		return nil, err
	}
	files := []file{
		{path: "/usr/bin/busgate", mode: 0o755, body: program},
		{path: "/etc/busgate/busgate.toml", mode: 0o644, body: conffile(head, full), conf: true},
		{path: "/etc/busgate/conf.d", mode: 0o755},
		{path: "/etc/busgate/profiles", mode: 0o755},
		{path: "/etc/busgate/credentials", mode: 0o700},
		{path: "/usr/share/bash-completion/completions/busgate", mode: 0o644, body: bashCompletion(b.commands, mapFolder)},
		{path: "/usr/share/zsh/vendor-completions/_busgate", mode: 0o644, body: zshCompletion(b.commands, mapFolder)},
		{path: "/usr/share/fish/vendor_completions.d/busgate.fish", mode: 0o644, body: fishCompletion(b.commands, mapFolder)},
	}
	for _, f := range []struct{ from, to string }{
		{"packaging/debian/busgate.service", "/usr/lib/systemd/system/busgate.service"},
		{"packaging/debian/busgate.sysusers", "/usr/lib/sysusers.d/busgate.conf"},
		{"packaging/debian/60-busgate.rules", "/usr/lib/udev/rules.d/60-busgate.rules"},
		{"packaging/debian/lintian-overrides", "/usr/share/lintian/overrides/busgate"},
		{"packaging/debian/copyright", docs + "copyright"},
		{"packaging/debian/README.Debian", docs + "README.Debian"},
		{examples + "full.toml", docs + "examples/full.toml"},
		{examples + "realistic.toml", docs + "examples/realistic.toml"},
		{examples + "minimal.toml", docs + "examples/minimal.toml"},
	} {
		body, err := b.read(f.from)
		if err != nil {
			return nil, err
		}
		files = append(files, file{path: f.to, mode: 0o644, body: body})
	}
	changelog, err := b.read("packaging/changelog")
	if err != nil {
		return nil, err
	}
	readme, err := b.read("README.md")
	if err != nil {
		return nil, err
	}
	for _, f := range []file{
		{path: docs + "changelog.gz", body: changelog},
		{path: docs + "README.md.gz", body: readme},
		{path: docs + "modules.txt.gz", body: modules},
		{path: "/usr/share/man/man1/busgate.1.gz", body: manual(b.commands, b.release)},
		{path: "/usr/share/man/man5/busgate.toml.5.gz", body: mapManual(full, b.release)},
	} {
		if f.body, err = gzipped(f.body); err != nil {
			return nil, err
		}
		f.mode = 0o644
		files = append(files, f)
	}
	return files, nil
}

func (b *builder) read(name string) ([]byte, error) {
	return os.ReadFile(filepath.Join(b.root, filepath.FromSlash(name)))
}

// live is what stands uncommented in the conffile: with it alone the service
// runs and says that there are no devices yet.
const live = "[gateway]"

// conffile comments every key and table of the annotated example out, without a
// blank: `#key = value`. Lines with a blank after the # are remarks.
func conffile(head, full []byte) []byte {
	var b bytes.Buffer
	b.Write(head)
	for line := range strings.Lines(string(full)) {
		text := strings.TrimSpace(line)
		if text != "" && text[0] != '#' && text != live {
			b.WriteByte('#')
		}
		b.WriteString(line)
	}
	return b.Bytes()
}

// control is what dpkg wants to know, and the maintainer scripts.
func (b *builder) control(arch string, files []file) ([]file, error) {
	text, err := b.read("packaging/debian/control")
	if err != nil {
		return nil, err
	}
	var sums, confs bytes.Buffer
	size := 0
	for _, f := range withFolders(files) {
		size++ // as dpkg-gencontrol counts: 1 KiB for a folder
		if f.body == nil {
			continue
		}
		size += (len(f.body)+1023)/1024 - 1
		fmt.Fprintf(&sums, "%x  %s\n", md5.Sum(f.body), f.path[1:])
		if f.conf {
			fmt.Fprintln(&confs, f.path)
		}
	}
	filled := strings.NewReplacer("@VERSION@", b.release.version, "@ARCH@", arch, "@SIZE@", strconv.Itoa(size)).Replace(string(text))
	list := []file{
		{path: "/conffiles", mode: 0o644, body: confs.Bytes()},
		{path: "/control", mode: 0o644, body: []byte(filled)},
		{path: "/md5sums", mode: 0o644, body: sums.Bytes()},
	}
	for _, name := range []string{"postinst", "postrm", "prerm"} {
		body, err := b.read("packaging/debian/" + name)
		if err != nil {
			return nil, err
		}
		list = append(list, file{path: "/" + name, mode: 0o755, body: body})
	}
	return list, nil
}

// licence is how modules call the file with their terms.
var licence = regexp.MustCompile(`(?i)^(licen[cs]e|copying|notice)`)

// modules lists what others wrote and is linked into the program, with terms.
func (b *builder) modules(env []string) ([]byte, error) {
	cmd := exec.Command("go", "list", "-deps", "-tags", "nethttpomithttp2", "-f",
		"{{with .Module}}{{if not .Main}}{{.Path}}\t{{.Version}}\t{{.Dir}}{{end}}{{end}}", "./cmd/busgate")
	cmd.Dir, cmd.Stderr = b.root, os.Stderr
	cmd.Env = environment(env)
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	lines := strings.Fields(strings.ReplaceAll(string(out), "\t", "|"))
	slices.Sort(lines)
	var text bytes.Buffer
	fmt.Fprintf(&text, "The Go runtime and library, and these modules, are linked into busgate:\n")
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return nil, fmt.Errorf("go env: %w", err)
	}
	lines = append([]string{"go||" + strings.TrimSpace(string(goroot))}, slices.Compact(lines)...)
	for _, line := range lines {
		f := strings.Split(line, "|")
		if err := addTerms(&text, f[0], f[1], f[2]); err != nil {
			return nil, err
		}
	}
	return text.Bytes(), nil
}

// addTerms appends the files of a module that say how it may be used.
func addTerms(text *bytes.Buffer, module, version, dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	found := false
	for _, e := range entries {
		if e.IsDir() || !licence.MatchString(e.Name()) {
			continue
		}
		body, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return err
		}
		found = true
		fmt.Fprintf(text, "\n==== %s %s: %s\n\n%s", module, version, e.Name(), body)
	}
	if !found {
		return fmt.Errorf("module %s has no file with its licence", module)
	}
	return nil
}
