package metricstest

import (
	"strings"
	"testing"
)

const head = "# HELP a_total h\n# TYPE a_total counter\n"

func TestReaderIsStrict(t *testing.T) {
	for _, c := range []struct{ fact, text, want string }{
		{"a counter", head + "a_total 1\n", ""},
		{"labels and every escape", head + "a_total{x=\"a\\\\b\\\"c\\nd\",y=\"\"} 1e+20\n", ""},
		{"a histogram", "# HELP h x\n# TYPE h histogram\nh_bucket{le=\"1\"} 1\nh_bucket{le=\"+Inf\"} 2\nh_sum 3\nh_count 2\n", ""},
		{"nothing", "", "does not end"},
		{"no end of line", head + "a_total 1", "does not end"},
		{"no TYPE", "# HELP a_total h\na_total 1\n", "outside its family"},
		{"no HELP", "# TYPE a_total counter\na_total 1\n", "TYPE that is not"},
		{"a family in two pieces", head + "a_total 1\n" + head, "in two pieces"},
		{"a foreign sample", head + "b_total 1\n", "outside its family"},
		{"a series twice", head + "a_total{x=\"1\"} 1\na_total{x=\"1\"} 1\n", "a series twice"},
		{"a label twice", head + "a_total{x=\"1\",x=\"2\"} 1\n", "a label twice"},
		{"other labels", head + "a_total{x=\"1\"} 1\na_total 1\n", "labels"},
		{"an unknown escape", head + "a_total{x=\"\\t\"} 1\n", "escape"},
		{"an open label", head + "a_total{x=\"1} 1\n", "without end"},
		{"no label name", head + "a_total{=\"1\"} 1\n", "no label"},
		{"two blanks", head + "a_total  1\n", "one blank"},
		{"a time behind", head + "a_total 1 2\n", "one blank"},
		{"no number", head + "a_total x\n", "no number"},
		{"NaN", head + "a_total NaN\n", "no number"},
		{"an empty line", head + "\n", "no name"},
		{"a comment", head + "# x\n", "no name"},
		{"a counter below 0", head + "a_total -1\n", "below 0"},
		{"a counter without _total", "# HELP a h\n# TYPE a counter\na 1\n", "without _total"},
		{"no sample", head, "no sample"},
		{"not UTF-8", head + "a_total{x=\"\xff\"} 1\n", "UTF-8"},
		{"buckets fall", "# HELP h x\n# TYPE h histogram\nh_bucket{le=\"1\"} 3\nh_bucket{le=\"+Inf\"} 2\nh_sum 3\nh_count 2\n", "does not rise"},
		{"no +Inf", "# HELP h x\n# TYPE h histogram\nh_bucket{le=\"1\"} 2\nh_sum 3\nh_count 2\n", "no +Inf"},
		{"another count", "# HELP h x\n# TYPE h histogram\nh_bucket{le=\"+Inf\"} 2\nh_sum 3\nh_count 3\n", "sum and count"},
	} {
		_, err := Read([]byte(c.text))
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.fact, err, c.want)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(head + "a_total{x=\"a\\\\b\"} 1\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		text, err := Read(b)
		if err == nil && text.Lines != strings.Count(string(b), "\n") {
			t.Errorf("%d lines of %q", text.Lines, b)
		}
	})
}
