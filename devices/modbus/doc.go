// Package modbus asks Modbus units: RTU and ASCII over a serial port or over TCP,
// and Modbus TCP, also in datagrams. It is a devices.Driver.
//
//	Group ──plan──> blocks ──goburrow Client + Packager──> Line (RTU, ASCII) ──> port
//	          ^                                            TCP (MBAP)        ──> net.Conn
//	          │ learned: turnaround, gaps, limits <──> devices.Memory
//	Values <──devices.Decode── registers <─────────────────┘
//
// goburrow/modbus gives the encoding of requests and the decoding of answers;
// waiting, framing and everything that keeps a late or foreign answer from
// being taken for ours is here. The points of a SunSpec device are found by
// walking through its models. The room knows no schedule: the bus goroutine of
// devices calls it, one call at a time.
//
// # Whose answer is it?
//
// RTU and ASCII number nothing: the answer to a read says unit, function and byte
// count, that to a write address and value or count, an exception only unit and
// function. So a request that was not answered, or not for sure, is open: its
// answer may still come. The rule is
//
//	an answer is taken only if no other open request could explain it
//
// (equal requests with no write between are one, for 5 s: then the value is too
// old). A request that an open one could be mistaken for is not sent. It waits
// until the late answer has come, or until it cannot come any more:
//
//   - A request is open for the whole window of its unit, 1 to 5 s after its
//     timeout, longer the later the unit was ever seen to be: so long an answer may
//     be overtaken by those to later requests.
//   - Then it is open until a later request of the unit was answered for sure: a
//     unit, or a gateway, that works on its requests one by one is not behind any
//     more. When no poll shows that, a marker does: a part of a block that was read
//     before, of a length that nothing open has. It costs one short exchange, and
//     only after a loss.
//   - A unit that said nothing for 30 s owes nothing any more.
//
// What came damaged was the answer if it begins as one, and there is nothing else
// it could be; else it may have been anything, and the answer is open.
//
// This rests on: (1) a unit answers a request at most once; (2) answers that
// overtake one another do so within the window, all others come in order; (3) a
// unit that is behind is silent for at most 30 s between two answers, however
// long its queue is, and for 5 s if it answers no marker at all (single registers
// only, silent about the other function); (4) when the process starts, nothing is
// on its way; when only the wire is opened anew, the account goes on; (5) other
// masters are heard: what they ask our units is open, too. A slave that answers
// after minutes of silence with the very shape of another request, and a gateway
// that puts the wrong transaction number on an answer, cannot be found out.
//
// Modbus TCP has numbers, so that a late answer, or a datagram that comes twice,
// is known for what it is.
package modbus
