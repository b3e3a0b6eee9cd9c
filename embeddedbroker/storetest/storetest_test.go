package storetest

import (
	"testing"

	"busgate/embeddedbroker"
)

func TestMemory(t *testing.T) {
	var m *embeddedbroker.Memory
	Run(t, Harness{Open: func(_ *testing.T, reopen bool) embeddedbroker.Store {
		if !reopen {
			m = embeddedbroker.NewMemory()
		}
		return m
	}})
}
