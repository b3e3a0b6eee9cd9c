package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"busgate/bridge"
	"busgate/buffer"
	"busgate/devices"
	"busgate/embeddedbroker"
)

// Limits of the control socket.
const (
	controlConns  = 32
	controlBody   = 1 << 20
	controlHeader = 5 * time.Second
	controlStall  = 5 * time.Second // a stream that nobody reads is cut
)

// defaultSocket is where the daemon and its commands meet.
const defaultSocket = "/run/busgate/control.sock"

// control is what stands behind the control socket: HTTP/1.1 with JSON bodies
// and NDJSON streams below /v1/. Access is the mode of the socket.
type control struct {
	store   *buffer.Store
	rates   func() map[string]bridge.UplinkNumbers // of uplinks; nil without a daemon
	reload  func(context.Context) (string, error)  // nil without a daemon
	fleet   *devices.Fleet                         // nil without a daemon
	learned func() map[string][]byte               // about the devices; nil without a daemon
	broker  *embeddedbroker.Broker                 // nil without a daemon
	status  func() gatewayStatus                   // nil without a daemon
}

// handler routes the commands.
func (c *control) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/buffer", c.list)
	mux.HandleFunc("GET /v1/buffer/export", c.export)
	mux.HandleFunc("POST /v1/buffer/drop", c.drop)
	mux.HandleFunc("POST /v1/buffer/compact", c.compact)
	mux.HandleFunc("GET /v1/buffer/check", c.check)
	mux.HandleFunc("POST /v1/reload", c.reloaded)
	c.busRoutes(mux)
	c.sessionRoutes(mux)
	c.statusRoute(mux)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, controlBody)
		w.Header().Set("Busgate-Version", version)
		mux.ServeHTTP(w, r)
	})
}

// bufferList is the answer to GET /v1/buffer.
type bufferList struct {
	State     string           `json:"state"`
	Records   int64            `json:"records"`
	Segments  int              `json:"segments"`
	FileBytes int64            `json:"file_bytes"`
	UsedBytes int64            `json:"used_bytes"`
	WALBytes  int64            `json:"wal_bytes"`
	Reserve   bool             `json:"reserve"`
	Consumers []bufferConsumer `json:"consumers"`
}

type bufferConsumer struct {
	Name    string            `json:"name"`
	Kind    string            `json:"kind"`
	Records int               `json:"records"`
	Bytes   int64             `json:"bytes"`
	Leased  int               `json:"leased"`
	Oldest  *time.Time        `json:"oldest,omitempty"`
	In      *float64          `json:"in_per_s,omitempty"`
	Out     *float64          `json:"out_per_s,omitempty"`
	ETA     *float64          `json:"eta,omitempty"` // seconds until nothing waits
	Lost    map[string]uint64 `json:"lost,omitempty"`
}

func (c *control) list(w http.ResponseWriter, _ *http.Request) {
	st := c.store.Stats()
	l := bufferList{State: st.State, Records: st.Records, Segments: st.Segments, FileBytes: st.FileBytes,
		UsedBytes: st.UsedBytes, WALBytes: st.WALBytes, Reserve: st.ReserveKept, Consumers: []bufferConsumer{}}
	var rates map[string]bridge.UplinkNumbers
	if c.rates != nil {
		rates = c.rates()
	}
	for _, s := range st.Consumers {
		b := bufferConsumer{Name: s.Name, Kind: "uplink", Records: s.Records, Bytes: s.Bytes, Leased: s.Leased, Lost: s.Lost}
		if s.Kind == buffer.SessionLog {
			b.Kind = "session"
		}
		if !s.Oldest.IsZero() {
			b.Oldest = &s.Oldest
		}
		if n, ok := rates[s.Name]; ok && s.Kind == buffer.Uplink {
			b.In, b.Out = &n.In, &n.Out
			if eta := n.ETA.Seconds(); eta >= 0 {
				b.ETA = &eta
			}
		}
		l.Consumers = append(l.Consumers, b)
	}
	reply(w, http.StatusOK, l)
}

// exported is one line of an export. Payload is base64 when it is not UTF-8.
type exported struct {
	Seq     uint64     `json:"seq"`
	Lane    uint8      `json:"lane"`
	TS      *time.Time `json:"ts,omitempty"`
	Time    string     `json:"time"` // clock, redated or none
	Boot    string     `json:"boot"`
	Topic   string     `json:"topic"`
	QoS     uint8      `json:"qos"`
	Retain  bool       `json:"retain,omitempty"`
	N       []uint64   `json:"n,omitempty"`
	Payload string     `json:"payload,omitempty"`
	Base64  []byte     `json:"payload_base64,omitempty"`
}

func (c *control) export(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	from, err1 := parseTime(q.Get("from"))
	to, err2 := parseTime(q.Get("to"))
	if err := errors.Join(err1, err2); err != nil {
		refuse(w, http.StatusBadRequest, err)
		return
	}
	out := json.NewEncoder(w)
	rc := http.NewResponseController(w)
	begun := false
	err := c.store.Export(r.Context(), q.Get("consumer"), from, to, func(rec *buffer.Record) error {
		if !begun {
			begun = true
			w.Header().Set("Content-Type", "application/x-ndjson")
		}
		if err := rc.SetWriteDeadline(time.Now().Add(controlStall)); err != nil {
			return err
		}
		return out.Encode(exportLine(rec))
	})
	switch {
	case err == nil:
	case !begun:
		refuse(w, http.StatusNotFound, err)
	default: // the status has left: the client sees the broken stream
		panic(http.ErrAbortHandler)
	}
}

