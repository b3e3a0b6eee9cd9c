package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"
)

// errNoDaemon says that nobody answers on the control socket.
var errNoDaemon = errors.New("the daemon is not running")

// commandError is an answer of the daemon that is a refusal. With a word it is
// what is wrong with a wire: a devices.Trouble.
type commandError struct{ text, word string }

func (e *commandError) Error() string { return e.text }
func (e *commandError) Text() string  { return e.text }
func (e *commandError) Word() string  { return e.word }

// controlClient talks to the daemon.
type controlClient struct {
	http   http.Client
	socket string
}

func newControlClient(socket string) *controlClient {
	return &controlClient{socket: socket, http: http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
	}}}
}

// stream sends a request; the caller reads and closes the body. body nil is GET.
func (c *controlClient) stream(ctx context.Context, path string, body any) (io.ReadCloser, error) {
	method, payload := http.MethodGet, io.Reader(nil)
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		method, payload = http.MethodPost, bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://busgate"+path, payload)
	if err != nil {
		return nil, err
	}
	res, err := c.http.Do(req)
	switch {
	case errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("%w (nobody answers on %s)", errNoDaemon, c.socket)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("no permission for %s: sudo usermod -aG busgate $USER, then log in again: %w", c.socket, fs.ErrPermission)
	case err != nil:
		return nil, err
	}
	if res.StatusCode == http.StatusOK {
		return res.Body, nil
	}
	defer res.Body.Close()
	var e struct{ Error, Word string }
	if err := json.NewDecoder(io.LimitReader(res.Body, controlBody)).Decode(&e); err != nil || e.Error == "" {
		return nil, &commandError{text: "the daemon answers " + res.Status}
	}
	return nil, &commandError{e.Error, e.Word}
}

// call is stream for one JSON answer.
func (c *controlClient) call(ctx context.Context, path string, body, answer any) error {
	r, err := c.stream(ctx, path, body)
	if err != nil {
		return err
	}
	defer r.Close()
	return json.NewDecoder(r).Decode(answer)
}

// controlExit prints an error of the client and gives the exit status.
func controlExit(e *env, name string, err error) int {
	fmt.Fprintf(e.stderr, "busgate %s: %v\n", name, err)
	switch {
	case errors.Is(err, errNoDaemon):
		return exitNoReply
	case errors.Is(err, fs.ErrPermission):
		return exitRefused
	}
	return exitFailed
}

// parseTime reads a point in time of a flag: RFC 3339, a date, or a duration
// that counts back from now ("36h"). "" is the zero time.
func parseTime(s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if t, err := time.Parse(layout, s); err == nil {
			return t.UTC(), nil
		}
	}
	if d, err := time.ParseDuration(s); err == nil && d > 0 {
		return time.Now().Add(-d).UTC(), nil
	}
	return time.Time{}, fmt.Errorf("%q is no time: write 2026-11-21T06:00:00Z, 2026-11-21, or 36h for 36 hours ago", s)
}

// validText says that b can be shown as text.
func validText(b []byte) bool {
	return utf8.Valid(b) && bytes.IndexFunc(b, func(r rune) bool { return unicode.IsControl(r) && r != '\n' && r != '\t' && r != '\r' }) < 0
}
