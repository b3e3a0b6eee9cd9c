package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// diary notes in which order things happened.
type diary struct {
	mu   sync.Mutex
	list []string
}

func (d *diary) note(s string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.list = append(d.list, s)
}

// part is a stage that takes some time to stop.
func (d *diary) part(name string, takes time.Duration) stage {
	return stage{name: name, grace: 10 * time.Second, run: func(ctx context.Context) error {
		<-ctx.Done()
		time.Sleep(takes)
		d.note(name)
		return nil
	}}
}

func TestStages(t *testing.T) {
	t.Run("each stage has stopped before the one under it is told to", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var d diary
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			err := runStages(ctx, quiet, []stage{d.part("broker", 0), d.part("uplinks", 3*time.Second), d.part("devices", time.Second)}, nil)
			if want := []string{"devices", "uplinks", "broker"}; err != nil || !slices.Equal(d.list, want) {
				t.Errorf("%v, stopped in the order %v", err, d.list)
			}
		})
	})
	t.Run("a stage that fails ends the others and is named", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var d diary
			bad := stage{name: "uplinks", grace: time.Second, run: func(context.Context) error { return errors.New("broken") }}
			err := runStages(t.Context(), quiet, []stage{d.part("broker", 0), bad, d.part("devices", 0)}, nil)
			if err == nil || err.Error() != "uplinks: broken" || len(d.list) != 2 {
				t.Errorf("%v, %v", err, d.list)
			}
		})
	})
	t.Run("a stage that ends by itself is a failure", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			err := runStages(t.Context(), quiet, []stage{{name: "bridge", grace: time.Second, run: func(context.Context) error { return nil }}}, nil)
			if err == nil || !strings.Contains(err.Error(), "bridge: ended by itself") {
				t.Error(err)
			}
		})
	})
	t.Run("a stage that hangs is left behind after its grace", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var d diary
			release := make(chan struct{})
			hung := stage{name: "devices", grace: 5 * time.Second, run: func(context.Context) error { <-release; return nil }}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			err := runStages(ctx, quiet, []stage{d.part("broker", 0), hung}, nil)
			if !errors.Is(err, errHurried) || !slices.Equal(d.list, []string{"broker"}) {
				t.Errorf("%v, %v", err, d.list)
			}
			close(release)
			synctest.Wait()
		})
	})
	t.Run("a second signal skips the draining", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var d diary
			hurry := make(chan struct{})
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			time.AfterFunc(time.Second, func() { close(hurry) })
			began := time.Now()
			err := runStages(ctx, quiet, []stage{d.part("broker", 0), d.part("uplinks", 8*time.Second)}, hurry)
			if took := time.Since(began); !errors.Is(err, errHurried) || took != time.Second+moment {
				t.Errorf("%v after %v", err, took)
			}
			time.Sleep(time.Minute)
		})
	})
}
