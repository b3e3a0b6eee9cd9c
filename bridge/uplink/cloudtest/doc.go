// Package cloudtest is a small cloud broker with a ledger: strict about MQTT
// 3.1.1, forgetful and deaf on demand. Tests and the demo connect an uplink to
// it and then compare what was sent with what it got.
//
// It keeps everything in memory and is no broker for use.
package cloudtest
