package uplink

import (
	"cmp"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"busgate/buffer"
	"busgate/config"
)

// defaultMaxPacket bounds a PUBLISH where neither the configuration nor the
// profile does.
const defaultMaxPacket = 256 << 10

// address is one broker that can be dialled.
type address struct {
	hostport string
	host     string
	tls      bool
}

func (a address) String() string { return a.hostport }

// settings are a checked configuration with the profile laid under it. They
// are immutable.
type settings struct {
	cfg       config.Uplink
	gw        config.Gateway
	addresses []address
	qos       byte
	window    int // packets in flight
	leases    int // records leased at a time
	maxPacket int64
	keepAlive time.Duration
	rateMsgs  int
	rateBytes int64
	retain    bool
	will      bool
	private   bool
	topics    topicMap
	accept    []string // local filters
	routesIn  []string // remote filters to subscribe, in order, without repetition
}

// newSettings checks what only this room can check; the rest was checked when
// the configuration was loaded.
func newSettings(cfg *config.Uplink, gw *config.Gateway) (*settings, error) {
	s := &settings{cfg: *cfg, gw: *gw}
	if len(cfg.Addresses) == 0 {
		return nil, fmt.Errorf("uplink %s: no addresses; try addresses = [\"mqtts://host:8883\"]", cfg.Name)
	}
	for _, a := range cfg.Addresses {
		ad, err := parseAddress(a)
		if err != nil {
			return nil, fmt.Errorf("uplink %s: %w", cfg.Name, err)
		}
		s.addresses = append(s.addresses, ad)
	}
	p := presets[cfg.Profile]
	s.qos, s.will, s.retain, s.private = cfg.QoS, cfg.Will, cfg.Retain, p.private
	s.window = windowOf(cfg)
	s.leases = leasesOf(cfg)
	s.maxPacket = cmp.Or(cfg.MaxPacket, int64(defaultMaxPacket))
	s.keepAlive = cmp.Or(cfg.KeepAlive, time.Minute)
	if p.keepAlive > 0 {
		s.keepAlive = min(s.keepAlive, p.keepAlive)
	}
	s.rateMsgs, s.rateBytes = cfg.RateMsgs, cfg.RateBytes
	s.topics = newTopicMap(cfg)
	s.accept = slices.Clone(cfg.Accept)
	for _, r := range cfg.Routes {
		if r.Direction == "in" {
			s.accept = append(s.accept, r.Filter)
		}
	}
	for _, f := range s.accept {
		if r := s.topics.subscription(f); !slices.Contains(s.routesIn, r) {
			s.routesIn = append(s.routesIn, r)
		}
	}
	return s, s.checkLoops()
}

// windowOf is the number of packets in flight. mosquitto 2.0.11 closes a QoS 2
// publisher with more than 20.
func windowOf(cfg *config.Uplink) int {
	w := cmp.Or(cfg.Window, 100)
	if cfg.QoS == 2 {
		w = cmp.Or(cfg.Window, 20)
	}
	return min(w, maxWindow)
}

// maxLeases is the most that the store leases at a time. 8,192 records and 256
// control packets keep their packet ids apart: there are 65,535.
const maxLeases = 8192

// leasesOf is the number of records that may be leased: those of a window that is
// in flight and of one that is ready when acknowledgements come, so that nothing
// waits for the store; with batches a packet carries many.
func leasesOf(cfg *config.Uplink) int {
	w := windowOf(cfg)
	if cfg.QoS == 2 {
		w += w / completing
	}
	n := 2 * w
	if batches(cfg) {
		n = (w + 2) * cmp.Or(cfg.MaxRecords, defaultBatch)
	}
	return min(n, maxLeases)
}

// batches tells whether one packet carries many readings.
func batches(cfg *config.Uplink) bool {
	return cfg.Encode == "json-batch" || cfg.Encode == encodeThingsBoard
}

// thingsboard tells that ThingsBoard's own topics and payloads are spoken.
func (s *settings) thingsboard() bool { return s.cfg.Encode == encodeThingsBoard }

// The bounds of a batch where the configuration sets none.
const (
	defaultBatch      = 64
	defaultBatchBytes = 48 << 10
	defaultBatchAge   = 10 * time.Second
)

func (s *settings) batchRecords() int       { return cmp.Or(s.cfg.MaxRecords, defaultBatch) }
func (s *settings) batchAge() time.Duration { return cmp.Or(s.cfg.MaxAge, defaultBatchAge) }

// batchBytes bounds a batch before it is compressed. 1 KiB is for what is around
// the readings.
func (s *settings) batchBytes() int64 {
	return min(cmp.Or(s.cfg.MaxBytes, defaultBatchBytes), s.maxPacket-1024)
}

// ConsumerOptions are those with which the store must open the consumer of this
// uplink: its window, and whether leases are to be on disk before they are used.
// stream is the name of the stream that numbers its records.
func ConsumerOptions(cfg *config.Uplink, stream string) buffer.ConsumerOptions {
	return buffer.ConsumerOptions{Kind: buffer.Uplink, Window: leasesOf(cfg), Exact: cfg.QoS == 2, Stream: stream}
}

// checkLoops refuses routes that would bring our own messages down again.
func (s *settings) checkLoops() error {
	for i, in := range s.cfg.Routes {
		if in.Direction != "in" {
			continue
		}
		for _, out := range s.cfg.Routes {
			if out.Direction == "out" && overlap(s.topics.remoteFilter(in.Filter), s.topics.remoteFilter(out.Filter)) {
				return fmt.Errorf("uplink.%s.route[%d]: %q in and %q out overlap after mapping: a loop; give them different prefixes",
					s.cfg.Name, i, in.Filter, out.Filter)
			}
		}
	}
	return nil
}

// identity is what the session at the broker belongs to. When it changes, the
// old session's memory of packet ids must not meet the new one's.
func (s *settings) identity() string {
	as := make([]string, 0, len(s.addresses))
	for _, a := range s.addresses {
		as = append(as, a.hostport)
	}
	slices.Sort(as)
	return fmt.Sprintf("%s qos=%d %s %s", s.cfg.ClientID, s.qos, cmp.Or(s.cfg.Encode, "as-is"), strings.Join(as, ","))
}

// status is the local topic of the gateway's availability, with which this
// connection's will speaks.
func (s *settings) status() string { return s.gw.Base() + "/gateway/status" }

// maxIn is the longest packet that we take.
func (s *settings) maxIn() int64 { return cmp.Or(s.cfg.MaxPacketIn, 1<<20) }

// windowBytes bounds the payloads in flight; one packet is always allowed.
func (s *settings) windowBytes() int64 { return cmp.Or(s.cfg.WindowBytes, 256<<10) }

func parseAddress(a string) (address, error) {
	u, err := url.Parse(a)
	if err != nil || u.Hostname() == "" {
		return address{}, fmt.Errorf("address %q: try \"mqtts://host:8883\"", a)
	}
	port := "1883"
	ad := address{host: u.Hostname()}
	switch u.Scheme {
	case "mqtt", "tcp":
	case "mqtts", "tls":
		ad.tls, port = true, "8883"
	default:
		return address{}, fmt.Errorf("address %q: the scheme is not one of mqtt, mqtts, tcp, tls", a)
	}
	ad.hostport = net.JoinHostPort(ad.host, cmp.Or(u.Port(), port))
	return ad, nil
}
