"""Integer-exact models of the hardware blocks."""

from hw.reference.float_mac import float_accumulate
from hw.reference.mac import multiply_accumulate
from hw.reference.mvu import matrix_vector
from hw.reference.mx_dot import block_dot
from hw.reference.requantizer import Scaling, count_thresholds, find_scaling, requantize
from hw.reference.widths import anchor_accumulator_bits, exact_accumulator_bits

__all__ = [
    "Scaling",
    "anchor_accumulator_bits",
    "block_dot",
    "count_thresholds",
    "exact_accumulator_bits",
    "find_scaling",
    "float_accumulate",
    "matrix_vector",
    "multiply_accumulate",
    "requantize",
]
