package main

import (
	"bufio"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"text/tabwriter"
	"time"

	"busgate/buffer"
	"busgate/config"
	"busgate/config/report"
	"busgate/devices/profiles"
)

// bufferFlags are those of `busgate buffer`.
type bufferFlags struct {
	config, socket, format, from, to, before string
	all, yes, json                           bool
}

func bufferCommand() command {
	return command{
		name: "buffer", args: "list|export|drop|compact|check [NAME]", short: "what waits on disk: look at it, take it out, drop it",
		examples: []string{"busgate buffer list", "busgate buffer export cloud --format csv", "busgate buffer drop cloud --before 36h"},
		setup: func(fs *flag.FlagSet) func(context.Context, *env, []string) int {
			var f bufferFlags
			fs.StringVar(&f.config, "config", defaultConfig, "the device map, `FILE`: says where the store is when no daemon runs")
			fs.StringVar(&f.socket, "socket", defaultSocket, "the daemon's socket, `FILE`")
			fs.StringVar(&f.format, "format", "ndjson", "of export: ndjson or csv (ts, topic, qos, payload), `F`")
			fs.StringVar(&f.from, "from", "", "of export: what arrived at or after `T`: RFC 3339, a date, or 36h for 36 hours ago")
			fs.StringVar(&f.to, "to", "", "of export: what arrived before `T`")
			fs.StringVar(&f.before, "before", "", "of drop: what arrived before `T`, by whole segments")
			fs.BoolVar(&f.all, "all", false, "of drop: everything")
			fs.BoolVar(&f.yes, "yes", false, "do not ask")
			fs.BoolVar(&f.json, "json", false, "one JSON object")
			return func(ctx context.Context, e *env, args []string) int { return runBuffer(ctx, e, f, args) }
		},
	}
}

func runBuffer(ctx context.Context, e *env, f bufferFlags, args []string) int {
	verbs := map[string]func(context.Context, *env, bufferFlags, *controlClient, string) int{
		"list": bufferListing, "export": bufferExport, "drop": bufferDrop, "compact": bufferCompact, "check": bufferCheck,
	}
	var name string
	if len(args) == 2 {
		name = args[1]
	}
	if len(args) == 0 || len(args) > 2 || verbs[args[0]] == nil {
		fmt.Fprintln(e.stderr, "busgate buffer: say list, export, drop, compact or check (see: busgate help buffer)")
		return exitUsage
	}
	client := newControlClient(f.socket)
	var probe bufferList
	err := client.call(ctx, "/v1/buffer", nil, &probe)
	if errors.Is(err, errNoDaemon) {
		own, stop, openErr := openStoreAlone(ctx, e, f.config)
		if openErr != nil {
			return controlExit(e, "buffer", fmt.Errorf("%w, and the store cannot be opened: %w", err, openErr))
		}
		defer stop()
		client = own
	} else if err != nil {
		return controlExit(e, "buffer", err)
	}
	return verbs[args[0]](ctx, e, f, client, name)
}

// openStoreAlone opens the store under its lock while no daemon runs, and
// answers for it on a socket of its own, so that there is one way only.
func openStoreAlone(ctx context.Context, e *env, file string) (_ *controlClient, stop func(), err error) {
	cfg, problems := config.Load(file, profiles.FS)
	if cfg == nil {
		config.Print(e.stderr, problems)
		return nil, nil, errors.New("the device map has mistakes")
	}
	path := filepath.Join(cfg.Gateway.DataDir, "busgate.db")
	if _, err := os.Stat(path); err != nil {
		return nil, nil, err
	}
	s, err := buffer.Open(path, buffer.Options{Limits: limits(&cfg.Buffer), Full: cfg.Buffer.Durability == "full"})
	if err != nil {
		return nil, nil, err
	}
	dir, err := os.MkdirTemp("", "busgate-")
	if err != nil {
		return nil, nil, errors.Join(err, s.Close(ctx))
	}
	ln, err := openControl(filepath.Join(dir, "s"))
	if err != nil {
		return nil, nil, errors.Join(err, s.Close(ctx), os.RemoveAll(dir))
	}
	serving, cancel := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan error, 1)
	go func() {
		done <- serveControl(serving, slog.New(slog.DiscardHandler), ln, (&control{store: s}).handler())
	}()
	return newControlClient(filepath.Join(dir, "s")), func() {
		cancel()
		<-done
		closing, cancel := context.WithTimeout(context.Background(), graceStore)
		defer cancel()
		if err := errors.Join(s.Close(closing), os.RemoveAll(dir)); err != nil {
			fmt.Fprintln(e.stderr, "busgate buffer: "+err.Error())
		}
	}, nil
}

func bufferListing(ctx context.Context, e *env, f bufferFlags, c *controlClient, _ string) int {
	var l bufferList
	if err := c.call(ctx, "/v1/buffer", nil, &l); err != nil {
		return controlExit(e, "buffer list", err)
	}
	if f.json {
		json.NewEncoder(e.stdout).Encode(l)
		return exitOK
	}
	fmt.Fprintf(e.stdout, "%s: %s messages in %s segments, %s of %s used, reserve %s\n", l.State, report.Count(l.Records), report.Count(l.Segments),
		size(l.UsedBytes), size(l.FileBytes), map[bool]string{true: "kept", false: "used up"}[l.Reserve])
	t := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "CONSUMER\tKIND\tMESSAGES\tSIZE\tOLDEST\tIN/S\tOUT/S\tDRAINED IN\tDROPPED")
	for _, x := range l.Consumers {
		oldest, in, out, eta := "-", "-", "-", "-"
		if x.Oldest != nil && x.Records > 0 {
			oldest = report.Duration(time.Since(*x.Oldest))
		}
		if x.In != nil {
			in, out = fmt.Sprintf("%.1f", *x.In), fmt.Sprintf("%.1f", *x.Out)
		}
		if x.ETA != nil {
			eta = report.Duration(time.Duration(*x.ETA * float64(time.Second)))
		}
		lost := uint64(0)
		for _, n := range x.Lost {
			lost += n
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", x.Name, x.Kind, report.Count(x.Records), size(x.Bytes), oldest, in, out, eta, report.Count(lost))
	}
	t.Flush()
	return exitOK
}

