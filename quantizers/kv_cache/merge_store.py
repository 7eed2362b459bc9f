"""A cache whose adjacent layers are merged, as a store that a language model runs with.

The first pass of a sequence is the prefill: its queries see everything as it is, and at its end each pair of
layers is merged and the tokens to retain are chosen (arXiv 2405.14366, section 3). Later passes are decoding:
a query sees the tokens of earlier passes merged and those of its own pass exactly, since the lower layer's
vectors wait for the upper layer's. Tokens of later passes are merged when the pass ends, and never retained.
To measure it, take steps: ``perplexity(model, windows, store=..., step=256)`` merges the first half of
windows of 512 tokens and predicts the second from it; in one pass nothing is ever seen merged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quantizers.errors import UsageError
from quantizers.kv_cache.codec import Codec
from quantizers.kv_cache.fixed_point import BITS, fraction_bits, to_floats, to_integers
from quantizers.kv_cache.merge_arithmetic import merge, restore
from quantizers.kv_cache.merging import MergedBits, MergeSettings, distinct
from quantizers.kv_store import Seen

IntegerArray = npt.NDArray[Any]
KINDS = ("keys", "values")


@dataclass(frozen=True)
class DirectionCodec:
    """A codec on top of the merged directions.

    Attributes:
        code: 16-bit integers of shape (batch, heads, tokens, channels), and what they become.
        bits: of an element, all metadata counted.
    """

    code: Callable[[IntegerArray], IntegerArray]
    bits: float

    @classmethod
    def of(cls, codec: Codec) -> DirectionCodec:
        """A codec of single tokens, all heads side by side.

        Raises:
            UsageError: its units are of several tokens, which in decoding come one by one.
        """
        if codec.tokens != 1:
            msg = f"directions take codecs of single tokens, not of {codec.tokens} at a time"
            raise UsageError(msg, given=codec.tokens, expected=["1"])

        def code(direction: IntegerArray) -> IntegerArray:
            tokens = direction.swapaxes(1, 2)
            decoded = codec.decode(codec.encode(tokens.reshape(-1, 1, codec.channels)))
            return decoded.reshape(tokens.shape).swapaxes(1, 2)

        return cls(code, codec.bits_per_element)


@dataclass
class _Pair:
    """Merged tokens of two layers, keys or values.

    Attributes:
        lower, upper: what queries see of them, float32, (batch, heads, tokens, channels).
        retained: vectors that are.
    """

    lower: Tensor
    upper: Tensor
    retained: int


class MergedStore:
    """Merges pairs of layers after each pass; other layers stay exact.

    Args:
        pairs: of adjacent layers, lower first; see :func:`~.merging.layer_pairs`.
        settings: interpolation and retention.
        fractions: fraction bits of the 16-bit integers of each layer, by ``(layer, "keys" | "values")``;
            by default those of :func:`~.fixed_point.fraction_bits` of each sequence's prefill.
        codec: of the directions; by default they have 16 bits an element.
        index_bits: of a retained token's number.

    Raises:
        UsageError: a layer is in two pairs, or a pair is not of adjacent layers.
    """

    rope_before_store: bool = False

    def __init__(
        self,
        pairs: Sequence[tuple[int, int]],
        settings: MergeSettings | None = None,
        *,
        fractions: Mapping[tuple[int, str], int] | None = None,
        codec: DirectionCodec | None = None,
        index_bits: int = 16,
    ) -> None:
        _check_pairs(pairs)
        self._pairs = tuple(pairs)
        self._partners = {layer: pair for pair in pairs for layer in pair}
        self._settings = MergeSettings() if settings is None else settings
        self._given = dict(fractions or {})
        self._codec = codec
        self._index_bits = index_bits
        self.reset()

    def reset(self) -> None:
        """Forget all tokens."""
        self._layers: dict[tuple[int, str], Tensor] = {}
        self._merged: dict[tuple[int, str], _Pair] = {}
        self._fractions = dict(self._given)

    def update(self, layer: int, keys: Tensor, values: Tensor, positions: Tensor) -> Seen:
        """Append, and show merged tokens of earlier passes and exact ones of this pass.

        Raises:
            UsageError: *positions* do not continue the tokens that are stored.
        """
        stored = self._layers[layer, "keys"].shape[2] if (layer, "keys") in self._layers else 0
        if int(positions[0]) != stored:
            given = int(positions[0])
            msg = f"layer {layer} holds {stored} tokens, so the next position is {stored}, not {given}"
            raise UsageError(msg, given=given, expected=[str(stored)])
        seen = []
        for kind, new in zip(KINDS, (keys, values), strict=True):
            before = self._layers.get((layer, kind))
            self._layers[layer, kind] = new if before is None else torch.cat([before, new], dim=2)
            seen.append(self._seen(layer, kind))
        return Seen.always(*seen)

    def finish(self) -> None:
        """Merges the tokens of the pass.

        Raises:
            UsageError: the model has not both layers of a pair.
        """
        for pair in self._pairs:
            for kind in KINDS:
                if any((layer, kind) not in self._layers for layer in pair):
                    msg = f"layers {pair[0]} and {pair[1]} are to be merged, and the model has not both"
                    raise UsageError(msg, given=pair)
                self._merge(pair, kind)

    def bits(self) -> MergedBits:
        """What the merged pairs take, of all tokens merged so far.

        Raises:
            UsageError: nothing has been merged.
        """
        if not self._merged:
            msg = "nothing has been merged yet: bits are counted after the first pass"
            raise UsageError(msg)
        merged = list(self._merged.values())
        channels = merged[0].lower.shape[-1]
        return MergedBits(
            channels=channels,
            vectors=sum(pair.lower[..., 0].numel() for pair in merged),
            retained=sum(pair.retained for pair in merged),
            magnitude_bits=self._settings.arithmetic(channels).magnitude_bits,
            index_bits=self._index_bits,
            direction_bits=BITS if self._codec is None else self._codec.bits,
        )

    def _seen(self, layer: int, kind: str) -> Tensor:
        tokens = self._layers[layer, kind]
        pair = self._partners.get(layer)
        merged = None if pair is None else self._merged.get((pair[0], kind))
        if pair is None or merged is None:
            return tokens
        head = merged.lower if layer == pair[0] else merged.upper
        return torch.cat([head, tokens[:, :, head.shape[2] :]], dim=2)

    def _merge(self, pair: tuple[int, int], kind: str) -> None:
        before = self._merged.get((pair[0], kind))
        done = 0 if before is None else before.lower.shape[2]
        new = [self._integers(layer, kind, done) for layer in pair]
        merged = merge(new[0], new[1], self._settings.arithmetic(new[0].shape[-1]))
        direction = merged.direction if self._codec is None else self._codec.code(merged.direction)
        magnitudes = (merged.first_magnitude, merged.second_magnitude)
        retained = np.zeros(merged.distance.shape, dtype=np.bool_)
        if before is None:
            retained = distinct(merged.distance, self._settings)
        restored = [
            torch.from_numpy(
                to_floats(
                    np.where(retained[..., None], exact, restore(direction, magnitude)),
                    self._fractions[layer, kind],
                )
            )
            for layer, exact, magnitude in zip(pair, new, magnitudes, strict=True)
        ]
        if before is None:
            self._merged[pair[0], kind] = _Pair(restored[0], restored[1], int(retained.sum()))
        else:
            before.lower = torch.cat([before.lower, restored[0]], dim=2)
            before.upper = torch.cat([before.upper, restored[1]], dim=2)

    def _integers(self, layer: int, kind: str, first: int) -> IntegerArray:
        """Tokens from *first* on; of a sequence's first pass they give the fraction bits."""
        tokens = self._layers[layer, kind][:, :, first:].numpy()
        if (layer, kind) not in self._fractions:
            self._fractions[layer, kind] = fraction_bits(float(np.abs(tokens).max()))
        return to_integers(tokens, self._fractions[layer, kind], what=kind, layer=layer)


def _check_pairs(pairs: Sequence[tuple[int, int]]) -> None:
    seen: set[int] = set()
    for lower, upper in pairs:
        if upper != lower + 1 or lower < 0:
            msg = f"merging takes adjacent layers, lower first, not {lower} and {upper}"
            raise UsageError(msg, given=f"{lower}, {upper}", expected=[f"{lower}, {lower + 1}"])
        if seen & {lower, upper}:
            msg = f"layer {min(seen & {lower, upper})} is in two pairs"
            raise UsageError(msg, given=f"{lower}, {upper}")
        seen |= {lower, upper}
