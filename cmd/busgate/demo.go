package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"busgate/config"
	"busgate/devices/profiles"
)

// How the demo's link behaves: down for a third of each minute, and in a short
// run once, from a quarter to a half of it.
const (
	demoPeriod   = time.Minute
	demoOutage   = 20 * time.Second
	demoShort    = 90 * time.Second
	demoEvery    = 5 * time.Second  // a line on the screen
	demoArrival  = 10 * time.Second // from the cloud to its subscriber, at the end
	demoLogLevel = slog.LevelWarn
	demoConsole  = 8080 // its port, or the next free one
)

func demoCommand() command {
	return command{
		name: "demo", short: "the whole way with simulated devices and a cloud whose link fails",
		examples: []string{"busgate demo", "busgate demo --for 30s", "busgate demo --fault dead=2 --fault second-master", "busgate demo --fault list"},
		setup: func(fs *flag.FlagSet) func(context.Context, *env, []string) int {
			var o demoOptions
			fs.DurationVar(&o.limit, "for", 0, "end after `D` and exit 0 only if every reading reached the cloud once and in order")
			fs.IntVar(&o.port, "port", 1883, "`PORT` of the broker; the next free one if it is taken")
			fs.BoolVar(&o.keep, "keep", false, "leave the data directory behind")
			fs.Var(&o.faults, "fault", "`F` goes wrong on purpose, to see what is said about it; repeatable; list: all of them")
			fs.BoolVar(&o.json, "json", false, "the result as one JSON object on stdout, talk on stderr")
			return func(ctx context.Context, e *env, _ []string) int {
				if o.limit != 0 && o.limit < 4*time.Second {
					fmt.Fprintln(e.stderr, "busgate demo: --for must be at least 4s: the link has to go down and come back")
					return exitUsage
				}
				if o.faults.has("list") {
					return wrote(e, "demo", printFaults(e.stdout))
				}
				return runDemo(ctx, e, o)
			}
		},
	}
}

type demoOptions struct {
	limit      time.Duration // 0 = until Ctrl-C
	port       int
	keep, json bool
	faults     faultList
}

// demo is one run. The event loop owns everything below out.
type demo struct {
	o      demoOptions
	out    io.Writer
	check  *checker
	plant  *plant
	cloud  *demoCloud
	gw     *gateway
	vals   *demoValues
	faults *faultShow

	outages   int
	down      time.Duration // of all outages
	mostQueue int           // that waited during an outage
	back      time.Time     // when the link came back; zero once the queue is empty
	backQueue int
}

// demoResult is what --json prints.
type demoResult struct {
	Readings   int     `json:"readings"`
	AtCloud    int     `json:"at_cloud"`
	Lost       int     `json:"lost"`
	Twice      int     `json:"twice"`
	Disordered int     `json:"out_of_order"`
	Outages    int     `json:"outages"`
	Down       float64 `json:"down_s"`
	MostQueue  int     `json:"most_queue"`
	Fault      string  `json:"fault,omitempty"`
}

func runDemo(ctx context.Context, e *env, o demoOptions) int {
	d := &demo{o: o, out: e.stdout, check: newChecker(), vals: newDemoValues()}
	if o.json {
		d.out = e.stderr
	}
	result, err := d.run(ctx, e)
	if err != nil {
		fmt.Fprintln(e.stderr, "busgate demo: "+err.Error())
		return exitFailed
	}
	if o.json {
		json.NewEncoder(e.stdout).Encode(result)
	}
	if result.Fault != "" {
		fmt.Fprintln(e.stderr, "demo: "+result.Fault)
		return exitFailed
	}
	return exitOK
}

// run builds the plant, the cloud and the gateway, and takes them down in
// reverse: the gateway drains while the cloud still listens.
func (d *demo) run(ctx context.Context, e *env) (res demoResult, err error) {
	dir, err := os.MkdirTemp("", "busgate-demo-")
	if err != nil {
		return res, err
	}
	if !d.o.keep {
		defer os.RemoveAll(dir)
	}
	far, stopFar := context.WithCancel(context.WithoutCancel(ctx)) // plant and cloud outlive the gateway
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stopFar()
	log := d.log(e)
	if err = d.openFar(dir, log); err != nil {
		return res, err
	}
	defer d.plant.close()
	for _, part := range append(d.plant.parts, d.cloud.Run) {
		wg.Go(func() { logged(log, part(far)) })
	}
	if err = d.cloud.subscribe(d.check); err != nil {
		return res, err
	}
	defer d.cloud.unsubscribe()
	if err = d.openNear(dir, log); err != nil {
		return res, err
	}
	defer d.gw.Close()

	hurry := make(chan struct{})
	near, stopNear := context.WithCancel(ctx)
	ended := make(chan error, 1)
	wg.Go(func() { ended <- d.gw.Run(near, hurry, func() {}) })
	gwErr, early := d.watch(ctx, e, ended)
	d.cloud.link.Set(true) // what waits may leave
	stopNear()
	if !early {
		gwErr = <-ended
	}
	d.settle()
	return d.conclude(gwErr), nil
}

