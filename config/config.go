package config

import "time"

// Config is one checked, complete configuration: files merged, profiles laid
// under their devices, defaults filled in. It is immutable after Load; whoever
// holds it may keep it and read it from any goroutine.
type Config struct {
	Gateway       Gateway
	Buses         map[string]*Bus    // also the unnamed bus of a device with a wire of its own, under the device's name
	Devices       map[string]*Device // Device.Bus always names an entry of Buses
	Broker        Broker
	Uplinks       map[string]*Uplink
	Buffer        Buffer
	Web           Web
	HomeAssistant HomeAssistant

	Path string // the main file

	index *index // where each key stands; nil for a Config built in code
}

// Gateway is the table [gateway].
type Gateway struct {
	Name     string        `toml:"name" default:"{hostname}"`                 // [a-z0-9_-]{1,64}; level 2 of every topic
	Topic    string        `toml:"topic" default:"busgate"`                   // level 1; may hold several levels
	Interval time.Duration `toml:"interval" default:"10s" range:"100ms..24h"` // default of every device
	Log      string        `toml:"log" default:"info" oneof:"error|warn|info|debug|trace"`
	DataDir  string        `toml:"data_dir" default:"/var/lib/busgate"` // absolute
	Time     string        `toml:"time" default:"rfc3339" oneof:"rfc3339|unix_ms"`
	Payload  string        `toml:"payload" default:"json" oneof:"json|value"`
}

// Base is the first levels of every topic of ours: "busgate/plant-a".
func (g *Gateway) Base() string { return g.Topic + "/" + g.Name }

// Bus is a table [bus.NAME], or the wire of a device that has one of its own.
type Bus struct {
	Name      string
	Own       bool          // the unnamed bus of the device of the same name
	Serial    string        `toml:"serial"`                                                              // device path; exactly one of Serial and TCP is set
	TCP       string        `toml:"tcp"`                                                                 // host:port, the port always filled in
	Protocol  string        `toml:"protocol" oneof:"modbus-rtu|modbus-ascii|modbus-tcp|modbus-udp|uart"` // filled in from the wire and the profile
	Baud      int           `toml:"baud" default:"9600" range:"50..4000000"`                             // bit/s
	DataBits  int           // 5..8
	Parity    byte          // 'N', 'E' or 'O'
	StopBits  int           // 1 or 2
	Timeout   time.Duration `toml:"timeout" range:"10ms..60s"`                        // first byte of an answer, from the end of the request; serial 500 ms, tcp 2 s
	Retries   int           `toml:"retries" default:"1" range:"0..10"`                // further tries after the first
	Gap       time.Duration `toml:"gap" default:"auto" zero:"auto" range:"100us..1s"` // silence between frames; 0 = auto (3.5 characters, 1.75 ms above 19200 baud)
	RS485     string        `toml:"rs485" default:"auto" oneof:"auto|kernel|off"`
	Exclusive bool          `toml:"exclusive" default:"true"`
	MaxRead   int           `toml:"max_read" default:"125" range:"1..125"` // registers in one request, 1..125
	MaxHole   int           `toml:"max_hole" default:"124" range:"0..124"` // unwanted registers that a request may read over, 0..124
	TLS       bool          `toml:"tls" default:"false"`
	CA        string        `toml:"ca"`
	Cert      string        `toml:"cert"`
	Key       string        `toml:"key"`
	Pipeline  int           `toml:"pipeline" default:"1" range:"1..16"` // requests in flight, TCP only
}

// Format is the character format as data sheets print it: "8N1".
func (b *Bus) Format() string {
	return string([]byte{'0' + byte(b.DataBits), b.Parity, '0' + byte(b.StopBits)})
}

