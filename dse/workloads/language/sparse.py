"""Attention to the blocks of tokens that each query selects (InfLLM v2), on a language model.

A store for :func:`~.perplexity.compare`: keys and values stay as they are, and for each query and each KV
head it chooses the tokens that count (`quantizers.kv_store.SelectsTokens`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantizers.kv_store import ExactStore, Seen
from quantizers.sparse_attention import (
    BlockSelection,
    FixedSoftmax,
    agreement,
    integer_keys,
    integer_queries,
    key_scales,
    select_blocks,
    select_blocks_integer,
    token_mask,
)

_SOFTMAX = FixedSoftmax()
Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class IntegerSelection:
    """Widths with which blocks are selected as the hardware does.

    Attributes:
        key_bits: of a key; its scale is one a channel, of all tokens that the store has.
        query_bits: of a query.
        dropped_bits: of a compressed key, see `quantizers.sparse_attention.integers`.
        softmax: of scores and weights.
    """

    key_bits: int = 8
    query_bits: int = 8
    dropped_bits: int = 0
    softmax: FixedSoftmax = _SOFTMAX


def sliding_window(selection: BlockSelection) -> BlockSelection:
    """The same number of blocks, all of them forced: the initial ones and the newest."""
    return replace(selection, window=(selection.topk - selection.initial - 1) * selection.block)


class SelectedBlocks(ExactStore):
    """Each query attends to the blocks that it selects, for each KV head apart.

    Attributes:
        kept: tokens that were attended to and those that were there, since `reset_counts`.
        agreement: with integers: mean over layers, KV heads and windows of the fraction of freely chosen
            blocks that the selection in float64 chooses too; None before there is one.

    Args:
        selection: sizes.
        integer: select as the hardware does; in float64 where it is None.
    """

    rope_before_store = True

    def __init__(self, selection: BlockSelection, integer: IntegerSelection | None = None) -> None:
        super().__init__()
        self.selection, self.integer = selection, integer
        self.reset_counts()

    def reset_counts(self) -> None:
        """Forget what was counted."""
        self.kept: tuple[int, int] = (0, 0)
        self._agreements: list[float] = []

    @property
    def agreement(self) -> float | None:
        """See the class."""
        return float(np.mean(self._agreements)) if self._agreements else None

    @property
    def kept_fraction(self) -> float:
        """Of the tokens that queries see, those that they attend to."""
        kept, seen = self.kept
        return kept / seen

    def select(self, layer: int, queries: Tensor, seen: Seen, start: int) -> Tensor:
        """See `quantizers.kv_store.SelectsTokens`."""
        keys = seen.keys[0].tensor.numpy()
        batch, kv_heads, tokens, _ = keys.shape
        grouped = queries.detach().unflatten(1, (kv_heads, -1)).numpy()
        positions = np.arange(start, start + queries.shape[2])
        chosen = np.stack(
            [
                np.stack(
                    [self._chosen(grouped[b, h], keys[b, h], positions, tokens) for h in range(kv_heads)]
                )
                for b in range(batch)
            ]
        )
        visible = batch * kv_heads * int((positions + 1).sum())
        self.kept = (self.kept[0] + int(chosen.sum()), self.kept[1] + visible)
        return torch.from_numpy(chosen)

    def _chosen(self, queries: Floats, keys: Floats, positions: NDArray[np.int64], tokens: int) -> Mask:
        taken = self._taken(queries, keys, positions)
        return token_mask(taken, positions, tokens, self.selection)

    def _taken(self, queries: Floats, keys: Floats, positions: NDArray[np.int64]) -> Mask:
        """Of one KV head: bool (queries, blocks)."""
        exact = select_blocks(queries, keys, positions, self.selection)
        if self.integer is None:
            return exact
        taken = _by_integers(queries, keys, positions, self.selection, self.integer)
        own = (positions // self.selection.block)[:, None]
        blocks = np.arange(taken.shape[1])
        forced = (blocks < self.selection.initial) | (own <= blocks + self.selection.local)
        is_choice = (own[:, 0] + 1 > self.selection.topk) & ~self.selection.is_dense(positions)
        if (exact & ~forced)[is_choice].any():
            self._agreements.append(agreement(taken[is_choice], exact[is_choice], forced[is_choice]))
        return taken


def _by_integers(
    queries: Floats,
    keys: Floats,
    positions: NDArray[np.int64],
    selection: BlockSelection,
    widths: IntegerSelection,
) -> Mask:
    scales = key_scales(keys, key_bits=widths.key_bits)
    codes = integer_queries(
        queries,
        scales,
        selection,
        widths.softmax,
        query_bits=widths.query_bits,
        dropped_bits=widths.dropped_bits,
    )
    return select_blocks_integer(
        codes,
        integer_keys(keys, scales, key_bits=widths.key_bits),
        positions,
        selection,
        widths.softmax,
        key_bits=widths.key_bits,
        dropped_bits=widths.dropped_bits,
    )
