package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Cores of TestMeasureBroker, after needMeasure.
var brokerCore, loadCore = 0, 1

const (
	measureWarm = time.Second
	measureSpan = 3 * time.Second
	steadyTime  = 100 * time.Microsecond
	measureNice = -19 // of broker and load alike, where that is allowed: others disturb less
)

// bench is a broker under measurement.
type bench struct {
	proc *process
	port int
}

func (b *bench) cpu(t *testing.T) func() time.Duration {
	return func() time.Duration { return cpuTime(t, b.proc) }
}

// measured is a kind of broker, started anew for each run.
type measured struct {
	name  string
	start func(t *testing.T) *bench
}

// needMeasure skips a measurement that nobody asked for.
func needMeasure(t *testing.T) {
	t.Helper()
	if os.Getenv("BUSGATE_MEASURE") == "" {
		t.Skip("takes eight minutes and asserts nothing but that no message is lost: BUSGATE_MEASURE=1 go test -timeout 30m -v -run MeasureBroker ./cmd/busgate (-short: one round instead of three; behind chrt -r 1 the load of others matters less)")
	}
	if runtime.NumCPU() < 2 {
		t.Skip("needs two cores: one for the broker, one for the load")
	}
	for _, p := range []string{"mosquitto", "taskset", "nice"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("needs %s: apt-get install mosquitto util-linux coreutils", p)
		}
	}
	takeCores(t)
	goFirst(t)
}

// takeCores gives the brokers the core on which a flush is sooner over, the one
// that the disk interrupts, and keeps this process to the other.
func takeCores(t *testing.T) {
	t.Helper()
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		t.Fatal(err)
	}
	var sum [2]time.Duration
	runtime.LockOSThread()
	for i := range 6 {
		pin(t, 0, i%2)
		mid, _ := flushOf(t, t.TempDir())
		sum[i%2] += mid
	}
	runtime.UnlockOSThread()
	if brokerCore, loadCore = 0, 1; sum[1] < sum[0] {
		brokerCore, loadCore = 1, 0
	}
	for _, tid := range threads(t) {
		pin(t, tid, loadCore)
	}
	t.Cleanup(func() {
		for _, tid := range threads(t) {
			unix.SchedSetaffinity(tid, &all)
		}
	})
}

// pin keeps a thread to a core; 0 is the calling one.
func pin(t *testing.T, tid, core int) {
	t.Helper()
	var set unix.CPUSet
	set.Set(core)
	if err := unix.SchedSetaffinity(tid, &set); err != nil && err != unix.ESRCH {
		t.Fatal(err)
	}
}

// threads are those of this process; those to come inherit what these have.
func threads(t *testing.T) (tids []int) {
	t.Helper()
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range tasks {
		if tid, err := strconv.Atoi(e.Name()); err == nil {
			tids = append(tids, tid)
		}
	}
	return tids
}

// goFirst raises the priority of this process, its children and, where the
// kernel groups processes by session, of the group. Where that is not allowed
// everything stays as it was.
func goFirst(t *testing.T) {
	t.Helper()
	const group = "/proc/self/autogroup"
	if os.WriteFile(group, []byte(fmt.Sprint(measureNice)), 0) == nil {
		t.Cleanup(func() { os.WriteFile(group, []byte("0"), 0) })
	}
	for _, tid := range threads(t) {
		unix.Setpriority(unix.PRIO_PROCESS, tid, measureNice) // not allowed: as it was
	}
}

// brokers are mosquitto as the distribution ships it, without persistence and
// with a window of 100 as busgate has, and busgate as it is shipped.
func brokers(t *testing.T) []measured {
	t.Helper()
	bin := measuredProgram(t)
	return []measured{
		{"mosquitto", func(t *testing.T) *bench {
			b := &bench{port: freePort(t)}
			file := filepath.Join(t.TempDir(), "mosquitto.conf")
			write(t, file, fmt.Sprintf("listener %d 127.0.0.1\nallow_anonymous true\npersistence false\nmax_inflight_messages 100\nmax_queued_messages 0\nlog_type error\nlog_type warning\n", b.port))
			b.proc = start(t, nil, "taskset", append(onItsCore(), "mosquitto", "-c", file)...)
			reachable(t, fmt.Sprintf("127.0.0.1:%d", b.port))
			return b
		}},
		{"busgate", func(t *testing.T) *bench { return startBusgate(t, bin, t.TempDir()) }},
	}
}

