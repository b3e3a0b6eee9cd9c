//go:build linux

package sim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Pty is a Bus behind a pseudo terminal, in real time: programs open Path as
// they would /dev/ttyUSB0. A speed set on the terminal has no effect; the pace
// is that of the bus.
type Pty struct {
	bus  *Bus
	link string // "" = none

	mu     sync.Mutex
	master *os.File // nil while unplugged
	port   *Port
	slave  string
	change chan struct{} // closed and replaced when the adapter comes or goes
	filled bool          // something was sent to a program that may not have read it

	unheard func([]byte) // tests: told of what the bus says while nobody has the terminal open
}

// NewPty makes the terminal. link is a path that Unplug removes and Replug
// makes anew, as udev does with /dev/serial/by-id; with "" Path is /dev/pts/N.
// Run moves the bytes and gives everything back.
func NewPty(b *Bus, link string) (*Pty, error) {
	p := &Pty{bus: b, link: link, change: make(chan struct{})}
	if err := p.Replug(); err != nil {
		return nil, err
	}
	return p, nil
}

// Bus is the bus behind the terminal.
func (p *Pty) Bus() *Bus { return p.bus }

// Path is what to open: the link, or the terminal itself.
func (p *Pty) Path() string {
	if p.link != "" {
		return p.link
	}
	return p.Terminal()
}

// Terminal is the /dev/pts/N of the moment; after Replug it may be another.
func (p *Pty) Terminal() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.slave
}

// Inject is Bus.Inject and knows "unplug" besides.
func (p *Pty) Inject(text string) error {
	if text == "unplug" {
		p.Unplug()
		return nil
	}
	return p.bus.Inject(text)
}

// Unplug takes the adapter away: the link goes, who has the terminal open gets a hang-up.
func (p *Pty) Unplug() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.unplugLocked()
}

func (p *Pty) unplugLocked() {
	if p.master == nil {
		return
	}
	if p.link != "" {
		os.Remove(p.link)
	}
	p.port.Close()
	p.master.Close()
	p.master, p.port = nil, nil
	close(p.change)
	p.change = make(chan struct{})
}

// Replug brings the adapter back; plugged in already it does nothing.
func (p *Pty) Replug() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.master != nil {
		return nil
	}
	master, slave, err := openPty()
	if err != nil {
		return err
	}
	port, err := p.bus.Open()
	if err != nil {
		master.Close()
		return err
	}
	if p.link != "" {
		os.Remove(p.link)
		if err := os.Symlink(slave, p.link); err != nil {
			port.Close()
			master.Close()
			return fmt.Errorf("link to the simulated port: %w", err)
		}
	}
	p.master, p.port, p.slave, p.filled = master, port, slave, false
	close(p.change)
	p.change = make(chan struct{})
	return nil
}

// Run moves bytes between the terminal and the bus until ctx ends, through any
// number of Unplug and Replug; then it unplugs for good.
func (p *Pty) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, p.Unplug)
	defer stop()
	defer p.Unplug()
	for ctx.Err() == nil {
		p.mu.Lock()
		master, port, slave, change := p.master, p.port, p.slave, p.change
		p.mu.Unlock()
		if master == nil {
			select {
			case <-ctx.Done():
			case <-change:
			}
			continue
		}
		var wg sync.WaitGroup
		wg.Go(func() { p.toBus(master, port, slave, change) })
		wg.Go(func() { p.toTerminal(master, port) })
		wg.Wait()
	}
	return nil
}

// toBus carries what programs write. While nobody has the terminal open reading
// it fails with EIO. gone is closed when the adapter goes.
func (p *Pty) toBus(master *os.File, port *Port, slave string, gone <-chan struct{}) {
	buf := make([]byte, 4096)
	for {
		n, err := master.Read(buf)
		if n > 0 {
			if _, err := port.Write(buf[:n]); err != nil {
				return
			}
			continue
		}
		if !errors.Is(err, syscall.EIO) {
			return
		}
		p.empty(slave)
		select {
		case <-gone:
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// toTerminal carries what the bus says. What finds no room, or nobody to read
// it, is lost, as on a wire.
func (p *Pty) toTerminal(master *os.File, port *Port) {
	buf := make([]byte, 4096)
	for {
		n, err := port.Read(buf)
		if err != nil {
			return
		}
		if hungUp(master) {
			if p.unheard != nil {
				p.unheard(buf[:n])
			}
			continue
		}
		if err := master.SetWriteDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
			return
		}
		_, err = master.Write(buf[:n])
		p.fill() // afterwards: what is flushed too early is flushed again
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, syscall.EIO) {
			return
		}
	}
}

// fill notes that something was sent to a program.
func (p *Pty) fill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.filled = true
}

// empty throws away what the last program left unread: it is not for the next one.
func (p *Pty) empty(slave string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.filled {
		flush(slave)
		p.filled = false
	}
}

// hungUp says that nobody has the terminal open.
func hungUp(master *os.File) bool {
	c, err := master.SyscallConn()
	if err != nil {
		return true
	}
	gone := false
	err = c.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd)}}
		n, err := unix.Poll(fds, 0)
		gone = err == nil && n == 1 && fds[0].Revents&unix.POLLHUP != 0
	})
	return gone || err != nil
}

// flush throws away what the terminal holds for its readers.
func flush(slave string) {
	fd, err := unix.Open(slave, unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return // held exclusively: then somebody else has it open by now
	}
	defer unix.Close(fd)
	unix.IoctlSetInt(fd, unix.TCFLSH, unix.TCIFLUSH)
}

// openPty makes a raw pseudo terminal whose slave nobody has open.
func openPty() (master *os.File, slave string, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, "", fmt.Errorf("open /dev/ptmx: %w", err)
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return nil, "", fmt.Errorf("unlock the terminal: %w", err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		return nil, "", fmt.Errorf("number of the terminal: %w", err)
	}
	slave = fmt.Sprintf("/dev/pts/%d", n)
	// Opened and closed once, the terminal is in the state "hung up": the master
	// reads EIO until somebody opens it, and nothing piles up inside.
	s, err := unix.Open(slave, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, "", fmt.Errorf("open %s: %w", slave, err)
	}
	defer unix.Close(s)
	t, err := unix.IoctlGetTermios(s, unix.TCGETS)
	if err != nil {
		return nil, "", fmt.Errorf("settings of %s: %w", slave, err)
	}
	// cfmakeraw(3)
	t.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	t.Oflag &^= unix.OPOST
	t.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	t.Cflag = t.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	if err := unix.IoctlSetTermios(s, unix.TCSETS, t); err != nil {
		return nil, "", fmt.Errorf("settings of %s: %w", slave, err)
	}
	return os.NewFile(uintptr(fd), "/dev/ptmx"), slave, nil
}
