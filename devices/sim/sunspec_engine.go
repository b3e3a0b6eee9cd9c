package sim

// SunSpecModel is one model of a SunSpec map: its number and the registers
// behind its head.
type SunSpecModel struct {
	ID   uint16
	Regs []uint16
}

// SetSunSpec defines a SunSpec map in the holding registers: "SunS" at base, the
// models behind it, and the end of the chain.
func (u *Unit) SetSunSpec(base uint16, models ...SunSpecModel) {
	words := []uint16{0x5375, 0x6E53}
	for _, m := range models {
		words = append(append(words, m.ID, uint16(len(m.Regs))), m.Regs...)
	}
	u.Set(Holding, base, append(words, 0xFFFF, 0)...)
}
