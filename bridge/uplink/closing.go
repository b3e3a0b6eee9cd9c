package uplink

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// factClosing is the key under which the closing numbers are kept that the cloud
// has not acknowledged.
const factClosing = "closing"

// maxClosing bounds them. Of a gateway that starts more often than that while the
// cloud is away the oldest are forgotten: their ends stay open at the receiver.
const maxClosing = 16

// lastNumber closes a boot: the last number in the stream of this uplink.
type lastNumber struct {
	Boot string `json:"boot"`
	N    uint64 `json:"n"`
}

// loadClosing takes over the closing numbers that nobody was told, and adds that
// of the boot before this one: an outage may outlast more than one start.
func (l *Link) loadClosing() {
	if l.o.Closing == nil || l.o.Fact == nil {
		return
	}
	for line := range strings.Lines(string(l.o.Fact(factClosing))) {
		boot, num, _ := strings.Cut(strings.TrimSpace(line), " ")
		if n, err := strconv.ParseUint(num, 10, 64); err == nil && boot != "" && len(l.unclosed) < maxClosing {
			l.unclosed = append(l.unclosed, lastNumber{boot, n})
		}
	}
	boot, n := l.o.Closing()
	if boot == "" || n == 0 || slices.ContainsFunc(l.unclosed, func(c lastNumber) bool { return c.Boot == boot }) {
		return
	}
	l.unclosed = append(l.unclosed, lastNumber{boot, n})
	if more := len(l.unclosed) - maxClosing; more > 0 {
		l.log.Warn("too many starts without the cloud: it will not learn where the oldest ended", "boot", l.unclosed[0].Boot)
		l.unclosed = slices.Delete(l.unclosed, 0, more)
	}
	l.keepClosing()
}

func (l *Link) keepClosing() {
	if l.o.Keep == nil {
		return
	}
	var b []byte
	for _, c := range l.unclosed {
		b = fmt.Appendf(b, "%s %d\n", c.Boot, c.N)
	}
	l.o.Keep(factClosing, b, func(error) {})
}

// closingTold is called when the cloud has acknowledged the closing numbers.
func (l *Link) closingTold() {
	if len(l.unclosed) > 0 {
		l.unclosed = nil
		l.keepClosing()
	}
}

// closingNumber adds to gateway/info the last number of the former boot in the
// stream of this uplink: "last":{"boot":"k3qz7aa-11","n":84210}. A receiver that
// has 1..n of that boot, but for the ranges of loss reports, has everything. Boots
// before it whose numbers the cloud has not acknowledged follow in "before",
// oldest first.
func (l *Link) closingNumber(info []byte) []byte {
	if l.o.Closing == nil {
		return info
	}
	boot, n := l.o.Closing()
	body, ok := bytes.CutSuffix(info, []byte("}"))
	if boot == "" || !ok || !bytes.HasPrefix(info, []byte("{")) {
		return info
	}
	if len(body) > 1 {
		body = append(slices.Clone(body), ',')
	}
	body = fmt.Appendf(body, `"last":{"boot":%q,"n":%d}`, boot, n)
	before := slices.DeleteFunc(slices.Clone(l.unclosed), func(c lastNumber) bool { return c.Boot == boot })
	if len(before) > 0 {
		b, err := json.Marshal(before)
		if err != nil {
			panic("uplink: closing numbers cannot be encoded: " + err.Error()) // strings and numbers only
		}
		body = append(append(body, `,"before":`...), b...)
	}
	return append(body, '}')
}
