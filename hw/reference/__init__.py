"""Integer-exact models of the hardware blocks."""
