package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"time"
)

// file is one entry of a package.
type file struct {
	path string // from "/"
	mode int64
	body []byte // nil: a folder
	conf bool   // a conffile: dpkg keeps the owner's edits
}

// archive writes a package (deb(5)): an ar archive of three members.
func archive(control, data []file, when time.Time, filters []string) ([]byte, error) {
	members := []struct {
		name string
		body []byte
	}{{name: "debian-binary", body: []byte("2.0\n")}, {name: "control.tar.xz"}, {name: "data.tar.xz"}}
	for i, list := range [][]file{control, data} {
		raw, err := tarball(list, when)
		if err != nil {
			return nil, err
		}
		if i == 0 {
			members[1].body, err = compress(raw, nil)
		} else {
			members[2].body, err = compress(raw, filters)
		}
		if err != nil {
			return nil, err
		}
	}
	var b bytes.Buffer
	b.WriteString("!<arch>\n")
	for _, m := range members {
		addMember(&b, m.name, m.body, when)
	}
	return b.Bytes(), nil
}

// addMember appends a member to an ar archive; the next begins at an even byte.
func addMember(b *bytes.Buffer, name string, body []byte, when time.Time) {
	fmt.Fprintf(b, "%-16s%-12d%-6d%-6d%-8s%-10d`\n", name, when.Unix(), 0, 0, "100644", len(body))
	b.Write(body)
	if len(body)%2 == 1 {
		b.WriteByte('\n')
	}
}

// tarball writes files in the order of their paths, each after its folders.
func tarball(files []file, when time.Time) ([]byte, error) {
	var raw bytes.Buffer
	w := tar.NewWriter(&raw)
	for _, f := range withFolders(files) {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: "." + f.path, Mode: f.mode, Size: int64(len(f.body)),
			ModTime: when, Uname: "root", Gname: "root", Format: tar.FormatGNU}
		if f.body == nil {
			h.Typeflag = tar.TypeDir
			h.Name = strings.TrimSuffix(h.Name, "/") + "/"
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("%s: %w", f.path, err)
		}
		if _, err := w.Write(f.body); err != nil {
			return nil, fmt.Errorf("%s: %w", f.path, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return raw.Bytes(), nil
}

// withFolders adds the folders that files need and sorts by path.
func withFolders(files []file) []file {
	all := slices.Clone(files)
	seen := map[string]bool{}
	for _, f := range files {
		if f.body == nil {
			seen[f.path] = true
		}
	}
	for _, f := range files {
		for dir := path.Dir(f.path); !seen[dir]; dir = path.Dir(dir) {
			seen[dir] = true
			all = append(all, file{path: dir, mode: 0o755})
		}
	}
	slices.SortFunc(all, func(a, b file) int { return strings.Compare(a.path, b.path) })
	return all
}

// compress packs with xz. The dictionary of 16 MiB is about what is packed, and
// what a Pi Zero has to spare when it unpacks.
func compress(raw []byte, filters []string) ([]byte, error) {
	cmd := exec.Command("xz", append([]string{"--stdout", "--format=xz", "--threads=1", "--check=crc32"},
		append(filters, "--lzma2=preset=9e,dict=16MiB")...)...)
	cmd.Stdin, cmd.Stderr = bytes.NewReader(raw), os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("xz (Debian's package xz-utils): %w", err)
	}
	return out, nil
}

// gzipped packs manuals and documents as Debian has them: no name, no time.
func gzipped(body []byte) ([]byte, error) {
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	if _, err := z.Write(body); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}
