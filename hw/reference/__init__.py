"""Integer-exact models of the hardware blocks."""

from hw.reference.mac import multiply_accumulate
from hw.reference.widths import anchor_accumulator_bits, exact_accumulator_bits

__all__ = ["anchor_accumulator_bits", "exact_accumulator_bits", "multiply_accumulate"]
