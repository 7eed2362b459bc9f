"""Queries and keys as the words of the streams of block selection."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from hw.mvu import input_words, load_words
from hw.sparse_attention.block_selector import BlockSelector
from hw.sparse_attention.key_compressor import KeyCompressor
from quantizers.errors import UsageError
from quantizers.sparse_attention import IntegerQueries


def query_words(selector: BlockSelector, queries: IntegerQueries) -> list[int]:
    """The ``queries`` stream of a block selector: of each query the words of its heads.

    Args:
        selector: for which they are.
        queries: codes (heads, queries, head_dim) and shifts (heads, queries).

    Raises:
        UsageError: a shape or a shift that is not the selector's.
    """
    words: list[int] = []
    for codes, shifts in zip(np.moveaxis(queries.codes, 1, 0), queries.shifts.T, strict=True):
        # The unit's codes are the bits of the integers.
        bits = codes & ((1 << selector.scores.weight_bits) - 1)
        words += load_words(selector.scores, bits, shift=shifts)
    return words


def key_words(
    selector: BlockSelector, compressed: npt.ArrayLike, positions: npt.ArrayLike
) -> npt.NDArray[Any]:
    """The ``keys`` stream of a block selector: for each query the compressed keys that it sees.

    Args:
        selector: for which they are.
        compressed: integers, shape (compressed, head_dim).
        positions: of the queries.

    Returns:
        Shape (transfers, lanes).

    Raises:
        UsageError: a shape that is not the selector's, or a key that is missing.
    """
    words = input_words(selector.scores, compressed)
    counts = [selector.visible_keys(int(position)) for position in np.asarray(positions)]
    if max(counts, default=0) * selector.key_words > len(words):
        msg = f"a query sees {max(counts)} compressed keys, but there are {len(words) // selector.key_words}"
        raise UsageError(msg, given=len(words) // selector.key_words, expected=[str(max(counts))])
    seen = [words[: count * selector.key_words] for count in counts]
    return np.concatenate([words[:0], *seen])


def token_words(compressor: KeyCompressor, keys: npt.ArrayLike) -> list[int]:
    """The ``keys`` stream of a key compressor, for the tokens of one sequence, shape (tokens, head_dim).

    Raises:
        UsageError: a shape that is not the compressor's.
    """
    array = np.asarray(keys, np.int64)
    if array.ndim != 2 or array.shape[1] != compressor.head_dim:
        msg = f"keys must be of shape (tokens, {compressor.head_dim}), not {array.shape}"
        raise UsageError(msg, given=array.shape, expected=[f"(tokens, {compressor.head_dim})"])
    bits, lanes = compressor.key_bits, compressor.lanes
    words = (array & ((1 << bits) - 1)).reshape(-1, lanes)
    packed = [sum(code << bits * lane for lane, code in enumerate(word)) for word in words.tolist()]
    return [word | (place == 0) << bits * lanes for place, word in enumerate(packed)]
