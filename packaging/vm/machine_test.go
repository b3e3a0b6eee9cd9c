package vm

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience is for machines without acceleration on a computer that has other
// work: seconds on an idle one.
const patience = 15 * time.Minute

// needVM skips a test that was not asked for and gives the folder of what an
// architecture boots.
func needVM(t *testing.T, arch string) string {
	t.Helper()
	if os.Getenv("BUSGATE_VM") == "" {
		t.Skip("boots virtual machines, minutes to an hour: sudo BUSGATE_VM=1 go test -v -timeout 2h -run " + t.Name() + " ./packaging/vm")
	}
	cache := os.Getenv("BUSGATE_CACHE")
	if cache == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		cache = filepath.Join(base, "busgate-packaging")
	}
	dir := filepath.Join(cache, "vm-"+arch)
	if out, err := exec.Command("./assets", arch, dir).CombinedOutput(); err != nil {
		t.Fatalf("assets %s: %v\n%s", arch, err, out)
	}
	return dir
}

// buildPackage makes the package of this tree, or takes a given one.
func buildPackage(t *testing.T, arch string) string {
	t.Helper()
	dir := *given
	if dir == "" {
		dir = t.TempDir()
		if out, err := exec.Command("go", "run", "../mkdeb", "-arch", arch, "-out", dir).CombinedOutput(); err != nil {
			t.Fatalf("mkdeb: %v\n%s", err, out)
		}
	}
	debs, err := filepath.Glob(filepath.Join(dir, "*_"+arch+".deb"))
	if err != nil || len(debs) != 1 {
		t.Fatalf("%v, %v", debs, err)
	}
	return debs[0]
}

