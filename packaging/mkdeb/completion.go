package main

import (
	"bytes"
	"fmt"
	"strings"
)

// models lists the names of device models for the shell.
const models = `busgate profiles 2>/dev/null | awk 'NR > 1 {print $1}'`

// ports lists serial ports, for a shell in which a pattern without a match is empty.
const ports = "ls -d /dev/serial/by-id/* /dev/tty[UA]* 2>/dev/null"

// mapped lists the tables of a kind that the device map names: [device.NAME].
const mapped = `sed -n 's/^\[%s\.\([A-Za-z0-9_-]*\)\].*/\1/p' %[2]s/busgate.toml %[2]s/conf.d/*.toml 2>/dev/null`

// operands are commands of a shell that list what the arguments of c may be;
// folder is where the device map is.
func (c command) operands(folder string) []string {
	var list []string
	for _, o := range []struct{ word, table string }{{"DEVICE", "device"}, {"BUS", "bus"}, {"WHERE", "bus"}, {"list|export", "uplink"}, {"test NAME", "uplink"}} {
		if strings.Contains(c.args, o.word) {
			list = append(list, fmt.Sprintf(mapped, o.table, folder))
		}
	}
	if strings.Contains(c.args, "WHERE") || strings.Contains(c.args, "PORT") {
		list = append(list, ports)
	}
	if c.name == "profiles" {
		list = append(list, models)
	}
	return list
}

func names(commands []command) string {
	var list []string
	for _, c := range commands {
		list = append(list, c.name)
	}
	return strings.Join(append(list, "help"), " ")
}

// bashCompletion needs nothing but bash.
func bashCompletion(commands []command, folder string) []byte {
	var b bytes.Buffer
	b.WriteString("# bash completion for busgate; made by packaging/mkdeb\n\n_busgate() {\n" +
		"\tlocal cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} options= words= files=\n" +
		"\tCOMPREPLY=()\n\tif ((COMP_CWORD == 1)); then\n")
	fmt.Fprintf(&b, "\t\tmapfile -t COMPREPLY < <(compgen -W '%s' -- \"$cur\")\n\t\treturn\n\tfi\n\tcase ${COMP_WORDS[1]} in\n", names(commands))
	for _, c := range commands {
		var options, files []string
		for _, o := range c.options {
			options = append(options, o.name)
			if o.takesFile() {
				files = append(files, o.name)
			}
		}
		fmt.Fprintf(&b, "\t%s)\n\t\toptions='%s' files=' %s '\n", c.name, strings.Join(options, " "), strings.Join(files, " "))
		if c.args == "[F...]" {
			b.WriteString("\t\tfiles+='@ '\n")
		}
		for _, o := range c.operands(folder) {
			fmt.Fprintf(&b, "\t\twords+=\" $(%s)\"\n", o)
		}
		if c.words() != nil {
			fmt.Fprintf(&b, "\t\t((COMP_CWORD == 2)) && words='%s'\n", strings.Join(c.words(), " "))
		}
		b.WriteString("\t\t;;\n")
	}
	fmt.Fprintf(&b, "\thelp) words='%s' ;;\n\tesac\n", names(commands))
	b.WriteString("\tif [[ $files == *\" $prev \"* || $files == *@* && $cur != -* ]]; then\n" +
		"\t\tmapfile -t COMPREPLY < <(compgen -f -- \"$cur\")\n\t\tcompopt -o filenames\n\t\treturn\n\tfi\n" +
		"\t[[ $cur == -* ]] && words=$options\n" +
		"\tmapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"$cur\")\n}\n\ncomplete -F _busgate busgate\n")
	return b.Bytes()
}

// quote puts a text between single quotes for any shell, without those in it.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", "") + "'" }

func zshCompletion(commands []command, folder string) []byte {
	var b bytes.Buffer
	b.WriteString("#compdef busgate\n# made by packaging/mkdeb\n\nlocal -a all\nall=(\n")
	plain := strings.NewReplacer(":", " ", "[", "(", "]", ")")
	for _, c := range commands {
		fmt.Fprintf(&b, "  %s\n", quote(c.name+":"+plain.Replace(c.short)))
	}
	b.WriteString(")\nif ((CURRENT == 2)); then\n  _describe command all\n  return\nfi\nlocal command=$words[2]\nshift words\n((CURRENT--))\ncase $command in\n")
	for _, c := range commands {
		fmt.Fprintf(&b, "%s)\n  _arguments", c.name)
		for _, o := range c.options {
			value := ""
			if o.takesFile() {
				value = ":file:_files"
			} else if o.kind != "" {
				value = ":" + plain.Replace(o.kind) + ":"
			}
			fmt.Fprintf(&b, " \\\n    %s", quote(o.name+"["+plain.Replace(o.text)+"]"+value))
		}
		switch {
		case c.words() != nil:
			fmt.Fprintf(&b, " \\\n    %s", quote("1:what:("+strings.Join(c.words(), " ")+")"))
		case len(c.operands(folder)) > 0:
			fmt.Fprintf(&b, " \\\n    \"*:name:($(%s))\"", strings.Join(c.operands(folder), "; "))
		case c.args != "":
			fmt.Fprintf(&b, " \\\n    %s", quote("*:argument:_files"))
		}
		b.WriteString("\n  ;;\n")
	}
	b.WriteString("help)\n  _describe command all\n  ;;\nesac\n")
	return b.Bytes()
}

func fishCompletion(commands []command, folder string) []byte {
	var b bytes.Buffer
	b.WriteString("# made by packaging/mkdeb\n")
	for _, c := range commands {
		fmt.Fprintf(&b, "complete -c busgate -n __fish_use_subcommand -f -a %s -d %s\n", c.name, quote(c.short))
		when := quote("__fish_seen_subcommand_from " + c.name)
		for _, o := range c.options {
			kind, name := "-l", strings.TrimLeft(o.name, "-")
			if len(name) == 1 {
				kind = "-s"
			}
			if o.kind != "" && !o.takesFile() {
				kind = "-x " + kind
			} else if o.kind != "" {
				kind = "-r " + kind
			}
			fmt.Fprintf(&b, "complete -c busgate -n %s %s %s -d %s\n", when, kind, name, quote(o.text))
		}
		switch {
		case c.words() != nil:
			fmt.Fprintf(&b, "complete -c busgate -n %s -f -a %s\n", when, quote(strings.Join(c.words(), " ")))
		}
		for _, o := range c.operands(folder) {
			fmt.Fprintf(&b, "complete -c busgate -n %s -f -a \"(%s)\"\n", when, strings.NewReplacer(`\`, `\\`, "$", `\$`).Replace(o))
		}
	}
	fmt.Fprintf(&b, "complete -c busgate -n '__fish_seen_subcommand_from help' -f -a %s\n", quote(names(commands)))
	return b.Bytes()
}
