package config

import (
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// kind is how a key is written.
type kind int

const (
	isText kind = iota
	isBool
	isWhole
	isFloat
	isDecimal
	isDuration
	isSize
	isHex
	isTexts    // list of text
	isInts     // list of whole numbers
	isPatterns // list of whole numbers, or of numbers in quotes where 64 bits are needed
	isWords    // table number -> text
	isScalar   // bool, number or text
	isTable    // struct of its own
	isNode     // taken as it is; form "list" for a list, else a table
)

// field is one key of a table.
type field struct {
	key    string
	index  []int // for FieldByIndex
	kind   kind
	oneof  []string
	lo, hi int64 // range, when hiText is set; in nanoseconds or bytes where that is the kind
	loText string
	hiText string
	def    string // how the default is written, as in the documents
	zero   string // a text that stands for the zero value
	absent string // the value when it is not written, where that is not the zero value and no default
	form   string
	sub    *schema
}

// schema is the keys of a table, and the struct it is read into.
type schema struct {
	fields map[string]*field
	order  []*field      // as declared
	known  []string      // sorted
	proto  reflect.Value // the struct with its defaults
}

// The tables of the language whose struct is not the one of Config itself.
type (
	rootTable struct {
		Gateway       Gateway       `toml:"gateway"`
		Bus           *node         `toml:"bus"`
		Device        *node         `toml:"device"`
		Broker        brokerTable   `toml:"broker"`
		Uplink        *node         `toml:"uplink"`
		Buffer        Buffer        `toml:"buffer"`
		Web           Web           `toml:"web"`
		HomeAssistant HomeAssistant `toml:"homeassistant"`
	}
	busTable struct {
		Bus
		FormatText string `toml:"format" default:"8N1"`
	}
	deviceTable struct {
		Device
		Serial      string `toml:"serial"`
		TCP         string `toml:"tcp"`
		Order       string `toml:"order" default:"ABCD" oneof:"@orders"`
		AddressBase int    `toml:"address_base" default:"0" range:"0..1"`
		PointsNode  *node  `toml:"points"`
		FrameNode   *node  `toml:"frame"`
	}
	pointTable struct {
		Point
		Enabled  bool  `toml:"enabled" default:"true"`
		Input    int64 `toml:"input" absent:"-1"`
		Holding  int64 `toml:"holding" absent:"-1"`
		Coil     int64 `toml:"coil" absent:"-1"`
		Discrete int64 `toml:"discrete" absent:"-1"`
	}
	brokerTable struct {
		Broker
		ACLNode *node `toml:"acl"`
	}
	uplinkTable struct {
		Uplink
		RouteNode *node `toml:"route" form:"list"`
	}
	profileRoot struct {
		Profile profileTable `toml:"profile"`
		Points  *node        `toml:"points"`
		Frame   *node        `toml:"frame"`
		Probe   *node        `toml:"probe"`
	}
	profileTable struct {
		Name       string        `toml:"name"`
		Maker      string        `toml:"maker"`
		Model      string        `toml:"model"`
		Verified   string        `toml:"verified"`
		Defaults   *node         `toml:"defaults"`
		AnswerTime time.Duration `toml:"answer_time" range:"0s..60s"`
	}
	probeTable struct {
		Point string   `toml:"point"`
		Min   *float64 `toml:"min"`
		Max   *float64 `toml:"max"`
		Words *node    `toml:"words"`
		Table string   `toml:"table" default:"holding" oneof:"input|holding"`
	}
)

var (
	rootSchema     = newSchema[rootTable]()
	busSchema      = newSchema[busTable]()
	deviceSchema   = newSchema[deviceTable]()
	pointSchema    = newSchema[pointTable]()
	frameSchema    = newSchema[Frame]()
	uplinkSchema   = newSchema[uplinkTable]()
	routeSchema    = newSchema[Route]()
	profileSchema  = newSchema[profileRoot]()
	defaultsSchema = newSchema[ProfileDefaults]()
	probeSchema    = newSchema[probeTable]()
)

// lists are the values that stand in more than one place.
var lists = map[string][]string{
	"@types":  typeNames,
	"@orders": {"ABCD", "CDAB", "BADC", "DCBA", "ABCDEFGH", "GHEFCDAB", "BADCFEHG", "HGFEDCBA"},
	"@clouds": cloudNames(),
}

func newSchema[T any]() *schema { return schemaOf(reflect.TypeFor[T]()) }

func schemaOf(t reflect.Type) *schema {
	s := &schema{fields: map[string]*field{}, proto: reflect.New(t).Elem()}
	s.collect(t, nil)
	s.known = slices.Sorted(maps.Keys(s.fields))
	for _, f := range s.order {
		s.setDefault(f)
	}
	return s
}

func (s *schema) collect(t reflect.Type, index []int) {
	for i := range t.NumField() {
		sf := t.Field(i)
		at := append(slices.Clone(index), i)
		if sf.Anonymous && sf.Tag == "" {
			s.collect(sf.Type, at)
			continue
		}
		key, ok := sf.Tag.Lookup("toml")
		if !ok {
			continue
		}
		f := newField(key, sf)
		f.index = at
		if s.fields[key] != nil {
			panic("two fields have the key " + key)
		}
		s.fields[key] = f
		s.order = append(s.order, f)
	}
}

func newField(key string, sf reflect.StructField) *field {
	f := &field{key: key, def: sf.Tag.Get("default"), zero: sf.Tag.Get("zero"), form: sf.Tag.Get("form"), absent: sf.Tag.Get("absent")}
	if v, ok := sf.Tag.Lookup("oneof"); ok {
		if f.oneof = lists[v]; f.oneof == nil {
			f.oneof = strings.Split(v, "|")
		}
	}
	f.kind = kindOf(sf.Type, f.form)
	if f.kind == isTable {
		f.sub = schemaOf(sf.Type)
	}
	if v, ok := sf.Tag.Lookup("range"); ok {
		f.loText, f.hiText, _ = strings.Cut(v, "..")
		f.lo, f.hi = f.bound(f.loText), f.bound(f.hiText)
	}
	return f
}

func kindOf(t reflect.Type, form string) kind {
	switch {
	case form == "size":
		return isSize
	case form == "hex":
		return isHex
	case t == reflect.TypeFor[time.Duration]():
		return isDuration
	case t == reflect.TypeFor[Decimal]():
		return isDecimal
	case t == reflect.TypeFor[[]Word]():
		return isWords
	case t == reflect.TypeFor[[]string]():
		return isTexts
	case t == reflect.TypeFor[[]int]():
		return isInts
	case t == reflect.TypeFor[[]int64]():
		return isPatterns
	case t == reflect.TypeFor[*float64]() || t.Kind() == reflect.Float64:
		return isFloat
	case t == reflect.TypeFor[*node]():
		return isNode
	}
	switch t.Kind() {
	case reflect.String:
		return isText
	case reflect.Bool:
		return isBool
	case reflect.Int, reflect.Int64, reflect.Uint8:
		return isWhole
	case reflect.Interface:
		return isScalar
	case reflect.Struct:
		return isTable
	}
	panic("no kind for " + t.String())
}

func (f *field) bound(s string) int64 {
	var n int64
	var err error
	switch f.kind {
	case isDuration:
		var d time.Duration
		d, err = parseDuration(s)
		n = int64(d)
	case isSize:
		n, err = parseSize(s)
	default:
		n, err = strconv.ParseInt(s, 10, 64)
	}
	if err != nil {
		panic("range of " + f.key + ": " + s)
	}
	return n
}

// setDefault puts the default of a key into proto.
func (s *schema) setDefault(f *field) {
	dst := s.proto.FieldByIndex(f.index)
	if f.kind == isTable {
		dst.Set(f.sub.proto)
		return
	}
	var err error
	switch {
	case f.absent != "":
		dst.SetInt(f.bound(f.absent))
	case f.def == "" || f.def == f.zero:
	case f.kind == isText:
		dst.SetString(f.def)
	case f.kind == isTexts:
		dst.Set(reflect.ValueOf([]string{f.def}))
	case f.kind == isBool:
		dst.SetBool(f.def == "true")
	case f.kind == isDecimal:
		var d Decimal
		d, err = parseDecimal(f.def)
		dst.Set(reflect.ValueOf(d))
	case f.kind == isWhole && dst.CanUint():
		dst.SetUint(uint64(f.bound(f.def)))
	default:
		dst.SetInt(f.bound(f.def))
	}
	if err != nil {
		panic("default of " + f.key)
	}
}