// steadyFlush is list with busgate on a disk in memory whose flush takes 0.1 ms,
// so that rates and latencies can be compared whatever the disk of this machine
// is and whoever else writes to it.
func steadyFlush(t *testing.T, list []measured) []measured {
	t.Helper()
	bin := measuredProgram(t)
	return []measured{list[0], {"busgate", func(t *testing.T) *bench {
		return startBusgate(t, bin, memoryDir(t), newSlowDisk(t, steadyTime).launcher()...)
	}}}
}

// memoryDir is a folder on a disk in memory.
func memoryDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "busgate-measure-")
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// startBusgate runs busgate as a broker alone, on its core, with its data in dir.
func startBusgate(t *testing.T, bin, dir string, launcher ...string) *bench {
	t.Helper()
	b := &bench{port: freePort(t)}
	file := filepath.Join(dir, "busgate.toml")
	write(t, file, fmt.Sprintf("[gateway]\nname = \"t\"\ndata_dir = %q\n[web]\nlisten = \"\"\n[broker]\nlisten = \"127.0.0.1:%d\"\nmax_clients = 20000\n", dir, b.port))
	args := append(onItsCore(), launcher...)
	args = append(args, bin, "run", "--config", file, "--socket", filepath.Join(dir, "s"))
	b.proc = start(t, nil, "taskset", args...)
	b.proc.until(t, "that it runs", has("INFO running"))
	return b
}

// onItsCore are the arguments of taskset for a broker.
func onItsCore() []string {
	return []string{"-c", fmt.Sprint(brokerCore), "nice", "-n", fmt.Sprint(measureNice)}
}

// rounds is how often each figure is taken.
func rounds() int {
	if testing.Short() {
		return 1
	}
	return 3
}

// loadAverage is that of 1, 5 and 15 minutes; this test itself needs up to two.
func loadAverage(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(strings.Fields(string(b))[:3], " ")
}

// median of an odd number of figures, and how far they lie apart as a share of it.
func median(v []float64) (mid, spread float64) {
	v = slices.Sorted(slices.Values(v))
	mid = v[len(v)/2]
	return mid, (v[len(v)-1] - v[0]) / mid
}

// machineBusy is how long all cores together worked since the machine started.
func machineBusy(t *testing.T) (busy time.Duration) {
	t.Helper()
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		t.Fatal(err)
	}
	line, _, _ := strings.Cut(string(b), "\n")
	for i, f := range strings.Fields(line)[1:9] {
		var n int64
		fmt.Sscan(f, &n)
		if i != 3 && i != 4 { // idle, iowait
			busy += time.Duration(n) * 10 * time.Millisecond
		}
	}
	return busy
}

// row is one line of the table.
type row struct {
	name   string
	what   func(figures) float64
	unit   string
	target float64
	most   bool // target is an upper bound
}

