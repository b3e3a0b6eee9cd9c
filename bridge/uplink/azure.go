package uplink

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"
)

// Azure IoT Hub takes telemetry of a device on one topic only, and tokens that
// end in place of passwords.
//
//	https://learn.microsoft.com/azure/iot/iot-mqtt-connect-to-iot-hub
//	https://learn.microsoft.com/azure/iot-hub/authenticate-authorize-sas

// tokenLife is how long a token is good. The link reconnects with another at 80 %
// of it, see renew.
const tokenLife = 24 * time.Hour

// errNoClock is in the error of a token that cannot be made yet: it says until
// when it is good.
var errNoClock = errors.New("a token needs the time, and the clock is not set")

// errToken is in the error of a token that can never be made.
var errToken = errors.New("no token can be made")

// token is the password made of the content of the password file: the device's
// connection string, or its key alone, gives a shared access signature; one that
// was made elsewhere is taken as it is. user is {hub}/{device}/?api-version=...
func token(secret, user string, now time.Time, known bool) (password string, until time.Time, err error) {
	if strings.HasPrefix(secret, "SharedAccessSignature ") {
		return secret, time.Time{}, nil
	}
	key := secret
	for part := range strings.SplitSeq(secret, ";") {
		if k, ok := strings.CutPrefix(part, "SharedAccessKey="); ok {
			key = k
		}
	}
	raw, err := base64.StdEncoding.DecodeString(key)
	if err != nil || len(raw) == 0 {
		return "", time.Time{}, fmt.Errorf("%w: the password file holds neither a connection string, nor a key in base64, nor a SharedAccessSignature", errToken)
	}
	hub, rest, _ := strings.Cut(user, "/")
	device, _, _ := strings.Cut(rest, "/")
	if hub == "" || device == "" {
		return "", time.Time{}, fmt.Errorf("%w: user %q names no hub and device; try user = \"myhub.azure-devices.net/mydevice/?api-version=2021-04-12\"", errToken, user)
	}
	if !known {
		return "", time.Time{}, errNoClock
	}
	until = now.Add(tokenLife)
	resource := url.QueryEscape(hub + "/devices/" + device)
	mac := hmac.New(sha256.New, raw)
	_, _ = fmt.Fprintf(mac, "%s\n%d", resource, until.Unix()) // a hash takes everything
	return fmt.Sprintf("SharedAccessSignature sr=%s&sig=%s&se=%d",
		resource, url.QueryEscape(base64.StdEncoding.EncodeToString(mac.Sum(nil))), until.Unix()), until, nil
}

// hubTopics are the topics of a device of IoT Hub: the topic that a message has
// here travels as its property "topic".
type hubTopics struct{ device string }

// topicProperty names the property.
const topicProperty = "topic"

// remote is where telemetry goes.
func (h hubTopics) remote(topic string) string {
	return "devices/" + h.device + "/messages/events/" + topicProperty + "=" + strings.ReplaceAll(url.QueryEscape(topic), "+", "%20")
}

// filter is where messages to the device come.
func (h hubTopics) filter() string { return "devices/" + h.device + "/messages/devicebound/#" }

// local is the topic that a message to the device names; "" when it names none.
func (h hubTopics) local(topic string) string {
	bag, ok := strings.CutPrefix(topic, "devices/"+h.device+"/messages/devicebound/")
	if !ok {
		return ""
	}
	for part := range strings.SplitSeq(strings.TrimPrefix(bag, "?"), "&") {
		if v, ok := strings.CutPrefix(part, topicProperty+"="); ok {
			if t, err := url.PathUnescape(v); err == nil {
				return t
			}
		}
	}
	return ""
}