// log is that of the gateway, on the screen: warnings, and with faults what is
// well again, too.
func (d *demo) log(e *env) *slog.Logger {
	var lv slog.LevelVar
	lv.Set(demoLogLevel)
	if len(d.o.faults) == 0 {
		return newLog(e.stderr, &lv)
	}
	lv.Set(slog.LevelInfo)
	return slog.New(recoveries{newLog(e.stderr, &lv).Handler()})
}

// openFar opens the plant and the cloud.
func (d *demo) openFar(dir string, log *slog.Logger) (err error) {
	if d.plant, err = openPlant(dir); err != nil {
		return err
	}
	if d.faults, err = newFaultShow(d.plant, d.o.faults); err != nil {
		return err
	}
	users := ""
	if d.o.faults.has("auth") {
		if users, err = cloudUsers(dir); err != nil {
			return err
		}
		log = slog.New(slog.DiscardHandler) // what the cloud says about it is not on the gateway's screen
	}
	d.cloud, err = openDemoCloud(log, users)
	return err
}

// openNear opens the gateway with the demo's device map and says what there is.
func (d *demo) openNear(dir string, log *slog.Logger) error {
	ln, note, err := demoListen(d.o.port)
	if err != nil {
		return err
	}
	web, _, err := demoListen(demoConsole)
	if err != nil {
		return err
	}
	file := filepath.Join(dir, "busgate.toml")
	if err := os.WriteFile(file, []byte(d.plant.config(dir, ln.Addr().String(), web.Addr().String(), d.cloud.link.Addr(), d.o.faults)), 0o644); err != nil {
		return err
	}
	cfg, problems := config.Load(file, profiles.FS)
	if cfg == nil {
		var b strings.Builder
		config.Print(&b, problems)
		return errors.New("the demo's own configuration has mistakes:\n" + b.String())
	}
	o := gatewayOptions{tap: d.vals.tap(d.check), listen: ln, web: web}
	if d.o.faults.has("clock") {
		o.kernel = wrongClock()
	}
	if d.gw, err = openGateway(cfg, log, o); err != nil {
		return err
	}
	d.introduce(dir, ln.Addr(), web.Addr(), note)
	return nil
}

// logged says on the demo's log why a part of the surroundings ended.
func logged(log *slog.Logger, err error) {
	if err != nil {
		log.Error(err.Error())
	}
}

// demoListen takes the port or one of the next hundred.
func demoListen(port int) (net.Listener, string, error) {
	var first error
	for p := port; p < port+100; p++ {
		ln, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(p)))
		if err == nil {
			note := ""
			if p != port {
				note = fmt.Sprintf("(%d is taken)  ", port)
			}
			return ln, note, nil
		}
		if first == nil {
			first = err
		}
	}
	return nil, "", fmt.Errorf("no free port from %d on: %w", port, first)
}

func (d *demo) introduce(dir string, broker, web net.Addr, note string) {
	fmt.Fprintf(d.out, "busgate %s demo: nothing outside this computer is touched; data in %s; ends with Ctrl-C\n", version, dir)
	for _, l := range d.plant.lines {
		fmt.Fprintln(d.out, "  "+l)
	}
	port := broker.(*net.TCPAddr).Port
	flag := ""
	if port != 1883 {
		flag = fmt.Sprintf(" -p %d", port)
	}
	fmt.Fprintf(d.out, "  broker        %-24s%stry: mosquitto_sub%s -t 'busgate/#' -v\n", broker, note, flag)
	fmt.Fprintf(d.out, "  console       http://%s\n", web)
	when := "goes down for 20 s every minute"
	if d.o.limit != 0 && d.o.limit < demoShort {
		from, to := d.outage(0)
		when = fmt.Sprintf("goes down from %v to %v", from.Round(time.Millisecond), to.Round(time.Millisecond))
	}
	fmt.Fprintf(d.out, "  cloud         a second broker on %s, whose link %s\n", d.cloud.Addr(), when)
}

// outage is the i-th time in which the link is down, counted from the start.
func (d *demo) outage(i int) (from, to time.Duration) {
	if d.o.limit != 0 && d.o.limit < demoShort {
		if i > 0 {
			return d.o.limit * 2, d.o.limit * 3
		}
		return d.o.limit / 4, d.o.limit / 2
	}
	from = time.Duration(i)*demoPeriod + demoPeriod - demoOutage - demoEvery
	if i > 0 && d.o.limit != 0 && from+demoOutage > d.o.limit {
		return d.o.limit * 2, d.o.limit * 3 // it would not end in time
	}
	return from, from + demoOutage
}

