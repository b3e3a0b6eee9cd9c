// Package bridge turns what the devices say into messages, and messages on
// .../set into writes, and keeps the availability of everything truthful.
//
//	devices.Fleet ── Take(Round) ───> state, state/<point> ──┐
//	              ── Health ────────> status, error          ├──> Broker.Publish
//	rooms ────────── Alert, UplinkState, Numbers, Buses ─────┘
//	Broker ── .../set, .../set/<point> ──> one lane a device ──> Fleet.Write ──> .../ack
//	cloud  ── Down, on disk first ──────┘
//	Broker ── .../get ──> Fleet.Refresh
//
// Every topic stands below {base} = <topic>/<gateway>. The bridge is the only
// one that knows both a Round and a Message. It keeps nothing on disk itself
// (commands that carry an id are written down through Memory, so that a crash
// executes none twice, and so is what a cloud may still show of devices that are
// gone), it does not poll, and it knows no uplink but by name. Announcements to
// Home Assistant are written by bridge/homeassistant and published here.
//
// Life: New, Announce (before the listeners open: everything is said to be
// offline until it answers), Run. Take, Health, Alert and the others may be
// called from New on.
package bridge
