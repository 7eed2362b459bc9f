"""Arithmetic components: from the codes of a pair of numbers to their exact sum of products."""

from hw.arith.accumulator import KulischAccumulator
from hw.arith.addend import ProductAddend, product_addend
from hw.arith.adder_tree import AdderTree
from hw.arith.aligner import Aligner
from hw.arith.booth import BoothMultiplier
from hw.arith.compressor import CompressorTree
from hw.arith.decoder import Decoder
from hw.arith.multiplier import Multiplier
from hw.arith.product import ScaledProduct, ShiftedProduct, TabulatedProduct, scaled_product
from hw.arith.requantizer import Requantization, Requantizer
from hw.arith.table import TableMultiplier, TruthTable

__all__ = [
    "AdderTree",
    "Aligner",
    "BoothMultiplier",
    "CompressorTree",
    "Decoder",
    "KulischAccumulator",
    "Multiplier",
    "ProductAddend",
    "Requantization",
    "Requantizer",
    "ScaledProduct",
    "ShiftedProduct",
    "TableMultiplier",
    "TabulatedProduct",
    "TruthTable",
    "product_addend",
    "scaled_product",
]