// Device is a table [device.NAME] with its profile laid under it.
type Device struct {
	Name         string
	Bus          string        `toml:"bus"` // key of Config.Buses
	UnitID       uint8         `toml:"unit_id" default:"1" range:"0..255"`
	Profile      string        `toml:"profile"` // "" when the points are all its own
	Maker, Model string        // of the profile
	Label        string        `toml:"label"` // what people read; the name when none is given
	Interval     time.Duration `toml:"interval" range:"100ms..24h"`
	Enabled      bool          `toml:"enabled" default:"true"`
	Publish      string        `toml:"publish" default:"always" oneof:"always|change"`
	Heartbeat    time.Duration `toml:"heartbeat" default:"5m" range:"1s..24h"`
	OfflineAfter int           `toml:"offline_after" default:"3" range:"1..1000"` // consecutive failed rounds
	Backoff      time.Duration `toml:"backoff" default:"1m" range:"1s..1h"`       // longest time between two probes of a dead device
	AnswerTime   time.Duration // of the profile: how long the device thinks; 0 = not known
	MaxRead      int           `toml:"max_read" range:"1..125"` // registers in one request; at most that of the bus
	WriteFC      int           `toml:"write_fc" default:"0"`    // 0 = by size, or 16
	Points       []Point       // profile's order first, then the file's
	Frame        *Frame        // UART devices only

	profile *Profile // what Points began with; nil without
}

// Point is one named quantity, with everything inherited filled in.
type Point struct {
	Name     string
	Table    string        // input, holding, coil or discrete; "" for a UART point
	Addr     uint16        // as it goes on the wire: address_base is already subtracted
	Type     string        `toml:"type" oneof:"@types"`           // uint16, float32, bool ... (see Types); "" = a number as a UART text writes it
	Byte     string        `toml:"byte" oneof:"low|high|both"`    // low or high of 8-bit types; low, high or both of string; else ""
	Length   int           `toml:"length" range:"1..125"`         // registers of a string or hex (UART: bytes / 2)
	Bit      int           `toml:"bit" range:"0..15" absent:"-1"` // -1 = the whole value
	Bits     []int         `toml:"bits"`                          // nil, or {from, to}, both included
	Flags    []Word        `toml:"flags"`                         // set bits as words
	Order    string        `toml:"order" oneof:"@orders"`         // eight letters for 64 bit are folded to the four that mean the same: ABCD, CDAB, BADC, DCBA
	Scale    Decimal       `toml:"scale" default:"1"`             // value = raw * Scale + Offset
	Offset   Decimal       `toml:"offset" default:"0"`
	ScaleReg int           `toml:"scale_register" absent:"-1"` // address of the power of ten on the wire, -1 = none
	Atomic   string        `toml:"atomic"`                     // points of one word are read in one request; "" = none
	SunSpec  []int         `toml:"sunspec"`                    // nil, or the models in one of which it stands: Addr and ScaleReg count from the model's first register
	Unit     string        `toml:"unit"`
	Digits   int           `toml:"digits" range:"0..9" absent:"-1"` // decimals to print; -1 = as the type says
	Enum     []Word        `toml:"enum"`
	Invalid  []int64       `toml:"invalid"` // raw values that mean "not available"; patterns of unsigned 64 bit are cast
	Min      *float64      `toml:"min"`     // nil = no limit
	Max      *float64      `toml:"max"`
	Deadband float64       `toml:"deadband"`
	Interval time.Duration `toml:"interval" range:"100ms..24h"`
	Write    bool          `toml:"write" default:"false"`
	Pulse    bool          `toml:"pulse" default:"false"`
	Safe     any           `toml:"safe"` // nil, bool, int64, float64 or string
	SafeFor  time.Duration `toml:"safe_after" range:"100ms..30d"`
	Kind     string        `toml:"kind" oneof:"|measurement|total|total_increasing"` // from the unit when not given
	Class    string        `toml:"class"`
	Label    string        `toml:"label"`

	// UART: exactly one of these says where the value stands in a frame.
	At       int    `toml:"at" range:"0..16383" absent:"-1"`    // byte offset, -1 = not used
	Column   int    `toml:"column" range:"0..1000" absent:"-1"` // 0-based, -1 = not used
	Key      string `toml:"key"`                                // of key=value
	JSON     string `toml:"json"`                               // dotted path
	Regex    string `toml:"regex"`                              // with one named group
	OBIS     string `toml:"obis"`
	Sentence string `toml:"sentence"` // NMEA, with Column
}

// Word is a number and what it is called, in rising order of the number.
type Word struct {
	N    int64
	Text string
}

// Decimal is M * 10^E exactly as written: scale = 0.1 is {1, -1}.
type Decimal struct {
	M int64
	E int
}

// Float is the nearest float64.
func (d Decimal) Float() float64 { return decimalFloat(d) }

