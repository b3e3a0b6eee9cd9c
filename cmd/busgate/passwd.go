package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"busgate/embeddedbroker"
)

const defaultUsers = "/etc/busgate/passwd"

// passwdFlags are those of mosquitto_passwd, and the file.
type passwdFlags struct {
	create, batch, remove, hash bool
	iterations                  int
	file                        string
}

func passwdCommand() command {
	return command{
		name: "passwd", args: "NAME [PASSWORD]", short: "a user of the broker: add, change or remove",
		examples: []string{"busgate passwd nodered", "busgate passwd -c -b nodered secret --file ./passwd", "busgate passwd -D nodered"},
		setup: func(fs *flag.FlagSet) func(context.Context, *env, []string) int {
			var f passwdFlags
			fs.BoolVar(&f.create, "c", false, "make a new file; one that is there is replaced")
			fs.BoolVar(&f.batch, "b", false, "take the password from the command line")
			fs.BoolVar(&f.remove, "D", false, "remove the user")
			fs.BoolVar(&f.hash, "U", false, "hash the plain passwords of the file; takes no NAME")
			fs.IntVar(&f.iterations, "I", embeddedbroker.HashIterations, "iterations of the hash, `N`")
			fs.StringVar(&f.file, "file", defaultUsers, "the users `FILE`, as mosquitto_passwd writes it")
			return func(_ context.Context, e *env, args []string) int { return runPasswd(e, f, args) }
		},
	}
}

func runPasswd(e *env, f passwdFlags, args []string) int {
	if err := f.check(args); err != nil {
		fmt.Fprintf(e.stderr, "busgate passwd: %v (see: busgate help passwd)\n", err)
		return exitUsage
	}
	var lines []string
	if !f.create {
		text, err := os.ReadFile(f.file)
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("there is no %s: -c makes it", f.file)
		}
		if err != nil {
			fmt.Fprintln(e.stderr, "busgate passwd: "+err.Error())
			return exitFailed
		}
		lines = strings.Split(strings.TrimRight(string(text), "\r\n"), "\n")
	}
	lines, err := f.edit(e, lines, args)
	if err == nil {
		err = replaceFile(f.file, strings.Join(lines, "\n")+"\n")
	}
	if err != nil {
		fmt.Fprintln(e.stderr, "busgate passwd: "+err.Error())
		return exitFailed
	}
	return exitOK
}

func (f *passwdFlags) check(args []string) error {
	want := 1
	switch {
	case f.hash:
		want = 0
	case f.batch:
		want = 2
	}
	switch {
	case len(args) != want:
		return fmt.Errorf("%d words instead of %d", len(args), want)
	case f.remove && (f.batch || f.create) || f.hash && (f.create || f.batch || f.remove):
		return errors.New("these flags exclude each other")
	case f.iterations < 1 || f.iterations > 10_000_000:
		return errors.New("-I must be from 1 to 10000000")
	case want > 0 && (args[0] == "" || strings.ContainsFunc(args[0], func(r rune) bool { return r == ':' || r < ' ' || r == 0x7f })):
		return errors.New("a name holds no : and no control characters")
	}
	return nil
}

// edit gives the lines of the changed file.
func (f *passwdFlags) edit(e *env, lines, args []string) ([]string, error) {
	if f.hash {
		for i, l := range lines {
			name, secret, ok := strings.Cut(strings.TrimRight(l, "\r"), ":")
			if !ok || strings.HasPrefix(secret, "$6$") || strings.HasPrefix(secret, "$7$") {
				continue
			}
			lines[i] = name + ":" + embeddedbroker.HashPassword([]byte(secret), f.iterations)
		}
		return lines, nil
	}
	kept, found := lines[:0], false
	for _, l := range lines {
		if name, _, _ := strings.Cut(l, ":"); name == args[0] {
			found = true
		} else if l != "" {
			kept = append(kept, l)
		}
	}
	if f.remove {
		if !found {
			return nil, fmt.Errorf("%s: there is no user %q", f.file, args[0])
		}
		return kept, nil
	}
	password := ""
	if f.batch {
		password = args[1]
	} else {
		var err error
		if password, err = askPassword(e, args[0]); err != nil {
			return nil, err
		}
	}
	return append(kept, args[0]+":"+embeddedbroker.HashPassword([]byte(password), f.iterations)), nil
}

// askPassword asks twice without echo; from a pipe it reads one line.
func askPassword(e *env, name string) (string, error) {
	in := bufio.NewReader(e.stdin)
	tty, ok := e.stdin.(*os.File)
	var was *unix.Termios
	if ok {
		was, _ = unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS) // fails for a pipe
	}
	if was == nil {
		return readSecret(in)
	}
	quiet := *was
	quiet.Lflag &^= unix.ECHO
	if err := unix.IoctlSetTermios(int(tty.Fd()), unix.TCSETS, &quiet); err != nil {
		return "", fmt.Errorf("switch the echo off: %w", err)
	}
	defer unix.IoctlSetTermios(int(tty.Fd()), unix.TCSETS, was)
	var answers [2]string
	for i, prompt := range []string{"password of " + name + ": ", "once more: "} {
		fmt.Fprint(e.stderr, prompt)
		var err error
		answers[i], err = readSecret(in)
		fmt.Fprintln(e.stderr)
		if err != nil {
			return "", err
		}
	}
	if answers[0] != answers[1] {
		return "", errors.New("the two differ; nothing changed")
	}
	return answers[0], nil
}

func readSecret(in *bufio.Reader) (string, error) {
	line, err := in.ReadString('\n')
	line = strings.TrimRight(line, "\r\n")
	if line == "" {
		if err == nil || err == io.EOF {
			err = errors.New("an empty password is none; nothing changed")
		}
		return "", err
	}
	return line, nil
}

// replaceFile writes a file that is either the old one or the whole new one.
func replaceFile(path, text string) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".passwd-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	mode := fs.FileMode(0o640)
	if st, serr := os.Stat(path); serr == nil {
		mode = st.Mode().Perm()
		if owner, ok := st.Sys().(*syscall.Stat_t); ok && os.Getuid() == 0 {
			if err := f.Chown(int(owner.Uid), int(owner.Gid)); err != nil {
				return errors.Join(err, f.Close())
			}
		}
	}
	_, err = f.WriteString(text)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
