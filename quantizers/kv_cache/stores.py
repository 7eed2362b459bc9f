"""Codecs between a language model and its cache: stores that measure what a codec costs in accuracy.

Keys and values become 16-bit integers, go through the codec's integer kernels and come back: what the model
sees is what the hardware gives, bit for bit. Tokens that a codec keeps exact are seen as 16-bit integers too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quantizers.errors import UsageError
from quantizers.kv_cache.cache import NEVER, Kept, bits_used
from quantizers.kv_cache.codec import Codec, IntegerArray
from quantizers.kv_cache.fixed_point import to_floats, to_integers
from quantizers.kv_store import HistoryStore, KeyValueStore, Pass, Seen, Version, replaced


@dataclass(frozen=True)
class StoredBits:
    """What an element of keys or values takes, all metadata included.

    Attributes:
        per_element: of a long sequence.
        per_element_seen: stored when a query runs, on average over the elements that all queries see, those
            whose predictions count: what is not coded yet counts with its 16 bits.
        is_measured: they depend on keys and values, and are those of what has run; else they are counted.
    """

    per_element: float
    per_element_seen: float
    is_measured: bool = False


class PlannedStore(KeyValueStore, Protocol):
    """A store that knows how a model is run with it, and what it held."""

    def passes(self, length: int) -> tuple[Pass, ...]:
        """How a window of *length* tokens is run.

        Raises:
            UsageError: it is too short.
        """

    def bits(self, length: int) -> StoredBits:
        """Bits of an element on windows of *length* tokens; where they are measured, after these have run.

        Raises:
            UsageError: they are measured, and nothing has run.
        """


class Plan(Protocol):
    """What is made of a model's cache."""

    @property
    def name(self) -> str:
        """As in a table."""

    @property
    def codecs(self) -> list[list[Codec]]:
        """Of each layer, keys first."""

    def store(self, *, whole_window: bool = False) -> PlannedStore:
        """A store that a model runs with: as a stream, or with the whole window coded for every query."""


@dataclass(frozen=True, eq=False)
class Stream:
    """Consecutive channels of a layer that go through one codec.

    Attributes:
        codec: takes as many channels.
        start: the first of them, of the layer's ``2 * heads * head_dim``, keys first.
    """

    codec: Codec
    start: int

    @property
    def stop(self) -> int:
        """One past the last."""
        return self.start + self.codec.channels