func exportLine(r *buffer.Record) exported {
	x := exported{Seq: r.Seq, Lane: r.Lane, Time: r.Clock.String(), Boot: r.Boot, Topic: r.Topic, QoS: r.QoS, Retain: r.Retain}
	if !r.At.IsZero() {
		x.TS = &r.At
	}
	for _, n := range r.Numbers {
		x.N = append(x.N, n.N)
	}
	if validText(r.Payload) {
		x.Payload = string(r.Payload)
	} else {
		x.Base64 = r.Payload
	}
	return x
}

func (c *control) drop(w http.ResponseWriter, r *http.Request) {
	var q struct {
		Consumer string
		Before   time.Time
	}
	if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
		refuse(w, http.StatusBadRequest, err)
		return
	}
	n, err := c.store.DropPending(r.Context(), q.Consumer, q.Before)
	if err != nil {
		refuse(w, http.StatusNotFound, err)
		return
	}
	reply(w, http.StatusOK, map[string]int{"dropped": n})
}

func (c *control) compact(w http.ResponseWriter, r *http.Request) {
	before, after, err := c.store.Compact(r.Context())
	if err != nil {
		refuse(w, http.StatusConflict, err)
		return
	}
	reply(w, http.StatusOK, map[string]int64{"before": before, "after": after})
}

func (c *control) check(w http.ResponseWriter, r *http.Request) {
	res, err := c.store.Check(r.Context())
	if err != nil {
		refuse(w, http.StatusConflict, err)
		return
	}
	reply(w, http.StatusOK, map[string]any{"segments": res.Segments, "records": res.Records, "problems": res.Problems})
}

func (c *control) reloaded(w http.ResponseWriter, r *http.Request) {
	if c.reload == nil {
		refuse(w, http.StatusConflict, errors.New("no daemon runs"))
		return
	}
	text, err := c.reload(context.WithoutCancel(r.Context())) // all or nothing: not half, because a client left
	if err != nil {
		refuse(w, http.StatusUnprocessableEntity, err)
		return
	}
	reply(w, http.StatusOK, map[string]string{"text": text})
}

func reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v) // a client that left is no failure of ours
}

// refuse answers with an error; one of a wire in words for people and with its
// stable word.
func refuse(w http.ResponseWriter, status int, err error) {
	body := map[string]string{"error": err.Error()}
	if t, ok := errors.AsType[devices.Trouble](err); ok {
		body = map[string]string{"error": t.Text(), "word": t.Word()}
	}
	reply(w, status, body)
}

// openControl binds the socket, mode 0660, group busgate where there is one.
// A stale file is removed only after a connect was refused.
func openControl(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return nil, fmt.Errorf("control socket: %s is in use by another busgate", path)
	} else if errors.Is(err, syscall.ECONNREFUSED) {
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("control socket: %w", err)
		}
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	if err := os.Chmod(path, 0o660); err != nil {
		ln.Close()
		return nil, fmt.Errorf("control socket: %w", err)
	}
	if g, err := user.LookupGroup("busgate"); err == nil {
		if id, err := strconv.Atoi(g.Gid); err == nil {
			os.Chown(path, -1, id) // possible for a member only; the mode decides then
		}
	}
	return ln, nil
}

// serveControl answers commands until ctx ends. No request is at work when it
// returns.
func serveControl(ctx context.Context, log *slog.Logger, ln net.Listener, h http.Handler) error {
	var conns sync.WaitGroup
	srv := &http.Server{
		ConnState: func(_ net.Conn, s http.ConnState) {
			switch s {
			case http.StateNew: // before Serve returns
				conns.Add(1)
			case http.StateClosed: // the last thing that the goroutine of a connection does
				conns.Done()
			}
		},
		Handler: h, ReadHeaderTimeout: controlHeader, IdleTimeout: time.Minute,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug), BaseContext: func(net.Listener) context.Context { return ctx },
	}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	err := srv.Serve(&limited{Listener: ln, free: make(chan struct{}, controlConns)})
	srv.Close() // that connections were open is the only error there is
	conns.Wait()
	if !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("control socket: %w", err)
	}
	return nil
}

// limited lets so many connections in as free holds; more wait in the queue of
// the kernel.
type limited struct {
	net.Listener
	free chan struct{}
}

func (l *limited) Accept() (net.Conn, error) {
	l.free <- struct{}{}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.free
		return nil, err
	}
	return &counted{Conn: c, leave: func() { <-l.free }}, nil
}

// counted is a connection that gives its place back once.
type counted struct {
	net.Conn
	once  sync.Once
	leave func()
}

func (c *counted) Close() error {
	c.once.Do(c.leave)
	return c.Conn.Close()
}
