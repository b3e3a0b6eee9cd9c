package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"
)

// Exit statuses of every command.
const (
	exitOK      = 0
	exitFailed  = 1
	exitUsage   = 2
	exitConfig  = 3
	exitNoReply = 4
	exitRefused = 5
)

// defaultConfig is where the package puts the device map.
const defaultConfig = "/etc/busgate/busgate.toml"

// env is what a command may touch of the outside, so that tests run commands in process.
type env struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	signals        <-chan os.Signal // SIGHUP, and every SIGINT and SIGTERM after the first
}

// commands is the single source of usage, help and the tests that every command is documented.
func commands() []command {
	return []command{runCommand(), checkCommand(), statusCommand(), bufferCommand(), sessionsCommand(), reloadCommand(), uplinkCommand(), passwdCommand(), demoCommand(), scanCommand(), readCommand(), writeCommand(), monitorCommand(), profilesCommand(), versionCommand()}
}

func main() {
	// The first SIGINT or SIGTERM ends ctx; later ones and SIGHUP reach the
	// command, which may hurry or reload.
	ctx, cancel := context.WithCancel(context.Background())
	all := make(chan os.Signal, 8)
	signal.Notify(all, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	signal.Ignore(syscall.SIGPIPE) // a closed pipe is an error of write, not a death
	further := make(chan os.Signal, 8)
	go func() {
		for s := range all {
			if s != syscall.SIGHUP && ctx.Err() == nil {
				cancel()
				continue
			}
			select {
			case further <- s:
			default: // the command has eight waiting already
			}
		}
	}()
	e := &env{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, signals: further}
	os.Exit(dispatch(ctx, e, commands(), os.Args[1:]))
}
