package modbus

// minFrame is unit, function, one byte and the check: an exception has that length.
const minFrame = 5

// answerLen is the length of the answer to req that starts with f, both RTU
// frames: 0 when f is too short to tell, -1 when f is no answer to req. The
// length comes from the answer, but its byte count and what it echoes must fit
// the request (Modbus AP v1.1b3, 6).
func answerLen(req, f []byte) int {
	if len(f) > 0 && f[0] != req[0] || len(f) > 1 && f[1]&0x7F != req[1] {
		return -1
	}
	if len(f) < 3 {
		return 0
	}
	if f[1]&0x80 != 0 {
		return minFrame
	}
	switch req[1] {
	case 1, 2, 3, 4, 23:
		if int(f[2]) != answerBytes(req) {
			return -1
		}
		return 5 + int(f[2])
	case 5, 6, 15, 16:
		return echoLen(req, f, 8)
	case 22:
		return echoLen(req, f, 10)
	case 24: // read FIFO queue: the byte count has two bytes
		if len(f) < 4 {
			return 0
		}
		return 6 + int(f[2])<<8 + int(f[3])
	case 0x0C, 0x11, 0x14, 0x15:
		return 5 + int(f[2])
	case 0x2B:
		return identityLen(f)
	}
	return 0
}

// answerBytes is the byte count that the answer to a read must have.
func answerBytes(req []byte) int {
	n := int(req[4])<<8 | int(req[5])
	if req[1] <= 2 {
		return (n + 7) / 8
	}
	return 2 * n
}

// wholeLen is how long the answer to req is when all goes well.
func wholeLen(req []byte) int {
	if len(req) >= 6 && (req[1] <= 4 || req[1] == 23) {
		return 5 + answerBytes(req)
	}
	return 8
}

// echoLen is n when f repeats the request up to its check.
func echoLen(req, f []byte, n int) int {
	for i := 2; i < n-2 && i < len(f); i++ {
		if f[i] != req[i] {
			return -1
		}
	}
	return n
}

// identityLen walks the objects of a device identification (function 0x2B/0x0E).
func identityLen(f []byte) int {
	if len(f) < 8 {
		return 0
	}
	n := 8
	for range int(f[7]) {
		if len(f) < n+2 {
			return 0
		}
		n += 2 + int(f[n+1])
	}
	return n + 2
}

// foreignLen is the length of a whole, undamaged frame at the start of f that
// need not have to do with us: an answer or a request of anybody. 0: none.
func foreignLen(f []byte) int {
	if len(f) < 4 {
		return 0
	}
	try := [...]int{minFrame, 8, 0, 0}
	switch f[1] {
	case 1, 2, 3, 4, 23:
		try[2] = 5 + int(f[2])
	case 15, 16:
		if len(f) > 6 {
			try[2] = 9 + int(f[6])
		}
	case 22:
		try[2] = 10
	}
	for _, n := range try {
		if n >= minFrame && n <= len(f) && crc(f[:n]) == 0 {
			return n
		}
	}
	return 0
}

// sameShape says that an answer to a could be taken for one to b: unit, function
// and, for a read, byte count agree; for a write also address and value.
func sameShape(a, b []byte) bool {
	if a[0] != b[0] || a[1] != b[1] || len(a) < 6 || len(b) < 6 {
		return a[0] == b[0] && a[1] == b[1]
	}
	switch a[1] {
	case 1, 2, 3, 4, 23:
		return answerBytes(a) == answerBytes(b)
	}
	return string(a[2:6]) == string(b[2:6])
}

var crcTable = func() (t [256]uint16) {
	for i := range t {
		c := uint16(i)
		for range 8 {
			if c&1 != 0 {
				c = c>>1 ^ 0xA001
			} else {
				c >>= 1
			}
		}
		t[i] = c
	}
	return t
}()

// crc is the check of RTU frames (Modbus over serial line v1.02, 6.2.2). Over a
// whole frame with its check it is 0.
func crc(p []byte) uint16 {
	c := uint16(0xFFFF)
	for _, b := range p {
		c = c>>8 ^ crcTable[byte(c)^b]
	}
	return c
}

// seal appends the check.
func seal(p []byte) []byte {
	c := crc(p)
	return append(p, byte(c), byte(c>>8))
}
