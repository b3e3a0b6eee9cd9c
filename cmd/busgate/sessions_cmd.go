package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"busgate/config/report"
	"busgate/embeddedbroker"
)

// sessionsFlags are those of `busgate sessions`.
type sessionsFlags struct {
	socket    string
	yes, json bool
}

// brokerSession is one session of the broker in the answer to GET /v1/sessions.
type brokerSession struct {
	ID            string     `json:"id"`
	User          string     `json:"user,omitempty"`
	Addr          string     `json:"addr,omitempty"`
	Protocol      string     `json:"protocol"` // 3.1, 3.1.1 or 5.0
	Connected     bool       `json:"connected"`
	Persistent    bool       `json:"persistent"` // kept on disk
	Left          *time.Time `json:"left,omitempty"`
	Subscriptions int        `json:"subscriptions"`
	Inflight      int        `json:"inflight"`
	Queued        int        `json:"queued"`
	QueuedBytes   int64      `json:"queued_bytes"`
	Dropped       uint64     `json:"dropped"` // by the quota
}

func sessionsCommand() command {
	return command{
		name: "sessions", args: "list|drop [CLIENT]", short: "the clients of the broker, connected or away, and what waits for them",
		examples: []string{"busgate sessions list", "busgate sessions drop old-tablet"},
		setup: func(fs *flag.FlagSet) func(context.Context, *env, []string) int {
			var f sessionsFlags
			fs.StringVar(&f.socket, "socket", defaultSocket, "the daemon's socket, `FILE`")
			fs.BoolVar(&f.yes, "yes", false, "do not ask")
			fs.BoolVar(&f.json, "json", false, "one JSON object")
			return func(ctx context.Context, e *env, args []string) int {
				c := newControlClient(f.socket)
				switch {
				case len(args) == 1 && args[0] == "list":
					return listSessions(ctx, e, f, c)
				case len(args) == 2 && args[0] == "drop":
					return dropSession(ctx, e, f, c, args[1])
				}
				fmt.Fprintln(e.stderr, "busgate sessions: say list, or drop and a client (see: busgate help sessions)")
				return exitUsage
			}
		},
	}
}

func listSessions(ctx context.Context, e *env, f sessionsFlags, c *controlClient) int {
	var res struct {
		Sessions []brokerSession `json:"sessions"`
	}
	if err := c.call(ctx, "/v1/sessions", nil, &res); err != nil {
		return controlExit(e, "sessions list", err)
	}
	if f.json {
		json.NewEncoder(e.stdout).Encode(res)
		return exitOK
	}
	if len(res.Sessions) == 0 {
		fmt.Fprintln(e.stdout, "no client is connected, and none is awaited")
		return exitOK
	}
	t := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "CLIENT\tSTATE\tADDRESS\tUSER\tMQTT\tKEPT\tSUBSCRIPTIONS\tWAITING\tSIZE\tDROPPED")
	for _, s := range res.Sessions {
		state, kept := "connected", "in memory"
		if !s.Connected {
			state = "away"
		}
		if s.Left != nil {
			state += " " + report.Duration(time.Since(*s.Left))
		}
		if s.Persistent {
			kept = "on disk"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\t%d\n", strconv.Quote(s.ID), state, dash(s.Addr), dash(s.User), s.Protocol, kept,
			s.Subscriptions, report.Count(s.Queued), size(s.QueuedBytes), s.Dropped)
	}
	t.Flush()
	return exitOK
}

// dash stands for what is not there in a table.
func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func dropSession(ctx context.Context, e *env, f sessionsFlags, c *controlClient, id string) int {
	if !f.yes && !confirmed(e, fmt.Sprintf("end the session of %q and drop everything that waits for it? [y/N] ", id)) {
		fmt.Fprintln(e.stderr, "nothing dropped (--yes does not ask)")
		return exitUsage
	}
	var res struct {
		Dropped int `json:"dropped"`
	}
	if err := c.call(ctx, "/v1/sessions/drop", map[string]string{"id": id}, &res); err != nil {
		return controlExit(e, "sessions drop", err)
	}
	if f.json {
		json.NewEncoder(e.stdout).Encode(res)
	} else {
		fmt.Fprintf(e.stdout, "the session of %q has ended; %s dropped with it\n", id, count(res.Dropped, "message", "messages"))
	}
	return exitOK
}

// confirmed asks and says whether the answer was yes.
func confirmed(e *env, question string) bool {
	fmt.Fprint(e.stderr, question)
	var answer string
	_, err := fmt.Fscanln(e.stdin, &answer)
	return err == nil && (strings.EqualFold(answer, "y") || strings.EqualFold(answer, "yes"))
}

func (c *control) sessionRoutes(mux *http.ServeMux) {
	mux.HandleFunc("GET /v1/sessions", c.needBroker(c.sessions))
	mux.HandleFunc("POST /v1/sessions/drop", c.needBroker(c.sessionDropped))
}

// needBroker refuses where no daemon runs: a store alone has no broker.
func (c *control) needBroker(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if c.broker == nil {
			refuse(w, http.StatusConflict, errNoDaemon)
			return
		}
		h(w, r)
	}
}

func (c *control) sessions(w http.ResponseWriter, _ *http.Request) {
	out := []brokerSession{}
	for _, i := range c.broker.Clients() {
		out = append(out, sessionOf(i))
	}
	reply(w, http.StatusOK, map[string]any{"sessions": out})
}

func sessionOf(i embeddedbroker.ClientInfo) brokerSession {
	s := brokerSession{ID: i.ID, User: i.User, Addr: i.Addr, Connected: i.Connected, Persistent: i.Persistent, Subscriptions: i.Subscriptions,
		Inflight: i.Inflight, Queued: i.Queued, QueuedBytes: i.QueuedBytes, Dropped: i.Dropped,
		Protocol: map[byte]string{3: "3.1", 4: "3.1.1", 5: "5.0"}[i.Version]}
	if !i.Left.IsZero() {
		s.Left = &i.Left
	}
	return s
}

func (c *control) sessionDropped(w http.ResponseWriter, r *http.Request) {
	var q struct{ ID string }
	if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
		refuse(w, http.StatusBadRequest, err)
		return
	}
	waiting := 0
	for _, i := range c.broker.Clients() {
		if i.ID == q.ID {
			waiting = i.Queued
		}
	}
	if !c.broker.DropSession(q.ID) {
		refuse(w, http.StatusNotFound, errors.New("no client "+strconv.Quote(q.ID)+"; `busgate sessions list` names them"))
		return
	}
	reply(w, http.StatusOK, map[string]int{"dropped": waiting})
}
