package embeddedbroker

import (
	"fmt"
	"strings"

	"busgate/embeddedbroker/packet"
)

// said are the codes that a server may use.
var said = map[packet.Type]map[byte]string{
	packet.CONNACK: {
		packet.V31: "\x00\x01\x02\x03\x04\x05", packet.V311: "\x00\x01\x02\x03\x04\x05",
		packet.V5: "\x00\x80\x81\x82\x83\x84\x85\x86\x87\x88\x89\x8a\x8c\x90\x95\x97\x99\x9a\x9b\x9c\x9d\x9f",
	},
	packet.SUBACK: {packet.V31: "\x00\x01\x02", packet.V311: "\x00\x01\x02\x80",
		packet.V5: "\x00\x01\x02\x80\x83\x87\x8f\x91\x97\x9e\xa1\xa2"},
	packet.UNSUBACK:   {packet.V5: "\x00\x11\x80\x83\x87\x8f\x91"},
	packet.DISCONNECT: {packet.V5: "\x00\x80\x81\x82\x83\x87\x89\x8b\x8d\x8e\x8f\x90\x93\x94\x95\x96\x97\x98\x99\x9a\x9b\x9c\x9d\x9e\x9f\xa0\xa1\xa2"},
}

// lawful says what a server may not send, whatever the state: packets of
// clients, AUTH to one that gave no method, codes that are not listed for the
// packet, and properties that the statements call untestable because there are
// none.
func lawful(p packet.Packet, version byte) error {
	var typ packet.Type
	var codes, props []byte
	switch p := p.(type) {
	case *packet.Connack:
		typ, codes = packet.CONNACK, []byte{p.Code}
		for _, id := range []byte{packet.ReasonString, packet.UserProperty, packet.AuthMethod} {
			if p.Props.Has(id) {
				props = p.Props
			}
		}
	case *packet.Suback:
		typ, codes, props = packet.SUBACK, p.Codes, p.Props
	case *packet.Unsuback:
		typ, codes, props = packet.UNSUBACK, p.Codes, p.Props
	case *packet.Disconnect:
		typ, codes, props = packet.DISCONNECT, []byte{p.Code}, p.Props
	case *packet.Ack: // its codes are looked at where it is decoded
		props = p.Props
	case *packet.Ping:
		if p.Type != packet.PINGRESP {
			return fmt.Errorf("%v", p.Type)
		}
	case *packet.Connect, *packet.Subscribe, *packet.Unsubscribe, *packet.Auth:
		return fmt.Errorf("%T", p)
	}
	for _, code := range codes {
		if strings.IndexByte(said[typ][version], code) < 0 {
			return fmt.Errorf("%v with code 0x%02X", typ, code)
		}
	}
	if len(props) > 0 {
		return fmt.Errorf("%T with properties % x", p, props)
	}
	return nil
}