// rootDisk copies the root file system and puts the package into it, at
// /home/pi/busgate_VERSION_ARCH.deb, and further files.
func rootDisk(t *testing.T, assets, deb string, files map[string]string) string {
	t.Helper()
	img := filepath.Join(t.TempDir(), "root.img")
	sh(t, "cp", "--sparse=always", filepath.Join(assets, "root.img"), img)
	put := func(from, to, mode string) {
		out, err := exec.Command("debugfs", "-w", "-R", fmt.Sprintf("write %s %s", from, to), img).CombinedOutput()
		if err == nil {
			out, err = exec.Command("debugfs", "-w", "-R", fmt.Sprintf("set_inode_field %s mode %s", to, mode), img).CombinedOutput()
		}
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	put(deb, "/home/pi/"+filepath.Base(deb), "0100644")
	for name, text := range files {
		from := filepath.Join(t.TempDir(), "f")
		if err := os.WriteFile(from, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		put(from, name, "0100755")
	}
	return img
}

// image is a file as a drive of qemu.
func image(file string) string { return "format=raw,file=" + file }

// dataDisk makes an empty file system that the machine mounts at /var/lib/busgate.
func dataDisk(t *testing.T, size string) string {
	t.Helper()
	img := filepath.Join(t.TempDir(), "data.img")
	sh(t, "truncate", "-s", size, img)
	sh(t, "mkfs.ext4", "-q", "-F", "-L", "data", "-E", "lazy_itable_init=0,lazy_journal_init=0", img)
	return img
}

func sh(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%q: %v\n%s", args, err, out)
	}
	return string(out)
}

// waitFor tries f until it has no error.
func waitFor(t *testing.T, limit time.Duration, what string, f func() error) {
	t.Helper()
	end := time.Now().Add(limit)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("waited %v for %s: %v", limit, what, err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// machine is one run of qemu with a shell of root on its serial console.
type machine struct {
	t     *testing.T
	cmd   *exec.Cmd
	in    io.WriteCloser
	began time.Time
	ended chan struct{}
	n     int

	mu   sync.Mutex
	seen bytes.Buffer
	wake chan struct{}
}

// boot starts qemu with args; amd64 and "virt" machines get what all have.
func boot(t *testing.T, assets string, binary string, args ...string) *machine {
	t.Helper()
	m := &machine{t: t, began: time.Now(), ended: make(chan struct{}), wake: make(chan struct{}, 1)}
	m.cmd = exec.Command(binary, append([]string{"-nodefaults", "-display", "none", "-no-reboot",
		"-kernel", filepath.Join(assets, "vmlinuz"), "-initrd", filepath.Join(assets, "initrd.gz")}, args...)...)
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // it must not outlive us
	in, err := m.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	m.in = in
	m.cmd.Stdout, m.cmd.Stderr = m, m
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		m.cmd.Wait() // killed, or powered off: both are fine
		close(m.ended)
	}()
	t.Cleanup(m.kill)
	return m
}

// pc boots an amd64 machine from the disk that drive says as an option of qemu.
// more are further options.
func pc(t *testing.T, assets, drive string, more ...string) *machine {
	t.Helper()
	return boot(t, assets, "qemu-system-x86_64", append([]string{"-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "512",
		"-append", "console=ttyS0 quiet panic=-1 net.ifnames=0 systemd.show_status=0",
		"-drive", drive + ",if=none,id=root", "-device", "virtio-blk-pci,drive=root",
		"-object", "rng-random,filename=/dev/urandom,id=rng", "-device", "virtio-rng-pci,rng=rng", "-serial", "stdio"}, more...)...)
}

// network forwards a free port of ours to 1883 of the machine, and nothing else.
func network(t *testing.T) (port string, args []string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ = net.SplitHostPort(l.Addr().String())
	l.Close()
	return port, []string{"-netdev", "user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:" + port + "-:1883", "-device", "virtio-net-pci,netdev=net"}
}

// Write takes what comes from the console.
func (m *machine) Write(b []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	select {
	case m.wake <- struct{}{}:
	default:
	}
	if *console {
		os.Stderr.Write(b)
	}
	return m.seen.Write(b)
}

var errDead = errors.New("the machine has ended")

// until waits for a pattern on the console and takes everything up to its end.
func (m *machine) until(pattern string, limit time.Duration) (string, error) {
	re := regexp.MustCompile(pattern)
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		m.mu.Lock()
		if at := re.FindIndex(m.seen.Bytes()); at != nil {
			out := string(m.seen.Next(at[1]))
			m.mu.Unlock()
			return out, nil
		}
		m.mu.Unlock()
		select {
		case <-m.wake:
		case <-m.ended:
			return "", errDead
		case <-timer.C:
			m.mu.Lock()
			defer m.mu.Unlock()
			tail := m.seen.Bytes()
			return "", fmt.Errorf("no %q after %v; the console ends with:\n%s", pattern, limit, tail[max(0, len(tail)-2000):])
		}
	}
}

// ready waits for the shell.
func (m *machine) ready() {
	m.t.Helper()
	if _, err := m.until(`root@gw:~# `, patience); err != nil {
		m.t.Fatal(err)
	}
	m.t.Logf("[%5.1f s] shell", time.Since(m.began).Seconds())
}

var escapes = regexp.MustCompile(`\x1b\[[0-9;?]*[a-zA-Z]`)

// try runs a line in the shell and gives what it printed and its status.
func (m *machine) try(line string) (out, status string) {
	m.t.Helper()
	m.n++
	if _, err := fmt.Fprintf(m.in, "echo __%d; %s; echo __%d_$?_\n", m.n, line, m.n); err != nil {
		m.t.Fatal(err)
	}
	// The shell's editor repeats the line, wrapped and cut; only what is printed
	// has a number or the end of a line there.
	begin, end := fmt.Sprintf(`__%d\r?\n`, m.n), fmt.Sprintf(`__%d_(\d+)_\r?\n`, m.n)
	if _, err := m.until(begin, patience); err != nil {
		m.t.Fatalf("%s: %v", line, err)
	}
	text, err := m.until(end, patience)
	if err != nil {
		m.t.Fatalf("%s: %v", line, err)
	}
	status = regexp.MustCompile(end).FindStringSubmatch(text)[1]
	text = text[:strings.LastIndex(text, fmt.Sprintf("__%d_", m.n))]
	return strings.Trim(escapes.ReplaceAllString(strings.ReplaceAll(text, "\r", ""), ""), "\n"), status
}

// run is try for a line that must succeed.
func (m *machine) run(line string) string {
	m.t.Helper()
	out, status := m.try(line)
	if status != "0" {
		m.t.Fatalf("%s: status %s\n%s", line, status, out)
	}
	return out
}

// enter types a line that begins or ends a shell, and waits for the prompt.
func (m *machine) enter(line, prompt string) {
	m.t.Helper()
	if _, err := fmt.Fprintln(m.in, line); err != nil {
		m.t.Fatal(err)
	}
	if _, err := m.until(prompt, patience); err != nil {
		m.t.Fatal(err)
	}
}

// put writes a file in the machine.
func (m *machine) put(file, text string) {
	m.t.Helper()
	m.run(fmt.Sprintf("mkdir -p $(dirname %s) && echo %s | base64 -d >%s", file, base64.StdEncoding.EncodeToString([]byte(text)), file))
}

const showJournal = "journalctl -b -u busgate --no-pager -o cat"

// mark is how many lines the journal of the service has.
func (m *machine) mark() int {
	m.t.Helper()
	n, err := strconv.Atoi(m.run(showJournal + " | wc -l"))
	if err != nil {
		m.t.Fatal(err)
	}
	return n
}

// journal waits until a line after the mark matches (grep -E), and logs it.
func (m *machine) journal(what string, mark int, pattern string) {
	m.t.Helper()
	end := time.Now().Add(patience)
	for {
		line, status := m.try(fmt.Sprintf("%s | tail -n +%d | grep -E -m1 '%s'", showJournal, mark+1, pattern))
		if status == "0" {
			m.t.Logf("%s: the journal says: %s", what, line)
			return
		}
		if time.Now().After(end) {
			m.t.Fatalf("%s: no %q in the journal:\n%s", what, pattern, m.run(fmt.Sprintf("%s | tail -n +%d | tail -50", showJournal, mark+1)))
		}
		time.Sleep(time.Second) // looking is work for the machine
	}
}

// kill is what pulling the plug is.
func (m *machine) kill() {
	m.cmd.Process.Kill()
	<-m.ended
}