// size is a number of bytes for people, with one digit after the point from
// 1 KiB on.
func size(n int64) string {
	switch {
	case n < 1<<10:
		return fmt.Sprintf("%d B", n)
	case n < 1<<20:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
}

func bufferExport(ctx context.Context, e *env, f bufferFlags, c *controlClient, name string) int {
	if f.format != "csv" && f.format != "ndjson" {
		fmt.Fprintf(e.stderr, "busgate buffer export: --format cannot be %q; allowed: ndjson, csv\n", f.format)
		return exitUsage
	}
	if name == "all" {
		name = ""
	}
	q := url.Values{"consumer": {name}, "from": {f.from}, "to": {f.to}}
	body, err := c.stream(ctx, "/v1/buffer/export?"+q.Encode(), nil)
	if err != nil {
		return controlExit(e, "buffer export", err)
	}
	defer body.Close()
	if f.format == "ndjson" {
		_, err = io.Copy(e.stdout, body)
	} else {
		err = exportCSV(e.stdout, body)
	}
	if err != nil {
		return controlExit(e, "buffer export", fmt.Errorf("the export is not complete: %w", err))
	}
	return exitOK
}

// exportCSV turns the lines of an export into ts,topic,qos,payload. A payload
// that is no text is base64.
func exportCSV(w io.Writer, body io.Reader) error {
	out := csv.NewWriter(w)
	if err := out.Write([]string{"ts", "topic", "qos", "payload"}); err != nil {
		return err
	}
	dec := json.NewDecoder(bufio.NewReader(body))
	for {
		var x exported
		if err := dec.Decode(&x); err == io.EOF {
			break
		} else if err != nil {
			return err
		}
		ts, payload := "", x.Payload
		if x.TS != nil {
			ts = x.TS.Format("2006-01-02T15:04:05.000Z07:00")
		}
		if x.Base64 != nil {
			b, err := json.Marshal(x.Base64)
			if err != nil {
				return err
			}
			payload = string(b[1 : len(b)-1])
		}
		if err := out.Write([]string{ts, x.Topic, strconv.Itoa(int(x.QoS)), payload}); err != nil {
			return err
		}
	}
	out.Flush()
	return out.Error()
}

func bufferDrop(ctx context.Context, e *env, f bufferFlags, c *controlClient, name string) int {
	if name == "" || f.all == (f.before != "") {
		fmt.Fprintln(e.stderr, "busgate buffer drop: name a consumer, and either --before T or --all")
		return exitUsage
	}
	before, err := parseTime(f.before)
	if err != nil {
		fmt.Fprintln(e.stderr, "busgate buffer drop: --before: "+err.Error())
		return exitUsage
	}
	if !f.yes {
		what := "everything"
		if !before.IsZero() {
			what = "what arrived before " + before.Format(time.RFC3339)
		}
		if !confirmed(e, fmt.Sprintf("drop %s that waits for %s? [y/N] ", what, name)) {
			fmt.Fprintln(e.stderr, "nothing dropped (--yes does not ask)")
			return exitUsage
		}
	}
	var res struct{ Dropped int }
	if err := c.call(ctx, "/v1/buffer/drop", map[string]any{"Consumer": name, "Before": before}, &res); err != nil {
		return controlExit(e, "buffer drop", err)
	}
	if f.json {
		json.NewEncoder(e.stdout).Encode(map[string]int{"dropped": res.Dropped})
	} else {
		fmt.Fprintf(e.stdout, "%s messages dropped, counted as dropped by hand\n", report.Count(res.Dropped))
	}
	return exitOK
}

func bufferCompact(ctx context.Context, e *env, f bufferFlags, c *controlClient, _ string) int {
	var res struct{ Before, After int64 }
	if err := c.call(ctx, "/v1/buffer/compact", struct{}{}, &res); err != nil {
		return controlExit(e, "buffer compact", err)
	}
	if f.json {
		json.NewEncoder(e.stdout).Encode(map[string]int64{"before": res.Before, "after": res.After})
	} else {
		fmt.Fprintf(e.stdout, "%s before, %s now\n", size(res.Before), size(res.After))
	}
	return exitOK
}

func bufferCheck(ctx context.Context, e *env, f bufferFlags, c *controlClient, _ string) int {
	var res struct {
		Segments int      `json:"segments"`
		Records  int      `json:"records"`
		Problems []string `json:"problems"`
	}
	if err := c.call(ctx, "/v1/buffer/check", nil, &res); err != nil {
		return controlExit(e, "buffer check", err)
	}
	if f.json {
		json.NewEncoder(e.stdout).Encode(res)
	} else {
		for _, p := range res.Problems {
			fmt.Fprintln(e.stdout, p)
		}
		fmt.Fprintf(e.stdout, "%s segments, %s messages, %s\n", report.Count(res.Segments), report.Count(res.Records), count(len(res.Problems), "problem", "problems"))
	}
	if len(res.Problems) > 0 {
		return exitFailed
	}
	return exitOK
}
