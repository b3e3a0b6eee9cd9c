package config

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestCredentials(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "busgate_cloud"), []byte("x"), 0o600)
	write(t, filepath.Join(dir, "plain"), []byte("x"), 0o604)
	l := newLoader(testEnv("x"), nil)
	l.env.credentials = dir
	c, problems := l.parse("/etc/busgate/busgate.toml", `
[uplink.a]
addresses = ["mqtts://x"]
user = "u"
password_file = "cloud"
[uplink.b]
addresses = ["mqtts://x"]
user = "u"
password_file = "plain"`)
	if c == nil || c.Uplinks["a"].PasswordFile != filepath.Join(dir, "busgate_cloud") || c.Uplinks["b"].PasswordFile != filepath.Join(dir, "plain") {
		t.Fatal(problems)
	}
	if !slices.ContainsFunc(problems, func(p Problem) bool {
		return strings.HasSuffix(p.Msg, "plain can be read by every user: chmod 600 "+filepath.Join(dir, "plain"))
	}) {
		t.Errorf("%v", problems)
	}
}

func TestServiceCannotReadWhatRootCan(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	write(t, path, nil, 0o640)
	uid, gid := uint32(os.Getuid()), uint32(os.Getgid())
	for _, c := range []struct {
		who  account
		mode os.FileMode
		want bool
	}{
		{account{uid + 1, []uint32{gid + 1}}, 0o640, false}, {account{uid + 1, []uint32{gid}}, 0o640, true},
		{account{uid + 1, nil}, 0o604, true}, {account{uid + 1, []uint32{gid}}, 0o604, false},
	} {
		if err := os.Chmod(path, c.mode); err != nil {
			t.Fatal(err)
		}
		if got := c.who.reads(path); got != c.want {
			t.Errorf("%+v", c)
		}
	}
}

func TestClockThatIsNotSetSaysNothingAboutCertificates(t *testing.T) {
	certs := makeCerts(t)
	dir := t.TempDir()
	write(t, filepath.Join(dir, "future.crt"), certs["future.crt"], 0o600)
	text := "[uplink.a]\naddresses = [\"mqtts://x\"]\nca = \"" + filepath.Join(dir, "future.crt") + "\"\n[device.m]\nserial=\"/dev/x\"\npoints.v={input=0}\n"
	l := newLoader(testEnv("x"), nil)
	if _, problems := l.parse("x.toml", text); len(problems) != 1 {
		t.Errorf("%v", problems)
	}
	l = newLoader(testEnv("x"), nil)
	l.env.now = time.Unix(0, 0)
	if _, problems := l.parse("x.toml", text); len(problems) != 0 {
		t.Errorf("%v", problems)
	}
}

func TestWhoCannotReadAFile(t *testing.T) {
	if os.Getuid() == 0 {
		t.Log("as root: only the side of the service is tested")
	}
	dir := t.TempDir()
	write(t, filepath.Join(dir, "ca"), nil, 0o600)
	write(t, filepath.Join(dir, "credentials/cloud"), []byte("x"), 0o600)
	text := "[uplink.a]\naddresses = [\"mqtts://x\"]\nuser = \"u\"\npassword_file = \"cloud\"\n"
	l := newLoader(testEnv("x"), nil)
	l.env.service = &account{uid: uint32(os.Getuid()) + 1}
	if c, problems := l.parse(filepath.Join(dir, "busgate.toml"), text); c == nil || len(problems) != 1 {
		t.Errorf("a credential is handed over by systemd: %v", problems)
	}
	l = newLoader(testEnv("x"), nil)
	l.env.service = &account{uid: uint32(os.Getuid()) + 1}
	c, problems := l.parse(filepath.Join(dir, "busgate.toml"), text+"ca = \"ca\"\n")
	if want := "cannot read " + filepath.Join(dir, "ca") + ": permission denied"; c != nil || len(problems) != 1 || problems[0].Msg != want {
		t.Errorf("the service cannot read it: %v", problems)
	}
	l.findings, l.env.stranger = findings{}, true
	if c, problems := l.parse(filepath.Join(dir, "busgate.toml"), text+"ca = \"ca\"\n"); c == nil || !problems[len(problems)-1].Warn {
		t.Errorf("for anybody else it is a warning: %v", problems)
	}
}
