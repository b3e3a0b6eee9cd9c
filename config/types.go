package config

import "slices"

// dataType is what a type of a point takes.
type dataType struct {
	bytes   int  // in a UART frame; 0 = as length says
	words   int  // registers
	integer bool // raw value is a whole number: bit, bits, flags, exact scaling
	signed  bool
	only8   bool // one byte of a register
}

var dataTypes = map[string]dataType{
	"bool":     {bytes: 1, words: 1},
	"int8":     {1, 1, true, true, true},
	"uint8":    {1, 1, true, false, true},
	"int16":    {2, 1, true, true, false},
	"uint16":   {2, 1, true, false, false},
	"int24":    {3, 2, true, true, false},
	"uint24":   {3, 2, true, false, false},
	"int32":    {4, 2, true, true, false},
	"uint32":   {4, 2, true, false, false},
	"int48":    {6, 3, true, true, false},
	"uint48":   {6, 3, true, false, false},
	"int64":    {8, 4, true, true, false},
	"uint64":   {8, 4, true, false, false},
	"sm16":     {2, 1, true, true, false},
	"sm32":     {4, 2, true, true, false},
	"float16":  {bytes: 2, words: 1},
	"float32":  {bytes: 4, words: 2},
	"float64":  {bytes: 8, words: 4},
	"bcd8":     {1, 1, true, false, true},
	"bcd16":    {2, 1, true, false, false},
	"bcd24":    {3, 2, true, false, false},
	"bcd32":    {4, 2, true, false, false},
	"mod10k32": {4, 2, true, false, false},
	"mod10k48": {6, 3, true, false, false},
	"mod10k64": {8, 4, true, false, false},
	"sunssf":   {2, 1, true, true, false},
	"unix32":   {bytes: 4, words: 2},
	"unix64":   {bytes: 8, words: 4},
	"string":   {},
	"hex":      {},
}

// typeNames are the types in the order of the documents.
var typeNames = []string{"bool", "int8", "uint8", "int16", "uint16", "int24", "uint24", "int32", "uint32", "int48", "uint48",
	"int64", "uint64", "sm16", "sm32", "float16", "float32", "float64", "bcd8", "bcd16", "bcd24", "bcd32",
	"mod10k32", "mod10k48", "mod10k64", "sunssf", "unix32", "unix64", "string", "hex"}

// Types are the names that the type of a point may have.
func Types() []string { return slices.Clone(typeNames) }

// Words is the number of registers that a value of this type takes; length
// counts for string and hex. It is 0 for an unknown type.
func Words(typ string, length int) int {
	if typ == "string" || typ == "hex" {
		return length
	}
	return dataTypes[typ].words
}

// Bytes is the number of bytes that a value of this type takes in the frame of
// a UART device; string and hex take two for each of length.
func Bytes(typ string, length int) int {
	if typ == "string" || typ == "hex" {
		return 2 * length
	}
	return dataTypes[typ].bytes
}

// quantity is what a unit says about a point: its device class in Home
// Assistant and the kind of its values. Units that several classes share
// (%, ppm, m³) have no class here.
type quantity struct{ class, kind string }

var quantities = map[string]quantity{
	"V": {"voltage", "measurement"}, "mV": {"voltage", "measurement"}, "kV": {"voltage", "measurement"},
	"A": {"current", "measurement"}, "mA": {"current", "measurement"},
	"W": {"power", "measurement"}, "kW": {"power", "measurement"}, "MW": {"power", "measurement"},
	"VA": {"apparent_power", "measurement"}, "kVA": {"apparent_power", "measurement"},
	"var": {"reactive_power", "measurement"}, "kvar": {"reactive_power", "measurement"},
	"Wh": {"energy", "total"}, "kWh": {"energy", "total"}, "MWh": {"energy", "total"},
	"varh": {"", "total"}, "kvarh": {"", "total"}, "VAh": {"", "total"}, "kVAh": {"", "total"},
	"Hz": {"frequency", "measurement"},
	"°C": {"temperature", "measurement"}, "°F": {"temperature", "measurement"}, "K": {"temperature", "measurement"},
	"%":   {"", "measurement"},
	"hPa": {"atmospheric_pressure", "measurement"}, "mbar": {"pressure", "measurement"}, "bar": {"pressure", "measurement"},
	"kPa": {"pressure", "measurement"}, "Pa": {"pressure", "measurement"},
	"lx":    {"illuminance", "measurement"},
	"µg/m³": {"", "measurement"}, "ppm": {"", "measurement"}, "ppb": {"", "measurement"},
	"m³": {"", "total"}, "m³/h": {"volume_flow_rate", "measurement"},
	"m/s": {"", "measurement"}, "km/h": {"speed", "measurement"}, "kn": {"speed", "measurement"},
	"°": {"", "measurement"}, "m": {"", "measurement"}, "kg": {"weight", "measurement"}, "g": {"weight", "measurement"},
	"dBm": {"signal_strength", "measurement"}, "W/m²": {"irradiance", "measurement"},
}
