package embeddedbroker

import (
	"net"
	"strings"
	"testing"

	"busgate/config"
)

// Without a users file nobody outside this machine gets in: what is bound is
// not reached from another address, and what would open it is refused with the
// way to do it properly.
func TestNothingFromOutsideWithoutUsers(t *testing.T) {
	cfg, problems := config.Parse("busgate.toml", "[gateway]\nname = \"t\"\n", nil)
	if cfg == nil {
		t.Fatal(problems)
	}
	host, _, err := net.SplitHostPort(cfg.Broker.Listen)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Broker.Listen = net.JoinHostPort(host, "0")
	ls, err := Listen(cfg.Broker, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(ls) != 1 {
		t.Fatalf("%d doors are open", len(ls))
	}
	defer ls[0].Close()
	_, port, _ := net.SplitHostPort(ls[0].Addr().String())
	if nc, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", port)); err != nil {
		t.Errorf("this machine does not get in: %v", err)
	} else {
		nc.Close()
	}
	own := ownAddress()
	if own == "" {
		t.Log("this machine has no address but the loopback: nobody outside to try")
	} else if nc, err := net.Dial("tcp", net.JoinHostPort(own, port)); err == nil {
		nc.Close()
		t.Errorf("a connection to %s gets in", own)
	}
	for _, open := range []string{
		"[broker]\nlisten = \":1883\"", "[broker]\nlisten = \"0.0.0.0:1883\"", "[broker]\nlisten = \"[::]:1883\"", "[broker]\nlisten = \"192.168.1.5:1883\"",
		"[broker]\nlisten = \"plant.local:1883\"", "[broker.websocket]\nlisten = \":9001\"",
	} {
		cfg, problems := config.Parse("busgate.toml", "[gateway]\nname = \"t\"\n"+open+"\n", nil)
		var said strings.Builder
		for _, p := range problems {
			said.WriteString(p.Msg)
		}
		if cfg != nil || !strings.Contains(said.String(), "add `users` (busgate passwd NAME), or `anonymous = true`") {
			t.Errorf("%s: %v %s", open, cfg != nil, &said)
		}
	}
}
