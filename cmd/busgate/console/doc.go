// Package console is what the gateway says over HTTP to programs that watch it,
// and to a person with a browser: whether it is alive, its numbers, its state.
//
//	GET /         the tables of busgate status as one page, without script
//	GET /metrics  Prometheus text format; ?points=1 adds the values of the points
//	GET /healthz  200 ok, or 503 and the room that made no progress for 10 s
//
// It changes nothing: there is no form, no cookie and no method but GET and HEAD,
// so that nothing can be forged across sites. It knows no broker, no store and no
// device: what it shows comes from the functions in Options, and the names that
// /metrics may carry stand in one table (table.go).
//
// Who may ask: /healthz everybody, it tells nothing. The others programs on this
// machine, and anybody who logs in as a user of [web] users (HTTP Basic). A
// request whose Host is not a name of this gateway is refused, so that a page of
// the internet cannot point a name of its own here and read along.
//
// Life: New, Run. Update may be called at any time. A port that is in use is said
// and tried again each minute; the gateway goes on without it.
package console
