"""Integer-exact model of block selection: the payloads of its streams."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from quantizers.sparse_attention import (
    BlockSelection,
    FixedSoftmax,
    IntegerQueries,
    best_blocks,
    block_indices,
    block_scores,
    integer_group_scores,
)


def pooled_scores(
    weights: npt.ArrayLike, position: int, selection: BlockSelection, *, score_bits: int
) -> list[tuple[int, bool, bool]]:
    """What :class:`hw.sparse_attention.BlockPooling` gives: score, whether it is the last, whether all are
    taken.

    Args:
        weights: of the compressed keys that a query sees.
        position: of the query.
        selection: sizes.
        score_bits: forced blocks have all of them set.
    """
    at, is_dense = np.array([position]), position + 1 < selection.dense_length
    scores = block_scores(np.asarray(weights).reshape(1, -1), at, selection)[0]
    forced = (1 << score_bits) - 1
    numbers = [forced if is_dense or np.isposinf(s) else max(int(s), 0) for s in np.maximum(scores, -1)]
    return [(score, place == len(numbers) - 1, is_dense) for place, score in enumerate(numbers)]


def top_indices(scores: npt.ArrayLike, topk: int) -> list[tuple[int, bool]]:
    """What :class:`hw.sparse_attention.TopBlocks` gives for one list: indices, and whether it is the last."""
    values = np.asarray(scores, np.int64)
    taken = np.sort(np.argsort(-values, kind="stable")[:topk])
    return [(int(index), place == len(taken) - 1) for place, index in enumerate(taken)]


def selected_blocks(
    queries: IntegerQueries,
    compressed: npt.ArrayLike,
    positions: npt.ArrayLike,
    selection: BlockSelection,
    softmax: FixedSoftmax,
) -> list[tuple[int, bool]]:
    """What :class:`hw.sparse_attention.BlockSelector` gives: the indices of one query after the other.

    Args:
        queries: codes (heads, queries, head_dim), shifts (heads, queries).
        compressed: integers, shape (compressed, head_dim).
        positions: of the queries.
        selection: sizes.
        softmax: widths.

    Raises:
        UsageError: shapes that do not fit.
    """
    at = np.asarray(positions)
    scores = integer_group_scores(queries.codes, compressed, queries.shifts, at, selection, softmax)
    taken = best_blocks(block_scores(scores, at, selection), at, selection)
    return [
        (int(index), place == len(row) - 1) for row in block_indices(taken) for place, index in enumerate(row)
    ]
