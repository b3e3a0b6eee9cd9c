package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"busgate/config/report"
	"busgate/devices"
	"busgate/devices/modbus"
)

// commandLife is how long a command from the control socket may wait for its slot.
const commandLife = time.Minute

// busRow is one bus of the daemon, in the answer to GET /v1/buses.
type busRow struct {
	Name     string `json:"name"`
	Protocol string `json:"protocol"`
	Serial   string `json:"serial,omitempty"`
	TCP      string `json:"tcp,omitempty"`
	Baud     int    `json:"baud,omitempty"`
	Format   string `json:"format,omitempty"`
	Open     bool   `json:"open"`
	Text     string `json:"text,omitempty"`  // what is wrong with it
	Guest    string `json:"guest,omitempty"` // who has it for itself
	Online   int    `json:"online"`          // devices that answer
}

// busRoutes are the commands that need the wires of the daemon.
func (c *control) busRoutes(mux *http.ServeMux) {
	mux.HandleFunc("GET /v1/buses", c.buses)
	mux.HandleFunc("POST /v1/exchange", c.exchange)
	mux.HandleFunc("POST /v1/read", c.read)
	mux.HandleFunc("POST /v1/write", c.write)
	mux.HandleFunc("GET /v1/monitor", c.monitor)
	mux.HandleFunc("GET /v1/learned", func(w http.ResponseWriter, _ *http.Request) {
		known := map[string][]byte{}
		if c.learned != nil {
			known = c.learned()
		}
		reply(w, http.StatusOK, known)
	})
}

func (c *control) buses(w http.ResponseWriter, _ *http.Request) {
	rows := []busRow{}
	if c.fleet != nil {
		buses, devs := c.fleet.Status()
		for _, b := range buses {
			cfg := c.fleet.Bus(b.Name)
			if cfg == nil { // a reload came between
				continue
			}
			row := busRow{Name: b.Name, Protocol: cfg.Protocol, Serial: cfg.Serial, TCP: cfg.TCP, Open: b.Open, Text: b.Text, Guest: b.Guest}
			if cfg.Serial != "" {
				row.Baud, row.Format = cfg.Baud, cfg.Format()
			}
			for _, d := range devs {
				if d.Bus == b.Name && d.Online {
					row.Online++
				}
			}
			rows = append(rows, row)
		}
	}
	reply(w, http.StatusOK, rows)
}

// exchangeRequest asks for one read on a bus, as raw frame.
type exchangeRequest struct {
	Bus   string
	Share bool // of a search: at most a quarter of the bus time
	modbus.Question
}

func (c *control) exchange(w http.ResponseWriter, r *http.Request) {
	var q exchangeRequest
	if !c.ask(w, r, &q) {
		return
	}
	name := "busgate read"
	if q.Share {
		name = "busgate scan"
	}
	var answer modbus.Reply
	var wrong error
	err := c.fleet.Visit(r.Context(), q.Bus, devices.Visit{Name: name, Share: q.Share, Do: func(ctx context.Context, f devices.Field) (err error) {
		answer, err = modbus.Ask(ctx, f, q.Question)
		if _, wire := errors.AsType[devices.Trouble](err); !wire {
			wrong, err = err, nil
		}
		return err
	}})
	if err == nil {
		err = wrong
	}
	if err != nil {
		refuse(w, http.StatusConflict, err)
		return
	}
	reply(w, http.StatusOK, answer)
}

// ask reads the body of a request that needs the fleet.
func (c *control) ask(w http.ResponseWriter, r *http.Request, q any) bool {
	if c.fleet == nil {
		refuse(w, http.StatusConflict, errors.New("no daemon runs"))
		return false
	}
	if err := json.NewDecoder(r.Body).Decode(q); err != nil {
		refuse(w, http.StatusBadRequest, err)
		return false
	}
	return true
}

// pointRow is one point of a read: its value, or why it has none.
type pointRow struct {
	Point string          `json:"point"`
	Text  string          `json:"text"` // the value with its unit, or a sentence
	Value json.RawMessage `json:"value,omitempty"`
	Wrong bool            `json:"wrong,omitempty"`
}

// readAnswer is the answer to POST /v1/read.
type readAnswer struct {
	Device string     `json:"device"`
	Points []pointRow `json:"points"` // those without a value last
	Silent string     `json:"silent,omitempty"`
}

func (c *control) read(w http.ResponseWriter, r *http.Request) {
	var q struct {
		Device string
		Points []int
	}
	if !c.ask(w, r, &q) {
		return
	}
	dev := c.fleet.Device(q.Device)
	if dev == nil {
		refuse(w, http.StatusNotFound, fmt.Errorf("the running gateway has no device `%s`; reload it: busgate reload", q.Device))
		return
	}
	for _, i := range q.Points {
		if i < 0 || i >= len(dev.Points) {
			refuse(w, http.StatusNotFound, fmt.Errorf("the running gateway has another device map; reload it: busgate reload"))
			return
		}
	}
	a, err := c.fleet.Read(r.Context(), q.Device, q.Points)
	if err != nil {
		refuse(w, http.StatusConflict, err)
		return
	}
	bus := c.fleet.Bus(dev.Bus)
	if c.fleet.Device(q.Device) != dev {
		refuse(w, http.StatusConflict, errors.New("the gateway was reloaded meanwhile; try again"))
		return
	}
	reply(w, http.StatusOK, answerOf(bus, dev, a))
}

// commandAnswer is the answer to POST /v1/write.
type commandAnswer struct {
	Value string  `json:"value,omitempty"` // as read back
	Code  string  `json:"code,omitempty"`
	Text  string  `json:"text,omitempty"`
	Took  float64 `json:"took"` // seconds
}

