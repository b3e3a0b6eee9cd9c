package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"busgate/bridge/uplink/cloudtest"
)

func TestUplinkTest(t *testing.T) {
	well, err := cloudtest.Listen(cloudtest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer well.Close()
	strict, err := cloudtest.Listen(cloudtest.Options{Login: func(*packets.ConnectPacket) byte { return packets.ErrRefusedBadUsernameOrPassword }})
	if err != nil {
		t.Fatal(err)
	}
	defer strict.Close()
	dir := t.TempDir()
	file := filepath.Join(dir, "busgate.toml")
	text := fmt.Sprintf("[gateway]\nname = \"t\"\ndata_dir = %q\n[uplink.cloud]\naddresses = [\"mqtt://%s\"]\n[uplink.spare]\naddresses = [\"mqtt://127.0.0.1:%d\", \"mqtt://%s\"]\n[uplink.strict]\naddresses = [\"mqtt://%s\"]\nuser = \"u\"\n",
		dir, well.Addr(), freePort(t), well.Addr(), strict.Addr())
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		args []string
		code int
		want []string
	}{
		{"a cloud that is well", []string{"test", "cloud"}, exitOK, []string{"uplink cloud: mqtt://" + well.Addr(), "  tcp        ok ", "  connect    ok ", "  publish    ok ", "  delivered: what busgate sends arrives\n"}},
		{"every address is tried", []string{"test", "spare"}, exitNoReply, []string{"  tcp        FAILED ", "answers, but nothing listens on port", "  not reachable\n", "  delivered: what"}},
		{"a password that is wrong", []string{"test", "strict"}, exitRefused, []string{"  connect    FAILED ", "refused user \"u\" (bad user name or password)", "  refused by the broker\n"}},
		{"a name that is nearly one", []string{"test", "clout"}, exitUsage, []string{"there is no uplink \"clout\" (did you mean `cloud`?)"}},
		{"another name", []string{"test", "somewhere"}, exitUsage, []string{"there is no uplink \"somewhere\"; there are cloud, spare, strict"}},
		{"no name", []string{"test"}, exitUsage, []string{"busgate uplink test NAME"}},
	} {
		code, out, errs := call(t, append([]string{"uplink", "--config", file}, c.args...)...)
		if code != c.code {
			t.Errorf("%s: exit %d, want %d\n%s%s", c.name, code, c.code, out, errs)
		}
		for _, w := range c.want {
			if !strings.Contains(out+errs, w) {
				t.Errorf("%s: %q is not in\n%s%s", c.name, w, out, errs)
			}
		}
	}
	code, out, _ := call(t, "uplink", "--config", file, "test", "strict", "--json")
	var got uplinkTest
	if err := json.Unmarshal([]byte(out), &got); err != nil || code != exitRefused || got.Result != uplinkNotTaken || len(got.Steps) != 2 || got.Steps[1].OK || got.Steps[1].Advice == "" {
		t.Errorf("exit %d, %v: %s", code, err, out)
	}
	if code, _, _ := call(t, "uplink", "--config", filepath.Join(dir, "none"), "test", "cloud"); code != exitConfig {
		t.Errorf("without a device map exit %d", code)
	}
}
