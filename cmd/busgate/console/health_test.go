package console

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"busgate/config"
)

// TestHealth: each room in turn is stuck for ever, or says that it does nothing.
// After 10 s /healthz names it, and is well again when the room is.
func TestHealth(t *testing.T) {
	rooms := []string{"buffer", "broker", "bridge", "devices"}
	for i, name := range rooms {
		for _, how := range []string{"stuck", "says so"} {
			t.Run(name+" "+how, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var mu sync.Mutex
					var held chan struct{} // closed when it goes on; nil: all is well
					alive := func(ctx context.Context) error {
						mu.Lock()
						wait := held
						mu.Unlock()
						if wait == nil {
							return nil
						}
						if how == "says so" {
							return errors.New("nothing done for 10m")
						}
						select {
						case <-wait:
							return nil
						case <-ctx.Done():
							return ctx.Err()
						}
					}
					c, _ := open(t, config.Web{Listen: "127.0.0.1:8080"}, func(o *Options) {
						for k, n := range rooms {
							f := alive
							if k != i {
								f = func(context.Context) error { return nil }
							}
							o.Rooms = append(o.Rooms, Room{n, f})
						}
					})
					expect := func(when, want string) {
						t.Helper()
						a := answer(c, request("GET", "/healthz", far))
						if got := fmt.Sprint(a.StatusCode, " ", body(t, a)); got != want+"\n" {
							t.Errorf("%s: %q, want %q", when, got, want)
						}
					}
					expect("before the start", "200 ok")
					ctx, cancel := context.WithCancel(t.Context())
					var wg sync.WaitGroup
					c.health.start(ctx, &wg)
					time.Sleep(time.Hour)
					synctest.Wait() // at this moment the rooms were asked
					expect("after an hour of work", "200 ok")
					mu.Lock()
					held = make(chan struct{})
					mu.Unlock()
					time.Sleep(patience)
					synctest.Wait()
					expect("10 s after the last sign", "200 ok")
					time.Sleep(time.Nanosecond)
					expect("a moment later", "503 "+name)
					time.Sleep(time.Hour)
					expect("an hour later", "503 "+name)
					mu.Lock()
					close(held)
					held = nil
					mu.Unlock()
					time.Sleep(askEvery)
					synctest.Wait()
					expect("when it goes on", "200 ok")
					cancel()
					wg.Wait()
				})
			})
		}
	}
}
