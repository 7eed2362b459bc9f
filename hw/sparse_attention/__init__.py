"""Block selection for sparse attention (InfLLM v2), and what its streams carry."""

from hw.sparse_attention.block_pooling import BlockPooling
from hw.sparse_attention.block_selector import BlockSelector
from hw.sparse_attention.group_softmax import GroupSoftmax
from hw.sparse_attention.key_compressor import KeyCompressor
from hw.sparse_attention.sorted_blocks import SortedBlocks
from hw.sparse_attention.streams import key_words, query_words, token_words
from hw.sparse_attention.top_blocks import TopBlocks

__all__ = [
    "BlockPooling",
    "BlockSelector",
    "GroupSoftmax",
    "KeyCompressor",
    "SortedBlocks",
    "TopBlocks",
    "key_words",
    "query_words",
    "token_words",
]
