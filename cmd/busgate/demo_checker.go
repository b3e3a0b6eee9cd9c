package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"
)

// checker compares, device by device, what was read with what arrived at the
// cloud: each reading once and in order. Safe for concurrent use.
type checker struct {
	mu      sync.Mutex
	read    map[string][]string // device -> its published states, in order
	arrived map[string][]arrival
	bad     []string // what could not even be compared
}

// arrival is a numbered state as a subscriber of the cloud got it.
type arrival struct {
	boot string
	n    uint64
	body string // without gw, boot and n, keys sorted
}

// verdict is the result of a comparison.
type verdict struct {
	read, arrived, lost, twice, disordered int
	first                                  string // the first fault, in words; "" = none
}

func newChecker() *checker {
	return &checker{read: map[string][]string{}, arrived: map[string][]arrival{}}
}

// Read notes a state that the bridge published.
func (c *checker) Read(device string, payload []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	body, _, err := canonical(payload)
	if err != nil {
		c.bad = append(c.bad, fmt.Sprintf("%s: published %q: %v", device, payload, err))
		return
	}
	c.read[device] = append(c.read[device], body)
}

// Arrived notes a state that came out of the cloud. States without a number
// are copies that an uplink sends when it connects; they are no readings.
func (c *checker) Arrived(device string, payload []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	body, a, err := canonical(payload)
	if err != nil {
		c.bad = append(c.bad, fmt.Sprintf("%s: arrived %q: %v", device, payload, err))
		return
	}
	if a.n == 0 {
		return
	}
	a.body = body
	c.arrived[device] = append(c.arrived[device], a)
}

// Waiting is how many readings are not at the cloud yet.
func (c *checker) Waiting() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for d, list := range c.read {
		n += max(0, len(list)-len(c.arrived[d]))
	}
	return n
}

// Verdict compares the two lists of every device.
func (c *checker) Verdict() verdict {
	c.mu.Lock()
	defer c.mu.Unlock()
	var v verdict
	fault := func(format string, args ...any) {
		if v.first == "" {
			v.first = fmt.Sprintf(format, args...)
		}
	}
	for _, b := range c.bad {
		v.lost++
		fault("%s", b)
	}
	type number struct {
		boot string
		n    uint64
	}
	seen := map[number]string{}
	devices := maps.Clone(c.arrived)
	for d := range c.read {
		devices[d] = c.arrived[d]
	}
	for _, d := range slices.Sorted(maps.Keys(devices)) {
		want, got := c.read[d], c.arrived[d]
		v.read += len(want)
		v.arrived += len(got)
		var once []arrival
		last := number{}
		for i, a := range got {
			k := number{a.boot, a.n}
			if other, ok := seen[k]; ok {
				v.twice++
				fault("%s: number %d of boot %s arrived twice (before as %s of %s)", d, a.n, a.boot, a.body, other)
				continue
			}
			seen[k] = d
			if i > 0 && a.boot == last.boot && a.n < last.n {
				v.disordered++
				fault("%s: number %d arrived after number %d", d, a.n, last.n)
			}
			last = k
			once = append(once, a)
		}
		rest := map[string]int{}
		for _, w := range want {
			rest[w]++
		}
		for i, a := range once {
			if rest[a.body] == 0 {
				v.twice++
				fault("%s: arrived but was not read: n %d %s", d, a.n, a.body)
				continue
			}
			rest[a.body]--
			if i < len(want) && len(once) == len(want) && want[i] != a.body {
				v.disordered++
				fault("%s: place %d: expected %s, got n %d %s", d, i+1, want[i], a.n, a.body)
			}
		}
		for _, w := range want {
			if rest[w] > 0 {
				rest[w]--
				v.lost++
				fault("%s: lost %s", d, w)
			}
		}
	}
	return v
}

// canonical takes gw, boot and n out of a state and sorts the other keys, so
// that two encodings of one reading are one string. Numbers keep their digits.
func canonical(payload []byte) (string, arrival, error) {
	dec := json.NewDecoder(bytes.NewReader(payload))
	dec.UseNumber()
	var m map[string]any
	if err := dec.Decode(&m); err != nil {
		return "", arrival{}, err
	}
	var a arrival
	if n, ok := m["n"].(json.Number); ok {
		i, err := n.Int64()
		if err != nil {
			return "", arrival{}, err
		}
		a.n = uint64(i)
		a.boot, _ = m["boot"].(string)
	}
	for _, k := range []string{"gw", "boot", "n"} {
		delete(m, k)
	}
	body, err := json.Marshal(m)
	return string(body), a, err
}