// TestMeasureBroker sets busgate against mosquitto: each alone on one core, the
// load on the other, 128 bytes, a window of 100, medians of three, one after
// the other in turn. It asserts nothing but that nothing is lost.
func TestMeasureBroker(t *testing.T) {
	needMeasure(t)
	list := brokers(t)
	cpu := func(target float64) row {
		return row{"CPU s per million", figures.perMillion, "s", target, true}
	}
	rate := func(target float64) row { return row{"rate", figures.rate, "/s", target, false} }
	p99 := row{"p99 of the acknowledgement", func(f figures) float64 { return f.p99.Seconds() * 1e3 }, "ms", 1, true}
	conditions(t)
	for _, c := range []struct {
		name string
		tr   traffic
		rows []row

		steady bool
	}{
		{"QoS 0 1->1", traffic{pubs: 1, subs: 1, window: 100}, []row{cpu(0.4)}, false},
		{"QoS 0 10->10", traffic{pubs: 10, subs: 10, window: 100}, []row{cpu(0.4)}, false},
		{"QoS 0 1->100", traffic{pubs: 1, subs: 100, window: 100}, []row{cpu(0.4)}, false},
		{"QoS 0 100->1", traffic{pubs: 100, subs: 1, window: 10}, []row{cpu(0.4)}, false},
		{"QoS 1 durable 1->1", traffic{pubs: 1, subs: 1, qos: 1, window: 100, durable: true}, []row{cpu(0.6), rate(1.5), p99}, false},
		{"QoS 1 durable 10->10", traffic{pubs: 10, subs: 10, qos: 1, window: 100, durable: true}, []row{cpu(0.6), rate(3), p99}, false},
		{"QoS 1 durable 1->1, flush of 0.1 ms", traffic{pubs: 1, subs: 1, qos: 1, window: 100, durable: true}, []row{rate(1.5), p99}, true},
		{"QoS 1 durable 10->10, flush of 0.1 ms", traffic{pubs: 10, subs: 10, qos: 1, window: 100, durable: true}, []row{rate(3), p99}, true},
		{"QoS 2 durable 1->1", traffic{pubs: 1, subs: 1, qos: 2, window: 100, durable: true}, []row{cpu(0.6)}, false},
		{"QoS 2 durable 10->10", traffic{pubs: 10, subs: 10, qos: 2, window: 100, durable: true}, []row{cpu(0.6)}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			list := list
			if c.steady {
				list = steadyFlush(t, list)
			}
			sideBySide(t, list, c.tr, c.rows)
		})
	}
}

// sideBySide runs one traffic through the brokers in turn and prints the rows.
func sideBySide(t *testing.T, list []measured, tr traffic, rows []row) {
	got := make([][]figures, len(list))
	before, began, used := machineBusy(t), time.Now(), time.Duration(0)
	for range rounds() {
		for i, m := range list {
			if m.name == "mosquitto" {
				tr := tr
				tr.durable = false
				got[i] = append(got[i], once(t, m, tr, &used))
			} else {
				got[i] = append(got[i], once(t, m, tr, &used))
			}
		}
	}
	after := machineBusy(t)
	others := (after - before - used).Seconds() / time.Since(began).Seconds()
	for _, r := range rows {
		var mid, spread [2]float64
		for i := range list {
			var v []float64
			for _, f := range got[i] {
				v = append(v, r.what(f))
			}
			mid[i], spread[i] = median(v)
		}
		ratio := mid[1] / mid[0]
		sign, ok := "<=", ratio <= r.target
		if !r.most {
			sign, ok = ">=", ratio >= r.target
		}
		t.Logf("%-26s mosquitto %8.4g %-2s (±%2.0f %%)  busgate %8.4g %-2s (±%2.0f %%)  ratio %.2f, asked %s %.1f: %s",
			r.name, mid[0], r.unit, 50*spread[0], mid[1], r.unit, 50*spread[1], ratio, sign, r.target, asked(ok))
	}
	for i, m := range list {
		f := got[i][0]
		t.Logf("  %-9s %.0f/s, its core %.0f %% busy, the load's %.0f %%; acknowledged after %v (p50), %v (p99)", m.name, f.rate(),
			100*f.cpu.Seconds()/f.took.Seconds(), 100*f.own, f.p50.Round(10*time.Microsecond), f.p99.Round(10*time.Microsecond))
	}
	if others > 0.1 {
		t.Logf("  the machine was not quiet: others took %.2f of a core; load average %s", others, loadAverage(t))
	}
}

// once runs one traffic through one broker.
func once(t *testing.T, m measured, tr traffic, used *time.Duration) figures {
	t.Helper()
	b := m.start(t)
	defer b.proc.end(os.Kill)
	l := newLoad(t, b.port, tr)
	defer l.close()
	f := l.run(t, loadCore, measureWarm, measureSpan, b.cpu(t))
	if t.Failed() { // the goroutines tell where it hangs
		b.proc.end(syscall.SIGQUIT)
		t.Log(strings.Join(b.proc.lines(), "\n"))
		return f
	}
	*used += cpuTime(t, b.proc) + time.Duration(f.own*float64(measureWarm+measureSpan))
	return f
}
