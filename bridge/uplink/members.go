package uplink

import (
	"bytes"
	"encoding/json"
)

// members calls each with the name and the value of every member of a JSON
// object, as they stand in its text, and tells whether that was one. The object
// may begin with the comma before its first member: what is left behind the time
// of a reading does. What is between the tokens of foreign JSON (blanks) is not
// borne; our own has none.
func members(p []byte, each func(name string, value []byte)) bool {
	if len(p) < 1 || p[0] != '{' && p[0] != ',' && p[0] != '}' {
		return false
	}
	if string(p) == "{}" || string(p) == "}" {
		return true
	}
	for i := 0; i < len(p) && (p[i] == ',' || i == 0); {
		i++
		end := tokenEnd(p, i)
		if end < 0 || p[i] != '"' || p[end] != ':' {
			return false
		}
		name := string(p[i+1 : end-1])
		i = end + 1
		if end = tokenEnd(p, i); end <= i || p[end] == ':' {
			return false
		}
		each(name, p[i:end])
		if i = end; p[i] == '}' {
			return i == len(p)-1
		}
	}
	return false
}

// tokenEnd is the index behind the value that begins at i, or behind the name of
// a member; -1 when there is none or nothing follows it.
func tokenEnd(p []byte, i int) int {
	if i >= len(p) {
		return -1
	}
	depth := 0
	for ; i < len(p); i++ {
		switch p[i] {
		case '"':
			for i++; i < len(p) && p[i] != '"'; i++ {
				if p[i] == '\\' {
					i++
				}
			}
		case '[', '{':
			depth++
		case ']', '}':
			if depth == 0 {
				return i
			}
			depth--
		case ',', ':':
			if depth == 0 {
				return i
			}
		}
	}
	return -1
}

// scalar reads a member as text or number; "" when it is neither.
func scalar(value []byte) string {
	if len(value) == 0 || bytes.IndexByte([]byte(`{[`), value[0]) >= 0 {
		return ""
	}
	if value[0] != '"' {
		return string(value)
	}
	var s string
	if json.Unmarshal(value, &s) != nil {
		return ""
	}
	return s
}