func (c *control) write(w http.ResponseWriter, r *http.Request) {
	var q struct{ Device, Point, Value, ID string }
	if !c.ask(w, r, &q) {
		return
	}
	res, err := c.fleet.Write(r.Context(), devices.Command{Device: q.Device, Point: q.Point, Text: q.Value, ID: q.ID, Until: c.fleet.Now().Mono + commandLife})
	if err != nil {
		refuse(w, http.StatusNotFound, err)
		return
	}
	reply(w, http.StatusOK, commandOf(res))
}

func commandOf(res devices.Result) commandAnswer {
	a := commandAnswer{Code: res.Code, Text: res.Text, Took: res.Took.Seconds()}
	if !res.Value.IsNull() {
		a.Value = res.Value.String()
	}
	return a
}

// mostPast frames that the bus remembers are shown before those that come.
const mostPast = 20

// mostWaiting frames may wait for a client that listens.
const mostWaiting = 256

// frameRow is one frame on the way to `busgate monitor`.
type frameRow struct {
	TS   time.Time     `json:"ts"`
	Out  bool          `json:"out,omitempty"`
	Hex  string        `json:"hex,omitempty"`
	Gap  time.Duration `json:"gap"` // ns
	RTT  time.Duration `json:"rtt,omitempty"`
	Mark devices.Mark  `json:"mark"`
}

func rowOf(f devices.Frame) frameRow {
	return frameRow{TS: f.At.UTC(), Out: f.Out, Hex: hex.EncodeToString(f.Data), Gap: f.Gap, RTT: f.RTT, Mark: f.Mark}
}

func (r frameRow) frame() (devices.Frame, error) {
	data, err := hex.DecodeString(r.Hex)
	return devices.Frame{At: r.TS, Out: r.Out, Data: data, Gap: r.Gap, RTT: r.RTT, Mark: r.Mark}, err
}

// monitor streams the frames of a bus until the client leaves; with listen=1 the
// bus only listens meanwhile and its polls wait.
func (c *control) monitor(w http.ResponseWriter, r *http.Request) {
	if c.fleet == nil {
		refuse(w, http.StatusConflict, errors.New("no daemon runs"))
		return
	}
	name := r.URL.Query().Get("bus")
	tap := c.fleet.Tap(name)
	if tap == nil {
		refuse(w, http.StatusNotFound, fmt.Errorf("the running gateway has no bus %s with devices", report.Name(name)))
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	ended := make(chan error, 1)
	if r.URL.Query().Get("listen") == "" {
		past, coming, stop := tap.Watch()
		defer stop()
		c.streamFrames(ctx, w, past[max(0, len(past)-mostPast):], coming, ended)
		return
	}
	if b := c.fleet.Bus(name); b != nil && b.Protocol == "uart" {
		c.monitorSensors(ctx, w, name, tap, ended)
		return
	}
	coming := make(chan devices.Frame, mostWaiting)
	go func() {
		ended <- c.fleet.Visit(ctx, name, devices.Visit{Name: "busgate monitor --listen-only", Alone: true,
			Do: func(ctx context.Context, f devices.Field) error {
				return modbus.Overhear(ctx, f, func(f devices.Frame) {
					select {
					case coming <- f:
					default: // who reads too slowly loses frames; the bus does not wait
					}
				})
			}})
	}()
	defer func() { cancel(); <-ended }()
	c.streamFrames(ctx, w, nil, coming, ended)
}

// monitorSensors keeps a UART bus from asking its sensors while it is watched.
func (c *control) monitorSensors(ctx context.Context, w http.ResponseWriter, name string, tap *devices.Tap, ended chan error) {
	ctx, cancel := context.WithCancel(ctx)
	_, coming, stop := tap.Watch()
	defer stop()
	go func() {
		ended <- c.fleet.Visit(ctx, name, devices.Visit{Name: "busgate monitor --listen-only", Alone: true,
			Do: func(ctx context.Context, _ devices.Field) error { <-ctx.Done(); return ctx.Err() }})
	}()
	defer func() { cancel(); <-ended }()
	c.streamFrames(ctx, w, nil, coming, ended)
}

// streamFrames writes frames as they come. An error before the first one is
// still told as such.
func (c *control) streamFrames(ctx context.Context, w http.ResponseWriter, past []devices.Frame, coming <-chan devices.Frame, ended chan error) {
	rc := http.NewResponseController(w)
	out := json.NewEncoder(w)
	send := func(f devices.Frame) bool {
		if rc.SetWriteDeadline(time.Now().Add(controlStall)) != nil || out.Encode(rowOf(f)) != nil {
			return false
		}
		return rc.Flush() == nil
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	select { // a bus that cannot be listened to says so at once
	case err := <-ended:
		ended <- nil
		refuse(w, http.StatusConflict, err)
		return
	case <-time.After(100 * time.Millisecond):
	}
	if rc.Flush() != nil {
		return
	}
	for _, f := range past {
		if !send(f) {
			return
		}
	}
	for {
		select {
		case f := <-coming:
			if !send(f) {
				return
			}
		case err := <-ended:
			ended <- nil
			if err != nil && ctx.Err() == nil {
				out.Encode(map[string]string{"error": errorText(err)})
			}
			return
		case <-ctx.Done():
			return
		}
	}
}

// errorText is an error in words for people.
func errorText(err error) string {
	if t, ok := errors.AsType[devices.Trouble](err); ok {
		return strings.TrimSuffix(t.Text(), ".")
	}
	return err.Error()
}
