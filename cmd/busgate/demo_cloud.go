package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"busgate/config"
	"busgate/embeddedbroker"
)

// demoCloud is the broker at the far end of a link that can be cut, and a plain
// subscriber of it.
type demoCloud struct {
	broker *embeddedbroker.Broker
	ln     net.Listener
	link   *demoLink
	sub    mqtt.Client
}

// openDemoCloud opens a broker and a link to it; users is the file of those who
// may log in, "" for everybody.
func openDemoCloud(log *slog.Logger, users string) (*demoCloud, error) {
	text := "[gateway]\nname = \"cloud\"\n[broker]\nsys_interval = \"0s\"\n"
	if users != "" {
		text += fmt.Sprintf("users = %q\n", users)
	}
	cfg, _ := config.Parse("cloud.toml", text, nil)
	broker, err := embeddedbroker.New(cfg.Broker, embeddedbroker.NewMemory(), embeddedbroker.Options{Log: log, Version: version})
	if err != nil {
		return nil, fmt.Errorf("cloud: %w", err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("cloud: %w", err)
	}
	link, err := openDemoLink(ln.Addr().String())
	if err != nil {
		return nil, err
	}
	return &demoCloud{broker: broker, ln: ln, link: link}, nil
}

func (c *demoCloud) Addr() net.Addr { return c.ln.Addr() }

// Run serves until ctx ends.
func (c *demoCloud) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	parts := []func(context.Context) error{
		c.broker.Run,
		c.link.Run,
		func(ctx context.Context) error { return c.broker.Serve(ctx, c.ln) },
	}
	var wg sync.WaitGroup
	errs := make(chan error, len(parts))
	for _, part := range parts {
		wg.Go(func() {
			if err := part(ctx); err != nil {
				errs <- fmt.Errorf("cloud: %w", err)
				cancel()
			}
		})
	}
	wg.Wait()
	select {
	case err := <-errs:
		return err
	default:
		return nil
	}
}

// subscribe hands every state that comes out of the cloud to the checker. It
// does not use the link that is cut.
func (c *demoCloud) subscribe(check *checker) error {
	o := mqtt.NewClientOptions().AddBroker("tcp://" + c.ln.Addr().String()).SetClientID("checker").
		SetCleanSession(true).SetUsername("checker").SetPassword("checker").SetAutoReconnect(false).SetConnectRetry(false).SetWriteTimeout(5 * time.Second)
	c.sub = mqtt.NewClient(o)
	if err := done(c.sub.Connect()); err != nil {
		return fmt.Errorf("connect to the cloud: %w", err)
	}
	// OrderMatters is on by default: the handler is called in order.
	return done(c.sub.Subscribe("busgate/+/+/state", 2, func(_ mqtt.Client, m mqtt.Message) {
		if p := strings.Split(m.Topic(), "/"); p[2] != "gateway" {
			check.Arrived(p[2], m.Payload())
		}
	}))
}

func (c *demoCloud) unsubscribe() { c.sub.Disconnect(250) }

// done waits for a step of the client.
func done(t mqtt.Token) error {
	if !t.WaitTimeout(10 * time.Second) {
		return fmt.Errorf("no answer within 10 s")
	}
	return t.Error()
}