// Frame is [device.NAME.frame]: how the frames of a UART sensor are found.
type Frame struct {
	Kind    string `toml:"kind" default:"line" oneof:"line|delimited|fixed|length|idle|p1|sml|nmea"`
	Header  []byte `toml:"header" form:"hex"`
	Start   []byte `toml:"start" form:"hex"`
	End     []byte `toml:"end" form:"hex"`                // line: 0A when not given
	Length  int    `toml:"length" range:"1..16384"`       // fixed: the whole frame in bytes
	At      int    `toml:"at" range:"0..16383"`           // length: where the length field is
	Size    int    `toml:"size" default:"1" range:"1..4"` // ... its bytes
	Endian  string `toml:"endian" default:"big" oneof:"big|little"`
	Add     int    `toml:"add" default:"0" range:"-16384..16384"`
	Max     int    `toml:"max" default:"1024" range:"1..16384"` // longest frame in bytes, 1..16384
	Check   string `toml:"check" default:"none" oneof:"none|xor|sum8|neg-sum8|sum16|lrc|crc16-modbus|crc16-arc|crc16-x25|crc8-maxim"`
	Request []byte `toml:"request" form:"hex"` // sent each interval before reading; nil for a talker
}

// Broker is [broker] with its sub-tables.
type Broker struct {
	Enabled       bool              `toml:"enabled" default:"true"`
	Listen        string            `toml:"listen" default:"127.0.0.1:1883"`
	Socket        string            `toml:"socket"` // path of a unix socket; "" = none
	Anonymous     bool              `toml:"anonymous" default:"false"`
	Users         string            `toml:"users"` // file; "" = none
	MaxClients    int               `toml:"max_clients" default:"200" range:"1..100000"`
	MaxPacket     int64             `toml:"max_packet" default:"1MB" form:"size" range:"1kB..256MB"`
	MaxQueued     int               `toml:"max_queued" default:"100000" range:"1..100000000"`
	MaxQueuedSize int64             `toml:"max_queued_bytes" default:"64MB" form:"size" range:"1kB..1000GB"`
	SessionExpiry time.Duration     `toml:"session_expiry" default:"7d"`
	Retain        bool              `toml:"retain" default:"true"`
	SysInterval   time.Duration     `toml:"sys_interval" default:"10s"`                    // 0 = no $SYS
	MaxInflight   int               `toml:"max_inflight" default:"100" range:"0..65535"`   // 0 = 65535
	MaxKeepAlive  time.Duration     `toml:"max_keepalive" default:"0s" range:"0s..65535s"` // 0 = any
	CheckFormat   bool              `toml:"check_payload_format" default:"false"`          // refuse what says UTF-8 and is not
	QueueFull     string            `toml:"queue_full" default:"drop_oldest" oneof:"drop_oldest|refuse|end_session"`
	TLS           BrokerTLS         `toml:"tls"`
	WebSocket     BrokerWebSocket   `toml:"websocket"`
	ACL           map[string][]Rule // nil = everything is allowed
}

// BrokerTLS is [broker.tls]: Listen, Cert and Key are all set or all empty.
type BrokerTLS struct {
	Listen   string `toml:"listen"`
	Cert     string `toml:"cert"`
	Key      string `toml:"key"`
	ClientCA string `toml:"client_ca"`
}

// BrokerWebSocket is [broker.websocket].
type BrokerWebSocket struct {
	Listen  string   `toml:"listen"`  // "" = off
	Origins []string `toml:"origins"` // hosts beside the own one whose pages may connect: host, host:port or scheme://host:port
}

// Rule is one line of [broker.acl].
type Rule struct {
	Verb   string // read, write, readwrite or deny
	Filter string
}

