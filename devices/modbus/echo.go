package modbus

// echoAfter reads in a row tell whether an adapter hears itself.
const echoAfter = 3

// echoes finds out whether an RS-485 adapter hears what it sends: then each
// answer stands behind our own request. The answer to a write repeats the request
// and cannot be told from its echo, so that only reads teach it; the other way
// round, reads that come without an echo teach that it is gone.
type echoes struct {
	on         bool
	with, bare int // reads in a row with and without an echo
}

// mirrors says that the answer to a function repeats the whole request (Modbus AP
// v1.1b3, 6.5, 6.6, 6.8, 6.16).
func mirrors(function byte) bool {
	return function == 5 || function == 6 || function == 8 || function == 22
}

// find looks for the request at the start of f. own is its length when it is
// whole; may says that f could become it.
func (e *echoes) find(req, f []byte) (own int, may bool) {
	if mirrors(req[1]) && !e.on {
		return 0, false
	}
	n := min(len(req), len(f))
	if string(f[:n]) != string(req[:n]) {
		return 0, false
	}
	if n < len(req) {
		return 0, true
	}
	return n, false
}

// judge learns from a request that was answered.
func (e *echoes) judge(req []byte, echo bool) {
	if req[1] < 1 || req[1] > 4 {
		return
	}
	if echo {
		e.with, e.bare = min(e.with+1, echoAfter), 0
		e.on = e.on || e.with == echoAfter
		return
	}
	e.with, e.bare = 0, min(e.bare+1, echoAfter)
	e.on = e.on && e.bare < echoAfter
}
