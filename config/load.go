package config

import (
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/user"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"
)

// env is what a configuration depends on besides its files.
type env struct {
	hostname    func() (string, error)
	now         time.Time
	built       time.Time // a clock before this is not set; zero when not known
	credentials string    // $CREDENTIALS_DIRECTORY of systemd; "" outside of it
	byID        string    // folder of the lasting names of serial ports
	service     *account  // whom the daemon runs as, when we are root
	stranger    bool      // we are neither root nor that user: what we cannot read, the daemon may
}

// account is a user and its groups.
type account struct {
	uid  uint32
	gids []uint32
}

func systemEnv() env {
	e := env{hostname: os.Hostname, now: time.Now(), credentials: os.Getenv("CREDENTIALS_DIRECTORY"), byID: "/dev/serial/by-id"}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.time" {
				e.built, _ = time.Parse(time.RFC3339, s.Value)
			}
		}
	}
	if a := serviceAccount("busgate"); a != nil {
		if os.Geteuid() == 0 { // root reads everything, the service does not
			e.service = a
		}
		e.stranger = os.Geteuid() != 0 && os.Geteuid() != int(a.uid)
	}
	return e
}

func serviceAccount(name string) *account {
	u, err := user.Lookup(name)
	if err != nil {
		return nil
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil
	}
	a := &account{uid: uint32(uid)}
	ids, _ := u.GroupIds()
	for _, id := range append(ids, u.Gid) {
		if n, err := strconv.ParseUint(id, 10, 32); err == nil {
			a.gids = append(a.gids, uint32(n))
		}
	}
	return a
}

// loader is one reading of a configuration.
type loader struct {
	findings
	env        env
	embedded   fs.FS
	profiles   map[string]*profileFile
	dir        string // absolute: relative paths in the files begin here
	cfg        *Config
	busNode    map[string]*node
	deviceNode map[string]*node
	partial    bool // a file could not be read: what is missing may stand there
}

func newLoader(e env, embedded fs.FS) *loader {
	return &loader{env: e, embedded: embedded, profiles: map[string]*profileFile{},
		busNode: map[string]*node{}, deviceNode: map[string]*node{}}
}

// Load reads the main file at path, conf.d/*.toml beside it in the order of
// their names (no hidden ones), and the profiles it needs: profiles/*.toml
// beside the main file, or *.toml at the root of profiles, the embedded ones
// (nil = none). It finds all mistakes at once, sorted by file and position. The
// Config is nil when one of them is an error, and complete otherwise: every
// default is filled in.
func Load(path string, profiles fs.FS) (*Config, []Problem) {
	return newLoader(systemEnv(), profiles).load(path)
}

// Parse is Load for one text. name is the file name that problems show;
// relative paths in the text begin in its folder.
func Parse(name, text string, profiles fs.FS) (*Config, []Problem) {
	return newLoader(systemEnv(), profiles).parse(name, text)
}

func (l *loader) parse(name, text string) (*Config, []Problem) {
	src := &source{name: name, text: text}
	return l.build(src, []*node{l.tree(src)})
}

func (l *loader) load(path string) (*Config, []Problem) {
	text, err := readFile(path)
	if err != nil {
		l.add(Problem{File: path, Len: 1, Msg: "no configuration at " + path + ": " + reason(err)})
		return nil, l.sorted()
	}
	main := &source{name: path, text: text}
	trees := []*node{l.tree(main)}
	dir := filepath.Dir(path)
	for _, name := range l.confD(filepath.Join(dir, "conf.d")) {
		text, err := readFile(name)
		if err != nil {
			l.partial = true
			l.add(Problem{File: name, Len: 1, Msg: "cannot read " + name + ": " + reason(err)})
			continue
		}
		trees = append(trees, l.tree(&source{name: name, text: text}))
	}
	l.userProfiles(filepath.Join(dir, "profiles"))
	return l.build(main, trees)
}

// tree reads one file; nil when it is no TOML.
func (l *loader) tree(src *source) *node {
	n := l.read(src)
	if n == nil {
		l.partial = true
	}
	return n
}

// confD lists the files of conf.d in the order of their names.
func (l *loader) confD(dir string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			l.partial = true
			l.add(Problem{File: dir, Len: 1, Msg: "cannot read " + dir + ": " + reason(err)})
		}
		return nil
	}
	var names []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".toml") && !strings.HasPrefix(e.Name(), ".") && !e.IsDir() {
			names = append(names, filepath.Join(dir, e.Name()))
		}
	}
	return names
}

