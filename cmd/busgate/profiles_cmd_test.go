package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"busgate/devices/profiles"
)

func TestProfilesAreListed(t *testing.T) {
	code, out, errs := call(t, "profiles", "--config", "/none/busgate.toml")
	if code != exitOK || errs != "" {
		t.Fatalf("exit %d %s", code, errs)
	}
	files, err := profiles.FS.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	if lines := strings.Count(out, "\n"); lines != len(files)+1 {
		t.Errorf("%d lines for %d profiles", lines, len(files))
	}
	if !strings.Contains(out, "eastron-sdm630     Eastron             SDM630                52      volkszaehler/mbmd@fb8f9c22 meters/rs485/sdm.go\n") {
		t.Errorf("%s", out)
	}
	_, out, _ = call(t, "profiles", "--json", "--config", "/none/busgate.toml")
	var got struct{ Profiles []profileRow }
	if err := json.Unmarshal([]byte(out), &got); err != nil || len(got.Profiles) != len(files) || got.Profiles[0].TOML != "" {
		t.Errorf("%v %+v", err, got)
	}
}

func TestOneProfileIsPrintedAsItsFile(t *testing.T) {
	text, err := profiles.FS.ReadFile("xy-md02.toml")
	if err != nil {
		t.Fatal(err)
	}
	code, out, _ := call(t, "profiles", "xy-md02", "--config", "/none/busgate.toml")
	if code != exitOK || out != string(text) {
		t.Errorf("exit %d\n%s", code, out)
	}
	_, out, _ = call(t, "profiles", "xy-md02", "--json", "--config", "/none/busgate.toml")
	var got profileRow
	if err := json.Unmarshal([]byte(out), &got); err != nil || got.TOML != string(text) || got.Points != 2 {
		t.Errorf("%v %+v", err, got)
	}
}

func TestProfilesBesideTheDeviceMapWin(t *testing.T) {
	dir := t.TempDir()
	os.Mkdir(filepath.Join(dir, "profiles"), 0o700)
	mine := "[profile]\nname = \"xy-md02\"\nmaker = \"Mine\"\n[points]\nt = { input = 1, type = \"int16\" }\n"
	os.WriteFile(filepath.Join(dir, "profiles", "xy-md02.toml"), []byte(mine), 0o600)
	os.WriteFile(filepath.Join(dir, "profiles", "bad.toml"), []byte("[profile]\nname = 3\n"), 0o600)
	code, out, errs := call(t, "profiles", "xy-md02", "--config", filepath.Join(dir, "busgate.toml"))
	if code != exitOK || out != mine || !strings.Contains(errs, "bad.toml") {
		t.Errorf("exit %d\n%s%s", code, out, errs)
	}
}

func TestUnknownProfile(t *testing.T) {
	for _, c := range []struct{ name, want string }{
		{"xy-md2", "there is no profile `xy-md2` (did you mean `xy-md02`?); the list: busgate profiles"},
		{"sdm630", "(did you mean `eastron-sdm630`?)"},
		{"toaster", "there is no profile `toaster`; the list: busgate profiles"},
	} {
		if code, out, errs := call(t, "profiles", c.name, "--config", "/none/x"); code != exitFailed || out != "" || !strings.Contains(errs, c.want) {
			t.Errorf("%s: exit %d %s%s", c.name, code, out, errs)
		}
	}
	if code, _, errs := call(t, "profiles", "a", "b"); code != exitUsage || !strings.Contains(errs, "takes one name, and there are 2") {
		t.Errorf("exit %d %s", code, errs)
	}
}
