package bridge

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"busgate/config/report"
)

const (
	maxCommand = 4 << 10        // bytes of a payload
	maxID      = 128            // bytes of an id
	maxTTL     = 24 * time.Hour // ids are not remembered for longer
)

// request is a command taken apart. Values are texts as the client wrote them.
type request struct {
	id      string        // "" = none
	ttl     time.Duration // 0 = none
	expires time.Time     // zero = none
	writes  []write       // in the order of the payload, each point once
}

type write struct{ point, text string }

// parseCommand takes the payload of set/<point> apart, or of set when point is
// "". The error says what is wrong with it, for people.
func parseCommand(point string, payload []byte) (request, error) {
	if len(payload) > maxCommand {
		return request{}, fmt.Errorf("the payload has %s bytes; at most %s are taken", report.Count(len(payload)), report.Count(maxCommand))
	}
	if !utf8.Valid(payload) {
		return request{}, errors.New("the payload is not UTF-8")
	}
	body := bytes.TrimSpace(payload)
	switch {
	case len(body) == 0:
		return request{}, errors.New("the payload is empty")
	case body[0] == '{':
		return parseObject(point, body)
	case point == "":
		return request{}, errors.New(`several points need a JSON object: {"point":value}`)
	case body[0] == '"' || body[0] == '[':
		text, err := parseScalar(body)
		return request{writes: []write{{point, text}}}, err
	}
	return request{writes: []write{{point, string(body)}}}, nil
}

// parseScalar reads a payload that is one JSON string.
func parseScalar(body []byte) (string, error) {
	d := json.NewDecoder(bytes.NewReader(body))
	t, err := d.Token()
	if err != nil {
		return "", notJSON(err)
	}
	text, err := scalarText("value", t)
	if err != nil {
		return "", err
	}
	return text, atEnd(d)
}

// parseObject reads {"value":V} of a point, or {"point":V,...} when point is
// "", with id, expires and ttl_s. A key that is neither is a mistake worth
// telling: with "expire" misspelt the command would be executed late.
func parseObject(point string, body []byte) (request, error) {
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	if _, err := d.Token(); err != nil {
		return request{}, notJSON(err)
	}
	var q request
	seen := map[string]bool{} // at most as many as fit into 4 kB
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return request{}, notJSON(err)
		}
		key, _ := t.(string) // the decoder refuses any other key
		if seen[key] {
			return request{}, fmt.Errorf("%s stands twice", report.Name(key))
		}
		seen[key] = true
		v, err := d.Token()
		if err != nil {
			return request{}, notJSON(err)
		}
		if err := q.set(point, key, v); err != nil {
			return request{}, err
		}
	}
	if _, err := d.Token(); err != nil { // the closing brace
		return request{}, notJSON(err)
	}
	if err := atEnd(d); err != nil {
		return request{}, err
	}
	switch {
	case len(q.writes) > 0:
		return q, nil
	case point == "":
		return request{}, errors.New("there is no point in it")
	}
	return request{}, errors.New(`there is no "value" in it`)
}

// set takes one key of the object.
func (q *request) set(point, key string, v json.Token) error {
	switch key {
	case "id":
		return q.setID(v)
	case "expires":
		return q.setExpires(v)
	case "ttl_s":
		return q.setTTL(v)
	}
	name := key
	if point != "" {
		if key != "value" {
			return fmt.Errorf("unknown key %s; known: value, id, expires, ttl_s", report.Name(key))
		}
		name = point
	}
	text, err := scalarText(key, v)
	if err != nil {
		return err
	}
	q.writes = append(q.writes, write{name, text})
	return nil
}

func (q *request) setID(v json.Token) error {
	s, ok := v.(string)
	if !ok || s == "" || len(s) > maxID {
		return fmt.Errorf("id must be a text of 1 to %d bytes", maxID)
	}
	q.id = s
	return nil
}

func (q *request) setExpires(v json.Token) error {
	s, _ := v.(string)
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return errors.New("expires must be a time such as 2026-11-21T06:02:00Z")
	}
	q.expires = t
	return nil
}

func (q *request) setTTL(v json.Token) error {
	n, _ := v.(json.Number)
	s, err := n.Float64()
	if err != nil || !(s > 0 && s <= maxTTL.Seconds()) {
		return fmt.Errorf("ttl_s must be a number above 0, at most %d", int(maxTTL.Seconds()))
	}
	q.ttl = max(time.Duration(s*float64(time.Second)), 1)
	return nil
}

// scalarText is the text of a value; null, lists and objects are none.
func scalarText(key string, v json.Token) (string, error) {
	switch v := v.(type) {
	case string:
		return v, nil
	case json.Number:
		return v.String(), nil
	case bool:
		if v {
			return "true", nil
		}
		return "false", nil
	}
	return "", fmt.Errorf("%s must be a number, a text, true or false", report.Name(key))
}

// atEnd refuses anything behind the value.
func atEnd(d *json.Decoder) error {
	if _, err := d.Token(); err != io.EOF {
		return errors.New("the payload is not JSON: something stands behind it")
	}
	return nil
}

// notJSON says what the decoder said, in our words.
func notJSON(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("the payload is not JSON: it ends too early")
	}
	return fmt.Errorf("the payload is not JSON: %s", strings.TrimPrefix(err.Error(), "json: "))
}

// alike is the name that somebody who typed s may have meant, or "".
func alike(s string, names []string) string {
	if len(s) > maxName {
		return ""
	}
	best, name := len(s)/3+1, ""
	for _, n := range names {
		if d := distance(s, n); d <= best && (d < best || name == "") {
			best, name = d, n
		}
	}
	return name
}

// distance is how many bytes must be put in, taken out or changed, or swapped
// with their neighbour, to make b of a.
func distance(a, b string) int {
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}
