package main

import (
	"fmt"
	"regexp"
	"strings"
)

// command is one command as the program's help describes it.
type command struct {
	name, args, short string
	examples          []string
	options           []option
}

// option is one flag; kind is what follows it, "" for a switch.
type option struct {
	name, kind, text string
}

var (
	listed     = regexp.MustCompile(`^  ([a-z][a-z0-9-]*) {2,}(\S.*)$`)
	optionLine = regexp.MustCompile(`^  (--?[A-Za-z][A-Za-z0-9-]*)(?: (\S+))? +(\S.*)$`)
)

// readCommands asks the program for its commands: manual and completion say what
// the program says, or the build fails.
func readCommands(ask func(args ...string) (string, error)) ([]command, error) {
	overview, err := ask("help")
	if err != nil {
		return nil, fmt.Errorf("busgate help: %w", err)
	}
	var all []command
	for line := range strings.Lines(overview) {
		m := listed.FindStringSubmatch(strings.TrimRight(line, "\n"))
		if m == nil {
			continue
		}
		text, err := ask("help", m[1])
		if err != nil {
			return nil, fmt.Errorf("busgate help %s: %w", m[1], err)
		}
		c, err := readCommand(m[1], text)
		if err != nil {
			return nil, fmt.Errorf("busgate help %s: %w", m[1], err)
		}
		all = append(all, c)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("busgate help lists no commands:\n%s", overview)
	}
	return all, nil
}

// readCommand reads "busgate NAME ARGS: what it does", then the examples, then
// the options.
func readCommand(name, text string) (command, error) {
	c := command{name: name}
	for i, line := range strings.Split(strings.TrimRight(text, "\n"), "\n") {
		switch m := optionLine.FindStringSubmatch(line); {
		case i == 0:
			head, short, ok := strings.Cut(line, ": ")
			rest, mine := strings.CutPrefix(head, "busgate "+name)
			if !ok || !mine {
				return c, fmt.Errorf("the first line is %q", line)
			}
			c.args, c.short = strings.TrimSpace(rest), short
		case m != nil:
			if len(m[1]) == len("--x") && strings.HasPrefix(m[1], "--") {
				m[1] = m[1][1:] // package flag takes both forms; this is the usual one
			}
			c.options = append(c.options, option{name: m[1], kind: m[2], text: m[3]})
		case strings.HasPrefix(line, "  "):
			c.examples = append(c.examples, strings.TrimSpace(line))
		case line != "":
			return c, fmt.Errorf("this is neither an example nor an option: %q", line)
		}
	}
	return c, nil
}

// words are the fixed words that stand as the first argument: of
// "list|export|drop [NAME]" list, export and drop.
func (c command) words() []string {
	first, _, _ := strings.Cut(c.args, " ")
	if !strings.Contains(first, "|") || strings.ToLower(first) != first {
		return nil
	}
	return strings.Split(first, "|")
}

// takesFile tells whether the value of an option is a file.
func (o option) takesFile() bool {
	return o.kind == "FILE" || o.kind == "F" && strings.Contains(o.text, "file")
}
