package buffer

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/klauspost/compress/flate"
)

// codec compresses and inflates; one owner at a time.
type codec struct {
	w   *flate.Writer
	r   io.ReadCloser
	buf bytes.Buffer
}

// pack makes the column data of raw records.
func (c *codec) pack(raw []byte) []byte {
	c.buf.Reset()
	c.buf.WriteString(segMagic)
	c.buf.Write([]byte{segVersion, codecDeflate})
	c.buf.Write(binary.LittleEndian.AppendUint32(nil, uint32(len(raw))))
	if c.w == nil {
		c.w, _ = flate.NewWriter(&c.buf, flate.BestSpeed) // the level is valid: no error
	} else {
		c.w.Reset(&c.buf)
	}
	c.w.Write(raw) // a bytes.Buffer does not fail
	c.w.Close()
	if c.buf.Len() < segPrefix+len(raw) {
		return bytes.Clone(c.buf.Bytes())
	}
	c.buf.Truncate(segPrefix)
	c.buf.Bytes()[5] = codecRaw
	c.buf.Write(raw)
	return bytes.Clone(c.buf.Bytes())
}

// unpack gives the raw records of the column data, in memory of their own. It
// allocates at most maxRaw.
func (c *codec) unpack(data []byte) ([]byte, error) {
	if len(data) < segPrefix || string(data[:4]) != segMagic || data[4] != segVersion {
		return nil, fmt.Errorf("%w: no %s header", errSegment, segMagic)
	}
	size := binary.LittleEndian.Uint32(data[6:])
	body := data[segPrefix:]
	switch {
	case size > maxRaw:
		return nil, fmt.Errorf("%w: %d raw bytes exceed %d", errSegment, size, maxRaw)
	case data[5] == codecRaw:
		if int(size) != len(body) {
			return nil, fmt.Errorf("%w: %d raw bytes of %d", errSegment, len(body), size)
		}
		return bytes.Clone(body), nil
	case data[5] != codecDeflate:
		return nil, fmt.Errorf("%w: codec %d", errSegment, data[5])
	}
	in := bytes.NewReader(body)
	if c.r == nil {
		c.r = flate.NewReader(in)
	} else if err := c.r.(flate.Resetter).Reset(in, nil); err != nil {
		return nil, fmt.Errorf("%w: %v", errSegment, err)
	}
	raw := make([]byte, size)
	if _, err := io.ReadFull(c.r, raw); err != nil {
		return nil, fmt.Errorf("%w: inflate: %v", errSegment, err)
	}
	if n, err := c.r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		return nil, fmt.Errorf("%w: more than %d raw bytes", errSegment, size)
	}
	return raw, nil
}
