"""The table-lookup engine, and what its streams carry."""

from hw.lut_kernel.block_aligner import BlockAligner
from hw.lut_kernel.encoding import TABLES, Encoding
from hw.lut_kernel.engine import TableLookupEngine
from hw.lut_kernel.grouped import GroupedLookupEngine
from hw.lut_kernel.partial_sums import SUM_MEMORIES
from hw.lut_kernel.scale_stage import ScaleStage
from hw.lut_kernel.streams import activation_words, vector_results, weight_indices, weight_words
from hw.lut_kernel.tables import STORAGES

__all__ = [
    "STORAGES",
    "SUM_MEMORIES",
    "TABLES",
    "BlockAligner",
    "Encoding",
    "GroupedLookupEngine",
    "ScaleStage",
    "TableLookupEngine",
    "activation_words",
    "vector_results",
    "weight_indices",
    "weight_words",
]
