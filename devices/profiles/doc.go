// Package profiles holds the device models that busgate knows: one TOML file
// each, in the language of the configuration, without a wire. It is read by the
// configuration; a file of the same name in /etc/busgate/profiles wins.
//
// Every register was compared with the source that the file names as verified,
// by the tests with testdata/devices.csv. A new model is a new file here and no
// Go.
package profiles

import "embed"

// FS holds NAME.toml of each profile.
//
//go:embed *.toml
var FS embed.FS
