// Command mkdeb builds the Debian packages, one per architecture:
//
//	go run ./packaging/mkdeb
//	go run ./packaging/mkdeb -arch arm64 -out /tmp
//
// Equal sources give equal bytes: the version and the time of every file are
// those of the newest entry of packaging/changelog (or SOURCE_DATE_EPOCH),
// owners are root, every list is sorted. Besides Go it needs xz.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// target is how Go builds for one architecture of Debian.
type target struct {
	env []string
	xz  []string // filters that make machine code pack better
}

// targets are the architectures we ship. Raspberry Pi OS calls ARMv6 "armhf", and
// a binary for ARMv7 dies with "Illegal instruction" on a Zero and a 1.
var targets = map[string]target{
	"amd64": {env: []string{"GOARCH=amd64", "GOAMD64=v1"}, xz: []string{"--x86"}},
	"arm64": {env: []string{"GOARCH=arm64", "GOARM64=v8.0"}},
	"armhf": {env: []string{"GOARCH=arm", "GOARM=6"}, xz: []string{"--arm"}},
}

func main() {
	archs := flag.String("arch", "amd64,arm64,armhf", "architectures of Debian")
	out := flag.String("out", "dist", "folder for the packages")
	flag.Parse()
	if err := run(strings.Split(*archs, ","), *out); err != nil {
		fmt.Fprintln(os.Stderr, "mkdeb:", err)
		os.Exit(1)
	}
}

func run(archs []string, out string) error {
	root, err := moduleRoot()
	if err != nil {
		return err
	}
	r, err := newestRelease(filepath.Join(root, "packaging", "changelog"))
	if err != nil {
		return err
	}
	if err := r.redate(os.Getenv("SOURCE_DATE_EPOCH")); err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	work, err := os.MkdirTemp("", "mkdeb")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	b := &builder{root: root, work: work, release: r}
	if err := b.askProgram(); err != nil {
		return err
	}
	for _, arch := range archs {
		deb, err := b.pack(arch)
		if err != nil {
			return fmt.Errorf("%s: %w", arch, err)
		}
		name := filepath.Join(out, fmt.Sprintf("busgate_%s_%s.deb", r.version, arch))
		if err := os.WriteFile(name, deb, 0o644); err != nil {
			return err
		}
		fmt.Println(name, len(deb))
	}
	return nil
}

// moduleRoot is the folder of go.mod.
func moduleRoot() (string, error) {
	mod, err := exec.Command("go", "env", "GOMOD").Output()
	name := strings.TrimSpace(string(mod))
	if err != nil || !strings.HasSuffix(name, "go.mod") {
		return "", fmt.Errorf("run this inside the source tree of busgate")
	}
	return filepath.Dir(name), nil
}

// builder makes the packages of one release.
type builder struct {
	root, work string
	release    release
	commands   []command // of the program's help
}

// askProgram builds the program for this machine and asks it for its help.
func (b *builder) askProgram() (err error) {
	bin := filepath.Join(b.work, "busgate-host")
	if err := b.build(bin, "GOARCH="+runtime.GOARCH); err != nil {
		return err
	}
	b.commands, err = readCommands(func(args ...string) (string, error) {
		out, err := exec.Command(bin, args...).Output()
		return string(out), err
	})
	return err
}

// environment is that of this process without what would change the bytes.
func environment(more []string) []string {
	return append(append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOFLAGS=", "GOEXPERIMENT="), more...)
}

// build compiles the program as it is shipped: static, without paths of this
// machine or the state of its git, and without HTTP/2, which nothing here speaks.
func (b *builder) build(file string, env ...string) error {
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-tags", "nethttpomithttp2",
		"-ldflags", "-s -w -X main.version="+b.release.version+" -X main.buildDate="+b.release.date.Format(time.DateOnly), "-o", file, "./cmd/busgate")
	cmd.Dir, cmd.Stderr = b.root, os.Stderr
	cmd.Env = environment(env)
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("go build: %w", err)
	}
	return nil
}

// pack makes the package of one architecture.
func (b *builder) pack(arch string) ([]byte, error) {
	t, ok := targets[arch]
	if !ok {
		return nil, fmt.Errorf("busgate is packaged for amd64, arm64 and armhf")
	}
	bin := filepath.Join(b.work, "busgate-"+arch)
	if err := b.build(bin, t.env...); err != nil {
		return nil, err
	}
	program, err := os.ReadFile(bin)
	if err != nil {
		return nil, err
	}
	modules, err := b.modules(t.env)
	if err != nil {
		return nil, err
	}
	files, err := b.contents(program, modules)
	if err != nil {
		return nil, err
	}
	control, err := b.control(arch, files)
	if err != nil {
		return nil, err
	}
	return archive(control, files, b.release.date, t.xz)
}
