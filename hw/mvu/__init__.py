"""The matrix-vector unit, and what its streams carry."""

from hw.mvu.folding import Folding
from hw.mvu.streams import input_words, load_words, output_count, vector_results
from hw.mvu.unit import MEMORIES, OVERFLOWS, MatrixVectorUnit

__all__ = [
    "MEMORIES",
    "OVERFLOWS",
    "Folding",
    "MatrixVectorUnit",
    "input_words",
    "load_words",
    "output_count",
    "vector_results",
]
