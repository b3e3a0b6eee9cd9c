package embeddedbroker

import (
	"encoding/csv"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// covers says which normative statements a test is for. TestStatements reads it
// from the source.
func covers(t testing.TB, _ string, _ ...string) { t.Helper() }

// statement is one row of testdata/statements.tsv.
type statement struct{ side, state string }

// TestStatements holds the list of normative statements against the tests and
// the code: every statement about servers has a test or a reason why not, every
// tag in test or code is one of the list.
func TestStatements(t *testing.T) {
	list := readStatements(t)
	claimed := map[string]string{} // version and tag -> test
	var files []string
	for _, dir := range []string{".", "packet"} {
		found, _ := filepath.Glob(filepath.Join(dir, "*.go"))
		files = append(files, found...)
	}
	tag := regexp.MustCompile(`\[(MQTT-[0-9.]+-[0-9]+)\]`)
	for _, path := range files {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range tag.FindAllStringSubmatch(string(text), -1) {
			if _, is5 := list["5 "+m[1]]; !is5 {
				if _, is3 := list["311 "+m[1]]; !is3 {
					t.Errorf("%s: %s is in no list", path, m[1])
				}
			}
		}
		if strings.HasSuffix(path, "_test.go") {
			claims(t, path, list, claimed)
		}
	}
	missing := 0
	for key, s := range list {
		_, tested := claimed[key]
		switch {
		case s.state == "test" && !tested:
			missing++
			t.Errorf("%s has no test", key)
		case strings.HasPrefix(s.state, "untestable: ") && tested:
			t.Errorf("%s is said to be untestable, and %s tests it", key, claimed[key])
		}
	}
	t.Logf("%d statements, %d claimed, %d without a test", len(list), len(claimed), missing)
}

func readStatements(t *testing.T) map[string]statement {
	t.Helper()
	f, err := os.Open("testdata/statements.tsv")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r := csv.NewReader(f)
	r.Comma, r.LazyQuotes = '\t', true
	rows, err := r.ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	list := map[string]statement{}
	for i, row := range rows[1:] {
		key := row[1] + " " + row[0]
		if _, twice := list[key]; twice {
			t.Errorf("line %d: %s is listed twice", i+2, key)
		}
		switch {
		case row[2] == "client" && row[4] == "client", row[2] != "client" && (row[4] == "test" || strings.HasPrefix(row[4], "untestable: ")):
		default:
			t.Errorf("line %d: side %q with state %q", i+2, row[2], row[4])
		}
		list[key] = statement{row[2], row[4]}
	}
	return list
}

// claims gathers the calls of covers in one file; a test that may skip itself
// can claim nothing.
func claims(t *testing.T, path string, list map[string]statement, claimed map[string]string) {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range f.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok {
			continue
		}
		var tags []string
		skips := false
		ast.Inspect(fn, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			if s, ok := call.Fun.(*ast.SelectorExpr); ok && strings.HasPrefix(s.Sel.Name, "Skip") {
				skips = true
			}
			if id, ok := call.Fun.(*ast.Ident); ok && id.Name == "covers" {
				version := literal(call.Args[1])
				for _, a := range call.Args[2:] {
					tags = append(tags, version+" "+literal(a))
				}
			}
			return true
		})
		for _, key := range tags {
			if _, ok := list[key]; !ok {
				t.Errorf("%s: %s claims %s, which is in no list", path, fn.Name.Name, key)
			}
			if skips {
				t.Errorf("%s: %s claims %s and may be skipped", path, fn.Name.Name, key)
			}
			claimed[key] = fn.Name.Name
		}
	}
}

func literal(e ast.Expr) string {
	if b, ok := e.(*ast.BasicLit); ok {
		s, _ := strconv.Unquote(b.Value)
		return s
	}
	return ""
}
