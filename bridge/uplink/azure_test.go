package uplink

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"busgate/bridge/uplink/cloudtest"
	"busgate/embeddedbroker"
)

const (
	hubUser = "myhub.azure-devices.net/gw-1/?api-version=2021-04-12"
	hubKey  = "c2VjcmV0LWtleS1vZi10aGUtZGV2aWNlLTAxMjM0NTY="
)

// verified is when a token ends, zero when IoT Hub would not take it: its sr is
// the device, and its sig the HMAC of sr and se, both as they stand in the token.
func verified(password string) time.Time {
	m := regexp.MustCompile(`^SharedAccessSignature sr=(\S+)&sig=(\S+)&se=(\d+)$`).FindStringSubmatch(password)
	if m == nil || m[1] != "myhub.azure-devices.net%2Fdevices%2Fgw-1" {
		return time.Time{}
	}
	key, _ := base64.StdEncoding.DecodeString(hubKey)
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "%s\n%s", m[1], m[3])
	if sig, err := url.QueryUnescape(m[2]); err != nil || sig != base64.StdEncoding.EncodeToString(mac.Sum(nil)) {
		return time.Time{}
	}
	se, _ := strconv.ParseInt(m[3], 10, 64)
	return time.Unix(se, 0)
}

func TestToken(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		name, secret, user string
		known              bool
		err                string // part of it; "" = none
	}{
		{"a key", hubKey, hubUser, true, ""},
		{"a connection string", "HostName=myhub.azure-devices.net;DeviceId=gw-1;SharedAccessKey=" + hubKey, hubUser, true, ""},
		{"no clock", hubKey, hubUser, false, "the clock is not set"},
		{"no key", "hunter 2", hubUser, true, "neither a connection string"},
		{"nothing", "", hubUser, true, "neither a connection string"},
		{"another user", hubKey, "gw-1", true, "names no hub and device; try user ="},
	} {
		password, until, err := token(c.secret, c.user, now, c.known)
		switch {
		case c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)):
			t.Errorf("%s: %v, want %q", c.name, err, c.err)
		case c.err == "" && (err != nil || !until.Equal(now.Add(tokenLife)) || !verified(password).Equal(until)):
			t.Errorf("%s: %s until %v, %v", c.name, password, until, err)
		}
	}
	made := "SharedAccessSignature sr=x&sig=y&se=1"
	if p, until, err := token(made, "", now, false); p != made || !until.IsZero() || err != nil {
		t.Errorf("a token that was made elsewhere became %q until %v, %v", p, until, err)
	}
}

// TestIoTHub: everything goes to the one topic of the device, with the topic of
// here as a property; the token is renewed before it ends; commands come down.
func TestIoTHub(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, []byte(hubKey+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var ends, at []time.Duration // of the tokens that were shown: how long they last, and when since the first
	var first time.Time
	var known atomic.Bool
	login := func(p *packets.ConnectPacket) byte {
		end := verified(string(p.Password))
		if !end.After(time.Now()) || p.Username != hubUser || p.ClientIdentifier != "gw-1" || p.WillFlag {
			return packets.ErrRefusedNotAuthorised
		}
		if len(ends) == 0 {
			first = time.Now()
		}
		ends, at = append(ends, time.Until(end)), append(at, time.Since(first))
		return packets.Accepted
	}
	publish := func(p *packets.PublishPacket) bool {
		return strings.HasPrefix(p.TopicName, "devices/gw-1/messages/events/topic=busgate%2Fplant-a%2F") && !p.Retain && p.Qos == 1
	}
	virtual(t, cloudtest.Options{AckDelay: 100 * time.Millisecond, Login: login, Publish: publish}, func(r *rig) {
		var seen lan
		r.cfg.Profile, r.cfg.ClientID, r.cfg.User, r.cfg.PasswordFile = "azure-iothub", "gw-1", hubUser, file
		r.cfg.Will, r.cfg.Retain, r.cfg.Accept = false, false, []string{"busgate/plant-a/+/set/#"}
		r.o.Down = seen.down
		r.o.Clock = func() (time.Time, bool) { return time.Now(), known.Load() }
		r.start()
		time.Sleep(10 * time.Second)
		if s := r.link.Status(); s.Phase != WaitingClock || r.cloud.Connects() != 0 {
			t.Errorf("%v without a clock, want waiting-clock", s.Phase)
		}
		known.Store(true)
		for i := range 24 * 6 {
			r.st.put("busgate/plant-a/grid/state", fmt.Appendf(nil, `{"ts":"x","i":%d}`, i), embeddedbroker.KindReading)
			time.Sleep(10 * time.Minute)
		}
		r.cloud.Publish("devices/gw-1/messages/devicebound/%24.mid=1&topic=busgate%2Fplant-a%2Frelays%2Fset%2Frelay1&x=y", []byte("on"), 1, false)
		r.cloud.Publish("devices/gw-1/messages/devicebound/%24.mid=2&topic=lan%2Fdoor", []byte("open"), 1, false)
		time.Sleep(time.Minute)
		if got := seen.seen(); fmt.Sprint(got) != fmt.Sprintf("[busgate/plant-a/relays/set/relay1 on 1 false %d]", embeddedbroker.KindDown) {
			t.Errorf("came down %v", got)
		}
		if n := len(r.payloads("devices/gw-1/messages/events/topic=busgate%2Fplant-a%2Fgrid%2Fstate")); n != 24*6 {
			t.Errorf("%d readings came, want %d", n, 24*6)
		}
		for i, d := range at { // at 80 % of 24 h each
			if want := time.Duration(i) * 24 * time.Hour * 4 / 5; len(at) != 2 || d < want || d > want+2*time.Minute {
				t.Errorf("tokens with %v to go at %v, want two in a day, at 0 and 19.2 h", ends, at)
			}
		}
		r.stop()
	})
}
