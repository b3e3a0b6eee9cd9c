package config

import (
	"go/build"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// corpusDir is the test corpus of the TOML library in the module cache; "" when it is not there.
func corpusDir() string {
	cache := os.Getenv("GOMODCACHE")
	if cache == "" {
		cache = filepath.Join(filepath.SplitList(build.Default.GOPATH)[0], "pkg", "mod")
	}
	dir := filepath.Join(cache, "github.com", "!burnt!sushi", "toml@v1.6.0", "internal", "toml-test", "tests", "valid")
	if _, err := os.Stat(dir); err != nil {
		return ""
	}
	return dir
}

// corpus is all valid texts at hand: those of the library, the profiles, the examples, the test files.
func corpus(tb testing.TB) map[string]string {
	tb.Helper()
	out := map[string]string{}
	dirs := []string{"testdata", "../devices/profiles"}
	if d := corpusDir(); d != "" {
		dirs = append(dirs, d)
	}
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(p, ".toml") {
				return err
			}
			b, err := os.ReadFile(p)
			out[p] = string(b)
			return err
		})
		if err != nil {
			tb.Fatal(err)
		}
	}
	return out
}

// paths are the paths of a decoded tree.
func paths(v any, path string, out map[string]bool) {
	if path != "" {
		out[path] = true
	}
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			paths(e, join(path, k), out)
		}
	case []map[string]any:
		for i, e := range v {
			paths(e, path+"["+strconv.Itoa(i)+"]", out)
		}
	case []any:
		for i, e := range v {
			paths(e, path+"["+strconv.Itoa(i)+"]", out)
		}
	}
}

// sameText tells whether a value as written is what was decoded, where that is easy to tell.
func sameText(raw string, v any) bool {
	switch v := v.(type) {
	case bool:
		return raw == strconv.FormatBool(v)
	case int64:
		n, err := strconv.ParseInt(strings.ReplaceAll(strings.TrimPrefix(raw, "+"), "_", ""), 0, 64)
		return err == nil && n == v
	case string:
		return len(raw) >= 2 && (raw[0] == '"' || raw[0] == '\'') && raw[len(raw)-1] == raw[0]
	}
	return true
}

func checkValues(t *testing.T, v any, path string, idx map[string]Span) {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			checkValues(t, e, join(path, k), idx)
		}
	case []any:
		for i, e := range v {
			checkValues(t, e, path+"["+strconv.Itoa(i)+"]", idx)
		}
	case bool, int64, string:
		if !sameText(idx[path].Raw, v) {
			t.Errorf("%s: value %v is written %q", path, v, idx[path].Raw)
		}
	}
}

// checkIndex: the same paths as the decoded tree, and each place holds what it says.
func checkIndex(t *testing.T, name, text string) bool {
	t.Helper()
	m, err := decodeTOML(text)
	if err != nil {
		return false
	}
	want := map[string]bool{}
	paths(m, "", want)
	idx, again := indexText(text)
	for p := range want {
		if _, ok := idx[p]; !ok {
			t.Errorf("%s: %q is not in the index", name, p)
		}
	}
	lines := strings.SplitAfter(text[bomLen(text):], "\n")
	for p, s := range idx {
		if !want[p] {
			t.Errorf("%s: %q is only in the index", name, p)
		}
		for _, at := range []struct {
			pos Pos
			raw string
		}{{s.Key, s.KeyRaw}, {s.Val, s.Raw}} {
			if at.pos.Line < 1 || at.pos.Line > len(lines) {
				t.Fatalf("%s: %q: line %d of %d", name, p, at.pos.Line, len(lines))
			}
			rest := strings.Join(lines[at.pos.Line-1:], "")
			runes := []rune(rest)
			if at.pos.Col < 1 || at.pos.Col > len(runes)+1 || !strings.HasPrefix(string(runes[at.pos.Col-1:]), at.raw) {
				t.Errorf("%s: %q: %q does not stand at %v", name, p, at.raw, at.pos)
			}
		}
	}
	if len(again) == 0 {
		checkValues(t, m, "", idx)
	}
	return true
}

func TestIndexHasThePathsOfTheDecodedTree(t *testing.T) {
	n := 0
	for name, text := range corpus(t) {
		if checkIndex(t, name, text) {
			n++
		}
	}
	t.Logf("%d valid files", n)
	least := 60
	if corpusDir() != "" {
		least = 250
	}
	if n < least {
		t.Errorf("only %d valid files", n)
	}
}

