"""Block selection in float64: what queries score compressed keys, and which blocks they take.

One KV head at a time, with the query heads that it serves. Queries and keys are those of the attention
itself: rotated by their positions.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quantizers.errors import UsageError
from quantizers.sparse_attention.settings import BlockSelection, Integers

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


def compressed_keys(keys: ArrayLike, selection: BlockSelection) -> Floats:
    """``mean(keys[stride*j : stride*j + kernel])``, float64 (compressed, head_dim), of keys (tokens,
    head_dim).

    Raises:
        UsageError: *keys* are not of that shape.
    """
    windows = token_windows(np.asarray(keys, np.float64), selection)
    mean: Floats = windows.mean(axis=-1)
    return mean


def token_windows(keys: NDArray[Any], selection: BlockSelection) -> NDArray[Any]:
    """The tokens of each compressed key: (compressed, head_dim, kernel), a view of *keys*."""
    if keys.ndim != 2:
        msg = f"keys must be of shape (tokens, head_dim), not {keys.shape}"
        raise UsageError(msg, given=keys.shape, expected=["(tokens, head_dim)"])
    if len(keys) < selection.kernel:
        return np.zeros((0, keys.shape[1], selection.kernel), keys.dtype)
    windows = np.lib.stride_tricks.sliding_window_view(keys, selection.kernel, axis=0)
    return windows[:: selection.stride]


def visible_keys(positions: Integers, count: int, selection: BlockSelection) -> Mask:
    """Which of the first *count* compressed keys each query sees: (queries, count)."""
    mask: Mask = np.arange(count) < selection.visible_counts(positions)[:, None]
    return mask


def group_scores(
    queries: ArrayLike, compressed: ArrayLike, positions: ArrayLike, selection: BlockSelection
) -> Floats:
    """The softmax over the compressed keys that a query sees, added up over the query heads.

    Args:
        queries: shape (heads, queries, head_dim).
        compressed: shape (compressed, head_dim).
        positions: of the queries, int64.
        selection: sizes.

    Returns:
        float64, shape (queries, compressed); zero where a query does not see the key.

    Raises:
        UsageError: shapes that do not fit.
    """
    q, c, at = np.asarray(queries, np.float64), np.asarray(compressed, np.float64), np.asarray(positions)
    check_shapes(q, c, at)
    visible = visible_keys(at, len(c), selection)
    logits = np.where(visible, q @ c.T / math.sqrt(q.shape[2]), -np.inf)
    largest = logits.max(axis=-1, keepdims=True, initial=-np.inf)
    weights = np.exp(logits - np.where(np.isfinite(largest), largest, 0))
    total = weights.sum(axis=-1, keepdims=True)
    scores: Floats = (weights / np.where(total, total, 1)).sum(axis=0)
    return scores


def check_shapes(queries: NDArray[Any], compressed: NDArray[Any], positions: NDArray[Any]) -> None:
    """Raises UsageError unless queries, compressed keys and positions belong together."""
    fits = (
        queries.ndim == 3
        and compressed.ndim == 2
        and queries.shape[2] == compressed.shape[1]
        and positions.shape == queries.shape[1:2]
    )
    if not fits:
        given = f"{queries.shape}, {compressed.shape} and {positions.shape}"
        expected = "(heads, queries, head_dim), (compressed, head_dim) and (queries,)"
        msg = f"queries, compressed keys and positions must be of shapes {expected}, not {given}"
        raise UsageError(msg, given=given, expected=[expected])


def block_scores(scores: ArrayLike, positions: ArrayLike, selection: BlockSelection) -> Floats:
    """The largest score among the compressed keys that a query sees and that share a token with a block.

    Args:
        scores: shape (queries, compressed), of numbers; those of keys that a query does not see do not count.
        positions: of the queries, shape (queries,).
        selection: sizes.

    Returns:
        float64, shape (queries, blocks), up to the block of the last query. Infinite for blocks that a query
        takes in any case, minus infinity for those without such a key and those behind the query's own.
    """
    values, at = np.asarray(scores, np.float64), np.asarray(positions)
    blocks = np.arange(selection.block_count(int(at.max()) + 1))
    visible = visible_keys(at, values.shape[1], selection)
    seen = np.where(visible, values, -np.inf)
    pooled = np.stack([_largest(seen, selection.key_range(int(k), values.shape[1])) for k in blocks], axis=1)
    own = (at // selection.block)[:, None]
    forced = (blocks < selection.initial) | ((blocks <= own) & (own <= blocks + selection.local))
    return np.where(blocks > own, -np.inf, np.where(forced, np.inf, pooled))


def _largest(scores: Floats, keys: range) -> Floats:
    part: Floats = scores[:, keys.start : keys.stop].max(axis=1, initial=-np.inf)
    return part


def best_blocks(scores: ArrayLike, positions: ArrayLike, selection: BlockSelection) -> Mask:
    """The *topk* blocks of the largest scores; of equal ones the smaller index. None behind the query's own.

    Args:
        scores: see :func:`block_scores`.
        positions: of the queries.
        selection: sizes.

    Returns:
        bool, shape (queries, blocks).
    """
    values, at = np.asarray(scores), np.asarray(positions)
    order = np.argsort(-values, axis=1, kind="stable")
    taken = np.zeros(values.shape, np.bool_)
    np.put_along_axis(taken, order[:, : selection.topk], True, axis=1)
    not_behind = np.arange(values.shape[1]) <= (at // selection.block)[:, None]
    return (taken | selection.is_dense(at)[:, None]) & not_behind


def select_blocks(
    queries: ArrayLike, keys: ArrayLike, positions: ArrayLike, selection: BlockSelection
) -> Mask:
    """Which blocks each query takes: bool (queries, blocks), in float64.

    Args:
        queries: shape (heads, queries, head_dim): the heads that one KV head serves.
        keys: shape (tokens, head_dim), up to the last query's position at least.
        positions: of the queries.
        selection: sizes.

    Raises:
        UsageError: shapes that do not fit.
    """
    scores = group_scores(queries, compressed_keys(keys, selection), positions, selection)
    return best_blocks(block_scores(scores, positions, selection), positions, selection)


def block_indices(taken: Mask) -> list[Integers]:
    """The blocks that each query takes, ascending."""
    return [np.flatnonzero(row) for row in taken]


def token_mask(taken: Mask, positions: ArrayLike, tokens: int, selection: BlockSelection) -> Mask:
    """Which tokens the queries see: bool (queries, tokens): those of their blocks, none behind themselves."""
    at = np.asarray(positions)
    repeated = np.repeat(taken, selection.block, axis=1)[:, :tokens]
    padded = np.pad(repeated, [(0, 0), (0, tokens - repeated.shape[1])])
    mask: Mask = padded & (np.arange(tokens) <= at[:, None])
    return mask
