package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	mqtt "github.com/eclipse/paho.mqtt.golang"
)

// TestSessionsCommand: one client is there, one is away with messages on disk;
// the list names both, and a dropped session is gone from broker and store.
func TestSessionsCommand(t *testing.T) {
	dir, socket := t.TempDir(), socketPath(t)
	file, listen := filepath.Join(dir, "busgate.toml"), fmt.Sprintf("127.0.0.1:%d", freePort(t))
	write(t, file, fmt.Sprintf("[gateway]\nname = \"t\"\ndata_dir = %q\n[web]\nlisten = \"\"\n[broker]\nlisten = %q\n[buffer]\nmin_free_disk = \"1MB\"\n", dir, listen))
	sessions := func(args ...string) (int, string, string) {
		return call(t, append(append([]string{"sessions"}, args...), "--socket", socket)...)
	}
	if code, _, errs := sessions("list"); code != exitNoReply || !strings.Contains(errs, "the daemon is not running") {
		t.Errorf("without a daemon: exit %d, %s", code, errs)
	}
	d := startDaemon(t, file, "--socket", socket)
	d.log.until(t, "INFO running", 1)
	if code, out, _ := sessions("list"); code != exitOK || out != "no client is connected, and none is awaited\n" {
		t.Errorf("nobody: exit %d, %q", code, out)
	}
	client := func(id string, clean bool) mqtt.Client {
		t.Helper()
		c := mqtt.NewClient(mqtt.NewClientOptions().AddBroker("tcp://" + listen).SetClientID(id).SetCleanSession(clean).SetAutoReconnect(false))
		if err := done(c.Connect()); err != nil {
			t.Fatal(err)
		}
		return c
	}
	away := client("old tablet", false)
	if err := done(away.Subscribe("a/#", 1, nil)); err != nil {
		t.Fatal(err)
	}
	away.Disconnect(0)
	here := client("phone", true)
	defer here.Disconnect(0)
	waitFor(t, "the tablet to leave", waitLong, func() bool {
		_, out, _ := sessions("list")
		return strings.Contains(out, "away")
	})
	for range 3 {
		if err := done(here.Publish("a/b", 1, false, "x")); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"list"}, exitOK, `"phone"       connected `},
		{[]string{"list"}, exitOK, "  3.1.1  on disk    1              3  "},
		{[]string{"list", "--json"}, exitOK, `"id":"old tablet","protocol":"3.1.1","connected":false,"persistent":true,"left":"`},
		{[]string{"drop", "old tablet"}, exitUsage, "nothing dropped (--yes does not ask)"},
		{[]string{"drop", "new tablet", "--yes"}, exitFailed, `no client "new tablet"; ` + "`busgate sessions list` names them"},
		{[]string{"drop", "old tablet", "--yes"}, exitOK, "the session of \"old tablet\" has ended; 3 messages dropped with it\n"},
		{[]string{"drop", "phone", "--yes", "--json"}, exitOK, `{"dropped":0}`},
		{[]string{"list"}, exitOK, "no client is connected, and none is awaited\n"},
		{[]string{"drop"}, exitUsage, "say list, or drop and a client"},
	} {
		code, out, errs := sessions(c.args...)
		if code != c.code || !strings.Contains(out+errs, c.want) {
			t.Errorf("%v: exit %d, want %d with %q:\n%s%s", c.args, code, c.code, c.want, out, errs)
		}
	}
	waitFor(t, "the store to forget the session", waitLong, func() bool {
		_, out, _ := call(t, "buffer", "list", "--socket", socket)
		return strings.Contains(out, ": 0 messages in ")
	})
	d.stop()
	if code := <-d.code; code != exitOK {
		t.Errorf("exit %d:\n%s", code, d.log)
	}
}