func TestIndexPlaces(t *testing.T) {
	text := "\ufeff# ä\r\n[device.\"a b\"]\n\tunit_id = 0x1F # x\npoints.p = { input = 1,\n  enum = { 0 = 'off' }, }\n[[x]]\ny = [1, [\"ü\", 2]]\n[[x]]\n"
	idx := Index(text)
	for path, want := range map[string]Span{
		`device`:                       {Pos{2, 1}, Pos{2, 1}, `[device."a b"]`, ""},
		`device."a b".unit_id`:         {Pos{3, 2}, Pos{3, 12}, "unit_id", "0x1F"},
		`device."a b".points.p.input`:  {Pos{4, 14}, Pos{4, 22}, "input", "1"},
		`device."a b".points.p.enum.0`: {Pos{5, 12}, Pos{5, 16}, "0", "'off'"},
		`x[0].y[1][1]`:                 {Pos{7, 15}, Pos{7, 15}, "2", "2"},
		`x[1]`:                         {Pos{8, 1}, Pos{8, 1}, "[[x]]", ""},
		`device."a b".points.p.enum`:   {Pos{5, 3}, Pos{5, 10}, "enum", "{ 0 = 'off' }"},
		`x`:                            {Pos{6, 1}, Pos{6, 1}, "[[x]]", ""},
	} {
		if got := idx[path]; got != want {
			t.Errorf("%s: got %+v, want %+v", path, got, want)
		}
	}
}

func TestIndexOfWhatIsNoTOMLEnds(t *testing.T) {
	for _, text := range []string{"a = [}", "a = {", `a = "x`, "[", "[[", "a", "=", "a = [1 2 3", "a = \"\\", "{", "]", "a=[[[[", "a.", "'", "\xff\xfe[", "a={b"} {
		Index(text)
	}
}

func TestIndexFindsKeysTheLibraryOverlooks(t *testing.T) {
	text := "a.b = 1\na = 2\n"
	if _, err := decodeTOML(text); err != nil {
		t.Skip("the library finds it itself: " + err.Error())
	}
	if _, again := indexText(text); len(again) != 1 || again[0].Key != (Pos{2, 1}) {
		t.Errorf("got %v", again)
	}
}

func FuzzIndex(f *testing.F) {
	for _, text := range corpus(f) {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		Index(text) // never panics, always ends
		if tooDeep(text) < 0 {
			checkIndex(t, "fuzz", text)
		}
	})
}

// FuzzLoad: whatever the text is, each problem lies inside of it, a text that the
// library rejects has at least one, and a text without any survives Dump.
func FuzzLoad(f *testing.F) {
	for name, text := range corpus(f) {
		if strings.HasPrefix(name, "testdata") {
			f.Add(text)
		}
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, problems := newLoader(testEnv("plant-a"), testProfiles).parse("busgate.toml", text)
		if tooDeep(text) < 0 {
			if _, err := decodeTOML(text); err != nil && !HasErrors(problems) {
				t.Errorf("no problem, but the library says %v", err)
			}
		}
		lines := strings.Split(text, "\n")
		for _, p := range problems {
			if p.Pos == (Pos{}) {
				continue
			}
			if p.Pos.Line < 1 || p.Pos.Line > len(lines) || p.Pos.Col < 1 || p.Pos.Col > len([]rune(lines[p.Pos.Line-1]))+1 {
				t.Errorf("%v lies outside of the text", p)
			}
			if strings.ContainsAny(p.Msg, "\n\r\x00\x1b") {
				t.Errorf("%q holds control characters", p.Msg)
			}
		}
		if (c == nil) != HasErrors(problems) {
			t.Errorf("config %v with problems %v", c, problems)
		}
		if c != nil {
			checkDump(t, c)
		}
	})
}

func TestProblemsAreSorted(t *testing.T) {
	b, err := os.ReadFile("testdata/many.toml")
	if err != nil {
		t.Fatal(err)
	}
	_, problems := newLoader(testEnv("x"), testProfiles).parse("busgate.toml", string(b))
	if len(problems) != 18 {
		t.Errorf("18 mistakes gave %d messages", len(problems))
	}
	if !slices.IsSortedFunc(problems, func(a, b Problem) int { return a.Pos.Line - b.Pos.Line }) {
		t.Error("not sorted")
	}
}
