// Package homeassistant writes the discovery messages of Home Assistant: one
// retained message a device, on <prefix>/device/<object id>/config, that names
// all its points as components (device-based discovery).
//
// It is pure: a configuration goes in, a topic and a payload come out. Who
// publishes them, and who takes them back, is package bridge.
package homeassistant
