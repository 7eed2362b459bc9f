"""Codecs between a language model and its cache: stores that measure what a codec costs in accuracy.

Keys and values become 16-bit integers, go through the codec's integer kernels and come back: what the model
sees is what the hardware gives, bit for bit. Tokens that a codec keeps exact are seen as 16-bit integers too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quantizers.errors import UsageError
from quantizers.kv_cache.cache import NEVER, Kept, bits_used
from quantizers.kv_cache.codec import Codec, IntegerArray
from quantizers.kv_cache.fixed_point import to_floats, to_integers
from quantizers.kv_store import HistoryStore, Seen, Version, replaced


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
        self._check(layer, keys)
        rows = self._integers(layer, keys, values)
        coded = rows.copy()
        at: list[npt.NDArray[np.int64]] = []
        for stream in self.plan.layers[layer]:
            share, when = self._coded(stream.codec, rows[:, stream.start : stream.stop])
            coded[:, stream.start : stream.stop] = share
            at.append(when)
        sides = []
        for side in range(2):
            exact, new = (self._tensor(r, layer, side).to(keys.dtype) for r in (rows, coded))
            sides.append(_versions(exact, new, torch.from_numpy(self._when(layer, side, at))))
        return Seen(*sides)

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

    def _integers(self, layer: int, keys: Tensor, values: Tensor) -> npt.NDArray[np.int64]:
        """Tokens of all channels, keys first: shape (tokens, 2c)."""
        parts = []
        named = (("keys", keys), ("values", values))
        for (what, x), fraction in zip(named, self.plan.fractions[layer], strict=True):
            rows = x[0].transpose(0, 1).flatten(1).detach().numpy()
            parts.append(to_integers(rows, int(fraction), what=what, layer=layer))
        return np.concatenate(parts, axis=1)

    def _tensor(self, rows: npt.NDArray[np.int64], layer: int, side: int) -> Tensor:
        c = self.plan.channels
        floats = to_floats(rows[:, side * c : (side + 1) * c], int(self.plan.fractions[layer][side]))
        shaped = torch.from_numpy(floats).view(len(rows), self.plan.heads, self.plan.head_dim)
        return shaped.transpose(0, 1)[None].contiguous()

    def _check(self, layer: int, keys: Tensor) -> None:
        expected = (1, self.plan.heads, keys.shape[2], self.plan.head_dim)
        if tuple(keys.shape) != expected or layer >= len(self.plan.layers):
            msg = (
                f"{self.plan.name} is for {len(self.plan.layers)} layers of keys of shape {expected}; "
                f"layer {layer} gives {tuple(keys.shape)}"
            )
            raise UsageError(msg, given=tuple(keys.shape), expected=[str(expected)])


def _versions(exact: Tensor, coded: Tensor, at: Tensor) -> list[Version]:
    """One version where no token ever changes its form: half of the attention products."""
    token = torch.arange(exact.shape[2])
    is_exact = at == NEVER
    if not bool((is_exact | (at <= token)).all()):
        return replaced(exact, coded, at)
    return [Version(torch.where(is_exact[:, None], exact, coded))]
