package main

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// allowed is the architecture: who may import whom inside the module. Arrows
// point down only. A new edge is a decision, made here. Test files obey the
// same table, with the additions of allowedInTests.
var allowed = map[string][]string{
	// level 4: wires everything; nobody imports it
	"cmd/busgate": {"config", "config/report", "devices", "devices/modbus", "devices/port", "devices/uart", "devices/profiles", "devices/sim",
		"embeddedbroker", "embeddedbroker/durable", "buffer", "bridge", "bridge/uplink", "cmd/busgate/console"},
	// shows what it is given as functions
	"cmd/busgate/console": {"config", "config/report"},
	// a strict reader of the text format, for the tests
	"cmd/busgate/console/metricstest": {},

	// level 3
	"bridge":               {"config", "config/report", "devices", "embeddedbroker", "bridge/homeassistant"},
	"bridge/homeassistant": {"config"},
	"bridge/uplink":        {"config", "config/report", "buffer", "embeddedbroker"},
	// a broker with faults and a ledger, for the tests of those who relay
	"bridge/uplink/cloudtest": {},

	// level 2
	"devices":                {"config", "config/report"},
	"devices/modbus":         {"config", "config/report", "devices", "devices/port"},
	"devices/uart":           {"config", "config/report", "devices", "devices/port"},
	"devices/port":           {"config"},
	"devices/profiles":       {},
	"devices/sim":            {},
	"embeddedbroker":         {"config", "config/report", "embeddedbroker/packet"},
	"embeddedbroker/packet":  {},
	"embeddedbroker/durable": {"buffer", "embeddedbroker"},
	// one suite for every implementation of embeddedbroker.Store
	"embeddedbroker/storetest": {"embeddedbroker"},
	"buffer":                   {"config/report"},

	// level 1
	"config":        {},
	"config/report": {},
}

// allowedInTests are edges that only _test.go files may use: a room is tested
// against the real thing where that costs no cycle.
var allowedInTests = map[string][]string{
	"bridge":                 {"embeddedbroker/durable", "buffer"},
	"bridge/uplink":          {"bridge/uplink/cloudtest", "embeddedbroker/durable", "embeddedbroker/packet"},
	"cmd/busgate":            {"bridge/uplink/cloudtest", "cmd/busgate/console/metricstest"},
	"cmd/busgate/console":    {"cmd/busgate/console/metricstest"},
	"config":                 {"devices/profiles"},
	"devices":                {"devices/sim", "devices/profiles", "devices/modbus", "devices/uart"},
	"devices/modbus":         {"devices/sim", "devices/profiles"},
	"devices/uart":           {"devices/sim", "devices/profiles"},
	"devices/profiles":       {"config", "devices", "devices/modbus", "devices/uart", "devices/sim"},
	"embeddedbroker":         {"embeddedbroker/durable", "embeddedbroker/storetest", "buffer"},
	"embeddedbroker/durable": {"embeddedbroker/storetest", "config"},
}

// TestArchitecture fails on any import inside the module that the table does not name.
func TestArchitecture(t *testing.T) {
	root := filepath.Join("..", "..")
	seen := map[string]bool{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if n := d.Name(); n == "testdata" || len(n) > 2 && strings.HasPrefix(n, ".") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		rel, err := filepath.Rel(root, filepath.Dir(path))
		if err != nil {
			return err
		}
		room := filepath.ToSlash(rel)
		rules, known := allowed[room]
		if !known {
			if strings.HasPrefix(room, "packaging") { // programs of their own; nobody imports them
				return nil
			}
			t.Errorf("%s: the room %q is not in the table", path, room)
			return nil
		}
		seen[room] = true
		if strings.HasSuffix(path, "_test.go") {
			rules = append(slices.Clone(rules), allowedInTests[room]...)
			rules = append(rules, room)
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, im := range f.Imports {
			p, err := strconv.Unquote(im.Path.Value)
			if err != nil {
				return err
			}
			if to, ok := strings.CutPrefix(p, "busgate/"); ok && !slices.Contains(rules, to) {
				t.Errorf("%s: %s may not import %s", path, room, to)
			}
			kernel := room == "devices/port" || room == "devices/sim" || room == "buffer" || strings.HasSuffix(path, "_test.go")
			if p == "log" || p == "unsafe" && !kernel {
				t.Errorf("%s: import of %s", path, p)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for room := range allowed {
		if !seen[room] {
			t.Errorf("the table names the room %q, which does not exist", room)
		}
	}
}
