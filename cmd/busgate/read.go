package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"busgate/config"
	"busgate/devices"
	"busgate/devices/modbus"
)

// readFlags are the flags of read.
type readFlags struct {
	config, socket, baud, format, typ, order string
	try, hex, json                           bool
}

func readCommand() command {
	return command{
		name: "read", args: "DEVICE[.POINT] | WHERE UNIT TABLE ADDR [N]", short: "one read now: a device, or registers on a port, BUS or HOST[:PORT]",
		examples: []string{"busgate read grid.voltage_l1", "busgate read meters 2 input 1 2", "busgate read /dev/ttyUSB0 1 input 0 2 --type float32", "busgate read 192.168.1.40 1 holding 0x1000 4 --try"},
		setup: func(fs *flag.FlagSet) func(context.Context, *env, []string) int {
			var f readFlags
			fs.StringVar(&f.config, "config", defaultConfig, "device map `FILE` that names the buses")
			fs.StringVar(&f.socket, "socket", defaultSocket, "control socket `FILE` of the daemon, which is asked when it has the wire open")
			fs.StringVar(&f.baud, "baud", "", "speed `B` of the line; else that of the bus, or 9600")
			fs.StringVar(&f.format, "format", "", "format `F` of the line; else that of the bus, or 8N1")
			fs.StringVar(&f.typ, "type", "", "read the registers as values of type `T`, as in a device map")
			fs.StringVar(&f.order, "order", "ABCD", "order `O` of the bytes: ABCD, CDAB, BADC or DCBA")
			fs.BoolVar(&f.try, "try", false, "read the registers as every type and order, the plausible ones marked")
			fs.BoolVar(&f.hex, "hex", false, "the bytes only")
			fs.BoolVar(&f.json, "json", false, "one JSON object")
			return func(ctx context.Context, e *env, args []string) int { return readNow(ctx, e, f, args) }
		},
	}
}

// readJob is one read, checked.
type readJob struct {
	bus     *config.Bus
	unit    uint8
	table   string
	addr, n int
}

// readNow makes the read and prints it.
func readNow(ctx context.Context, e *env, f readFlags, args []string) int {
	if len(args) == 1 {
		return readDevice(ctx, e, f, args[0])
	}
	if len(args) < 4 || len(args) > 5 {
		return misuse(e, "read", "takes DEVICE[.POINT] or WHERE UNIT TABLE ADDR [N], as in: busgate read meters 2 input 1 2")
	}
	bus, code := wireOf(e, "read", f.config, mapAt(f.config), args[0])
	if bus == nil {
		return code
	}
	if bus.Name == "wire" {
		bus.Name = args[0]
	}
	job, err := readJobOf(f, bus, args[1:])
	if err != nil {
		return misuse(e, "read", "%v", err)
	}
	asked := fmt.Sprintf("%d %s", bus.Baud, bus.Format())
	w, code := reach(ctx, e, "read", f.socket, bus)
	if w == nil {
		return code
	}
	if own := fmt.Sprintf("%d %s", bus.Baud, bus.Format()); w.lent != nil && f.baud+f.format != "" && bus.Serial != "" && own != asked {
		fmt.Fprintf(e.stderr, "busgate read: bus %s is in use at %s (%s); stop the service to read at another speed: sudo systemctl stop busgate\n",
			w.lent.Name, w.lent.setting(), w.lent.answering())
		return exitRefused
	}
	raw, err := w.driver.ReadRaw(ctx, bus, job.unit, job.table, job.addr, job.n, warnings(e))
	if err != nil {
		return readFailed(ctx, e, bus, job.unit, err)
	}
	return printRead(e, f, job, raw)
}