// readFile reads at most a little more than a configuration can have.
func readFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	return string(b), err
}

// reason is the cause of an error of package os, without operation and path.
func reason(err error) string {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err.Error()
	}
	return err.Error()
}

// spread are the tables that may stand in several files.
var spread = []string{"", "gateway", "bus", "device", "broker", "broker.tls", "broker.websocket", "broker.acl",
	"uplink", "buffer", "web", "homeassistant"}

// merge puts the keys of src into dst; the same key in both is an error.
func (l *loader) merge(dst, src *node) {
	for _, k := range src.names() {
		c, old := src.table[k], dst.table[k]
		switch {
		case old == nil:
			dst.table[k] = c
		case old.table != nil && c.table != nil && slices.Contains(spread, c.path):
			both := *old
			both.table = maps.Clone(old.table)
			dst.table[k] = &both
			l.merge(&both, c)
		default:
			l.atKey(c, "`%s` is also in %s:%d; keep one of them", c.path, old.src.name, old.span.Key.Line)
		}
	}
}

// build makes the Config of the trees of all files.
func (l *loader) build(main *source, trees []*node) (*Config, []Problem) {
	dir, err := filepath.Abs(filepath.Dir(main.name))
	if err != nil {
		dir = filepath.Dir(main.name)
	}
	l.dir = dir
	root := &node{src: main, table: map[string]*node{}, span: Span{Key: Pos{1, 1}, Val: Pos{1, 1}}}
	for _, t := range trees {
		if t != nil {
			l.merge(root, t)
		}
	}
	l.cfg = &Config{Buses: map[string]*Bus{}, Devices: map[string]*Device{}, Uplinks: map[string]*Uplink{},
		Path: main.name, index: &index{root}}
	var t rootTable
	l.decode(root, rootSchema, &t, nil)
	l.cfg.Gateway = t.Gateway
	l.gateway(root.get("gateway"))
	l.buses(t.Bus)
	l.devices(t.Device, t.Bus)
	l.wires()
	l.broker(root.get("broker"), &t.Broker)
	l.uplinks(t.Uplink)
	l.cfg.Buffer = t.Buffer
	l.cfg.Web = t.Web
	l.web(root.get("web"))
	l.cfg.HomeAssistant = t.HomeAssistant
	l.homeAssistant(root.get("homeassistant"))
	if len(l.cfg.Devices) == 0 && !l.partial && !l.failed() {
		l.add(Problem{File: main.name, Len: 1, Warn: true, Msg: "no devices yet: busgate scan"})
	}
	if l.failed() {
		return nil, l.sorted()
	}
	return l.cfg, l.sorted()
}

// path makes a path of the files absolute; "" stays.
func (l *loader) path(s string) string {
	if s == "" || filepath.IsAbs(s) {
		return s
	}
	return filepath.Join(l.dir, s)
}

// index finds the place of a key again.
type index struct{ root *node }

// Where tells where a key such as "device.grid.interval" or
// "uplink.cloud.accept[0]" is written. For a key that is not written it is the
// place of the table that would hold it; ok is false when there is no such
// table either, or c was built in code.
func (c *Config) Where(path string) (file string, pos Pos, ok bool) {
	if c.index == nil {
		return "", Pos{}, false
	}
	if name, isBus := strings.CutPrefix(path, "bus."); isBus { // the wire of a device stands with the device
		name, rest, _ := strings.Cut(name, ".")
		if b := c.Buses[name]; b != nil && b.Own {
			path = strings.TrimSuffix("device."+name+"."+rest, ".")
		}
	}
	n := c.index.root
	parts := strings.Split(path, ".")
	for i, part := range parts {
		name, at, isEntry := strings.Cut(part, "[")
		next := n.get(name)
		if next != nil && isEntry {
			k, err := strconv.Atoi(strings.TrimSuffix(at, "]"))
			if err != nil || k < 0 || k >= len(next.list) {
				return "", Pos{}, false
			}
			next = next.list[k]
		}
		if next == nil {
			if i < len(parts)-1 || i == 0 || i == 1 && slices.Contains([]string{"bus", "device", "uplink"}, parts[0]) {
				return "", Pos{}, false
			}
			break
		}
		n = next
	}
	return n.src.name, n.span.Key, true
}
