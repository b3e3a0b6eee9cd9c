package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// packed makes a package for armhf with 2 KiB in the place of the program, its
// files given in the order of contents or turned.
func packed(t *testing.T, b *builder, turn bool) (deb []byte, files []file) {
	t.Helper()
	files, err := b.contents(bytes.Repeat([]byte("program!"), 256), []byte("modules"))
	if err != nil {
		t.Fatal(err)
	}
	if turn {
		slices.Reverse(files)
	}
	control, err := b.control("armhf", files)
	if err != nil {
		t.Fatal(err)
	}
	deb, err = archive(control, files, b.release.date, targets["armhf"].xz)
	if err != nil {
		t.Fatal(err)
	}
	return deb, files
}

// dpkg writes a package to a file, for Debian's own tools.
func dpkg(t *testing.T) (deb string, files []file) {
	t.Helper()
	if _, err := exec.LookPath("dpkg-deb"); err != nil {
		t.Skip("no dpkg-deb here")
	}
	body, files := packed(t, testBuilder(t), false)
	deb = filepath.Join(t.TempDir(), "x.deb")
	if err := os.WriteFile(deb, body, 0o644); err != nil {
		t.Fatal(err)
	}
	return deb, files
}

// output runs a command in UTC.
func output(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "TZ=UTC", "LC_ALL=C")
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		errors.As(err, &exit)
		t.Fatalf("%s %q: %v\n%s%s", name, args, err, out, exit.Stderr)
	}
	return string(out)
}

// TestArchive: equal input gives equal bytes, whatever the order.
func TestArchive(t *testing.T) {
	one, _ := packed(t, testBuilder(t), false)
	if two, _ := packed(t, testBuilder(t), true); !bytes.Equal(one, two) {
		t.Error("two packages of the same differ")
	}
}

// TestEntries: each entry has its mode, belongs to root and is as old as the
// release, in the order of the paths, as dpkg reads it.
func TestEntries(t *testing.T) {
	deb, files := dpkg(t)
	var want, got []string
	for _, f := range withFolders(files) {
		mode, name := fs.FileMode(f.mode), "."+f.path
		if f.body == nil {
			mode |= fs.ModeDir
			name = strings.TrimSuffix(name, "/") + "/"
		}
		want = append(want, fmt.Sprintf("%s root/root %d 2001-02-03 04:05 %s", mode, len(f.body), name))
	}
	for line := range strings.Lines(output(t, "", "dpkg-deb", "-c", deb)) {
		got = append(got, strings.Join(strings.Fields(line), " "))
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestControl: what dpkg is told agrees with what it unpacks.
func TestControl(t *testing.T) {
	deb, _ := dpkg(t)
	root := t.TempDir()
	output(t, "", "dpkg-deb", "-x", deb, root)

	// Numbers by another way than ours: of the unpacked tree.
	kib, regular := 0, 0
	if err := filepath.WalkDir(root, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			kib++
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		regular++
		kib += int((info.Size() + 1023) / 1024)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	fields := output(t, "", "dpkg-deb", "-f", deb, "Package", "Version", "Architecture", "Installed-Size")
	if want := fmt.Sprintf("Package: busgate\nVersion: 1.2.3\nArchitecture: armhf\nInstalled-Size: %d\n", kib); fields != want {
		t.Errorf("%q, want %q", fields, want)
	}

	modes, bodies := map[string]int64{}, map[string]string{}
	for r := tar.NewReader(strings.NewReader(output(t, "", "dpkg-deb", "--ctrl-tarfile", deb))); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		modes[h.Name], bodies[h.Name] = h.Mode, string(body)
	}
	if want := "map[./:493 ./conffiles:420 ./control:420 ./md5sums:420 ./postinst:493 ./postrm:493 ./prerm:493]"; fmt.Sprint(modes) != want {
		t.Errorf("%v, want %s", modes, want)
	}
	if got := bodies["./conffiles"]; got != "/etc/busgate/busgate.toml\n" {
		t.Errorf("conffiles: %q", got)
	}
	sums := filepath.Join(t.TempDir(), "md5sums")
	if err := os.WriteFile(sums, []byte(bodies["./md5sums"]), 0o644); err != nil {
		t.Fatal(err)
	}
	output(t, root, "md5sum", "--check", "--strict", sums)
	if n := strings.Count(bodies["./md5sums"], "\n"); n != regular {
		t.Errorf("%d sums for %d files", n, regular)
	}
	if strings.Contains(bodies["./md5sums"], "  /") {
		t.Error("dpkg takes no / before a path in md5sums")
	}
}

// TestFilesAreWhatTheirNamesSay: nothing is in another one's place, and what is
// packed tells neither a name nor a time.
func TestFilesAreWhatTheirNamesSay(t *testing.T) {
	files, err := testBuilder(t).contents([]byte("program"), []byte("modules"))
	if err != nil {
		t.Fatal(err)
	}
	holds := map[string]string{
		"/usr/bin/busgate": "program", "/etc/busgate/busgate.toml": "\n[gateway]\n",
		"/usr/lib/systemd/system/busgate.service": "\n[Service]\n", "/usr/lib/sysusers.d/busgate.conf": "u busgate ",
		"/usr/lib/udev/rules.d/60-busgate.rules": "ATTR{latency_timer}=", "/usr/share/lintian/overrides/busgate": "\nbusgate: statically-linked-binary",
		docs + "copyright": "busgate\nCopyright ", docs + "README.Debian": "busgate on Debian", docs + "README.md.gz": "# busgate\n",
		docs + "examples/full.toml": "\n[uplink.", docs + "examples/realistic.toml": "\n[device.", docs + "examples/minimal.toml": "# One energy meter",
		docs + "changelog.gz": "busgate (", docs + "modules.txt.gz": "modules",
		"/usr/share/man/man1/busgate.1.gz": "\n.TH BUSGATE 1 ", "/usr/share/man/man5/busgate.toml.5.gz": "\n.TH BUSGATE.TOML 5 ",
		"/usr/share/bash-completion/completions/busgate": "# bash completion", "/usr/share/zsh/vendor-completions/_busgate": "#compdef busgate",
		"/usr/share/fish/vendor_completions.d/busgate.fish": "complete -c busgate",
	}
	for _, f := range files {
		if f.body == nil {
			continue
		}
		body := f.body
		if strings.HasSuffix(f.path, ".gz") {
			z, err := gzip.NewReader(bytes.NewReader(body))
			if err != nil {
				t.Fatalf("%s: %v", f.path, err)
			}
			if z.Name != "" || !z.ModTime.Equal(time.Time{}) || body[8] != 2 { // RFC 1952: XFL 2 is the best compression
				t.Errorf("%s: name %q, time %v, XFL %d", f.path, z.Name, z.ModTime, body[8])
			}
			if body, err = io.ReadAll(z); err != nil {
				t.Fatalf("%s: %v", f.path, err)
			}
		}
		if want, ok := holds[f.path]; !ok || !bytes.Contains(body, []byte(want)) {
			t.Errorf("%s begins with %q and does not hold %q", f.path, body[:min(60, len(body))], want)
		}
	}
}