// watch prints and cuts the link until the time is over, ctx ends or the
// gateway does; early says that it did, with its error.
func (d *demo) watch(ctx context.Context, e *env, ended <-chan error) (err error, early bool) {
	begin := time.Now()
	limit := d.o.limit
	if limit == 0 {
		limit = 1 << 62
	}
	end := time.NewTimer(limit)
	defer end.Stop()
	show := time.NewTicker(demoEvery)
	defer show.Stop()
	look := time.NewTicker(50 * time.Millisecond)
	defer look.Stop()
	next := 0
	for {
		select {
		case <-ctx.Done():
			return nil, false
		case <-end.C:
			return nil, false
		case err := <-ended:
			return err, true
		case <-e.signals: // a reload has no meaning here; a second Ctrl-C is not needed
		case <-show.C:
			d.show()
		case <-look.C:
			from, to := d.outage(next)
			t := time.Since(begin)
			lines, err := d.faults.step(t)
			if err != nil {
				return err, false
			}
			for _, line := range lines {
				d.say("%s", line)
			}
			up, _ := d.cloud.link.State()
			switch {
			case up && t >= from && t < to:
				d.cut()
			case !up && t >= to:
				d.restore()
				next++
			}
			d.drained()
			if !up {
				d.mostQueue = max(d.mostQueue, d.check.Waiting())
			}
		}
	}
}

func (d *demo) say(format string, args ...any) {
	fmt.Fprintf(d.out, time.Now().Format(time.TimeOnly)+"  "+format+"\n", args...)
}

// show prints the newest values, the queue and the cloud.
func (d *demo) show() {
	cloud := "cloud up"
	if up, since := d.cloud.link.State(); !up {
		cloud = fmt.Sprintf("cloud down %.0f s", time.Since(since).Seconds())
	}
	d.say("%s | queue %d | %s", d.vals.line(), d.check.Waiting(), cloud)
}

func (d *demo) cut() {
	d.cloud.link.Set(false)
	d.outages++
	d.say("the cloud link goes down (on purpose)")
}

func (d *demo) restore() {
	d.backQueue = d.check.Waiting()
	d.down += d.cloud.link.Set(true)
	d.back = time.Now()
}

// drained says once after each outage that nothing waits any more.
func (d *demo) drained() {
	if d.back.IsZero() || d.check.Waiting() > 0 {
		return
	}
	proof := ""
	if v := d.check.Verdict(); v.first == "" {
		proof = ", in order, none lost, none twice"
	}
	d.say("the cloud link is back: %d waiting readings arrived within %.2f s%s", d.backQueue, time.Since(d.back).Seconds(), proof)
	d.back = time.Time{}
}

// settle waits until the cloud has handed its subscriber everything.
func (d *demo) settle() {
	if d.o.faults.blind() != "" {
		return
	}
	limit := time.Now().Add(demoArrival)
	for d.check.Waiting() > 0 && time.Now().Before(limit) {
		time.Sleep(20 * time.Millisecond)
	}
}

// conclude prints the verdict.
func (d *demo) conclude(gwErr error) demoResult {
	v := d.check.Verdict()
	r := demoResult{
		Readings: v.read, AtCloud: v.arrived, Lost: v.lost, Twice: v.twice, Disordered: v.disordered,
		Outages: d.outages, Down: d.down.Round(time.Millisecond).Seconds(), MostQueue: d.mostQueue,
	}
	word := "outages"
	if d.outages == 1 {
		word = "outage"
	}
	fmt.Fprintf(d.out, "demo: %d readings, %d at the cloud, %d lost, %d twice, %d out of order, %d %s of %.1f s\n",
		v.read, v.arrived, v.lost, v.twice, v.disordered, d.outages, word, d.down.Seconds())
	if len(d.o.faults) > 0 {
		buses, _ := d.gw.fleet.Status()
		for i := range buses {
			d.say("bus %s", busLine(&buses[i]))
		}
	}
	switch {
	case gwErr != nil:
		r.Fault = "the gateway ended: " + gwErr.Error()
	case d.o.faults.blind() != "":
		fmt.Fprintf(d.out, "demo: not judged, because of the fault %s\n", d.o.faults.blind())
	case v.first != "":
		r.Fault = v.first
	case d.o.limit != 0 && v.read == 0:
		r.Fault = "nothing was read: the test proves nothing"
	case d.o.limit != 0 && d.outages == 0:
		r.Fault = "the link never went down: the test proves nothing"
	case d.o.limit != 0 && d.mostQueue == 0:
		r.Fault = "nothing had to wait while the link was down: the test proves nothing"
	}
	return r
}
