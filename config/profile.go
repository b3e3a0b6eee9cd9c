package config

import (
	"cmp"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Profile is the map of a device model: a device without its wire.
type Profile struct {
	Name       string // as its file, without .toml
	Maker      string
	Model      string
	Verified   string        // where the map was checked
	AnswerTime time.Duration // how long the device thinks; 0 = not known
	Defaults   ProfileDefaults
	Points     []Point // in the file's order; Interval is 0 unless the point has one of its own
	Frame      *Frame  // UART devices only
	Probe      *Probe  // nil = cannot be recognised
	Text       string  // the file
}

// ProfileDefaults are the keys of `defaults` in [profile]: what the maker
// delivers. Zero means not given. Those of a bus hold on a wire of its own only.
type ProfileDefaults struct {
	Baud         int           `toml:"baud" range:"50..4000000"`
	Format       string        `toml:"format"`
	Timeout      time.Duration `toml:"timeout" range:"10ms..60s"`
	Gap          time.Duration `toml:"gap" range:"100us..1s"`
	MaxHole      int           `toml:"max_hole" absent:"-1" range:"0..124"` // -1 = not given
	Pipeline     int           `toml:"pipeline" range:"1..16"`
	UnitID       int           `toml:"unit_id" range:"0..255"`
	Interval     time.Duration `toml:"interval" range:"100ms..24h"`
	Order        string        `toml:"order" oneof:"@orders"`
	AddressBase  int           `toml:"address_base" range:"0..1"`
	Publish      string        `toml:"publish" oneof:"always|change"`
	Heartbeat    time.Duration `toml:"heartbeat" range:"1s..24h"`
	OfflineAfter int           `toml:"offline_after" range:"1..1000"`
	MaxRead      int           `toml:"max_read" range:"1..125"`
	WriteFC      int           `toml:"write_fc"`
}

// Probe is how scan recognises the model: a point whose value must be inside
// Min..Max, or raw registers that must be as given.
type Probe struct {
	Point    string // "" when Words are given
	Min, Max *float64
	Table    string      // of Words: input or holding
	Words    []ProbeWord // rising addresses
}

// ProbeWord is a register and the value it must have.
type ProbeWord struct{ Addr, Value uint16 }

// profileFile is a profile with the tree it came from: devices lay their own points over it.
type profileFile struct {
	p      *Profile
	root   *node
	failed bool
}

// ParseProfile reads a profile. name is its file name, with or without .toml
// and folder; the profile is nil when a problem is an error.
func ParseProfile(name string, text []byte) (*Profile, []Problem) {
	var f findings
	file := f.profile(strings.TrimSuffix(name, ".toml")+".toml", string(text))
	if f.failed() {
		return nil, f.sorted()
	}
	return file.p, f.sorted()
}

// Profiles lists the profiles of the folder dir ("" = none) and the embedded
// ones (nil = none), sorted by name; dir wins. Those with an error are left out
// and told.
func Profiles(dir string, embedded fs.FS) ([]*Profile, []Problem) {
	l := newLoader(systemEnv(), embedded)
	if dir != "" {
		l.userProfiles(dir)
	}
	var list []*Profile
	for _, name := range l.profileNames() {
		if p := l.profile(name); p != nil && !p.failed {
			list = append(list, p.p)
		}
	}
	return list, l.sorted()
}

// userProfiles finds the profiles of the owner; all of them are checked, used or not.
func (l *loader) userProfiles(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			l.add(Problem{Warn: true, Msg: "cannot read the profiles in " + dir + ": " + reason(err)})
		}
		return
	}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".toml")
		if !ok || strings.HasPrefix(name, ".") {
			continue
		}
		path := filepath.Join(dir, e.Name())
		text, err := readFile(path)
		if err != nil {
			l.add(Problem{File: path, Msg: "cannot read " + path + ": " + reason(err)})
			continue
		}
		l.profiles[name] = l.findings.profile(path, text)
	}
}

