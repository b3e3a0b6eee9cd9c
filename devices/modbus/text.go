package modbus

import (
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"

	"busgate/config"
	"busgate/devices"
)

// Exception codes (Modbus AP v1.1b3, 7).
const (
	exFunction      = 1
	exAddress       = 2
	exValue         = 3
	exFailure       = 4
	exAcknowledge   = 5
	exBusy          = 6
	exGatewayPath   = 10
	exGatewayTarget = 11
)

var exceptionNames = map[byte]string{
	exFunction: "illegal function", exAddress: "illegal data address", exValue: "illegal data value",
	exFailure: "device failure", exAcknowledge: "acknowledge", exBusy: "busy", 7: "negative acknowledge",
	8: "memory parity error", exGatewayPath: "gateway path unavailable", exGatewayTarget: "gateway target silent",
}

// exceptionText is "exception 2, illegal data address".
func exceptionText(code byte) string {
	if name := exceptionNames[code]; name != "" {
		return fmt.Sprintf("exception %d, %s", code, name)
	}
	return fmt.Sprintf("exception %d", code)
}

// String is "holding 12" or "input 0..12".
func (s span) String() string {
	if s.width() == 1 {
		return fmt.Sprintf("%s %d", s.table, s.from)
	}
	return fmt.Sprintf("%s %d..%d", s.table, s.from, s.to-1)
}

// missing is what is said about registers that the unit does not have. written:
// their addresses stand in the configuration and may be those of a list.
func missing(refused []span, code byte, written bool) devices.Finding {
	s := refused[0]
	if code == exFunction {
		text := fmt.Sprintf("it does not know function %02d (exception 1)", readFunction(s.table))
		if other := map[string]string{"input": "holding", "holding": "input", "coil": "discrete", "discrete": "coil"}[s.table]; other != "" {
			text += fmt.Sprintf("; try %s instead of %s", other, s.table)
		}
		return devices.Finding{Err: "illegal-function", Level: slog.LevelWarn, Text: text}
	}
	text := fmt.Sprintf("%s %d does not exist there (%s)", s.table, s.from, exceptionText(code))
	if base := listBase(s.table); written && base > 0 && s.from >= base && s.from <= base+9998 {
		text += fmt.Sprintf(". Lists that count from %d mean %s = %d", base, s.table, s.from-base)
	}
	if n := len(refused) - 1; n > 0 {
		more := make([]string, 0, 4)
		for _, r := range refused[1:min(len(refused), 4)] {
			more = append(more, fmt.Sprint(r.from))
		}
		if n > len(more) {
			more = append(more, fmt.Sprintf("%d others", n-len(more)))
		}
		text += ". Nor do " + strings.Join(more, ", ")
	}
	return devices.Finding{Err: "illegal-address", Level: slog.LevelWarn, Text: text}
}

// listBase is where the lists of makers begin to count a table.
func listBase(table string) int {
	switch table {
	case "holding":
		return 40001
	case "input":
		return 30001
	case "discrete":
		return 10001
	}
	return 0
}

func deviceFailure(s span) devices.Finding {
	return devices.Finding{Err: "device-failure", Level: slog.LevelWarn,
		Text: fmt.Sprintf("reports a failure of its own (exception 4) for %s", s)}
}

func busyFinding(code byte, times int) devices.Finding {
	return devices.Finding{Err: "busy", Level: slog.LevelWarn,
		Text: fmt.Sprintf("busy (exception %d) %d times in an hour; asking less often may help (interval)", code, times)}
}

func gatewayPath(bus *config.Bus, unit, code byte) devices.Finding {
	who := bus.Name
	if host, _, err := net.SplitHostPort(bus.TCP); err == nil {
		who = host
	}
	return devices.Finding{Err: "gateway-path", Level: slog.LevelWarn,
		Text: fmt.Sprintf("the Modbus gateway %s cannot reach unit %d (exception %d)", who, unit, code)}
}

// noAnswerText is the text of a point that was not read.
func noAnswerText(bus *config.Bus, unit byte, tries int, waited time.Duration) string {
	return fmt.Sprintf("unit %d on %s: no answer (%s)", unit, bus.Name, devices.Tries(tries, waited))
}

func badFrameText(bus *config.Bus, unit byte, tries int) string {
	if tries == 1 {
		return fmt.Sprintf("unit %d on %s: damaged answer (1 try)", unit, bus.Name)
	}
	return fmt.Sprintf("unit %d on %s: damaged answers (%d tries)", unit, bus.Name, tries)
}
