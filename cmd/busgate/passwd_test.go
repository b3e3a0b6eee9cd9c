package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"busgate/embeddedbroker"
)

func TestPasswd(t *testing.T) {
	file := filepath.Join(t.TempDir(), "passwd")
	run := func(stdin string, args ...string) (int, string) {
		var out bytes.Buffer
		code := dispatch(t.Context(), &env{stdin: strings.NewReader(stdin), stdout: &out, stderr: &out}, commands(), append([]string{"passwd", "--file", file, "-I", "101"}, args...))
		return code, out.String()
	}
	for _, c := range []struct {
		name, stdin string
		args        []string
		code        int
		want        string
	}{
		{"without a file", "", []string{"-b", "a", "x"}, exitFailed, "-c makes it"},
		{"a new file", "", []string{"-c", "-b", "nodered", "first"}, exitOK, ""},
		{"a second user from a pipe", "secret two\n", []string{"grafana"}, exitOK, ""},
		{"a change", "", []string{"nodered", "-b", "second"}, exitOK, ""},
		{"no password", "\n", []string{"x"}, exitFailed, "an empty password is none"},
		{"a name with a colon", "", []string{"-b", "a:b", "x"}, exitUsage, "holds no :"},
		{"too few words", "", []string{"-b", "a"}, exitUsage, "1 words instead of 2"},
		{"nobody to remove", "", []string{"-D", "x"}, exitFailed, `there is no user "x"`},
		{"flags that exclude", "", []string{"-D", "-c", "x"}, exitUsage, "exclude each other"},
	} {
		if code, out := run(c.stdin, c.args...); code != c.code || !strings.Contains(out, c.want) {
			t.Errorf("%s: exit %d, want %d with %q: %s", c.name, code, c.code, c.want, out)
		}
	}
	check := func(name, password string, want bool) {
		t.Helper()
		users, err := embeddedbroker.LoadUsers(file)
		if err != nil {
			t.Fatal(err)
		}
		if users.Check(name, []byte(password)) != want {
			t.Errorf("%s with %q: %v", name, password, !want)
		}
	}
	check("nodered", "second", true)
	check("nodered", "first", false)
	check("grafana", "secret two", true)
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if code, _ := run("", "-D", "nodered"); code != exitOK {
		t.Error("nodered stays")
	}
	check("nodered", "second", false)
	write(t, file, "plain:text\n")
	if code, out := run("", "-U"); code != exitOK {
		t.Error(out)
	}
	check("plain", "text", true)
	t.Run("a line of mosquitto_passwd is read and kept", func(t *testing.T) {
		if _, err := exec.LookPath("mosquitto_passwd"); err != nil {
			t.Skip("needs mosquitto_passwd: apt-get install mosquitto")
		}
		if out, err := exec.Command("mosquitto_passwd", "-b", file, "theirs", "pw").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if code, out := run("", "-b", "ours", "pw2"); code != exitOK {
			t.Fatal(out)
		}
		check("theirs", "pw", true)
		check("ours", "pw2", true)
	})
}