// profileNames lists what there is, embedded or of the owner, sorted.
func (l *loader) profileNames() []string {
	var names []string
	for name := range l.profiles {
		names = append(names, name)
	}
	if l.embedded != nil {
		files, _ := fs.Glob(l.embedded, "*.toml")
		for _, f := range files {
			names = append(names, strings.TrimSuffix(f, ".toml"))
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// profile gets a profile by name, reading an embedded one when it is first asked for; nil when there is none.
func (l *loader) profile(name string) *profileFile {
	if p, ok := l.profiles[name]; ok {
		return p
	}
	if l.embedded == nil || !nameOK(name) {
		return nil
	}
	text, err := fs.ReadFile(l.embedded, name+".toml")
	if err != nil {
		return nil
	}
	p := l.findings.profile(name+".toml", string(text))
	l.profiles[name] = p
	return p
}

// profile reads the text of a profile, which is whole in itself.
func (f *findings) profile(path, text string) *profileFile {
	file := &profileFile{p: &Profile{Text: text, Name: strings.TrimSuffix(filepath.Base(path), ".toml")}}
	var own findings // to know whether this file has errors
	file.read(&own, &source{name: path, text: text, profile: true})
	file.failed = own.failed()
	for _, p := range own.list {
		f.add(p)
	}
	return file
}

func (file *profileFile) read(f *findings, src *source) {
	n := f.read(src)
	if n == nil {
		return
	}
	file.root = n
	var root profileRoot
	f.decode(n, profileSchema, &root, nil)
	head := n.get("profile")
	if head == nil {
		f.add(Problem{File: src.name, Pos: Pos{1, 1}, Msg: "this is no profile: it has no table [profile]", src: src.line(1)})
		return
	}
	if head.table == nil {
		return
	}
	p := file.p
	t := root.Profile
	p.Maker, p.Model, p.Verified, p.AnswerTime = t.Maker, t.Model, t.Verified, t.AnswerTime
	switch {
	case head.get("name") == nil:
		f.atKey(head, "[profile] needs `name = %q`, as the file is called", p.Name)
	case t.Name != p.Name && head.has("name"):
		f.atVal(head.get("name"), "`name` must be %q, as the file is called", p.Name)
	}
	f.decode(t.Defaults, defaultsSchema, &p.Defaults, nil)
	if c := t.Defaults.get("format"); t.Defaults.has("format") && !formatOK(p.Defaults.Format) {
		f.badFormat(c, p.Defaults.Format)
	}
	f.writeFC(t.Defaults, p.Defaults.WriteFC)
	p.Defaults.Order = foldOrder(p.Defaults.Order)
	p.Frame = f.frame(root.Frame)
	in := pointContext{uart: root.Frame != nil, order: cmp.Or(p.Defaults.Order, "ABCD"), profileBase: p.Defaults.AddressBase}
	p.Points = f.points(root.Points, in)
	if len(p.Points) == 0 && !root.Points.wrong() {
		f.atKey(head, "this profile has no points")
	}
	p.Probe = f.probe(root.Probe, p)
}

// wrong tells whether anything below n is wrong.
func (n *node) wrong() bool {
	if n == nil {
		return false
	}
	if n.bad {
		return true
	}
	for _, c := range n.table {
		if c.wrong() {
			return true
		}
	}
	for _, c := range n.list {
		if c.wrong() {
			return true
		}
	}
	return false
}

// probe reads [probe].
func (f *findings) probe(n *node, p *Profile) *Probe {
	if n == nil {
		return nil
	}
	var t probeTable
	f.decode(n, probeSchema, &t, nil)
	if n.wrong() {
		return nil
	}
	out := &Probe{Point: t.Point, Min: t.Min, Max: t.Max, Table: t.Table}
	switch {
	case (t.Point == "") == (t.Words == nil):
		f.atKey(n, "[probe] needs either `point` with `min` and `max`, or `words`")
	case t.Words != nil:
		out.Words = f.probeWords(t.Words)
	case !slices.ContainsFunc(p.Points, func(q Point) bool { return q.Name == t.Point }):
		f.atVal(n.get("point"), "there is no point `%s`", t.Point)
	case t.Min == nil || t.Max == nil || *t.Min > *t.Max:
		f.atKey(n, "[probe] needs `min` and `max` of `%s`, the smaller first", t.Point)
	}
	return out
}

func (f *findings) probeWords(n *node) []ProbeWord {
	var out []ProbeWord
	for _, key := range n.names() {
		c := n.table[key]
		addr, err := parseNumber(key)
		v, ok := c.value.(int64)
		if err != nil || addr < 0 || addr > 65535 {
			f.atKey(c, "`words` needs addresses from 0 to 65535 as keys")
		} else if !ok || v < 0 || v > 65535 {
			f.atVal(c, "`%s` must be from 0 to 65535", key)
		} else {
			out = append(out, ProbeWord{uint16(addr), uint16(v)})
		}
	}
	slices.SortFunc(out, func(a, b ProbeWord) int { return cmp.Compare(a.Addr, b.Addr) })
	return out
}
