package uplink

import "time"

// preset is what is known of a kind of cloud and has no key in the
// configuration; limits that have one are filled in when it is loaded.
type preset struct {
	keepAlive time.Duration // longest it takes; 0 = any
	private   bool          // CONNECT with level 0x84: no echo, retain flag kept
	hub       bool          // Azure IoT Hub: one topic, and tokens for passwords
}

// presets by the name of the profile. A cloud that is not here needs nothing.
var presets = map[string]preset{
	"mosquitto":       {private: true},
	"aws":             {keepAlive: 1200 * time.Second},
	"azure-eventgrid": {keepAlive: 1160 * time.Second},
	"azure-iothub":    {keepAlive: 1177 * time.Second, hub: true},
}
