package sim

// Unit is the unit with that address, or nil.
func (t *TCP) Unit(id byte) *Unit {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.units[id]
}

// NewRTU is NewTCP for RTU frames over TCP, as serial servers speak it.
func NewRTU(seed uint64, units ...*Unit) *TCP {
	t := NewTCP(seed, units...)
	t.rtu = true
	return t
}
