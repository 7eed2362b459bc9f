"""Arithmetic components: from the codes of a pair of numbers to their exact sum of products."""

from hw.arith.accumulator import KulischAccumulator
from hw.arith.aligner import Aligner
from hw.arith.booth import BoothMultiplier
from hw.arith.decoder import Decoder
from hw.arith.multiplier import Multiplier
from hw.arith.product import ScaledProduct, ShiftedProduct, TabulatedProduct, scaled_product
from hw.arith.table import TableMultiplier, TruthTable

__all__ = [
    "Aligner",
    "BoothMultiplier",
    "Decoder",
    "KulischAccumulator",
    "Multiplier",
    "ScaledProduct",
    "ShiftedProduct",
    "TableMultiplier",
    "TabulatedProduct",
    "TruthTable",
    "scaled_product",
]
