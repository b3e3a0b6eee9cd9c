package console

import (
	"crypto/sha256"
	"encoding/base64"
	"strings"
)

// Status is the page for people, as busgate status shows it.
type Status struct {
	Gateway string // its name
	About   string // version, time since the start, clock
	Summary string // what a person wants to know first
	Tables  []Table
}

// Table is one table of the page. The first column names the row.
type Table struct {
	Head []string
	Rows [][]string // as long as Head
}

// The style stands in the page; its hash in the policy lets it through, and no other.
const style = `:root{color-scheme:light dark;font:16px/1.4 system-ui,sans-serif}
body{margin:1rem auto;max-width:75rem;padding:0 1rem}
p,td{white-space:pre-wrap}
h1{font-size:1.4rem;margin:0}
div{overflow-x:auto}
table{border-collapse:collapse;margin:1rem 0;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .75rem .25rem 0;text-align:left;vertical-align:top;border-bottom:1px solid #888}
`

// policy forbids everything that a page without script does not need.
var policy = func() string {
	sum := sha256.Sum256([]byte(style))
	return "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) +
		"'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
}()

var escape = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&#34;", "'", "&#39;")

// page is the whole as HTML. Every text in it may come from outside.
func (s *Status) page() []byte {
	var b strings.Builder
	text := func(pieces ...string) { // markup and foreign text take turns
		for i, p := range pieces {
			if i%2 == 1 {
				p = escape.Replace(p)
			}
			b.WriteString(p)
		}
	}
	text("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n<title>",
		s.Gateway, " - busgate</title>\n<style>"+style+"</style>\n</head>\n<body>\n<main>\n<h1>", s.Gateway, "</h1>\n<p>", s.About, "</p>\n<p><strong>", s.Summary, "</strong></p>\n")
	for _, t := range s.Tables {
		text("<div><table>\n<thead><tr>")
		for _, h := range t.Head {
			text("<th scope=\"col\">", h, "</th>")
		}
		text("</tr></thead>\n<tbody>\n")
		for _, row := range t.Rows {
			text("<tr>")
			for i, cell := range row {
				if i == 0 {
					text("<th scope=\"row\">", cell, "</th>")
				} else {
					text("<td>", cell, "</td>")
				}
			}
			text("</tr>\n")
		}
		text("</tbody>\n</table></div>\n")
	}
	text("</main>\n<footer><p>This is a status page: it shows what <code>busgate status</code> shows, as it was when you loaded it, and changes nothing." +
		" For programs: <a href=\"/metrics\">/metrics</a> (<a href=\"/metrics?points=1\">with values</a>), <a href=\"/healthz\">/healthz</a>.</p></footer>\n</body>\n</html>\n")
	return []byte(b.String())
}
