package main

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// release is one entry of a Debian changelog (deb-changelog(5)).
type release struct {
	version string
	date    time.Time // UTC
}

var (
	entryHead = regexp.MustCompile(`^busgate \(([0-9A-Za-z.+~]+)\) `)
	entryEnd  = regexp.MustCompile(`^ -- .* <.*>  (.+)$`)
)

// newestRelease reads the topmost entry.
func newestRelease(file string) (release, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return release{}, err
	}
	var r release
	for line := range strings.Lines(string(text)) {
		line = strings.TrimRight(line, "\n")
		if m := entryHead.FindStringSubmatch(line); m != nil && r.version == "" {
			r.version = m[1]
		}
		if m := entryEnd.FindStringSubmatch(line); m != nil && r.version != "" {
			when, err := time.Parse(time.RFC1123Z, m[1])
			if err != nil {
				return release{}, fmt.Errorf("%s: %w", file, err)
			}
			r.date = when.UTC()
			return r, nil
		}
	}
	return release{}, fmt.Errorf("%s: no complete entry: first line `busgate (VERSION) ...`, last ` -- NAME <MAIL>  DATE`", file)
}

// redate gives a release the time of SOURCE_DATE_EPOCH, in seconds since 1970,
// if there is one.
func (r *release) redate(epoch string) error {
	if epoch == "" {
		return nil
	}
	n, err := strconv.ParseInt(epoch, 10, 64)
	if err != nil {
		return fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)
	}
	r.date = time.Unix(n, 0).UTC()
	return nil
}
