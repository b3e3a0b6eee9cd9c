package main

import (
	"fmt"
	"os"
	"regexp"
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
