package embeddedbroker

import "time"

// Kind says what a message is to the gateway, beyond MQTT. It is stored with
// the message, so that an uplink knows after a restart what it relays.
type Kind uint8

const (
	KindLAN     Kind = iota // published by a client of the LAN: relayed untouched
	KindReading             // a state of a device: numbered by the uplinks, may be batched, thinned or re-dated
	KindStatus              // availability, info, error, alert, acknowledgement of a command: goes ahead of readings
	KindDown                // came down from a cloud: never sent up again
)

// Message is an MQTT application message. It is immutable once it was given to
// the broker; everybody shares the slices.
type Message struct {
	Topic   string
	Payload []byte
	QoS     byte // 0..2, as published
	Retain  bool
	Kind    Kind
	Expires time.Time // zero = never; fixed at arrival

	Props []byte // MQTT 5 properties that travel on, encoded as on the wire without the length; nil = none

	From string        // client id of the publisher; "" for the gateway itself
	Mono time.Duration // CLOCK_BOOTTIME of the acquisition (readings) or of the arrival
	Wall time.Time     // the same moment in UTC; zero while the clock is not known
}
