"""Block-sparse attention as InfLLM v2 selects its blocks (MiniCPM4, arXiv 2506.07900).

The software reference of `hw.sparse_attention`: the selection in float64 (`selection`), the integer
definition that the hardware implements (`integers`, `fixed_softmax`), and their sizes (`settings`). Nothing
here imports torch, so the hardware's reference models may use it.
"""

from quantizers.sparse_attention.fixed_softmax import FixedSoftmax
from quantizers.sparse_attention.integers import (
    IntegerQueries,
    agreement,
    compressed_bits,
    compressed_sums,
    head_scores,
    integer_group_scores,
    integer_keys,
    integer_queries,
    key_scales,
    select_blocks_integer,
)
from quantizers.sparse_attention.selection import (
    best_blocks,
    block_indices,
    block_scores,
    compressed_keys,
    group_scores,
    select_blocks,
    token_mask,
)
from quantizers.sparse_attention.settings import BlockSelection

__all__ = [
    "BlockSelection",
    "FixedSoftmax",
    "IntegerQueries",
    "agreement",
    "best_blocks",
    "block_indices",
    "block_scores",
    "compressed_bits",
    "compressed_keys",
    "compressed_sums",
    "group_scores",
    "head_scores",
    "integer_group_scores",
    "integer_keys",
    "integer_queries",
    "key_scales",
    "select_blocks",
    "select_blocks_integer",
    "token_mask",
]