@dataclass(frozen=True, eq=False, kw_only=True)
class CachePlan:
    """The codecs of all layers of a model.

    Attributes:
        name: as in a table.
        heads, head_dim: of keys and of values.
        fractions: fraction bits of keys and of values, shape (layers, 2).
        layers: streams of each layer, which together take each channel once.
        kept: what stays exact.
        rope: whether keys are rotated by their position before they are coded.

    Raises:
        UsageError: streams that leave channels out or take them twice.
    """

    name: str
    heads: int
    head_dim: int
    fractions: npt.NDArray[np.int64]
    layers: Sequence[Sequence[Stream]]
    kept: Kept = field(default_factory=Kept)
    rope: bool = False

    def __post_init__(self) -> None:
        if np.shape(self.fractions) != (len(self.layers), 2):
            msg = f"fractions must be of shape {(len(self.layers), 2)}, not {np.shape(self.fractions)}"
            raise UsageError(msg, given=np.shape(self.fractions), expected=[str((len(self.layers), 2))])
        for layer, streams in enumerate(self.layers):
            bounds = [(stream.start, stream.stop) for stream in streams]
            ends = [0, *(stop for _, stop in bounds)]
            if [start for start, _ in bounds] != ends[:-1] or ends[-1] != 2 * self.channels:
                wanted = f"0 to {2 * self.channels}"
                msg = f"the streams of layer {layer} must take channels {wanted} in order, not {bounds}"
                raise UsageError(msg, given=bounds, expected=[wanted])

            for side in (slice(0, self.channels), slice(self.channels, 2 * self.channels)):
                units = {s.codec.tokens for s in streams if s.start < side.stop and s.stop > side.start}
                if len(units) != 1:
                    msg = f"the streams of one side of layer {layer} have units of {sorted(units)} tokens"
                    raise UsageError(msg, given=sorted(units), expected=["units of one size"])

    @property
    def channels(self) -> int:
        """Of keys, and of values, of one token in one layer."""
        return self.heads * self.head_dim

    @property
    def codecs(self) -> list[list[Codec]]:
        """Of each layer, keys first."""
        return [[stream.codec for stream in streams] for streams in self.layers]

    @property
    def bits_per_element(self) -> float:
        """Of a long sequence, metadata included: what is kept exact is a vanishing part of it."""
        per_token = [s.codec.unit_bits / s.codec.tokens for streams in self.layers for s in streams]
        return sum(per_token) / (2 * self.channels * len(self.layers))

    def bits_used(self, tokens: int) -> float:
        """All bits of the caches of all layers after *tokens* tokens: sinks and open units included."""
        return sum(bits_used(s.codec, tokens, self.kept) for streams in self.layers for s in streams)

    def bits_per_element_at(self, tokens: int) -> float:
        """:meth:`bits_used` for each element of *tokens* tokens."""
        return self.bits_used(tokens) / (tokens * 2 * self.channels * len(self.layers))

    def bits_per_element_seen(self, length: int) -> float:
        """Bits of an element that queries of a window of *length* tokens read, on average: what waits in an
        open group, and first tokens that stay exact, count with their 16 bits in every query that sees them
        so."""
        tokens = range(1, length + 1)
        return sum(count * self.bits_per_element_at(count) for count in tokens) / sum(tokens)

    def store(self, *, whole_window: bool = False) -> CodecStore:
        """See :class:`Plan`."""
        return CodecStore(self, whole_window=whole_window)

    def to_rows(self, layer: int, keys: Tensor, values: Tensor) -> npt.NDArray[np.int64]:
        """Tokens of one layer as integers, all channels side by side, keys first: shape (tokens, 2c).

        Args:
            layer: its index.
            keys: shape (1, heads, tokens, head_dim).
            values: the same shape.

        Raises:
            NotFiniteError: a key or value is NaN or infinite.
            UsageError: another geometry, or several sequences.
        """
        expected = (1, self.heads, keys.shape[2], self.head_dim)
        if tuple(keys.shape) != expected or layer >= len(self.layers):
            msg = (
                f"{self.name} is for {len(self.layers)} layers of keys of shape {expected}; "
                f"layer {layer} gives {tuple(keys.shape)}"
            )
            raise UsageError(msg, given=tuple(keys.shape), expected=[str(expected)])
        parts = []
        named = (("keys", keys), ("values", values))
        for (what, x), fraction in zip(named, self.fractions[layer], strict=True):
            rows = x[0].transpose(0, 1).flatten(1).detach().numpy()
            parts.append(to_integers(rows, int(fraction), what=what, layer=layer))
        return np.concatenate(parts, axis=1)

    def to_tensors(self, layer: int, rows: IntegerArray, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values from rows of :meth:`to_rows`."""
        sides = zip(np.split(rows, 2, axis=1), self.fractions[layer], strict=True)
        keys, values = (
            torch.from_numpy(to_floats(side, int(fraction)))
            .view(len(rows), self.heads, self.head_dim)
            .transpose(0, 1)[None]
            .contiguous()
            .to(dtype)
            for side, fraction in sides
        )
        return keys, values


class CodecStore(HistoryStore):
    """Shows queries what a plan's codecs make of the tokens.

    Args:
        plan: codecs of each layer.
        whole_window: show every query all complete units coded, as a prefill that codes the whole window
            at once does; units may then hold tokens that are later than the query. Default: streaming.
    """

    def __init__(self, plan: CachePlan, *, whole_window: bool = False) -> None:
        super().__init__()
        self.plan = plan
        self.rope_before_store = plan.rope
        self._whole_window = whole_window

    def see(self, layer: int, keys: Tensor, values: Tensor) -> Seen:
        """See `HistoryStore`; batches of one sequence.

        Raises:
            NotFiniteError: a key or value is NaN or infinite.
            UsageError: another geometry than the plan's, or several sequences.
        """
        rows = self.plan.to_rows(layer, keys, values)
        coded = rows.copy()
        at: list[npt.NDArray[np.int64]] = []
        for stream in self.plan.layers[layer]:
            share, when = self._coded(stream.codec, rows[:, stream.start : stream.stop])
            coded[:, stream.start : stream.stop] = share
            at.append(when)
        exact, new = (self.plan.to_tensors(layer, r, keys.dtype) for r in (rows, coded))
        sides = [
            _versions(exact[side], new[side], torch.from_numpy(self._when(layer, side, at)))
            for side in range(2)
        ]
        return Seen(*sides)

    def passes(self, length: int) -> tuple[Pass, ...]:
        """One: it gives what decoding token by token would."""
        return (Pass(0, length),)

    def bits(self, length: int) -> StoredBits:
        """See :class:`PlannedStore`; counted. A whole window is stored once, and every query reads it so."""
        seen = self.plan.bits_per_element_seen(length)
        if self._whole_window:
            whole = replace(self.plan, kept=replace(self.plan.kept, residual=0))
            seen = whole.bits_per_element_at(length)
        return StoredBits(self.plan.bits_per_element, seen)

    def _coded(self, codec: Codec, rows: IntegerArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The tokens with complete units coded, and the position from which each is seen so."""
        kept, unit, tokens = self.plan.kept, codec.tokens, len(rows)
        at = kept.coded_at(tokens, unit)
        units = max(0, tokens - kept.sinks) // unit
        coded = rows.copy()
        if units:
            places = slice(kept.sinks, kept.sinks + units * unit)
            shaped = rows[places].reshape(units, unit, -1)
            coded[places] = codec.decode(codec.encode(shaped)).reshape(units * unit, -1)
        if self._whole_window:
            token = np.arange(tokens)
            is_coded = (token >= kept.sinks) & (token < kept.sinks + units * unit)
            at = np.where(is_coded, token, NEVER)
        return coded, at

    def _when(self, layer: int, side: int, at: list[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
        """Of the streams that hold keys (0) or values (1), which all agree."""
        c = self.plan.channels
        low, high = side * c, (side + 1) * c
        streams = self.plan.layers[layer]
        mine = [w for s, w in zip(streams, at, strict=True) if s.start < high and s.stop > low]
        return mine[0]


def _versions(exact: Tensor, coded: Tensor, at: Tensor) -> list[Version]:
    """One version where no token ever changes its form: half of the attention products."""
    token = torch.arange(exact.shape[2])
    is_exact = at == NEVER
    if not bool((is_exact | (at <= token)).all()):
        return replaced(exact, coded, at)
    return [Version(torch.where(is_exact[:, None], exact, coded))]
