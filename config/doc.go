// Package config turns TOML files into one checked, immutable [Config], or into
// the list of all their mistakes, each with file, line and column.
//
//	main file, conf.d/*.toml ──toml──> trees ──merge──> one tree ──decode──┐
//	     └── index: where each key stands ───────────────────┘             │
//	profiles/*.toml, embedded ──────────────> laid under their devices ────┤
//	                                                  cross checks ──> Config, []Problem
//
// It opens no port and no socket, keeps no state and knows no goroutine: the
// daemon, check, reload, the console and the tests of profiles call the same
// functions. Besides the files it is given it reads certificates, password and
// users files (to say early that they are missing), links below /dev, the host
// name and $CREDENTIALS_DIRECTORY. It does not read buses, does not take
// templates from the environment and has no expressions.
//
// The tags of the structs are the language: toml is the key, default its
// default, range and oneof what is allowed, form how it is written (size, name,
// hex), zero a word that stands for the zero value, absent the value of a key
// that is not written and has no default.
package config
