package main

import (
	"bytes"
	"fmt"
	"strings"
)

// models lists the names of device models for the shell.
const models = `busgate profiles 2>/dev/null | awk 'NR > 1 {print $1}'`

func names(commands []command) string {
	var list []string
	for _, c := range commands {
		list = append(list, c.name)
	}
	return strings.Join(append(list, "help"), " ")
}

// bashCompletion needs nothing but bash.
func bashCompletion(commands []command) []byte {
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
		switch {
		case c.words() != nil:
			fmt.Fprintf(&b, "\t\t((COMP_CWORD == 2)) && words='%s'\n", strings.Join(c.words(), " "))
		case c.name == "profiles":
			fmt.Fprintf(&b, "\t\twords=$(%s)\n", models)
		case c.name == "scan" || c.name == "read":
			fmt.Fprintf(&b, "\t\twords=$(compgen -G '/dev/serial/by-id/*'; compgen -G '/dev/tty[UA]*')\n")
		case c.args == "[F...]":
			b.WriteString("\t\tfiles+='@ '\n")
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

func zshCompletion(commands []command) []byte {
	var b bytes.Buffer
	b.WriteString("#compdef busgate\n# made by packaging/mkdeb\n\nlocal -a commands\ncommands=(\n")
	plain := strings.NewReplacer(":", " ", "[", "(", "]", ")")
	for _, c := range commands {
		fmt.Fprintf(&b, "  %s\n", quote(c.name+":"+plain.Replace(c.short)))
	}
	b.WriteString(")\nif ((CURRENT == 2)); then\n  _describe command commands\n  return\nfi\nlocal command=$words[2]\nshift words\n((CURRENT--))\ncase $command in\n")
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
		case c.name == "profiles":
			fmt.Fprintf(&b, " \\\n    \"1:model:($(%s))\"", strings.ReplaceAll(models, "$", `\$`))
		case c.args != "":
			fmt.Fprintf(&b, " \\\n    %s", quote("*:argument:_files"))
		}
		b.WriteString("\n  ;;\n")
	}
	b.WriteString("help)\n  _describe command commands\n  ;;\nesac\n")
	return b.Bytes()
}

func fishCompletion(commands []command) []byte {
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
		case c.name == "profiles":
			fmt.Fprintf(&b, "complete -c busgate -n %s -f -a \"(%s)\"\n", when, strings.ReplaceAll(models, "$", `\$`))
		}
	}
	fmt.Fprintf(&b, "complete -c busgate -n '__fish_seen_subcommand_from help' -f -a %s\n", quote(names(commands)))
	return b.Bytes()
}
