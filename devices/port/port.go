package port

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"go.bug.st/serial"
	"golang.org/x/sys/unix"

	"busgate/config"
)

// slice is how long one read of the library may last: Close waits for it.
const slice = 100 * time.Millisecond

// ErrClosed is what Read and Write return after Close.
var ErrClosed = errors.New("port is closed")

// raw is what a Port needs of go.bug.st/serial.
type raw interface {
	Read([]byte) (int, error)
	Write([]byte) (int, error)
	SetReadTimeout(time.Duration) error
	Close() error
}

// Port is one open serial port. One goroutine may read while another writes;
// Close may come from any.
type Port struct {
	path    string
	devices int
	opener  *Opener
	lock    int // descriptor that holds the flock, -1 when none
	latency time.Duration
	counts  bool       // the driver counts receive errors ...
	before  LineErrors // ... and had so many at Open
	timeout atomic.Int64
	closing atomic.Bool

	mu  sync.RWMutex // held shared by Read and Write: closing under them would free the descriptor too early
	raw raw          // nil when closed
}

// Opener opens ports and keeps low file descriptors for those that were lost.
// The zero Opener is ready to use. Safe for concurrent use.
type Opener struct {
	mu      sync.Mutex
	kept    []int           // placeholders, see reserve
	refused map[string]bool // ports whose driver does not do RS-485, see first
	fdHigh  atomic.Uint64
	procDir string                                           // tests: instead of /proc
	sysDir  string                                           // tests: instead of /sys
	open    func(string, *serial.Mode) (serial.Port, error)  // tests: instead of serial.Open
	ioctl   func(fd int, req uint, arg unsafe.Pointer) error // tests: instead of ioctl(2)
}

func (o *Opener) proc() string {
	if o.procDir != "" {
		return o.procDir
	}
	return "/proc"
}

// FDHigh counts the ports that got a descriptor above 1023 and were closed again.
func (o *Opener) FDHigh() uint64 { return o.fdHigh.Load() }

// Open opens the serial port of a bus as it is configured and locks it unless
// exclusive is off. devices is how many devices hang on it, for the text of a
// loss. The error is an *Error.
func (o *Opener) Open(bus *config.Bus, devices int, log *slog.Logger) (*Port, error) {
	setting := fmt.Sprintf("%d %s", bus.Baud, bus.Format())
	fail := func(err error) (*Port, error) { return nil, o.classify(bus.Serial, setting, err) }
	helper, err := openRetry(bus.Serial)
	if err != nil {
		return fail(err)
	}
	keep := false
	defer func() {
		if !keep {
			unix.Close(helper)
		}
	}()
	if bus.Exclusive {
		if err := unix.Flock(helper, unix.LOCK_EX|unix.LOCK_NB); err != nil {
			return fail(err)
		}
	}
	o.setRS485(helper, bus, log)
	o.setLowLatency(helper, bus, log)
	o.release()
	open := o.open
	if open == nil {
		open = serial.Open
	}
	// InitialStatusBits stays nil: RTS may be the direction pin.
	r, err := open(bus.Serial, &serial.Mode{BaudRate: bus.Baud, DataBits: bus.DataBits, Parity: parity(bus.Parity), StopBits: stopBits(bus.StopBits)})
	if err != nil {
		o.reserve()
		return fail(err)
	}
	if err := probe(r); err != nil {
		r.Close()
		o.reserve()
		if errors.Is(err, errHigh) {
			o.fdHigh.Add(1)
			return nil, &Error{"port-fd", shortName(bus.Serial) + " got a file descriptor above 1023: too many files are open in this process; fewer MQTT clients (max_clients) help", err}
		}
		return nil, lost(bus.Serial, devices, err)
	}
	if !bus.Exclusive {
		unix.IoctlSetInt(helper, unix.TIOCNXCL, 0) // the library has set TIOCEXCL
	}
	keep = true
	p := &Port{path: bus.Serial, devices: devices, opener: o, lock: helper, raw: r, latency: o.latencyOf(bus.Serial)}
	p.timeout.Store(int64(serial.NoTimeout))
	p.before, p.counts = o.lineErrors(helper)
	return p, nil
}

