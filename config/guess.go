package config

import (
	"slices"
	"strings"
)

// distance is the optimal string alignment distance in characters: a character
// too many, too few or wrong counts one, and so does a swap of two neighbours.
func distance(a, b string) int {
	x, y := []rune(a), []rune(b)
	if len(x) > 64 || len(y) > 64 {
		return max(len(x), len(y))
	}
	before, last, row := make([]int, len(y)+1), make([]int, len(y)+1), make([]int, len(y)+1)
	for j := range last {
		last[j] = j
	}
	for i := range x {
		row[0] = i + 1
		for j := range y {
			cost := 1
			if x[i] == y[j] {
				cost = 0
			}
			row[j+1] = min(last[j+1]+1, row[j]+1, last[j]+cost)
			if i > 0 && j > 0 && x[i] == y[j-1] && x[i-1] == y[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(y)]
}

// nearest is the word that was probably meant: at a distance below 3 and of at
// most half the longer word; "" when there is none. Of equals the first wins.
func nearest(word string, words []string) string {
	best, bestAt := "", 3
	for _, w := range words {
		d := distance(word, w)
		if strings.EqualFold(word, w) {
			d = min(d, 1)
		}
		if d < bestAt && 2*d <= max(len([]rune(word)), len([]rune(w))) {
			best, bestAt = w, d
		}
	}
	return best
}

// meant is " (did you mean `x`?)" or nothing.
func meant(word string, words []string) string {
	if m := nearest(word, words); m != "" {
		return " (did you mean `" + m + "`?)"
	}
	return ""
}

// synonyms are the names that other programs use for our keys. The first of
// ours that the table knows is meant.
var synonyms = map[string][]string{
	"slave": {"unit_id"}, "slave_id": {"unit_id"}, "id": {"unit_id"}, "unit": {"unit_id"}, "slave_address": {"unit_id"},
	"address":  {"unit_id", "tcp", "addresses"},
	"baudrate": {"baud"}, "baud_rate": {"baud"}, "speed": {"baud"},
	"parity": {"format"}, "stop_bits": {"format"}, "stopbits": {"format"}, "data_bits": {"format"}, "bytesize": {"format"}, "comset": {"format"},
	"path": {"serial"}, "device": {"serial"}, "port": {"serial"},
	"host": {"tcp", "addresses"}, "uri": {"tcp", "addresses"}, "server": {"tcp", "addresses"}, "url": {"tcp", "addresses"},
	"byte_order": {"order"}, "word_order": {"order"}, "swap": {"order"}, "endian": {"order"}, "endianness": {"order", "endian"},
	"refresh": {"interval"}, "scan_interval": {"interval"}, "poll": {"interval"}, "poll_interval": {"interval"}, "read_period_ms": {"interval"},
	"data_type": {"type"}, "decode": {"type"},
	"multiplier": {"scale"}, "factor": {"scale"},
	"unit_of_measurement": {"unit"},
	"username":            {"user"},
	"password_path":       {"password_file"},
	"cafile":              {"ca"}, "certfile": {"cert"}, "keyfile": {"key"},
	"prefix":   {"remote_prefix"},
	"rate":     {"rate_msgs"},
	"max_size": {"max_bytes"}, "min_free": {"min_free_disk"},
	"server_name": {"sni"},
	"queue":       {"buffer"}, "store": {"buffer"},
	"channels": {"points"}, "registers": {"points"}, "fields": {"points"}, "tags": {"points"},
	"template": {"profile"}, "device_type": {"profile"}, "model": {"profile"},
	"max_reg_hole": {"max_hole"}, "optimization_max_register_fill": {"max_hole"},
	"name": {"label"},
}

// ours is our name of a foreign key, "" when the table has none.
func ours(foreign string, known []string) string {
	for _, key := range synonyms[strings.ToLower(foreign)] {
		if slices.Contains(known, key) {
			return key
		}
	}
	return ""
}

// nameOK tells whether s is [a-z0-9_-]{1,64}: fit for a topic level, a JSON key and a metric label.
func nameOK(s string) bool {
	return s != "" && len(s) <= 64 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789_-") == "" && nameRunes(s) == s
}

// nameRunes lowers s and puts - for what a name cannot hold.
func nameRunes(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '_' || r == '-':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		}
		return '-'
	}, s)
}

var latin = strings.NewReplacer("ä", "ae", "ö", "oe", "ü", "ue", "ß", "ss", "Ä", "ae", "Ö", "oe", "Ü", "ue",
	"é", "e", "è", "e", "à", "a", "ç", "c", "ñ", "n", "å", "a", "ø", "o", "µ", "u", "°", "")

// suggestName makes a name of any text: "Pumpe 1" -> "pumpe-1".
func suggestName(s string) string {
	s = strings.Trim(nameRunes(latin.Replace(strings.TrimSpace(s))), "-")
	if len(s) > 64 {
		s = s[:64]
	}
	if s == "" {
		return "a1"
	}
	return s
}