// warnings is a logger for what a command must say beside its result.
func warnings(e *env) *slog.Logger {
	return slog.New(slog.NewTextHandler(e.stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

// readFailed says why there is no answer.
func readFailed(ctx context.Context, e *env, bus *config.Bus, unit uint8, err error) int {
	if ctx.Err() != nil {
		return exitStopped
	}
	if _, ok := errors.AsType[devices.Trouble](err); ok {
		return wireFailed(e, "read", err)
	}
	text, answered := modbus.Refusal(bus, unit, err)
	fmt.Fprintln(e.stderr, "busgate read: "+text)
	if answered {
		return exitRefused
	}
	return exitNoReply
}

// readJobOf reads UNIT TABLE ADDR [N] and the flags.
func readJobOf(f readFlags, bus *config.Bus, args []string) (readJob, error) {
	job := readJob{bus: bus, table: args[1], n: 1}
	unit, err := strconv.ParseUint(args[0], 0, 8)
	if low := uint64(1); err != nil || unit < low && bus.Protocol != "modbus-tcp" || unit > 247 && bus.Protocol != "modbus-tcp" {
		return job, fmt.Errorf("cannot use unit %q; write a number from 1 to 247", args[0])
	}
	job.unit = uint8(unit)
	if !slices.Contains([]string{"input", "holding", "coil", "discrete"}, job.table) {
		return job, fmt.Errorf("cannot use table %q; write input, holding, coil or discrete", job.table)
	}
	addr, err := strconv.ParseUint(args[2], 0, 16)
	if err != nil {
		return job, fmt.Errorf("cannot use address %q; write 0 to 65535 or 0x0 to 0xFFFF, as on the wire", args[2])
	}
	job.addr = int(addr)
	bits, most := job.table == "coil" || job.table == "discrete", 125
	if bits {
		most = 2000
	}
	words := 1
	if f.typ != "" {
		if words = config.Words(f.typ, 1); words == 0 || bits || f.typ == "sunssf" {
			return job, fmt.Errorf("cannot read a %s as %q; types are those of a device map, of registers", job.table, f.typ)
		}
		job.n = words
	}
	if len(args) > 3 {
		if job.n, err = strconv.Atoi(args[3]); err != nil || job.n < 1 || job.n > most {
			return job, fmt.Errorf("cannot read %s of them; write 1 to %d", args[3], most)
		}
	}
	switch {
	case job.addr+job.n > 65536:
		return job, fmt.Errorf("cannot read %d from %d on: addresses end at 65535", job.n, job.addr)
	case job.n%words != 0:
		return job, fmt.Errorf("cannot read %d registers as %s, which takes %d", job.n, f.typ, words)
	case f.try && (bits || f.typ != ""):
		return job, errors.New("knows --try for registers, and without --type")
	case !slices.Contains([]string{"ABCD", "CDAB", "BADC", "DCBA"}, f.order):
		return job, fmt.Errorf("cannot use --order %s; write ABCD, CDAB, BADC or DCBA", f.order)
	}
	return job, job.line(f)
}

// line puts the speed and format of the flags into the bus.
func (j readJob) line(f readFlags) error {
	settings, err := settingsOf(scanFlags{baud: f.baud, format: f.format}, j.bus)
	if err != nil || f.baud+f.format == "" {
		return err
	}
	if f.baud != "" {
		j.bus.Baud = settings[0].Baud
	}
	if f.format != "" {
		form := settings[0].Format
		j.bus.DataBits, j.bus.Parity, j.bus.StopBits = int(form[0]-'0'), form[1], int(form[2]-'0')
	}
	return nil
}

// printRead prints what was read.
func printRead(e *env, f readFlags, job readJob, raw []byte) int {
	if f.json {
		return printJSON(e, "read", readObject(f, job, raw))
	}
	t := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	switch bits := job.table == "coil" || job.table == "discrete"; {
	case f.hex && !f.try:
		fmt.Fprintf(t, "bytes % X\n", raw)
	case f.try:
		fmt.Fprintf(t, "bytes % X\n", raw)
		for _, g := range modbus.Guesses(raw) {
			fmt.Fprintf(t, "%s\t%s\n", strings.Join(strings.Fields(g.Type+" "+g.Order+" "+g.Scale), " "), strings.TrimSpace(valuesText(g.Values)+"   "+looksText(g.Looks)))
		}
	case bits:
		for i, b := range raw {
			fmt.Fprintf(t, "%s %d\t%s\n", job.table, job.addr+i, [...]string{"off", "on"}[b])
		}
	case f.typ != "":
		words := job.wordsOf(f.typ)
		for i, v := range job.values(f, raw) {
			fmt.Fprintf(t, "%s %d\t%s\n", job.table, job.addr+i*words, v)
		}
	default:
		for i, w := range modbus.Words16(raw) {
			fmt.Fprintf(t, "%s %d\t0x%04X\t%d\n", job.table, job.addr+i, w, w)
		}
	}
	return wrote(e, "read", t.Flush())
}

// wordsOf is how many registers one value takes: text takes all.
func (j readJob) wordsOf(typ string) int { return config.Words(typ, j.n) }

// values reads raw as values of --type; one that the bytes do not hold is a sentence.
func (j readJob) values(f readFlags, raw []byte) []string {
	p := config.Point{Name: j.table, Table: j.table, Type: f.typ, Order: f.order, Length: j.n, Bit: -1, ScaleReg: -1, Digits: -1, Scale: config.Decimal{M: 1}}
	size := 2 * j.wordsOf(f.typ)
	var list []string
	for at := 0; at < len(raw); at += size {
		v, quality, err := devices.Decode(&p, raw[at:at+size])
		switch {
		case err != nil:
			list = append(list, err.Error())
		case quality == devices.NotAvailable:
			list = append(list, "not available")
		default:
			list = append(list, v.String())
		}
	}
	return list
}

func valuesText(values []devices.Value) string {
	list := make([]string, len(values))
	for i, v := range values {
		if list[i] = v.String(); v.IsNull() {
			list[i] = "-"
		}
	}
	return strings.Join(list, ", ")
}

// looksText is "<- looks like °C and %".
func looksText(looks []string) string {
	if looks == nil {
		return ""
	}
	return "<- looks like " + strings.Join(slices.Compact(slices.Clone(looks)), " and ")
}

// guessRow is one line of --try in JSON.
type guessRow struct {
	Type   string   `json:"type"`
	Order  string   `json:"order,omitempty"`
	Scale  string   `json:"scale,omitempty"`
	Values []string `json:"values"`
	Looks  []string `json:"looks,omitempty"`
}

func readObject(f readFlags, job readJob, raw []byte) any {
	out := struct {
		Bus       string     `json:"bus"`
		Unit      uint8      `json:"unit"`
		Table     string     `json:"table"`
		Addr      int        `json:"addr"`
		Bytes     string     `json:"bytes,omitempty"`
		Registers []uint16   `json:"registers,omitempty"`
		Bits      []bool     `json:"bits,omitempty"`
		Values    []string   `json:"values,omitempty"`
		Guesses   []guessRow `json:"guesses,omitempty"`
	}{Bus: job.bus.Name, Unit: job.unit, Table: job.table, Addr: job.addr}
	if job.table == "coil" || job.table == "discrete" {
		for _, b := range raw {
			out.Bits = append(out.Bits, b != 0)
		}
		return out
	}
	out.Bytes, out.Registers = fmt.Sprintf("%X", raw), modbus.Words16(raw)
	if f.typ != "" {
		out.Values = job.values(f, raw)
	}
	if f.try {
		for _, g := range modbus.Guesses(raw) {
			row := guessRow{Type: g.Type, Order: g.Order, Scale: g.Scale, Looks: g.Looks}
			for _, v := range g.Values {
				row.Values = append(row.Values, v.String())
			}
			out.Guesses = append(out.Guesses, row)
		}
	}
	return out
}