func openRetry(path string) (int, error) {
	for {
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

var errHigh = errors.New("file descriptor above 1023")

// probe reads once without waiting. The library calls select(2), whose sets
// end at descriptor 1023: above, it panics (serial v1.8.0).
func probe(r raw) (err error) {
	defer func() {
		if recover() != nil {
			err = errHigh
		}
	}()
	if err := r.SetReadTimeout(0); err != nil {
		return err
	}
	var b [1]byte
	_, err = r.Read(b[:])
	return err
}

// reserve takes three descriptors, as many as the library needs for a port, so
// that low ones are there when the port comes back. At most 64 ports' worth.
func (o *Opener) reserve() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for range 3 {
		if len(o.kept) >= 3*64 {
			return
		}
		if fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0); err == nil {
			o.kept = append(o.kept, fd)
		}
	}
}

// release gives back three descriptors just before a port is opened.
func (o *Opener) release() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for range min(3, len(o.kept)) {
		last := len(o.kept) - 1
		unix.Close(o.kept[last])
		o.kept = o.kept[:last]
	}
}

// Path is the configured path.
func (p *Port) Path() string { return p.path }

// Latency is how long the adapter may hold received bytes back: 0 when not
// known, 16 ms for an FTDI adapter as it comes from the factory.
func (p *Port) Latency() time.Duration { return p.latency }

// SetReadTimeout sets how long Read waits for the first byte; negative waits for ever.
func (p *Port) SetReadTimeout(d time.Duration) error {
	p.timeout.Store(int64(max(d, serial.NoTimeout)))
	return nil
}

// Read waits for at least one byte. Silence for the whole timeout is (0, nil).
// A port that is gone gives an *Error, a closed one ErrClosed.
func (p *Port) Read(b []byte) (int, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	timeout := time.Duration(p.timeout.Load())
	var deadline time.Time
	if timeout >= 0 {
		deadline = time.Now().Add(timeout)
	}
	for {
		if p.raw == nil || p.closing.Load() {
			return 0, ErrClosed
		}
		wait := slice
		if timeout >= 0 {
			wait = min(wait, max(time.Until(deadline), 0))
		}
		if err := p.raw.SetReadTimeout(wait); err != nil {
			return 0, p.failed(err)
		}
		n, err := p.raw.Read(b)
		switch {
		case errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN):
			continue
		case err != nil:
			return n, p.failed(err)
		case n > 0 || timeout >= 0 && !time.Now().Before(deadline):
			return n, nil
		}
	}
}

// Write writes all of b, or says why not.
func (p *Port) Write(b []byte) (int, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	done := 0
	for done < len(b) {
		if p.raw == nil || p.closing.Load() {
			return done, ErrClosed
		}
		n, err := p.raw.Write(b[done:]) // one write(2): it may be short
		done += n
		if err != nil && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			return done, p.failed(err)
		}
	}
	return done, nil
}

func (p *Port) failed(err error) error {
	if p.closing.Load() {
		return ErrClosed
	}
	if gone(err) {
		return lost(p.path, p.devices, err)
	}
	return fmt.Errorf("port %s: %w", p.path, err)
}

// Close waits for a running Read, at most 100 ms, and closes the port. Its
// descriptors are kept for the next Open.
func (p *Port) Close() error {
	if p.closing.Swap(true) {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	err := p.raw.Close()
	p.raw = nil
	p.opener.reserve()
	unix.Close(p.lock)
	if err != nil && !gone(err) {
		return fmt.Errorf("close %s: %w", p.path, err)
	}
	return nil
}

func parity(p byte) serial.Parity {
	switch p {
	case 'E':
		return serial.EvenParity
	case 'O':
		return serial.OddParity
	}
	return serial.NoParity
}

func stopBits(n int) serial.StopBits {
	if n == 2 {
		return serial.TwoStopBits
	}
	return serial.OneStopBit
}
