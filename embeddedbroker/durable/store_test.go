package durable

import (
	"context"
	"path/filepath"
	"testing"

	"busgate/buffer"
	"busgate/embeddedbroker"
	"busgate/embeddedbroker/storetest"
)

func TestConformance(t *testing.T) {
	var path string
	var last *buffer.Store
	storetest.Run(t, storetest.Harness{Open: func(t *testing.T, reopen bool) embeddedbroker.Store {
		if reopen {
			if err := last.Close(context.Background()); err != nil {
				t.Fatal(err)
			}
		} else {
			path = filepath.Join(t.TempDir(), "store.db")
		}
		s, err := buffer.Open(path, buffer.Options{})
		if err != nil {
			t.Fatal(err)
		}
		last = s
		t.Cleanup(func() { s.Close(context.Background()) })
		return New(s)
	}})
}
