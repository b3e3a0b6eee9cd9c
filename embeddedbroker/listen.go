package embeddedbroker

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"busgate/config"
)

// Listen binds every address of a configuration, in this order: plain, TLS,
// WebSocket, unix socket. Each listener is for Serve, which closes it. On an
// error none is left open.
func Listen(cfg config.Broker, log *slog.Logger) (ls []net.Listener, err error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	defer func() {
		if err != nil {
			for _, l := range ls {
				l.Close()
			}
			ls = nil
		}
	}()
	if cfg.Listen != "" {
		l, err := bind(cfg.Listen)
		if err != nil {
			return ls, err
		}
		ls = append(ls, l)
	}
	var secret *secrets
	if cfg.TLS.Cert != "" {
		if secret, err = newSecrets(cfg.TLS, log); err != nil {
			return ls, err
		}
	}
	if cfg.TLS.Listen != "" {
		l, err := bind(cfg.TLS.Listen)
		if err != nil {
			return ls, err
		}
		ls = append(ls, secret.listen(l))
	}
	if cfg.WebSocket.Listen != "" {
		l, err := bind(cfg.WebSocket.Listen)
		if err != nil {
			return ls, err
		}
		if secret != nil {
			l = secret.listen(l)
		}
		ls = append(ls, NewWebSocketListener(l, int(cfg.MaxPacket), cfg.WebSocket.Origins...))
	}
	if cfg.Socket != "" {
		l, err := bindUnix(cfg.Socket)
		if err != nil {
			return ls, err
		}
		ls = append(ls, l)
	}
	return ls, nil
}

// bind opens one TCP address.
func bind(addr string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		who := "another program"
		if name, pid := ownerOf(addr); pid != 0 {
			who = fmt.Sprintf("%s (pid %d). Stop it: sudo systemctl disable --now %s", name, pid, name)
			return nil, fmt.Errorf("broker: %s is in use by %s, or set another listen in [broker]: %w", addr, who, err)
		}
		_, port, _ := net.SplitHostPort(addr)
		return nil, fmt.Errorf("broker: %s is in use by %s (sudo ss -ltnp 'sport = :%s' names it): set another listen in [broker]: %w", addr, who, port, err)
	}
	if err != nil {
		return nil, fmt.Errorf("broker: %w", err)
	}
	return l, nil
}

// socketMode lets the group of the service in, and nobody else.
const socketMode fs.FileMode = 0o660

// bindUnix opens a unix socket. A stale file is removed only if nothing answers on it.
func bindUnix(path string) (net.Listener, error) {
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return nil, fmt.Errorf("broker: %s is in use by another program: set another socket in [broker]", path)
	} else if i, serr := os.Lstat(path); serr == nil && i.Mode()&fs.ModeSocket != 0 && errors.Is(err, syscall.ECONNREFUSED) {
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("broker: stale socket: %w", err)
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("broker: %w", err)
	}
	if err := os.Chmod(path, socketMode); err != nil {
		l.Close()
		return nil, fmt.Errorf("broker: %w", err)
	}
	return l, nil
}

// ownerOf finds who listens on a TCP port of this machine, as far as /proc lets
// us see; pid 0: not known.
func ownerOf(addr string) (name string, pid int) {
	_, text, err := net.SplitHostPort(addr)
	if err != nil {
		return "", 0
	}
	port, err := strconv.Atoi(text)
	if err != nil {
		return "", 0
	}
	inodes := listening(port)
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, fd := range fds {
		to, err := os.Readlink(fd)
		if err != nil || !slices.Contains(inodes, to) {
			continue
		}
		parts := strings.Split(fd, "/")
		comm, err := os.ReadFile("/proc/" + parts[2] + "/comm")
		pid, perr := strconv.Atoi(parts[2])
		if err == nil && perr == nil {
			return strings.TrimSpace(string(comm)), pid
		}
	}
	return "", 0
}

// listening gives the sockets that listen on a port, as links in /proc name them.
func listening(port int) (inodes []string) {
	suffix := fmt.Sprintf(":%04X", port)
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		text, _ := os.ReadFile(table)
		for line := range strings.Lines(string(text)) {
			f := strings.Fields(line)
			if len(f) > 9 && strings.HasSuffix(f[1], suffix) && f[3] == "0A" { // TCP_LISTEN
				inodes = append(inodes, "socket:["+f[9]+"]")
			}
		}
	}
	return inodes
}