// Uplink is a table [uplink.NAME].
type Uplink struct {
	Name               string
	Addresses          []string      `toml:"addresses"` // mqtt://host:port, mqtts://host:port; ports filled in
	Profile            string        `toml:"profile" default:"generic" oneof:"@clouds"`
	ClientID           string        `toml:"client_id" default:"busgate-{name}"`
	User               string        `toml:"user"`
	PasswordFile       string        `toml:"password_file"` // path; the secret is read at each connect
	CA                 string        `toml:"ca"`
	Cert               string        `toml:"cert"`
	Key                string        `toml:"key"`
	ALPN               []string      `toml:"alpn"`
	SNI                string        `toml:"sni"`
	InsecureSkipVerify bool          `toml:"insecure_skip_verify" default:"false"`
	QoS                byte          `toml:"qos" default:"1" range:"0..2"`
	Window             int           `toml:"window" default:"0" range:"0..1024"` // 0 = auto
	WindowBytes        int64         `toml:"window_bytes" default:"256KiB" form:"size" range:"1kB..1GB"`
	KeepAlive          time.Duration `toml:"keepalive" default:"60s" range:"5s..20m"`
	Congestion         string        `toml:"congestion" default:"kernel" oneof:"kernel|bbr"` // of TCP, for lossy links
	Send               []string      `toml:"send" default:"{base}/#"`                        // filters, placeholders replaced
	Accept             []string      `toml:"accept"`
	LocalPrefix        string        `toml:"local_prefix"`
	RemotePrefix       string        `toml:"remote_prefix"`
	Routes             []Route
	Order              string        `toml:"order" default:"fifo" oneof:"fifo|live_first"`
	LiveAge            time.Duration `toml:"live_age" default:"60s"`
	RateMsgs           int           `toml:"rate_msgs" default:"0" range:"0..1000000"` // per second; 0 = no limit
	RateBytes          int64         `toml:"rate_bytes" form:"size"`                   // per second; 0 = no limit
	BudgetMonth        int64         `toml:"budget_month" form:"size"`                 // 0 = none
	BudgetDay          int           `toml:"budget_day" default:"1" range:"1..28"`
	Encode             string        `toml:"encode" default:"as-is" oneof:"as-is|json-batch|thingsboard|sparkplug"` // as-is, json-batch or thingsboard (its profile's default)
	Compress           string        `toml:"compress" oneof:"none|deflate"`                                         // none; json-batch: deflate
	MaxRecords         int           `toml:"max_records" default:"64" range:"1..10000"`
	MaxAge             time.Duration `toml:"max_age" default:"10s"`
	MaxBytes           int64         `toml:"max_bytes" default:"48KiB" form:"size" range:"1kB..256MB"`
	MaxPacket          int64         `toml:"max_packet" default:"256KiB" form:"size" range:"1kB..256MB"`
	MaxPacketIn        int64         `toml:"max_packet_in" default:"1MiB" form:"size" range:"1kB..256MB"`
	Start              string        `toml:"start" default:"automatic" oneof:"automatic|lazy"`
	Will               bool          `toml:"will" default:"true"`
	Retain             bool          `toml:"retain" default:"true"`
	CommandTTL         time.Duration `toml:"command_ttl" default:"60s"`
	RetryUnknown       bool          `toml:"retry_unknown" default:"false"`
	TopicTemplate      string        `toml:"topic_template"`
}

// Route is one entry of route in an uplink; what it does not say is that of the uplink.
type Route struct {
	Filter       string `toml:"filter"` // of local topics
	Direction    string `toml:"direction" default:"out" oneof:"out|in"`
	QoS          byte   `toml:"qos" range:"0..2"`
	LocalPrefix  string `toml:"local_prefix"`
	RemotePrefix string `toml:"remote_prefix"`
}

// Buffer is [buffer].
type Buffer struct {
	MaxBytes    int64         `toml:"max_bytes" default:"512MiB" form:"size" range:"1MB..1000GB"`
	MaxMessages int64         `toml:"max_messages" default:"20000000" range:"1..1000000000000"`
	MaxAge      time.Duration `toml:"max_age" default:"0s"` // 0 = no limit
	MinFreeDisk int64         `toml:"min_free_disk" default:"256MiB" form:"size"`
	WhenFull    string        `toml:"when_full" default:"drop_oldest" oneof:"drop_oldest|thin|reject"`
	Keep        string        `toml:"keep" default:"first" oneof:"first|last|minmax"`
	Sync        time.Duration `toml:"sync" default:"1s" range:"10ms..60s"`
	Durability  string        `toml:"durability" default:"strict" oneof:"strict|full"`
}

// Web is [web].
type Web struct {
	Listen string   `toml:"listen" default:"127.0.0.1:8080"` // "" = off
	Users  string   `toml:"users"`                           // that of the broker when not given
	Hosts  []string `toml:"hosts"`
}

// HomeAssistant is [homeassistant].
type HomeAssistant struct {
	Discovery bool   `toml:"discovery" default:"false"`
	Prefix    string `toml:"prefix" default:"homeassistant"`
}
