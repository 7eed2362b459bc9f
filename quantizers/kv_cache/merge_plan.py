"""Merging of a model's layers with a codec below it: what is merged, in what, and how it is run.

Layers that are not merged go through the codec as they would without merging. Of layers that are merged the
codec codes the directions, for which it is fitted to those of the calibration text; retained tokens have
both layers' vectors in 16 bits, as have tokens that are not merged yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from quantizers.errors import UsageError
from quantizers.kv_cache.cache import Kept, bits_used
from quantizers.kv_cache.calibration import Calibration
from quantizers.kv_cache.codec import Codec
from quantizers.kv_cache.fixed_point import BITS, saturate
from quantizers.kv_cache.integers import check_range
from quantizers.kv_cache.merge_arithmetic import DIRECTION_FRACTION, MergeArithmetic, Merged, merge, restore
from quantizers.kv_cache.merge_store import MergedStore
from quantizers.kv_cache.merging import MergedBits, MergeSettings, distinct
from quantizers.kv_cache.stores import CachePlan
from quantizers.kv_store import Pass, steps

IntegerArray = npt.NDArray[Any]

_MOST_TOKENS = 1 << 20


@dataclass(frozen=True)
class Schedule:
    """How a window is run where it is a stream: a prefill, then decoding in steps.

    Attributes:
        prefill: tokens of the first pass; 0: half of the window.
        step: new tokens of each later pass. With one it is what hardware does; with more, those of its own
            pass are exact for a query.

    Raises:
        UsageError: a value out of range.
    """

    prefill: int = 0
    step: int = 16

    def __post_init__(self) -> None:
        check_range("prefill", self.prefill, 0, _MOST_TOKENS)
        check_range("step", self.step, 1, _MOST_TOKENS)

    def passes(self, length: int, kept: Kept, *, whole_window: bool = False) -> tuple[Pass, ...]:
        """Of a window: the queries of the prefill see nothing merged, so their predictions do not count.

        Args:
            length: tokens of the window.
            kept: which of them stay exact.
            whole_window: all of them are a prefill, and then run again; see
                `quantizers.kv_cache.merge_store`.

        Raises:
            UsageError: the window, or the prefill, leaves no token to merge, or none to predict after it.
        """
        if whole_window:
            return _twice(length, kept)
        prefill = self.prefill or length // 2
        fewest = kept.sinks + kept.residual + 1
        if fewest > length - 2:
            msg = (
                f"a window of {length} tokens is too short for a prefill that leaves some to merge beside "
                f"{fewest - 1} that stay exact, and some to predict: expected at least {fewest + 2}"
            )
            raise UsageError(msg, given=length, expected=[f"at least {fewest + 2}"])
        if not fewest <= prefill <= length - 2:
            msg = (
                f"a prefill of {fewest} to {length - 2} tokens leaves some of a window of {length} to merge "
                f"and some to predict, not one of {prefill}"
            )
            raise UsageError(msg, given=prefill, expected=[f"{fewest} to {length - 2}"])
        return (Pass(0, prefill, counts=False), *steps(length, self.step, start=prefill))


def _twice(length: int, kept: Kept) -> tuple[Pass, ...]:
    """The passes of a whole window; the newest tokens are merged as well.

    Raises:
        UsageError: all tokens stay exact.
    """
    if kept.sinks >= length:
        msg = f"a window of {length} tokens, of which {kept.sinks} stay exact, has none to merge"
        raise UsageError(msg, given=length, expected=[f"at least {kept.sinks + 1}"])
    return (Pass(0, length, counts=False), Pass(0, length))


class MergedRows(NamedTuple):
    """Tokens of two layers as they are read after merging.

    Attributes:
        lower, upper: 16-bit integers, shape (tokens, 2c).
        retained: bool, shape (tokens, vectors of a token).
    """

    lower: npt.NDArray[np.int64]
    upper: npt.NDArray[np.int64]
    retained: npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False, kw_only=True)
class MergePlan:
    """Pairs of layers that are merged, and the codecs of all others and of the directions.

    Attributes:
        name: as in a table.
        pairs: of adjacent layers, lower first; see :func:`~.merging.layer_pairs`.
        settings: interpolation and retention.
        layers: codecs of all layers, of which those of merged ones are not used; its fraction bits, and what
            it keeps, are those of all layers.
        directions: codecs of the merged directions, a layer a pair.
        means: integers that are subtracted of each merged layer's vectors first, shape (layers, 2c).
        schedule: of windows that are run as a stream.

    Raises:
        UsageError: a layer is in two pairs, a pair is not of adjacent layers, or a codec's units are of
            several tokens, which in decoding come one by one.
    """

    name: str
    pairs: Sequence[tuple[int, int]]
    settings: MergeSettings
    layers: CachePlan
    directions: CachePlan
    means: IntegerArray
    schedule: Schedule = field(default_factory=Schedule)

    def __post_init__(self) -> None:
        check_pairs(self.pairs)
        units = {codec.tokens for codecs in self.codecs for codec in codecs}
        if units - {1}:
            raise several_tokens(max(units))

    @property
    def rope(self) -> bool:
        """Whether keys are rotated by their position before they are merged."""
        return self.layers.rope

    @property
    def arithmetic(self) -> MergeArithmetic:
        """Of one head's vectors."""
        return self.settings.arithmetic(self.layers.head_dim)

    @property
    def codecs(self) -> list[list[Codec]]:
        """Of the layers that are not merged, then of the directions, keys first."""
        coded = [*(self.layers.layers[layer] for layer in self._alone), *self.directions.layers]
        return [[stream.codec for stream in streams] for streams in coded]

    def store(self, *, whole_window: bool = False) -> MergedStore:
        """See :class:`~.stores.Plan`."""
        return MergedStore(self, whole_window=whole_window)

    def merge(self, pair: int, lower: IntegerArray, upper: IntegerArray, *, choose: bool) -> MergedRows:
        """Tokens of a pair, merged and restored.

        Args:
            pair: its index.
            lower: 16-bit integers, shape (tokens, 2c), at least one token.
            upper: the same shape.
            choose: retain some of them: these are the tokens of a prefill.
        """
        rows = (lower, upper)
        means = [self.means[layer] for layer in self.pairs[pair]]
        found = _merged(rows, means, self.arithmetic)
        retained = np.zeros(found.distance.shape, np.bool_)
        if choose:
            retained = distinct(found.distance, self.settings, axis=0)
        direction = self._through_codecs(pair, found.direction.reshape(lower.shape)).reshape(
            found.direction.shape
        )
        is_exact = np.repeat(retained, self.layers.head_dim, axis=1)
        read = [
            np.where(is_exact, row, saturate(restore(direction, magnitude).reshape(row.shape) + mean))
            for row, mean, magnitude in zip(
                rows, means, (found.first_magnitude, found.second_magnitude), strict=True
            )
        ]
        return MergedRows(read[0], read[1], retained)

    def bits_used(self, tokens: int, merged: int, retained: Sequence[float]) -> float:
        """All bits of the caches of all layers.

        Args:
            tokens: in the cache.
            merged: of them.
            retained: vectors of each pair.
        """
        alone = sum(
            bits_used(stream.codec, tokens, self.layers.kept)
            for layer in self._alone
            for stream in self.layers.layers[layer]
        )
        exact = 2 * self.layers.channels * 2 * BITS * (tokens - merged) * len(self.pairs)
        pairs = (self._pair_bits(pair, merged, count) for pair, count in enumerate(retained))
        return alone + exact + sum(pairs)

    def bits_per_element(self, shares: Sequence[float]) -> float:
        """Of a long sequence, where so many of each pair's vectors are retained."""
        streams = (stream for layer in self._alone for stream in self.layers.layers[layer])
        alone = sum(stream.codec.unit_bits for stream in streams)
        pairs = (self._pair_bits(pair, 1, share * self.vectors) for pair, share in enumerate(shares))
        return (alone + sum(pairs)) / self.elements

    @property
    def vectors(self) -> int:
        """Of a token in one layer: each head's key and value."""
        return 2 * self.layers.heads

    @property
    def elements(self) -> int:
        """Of a token in all layers."""
        return 2 * self.layers.channels * len(self.layers.layers)

    @property
    def _alone(self) -> list[int]:
        merged = {layer for pair in self.pairs for layer in pair}
        return [layer for layer in range(len(self.layers.layers)) if layer not in merged]

    def _pair_bits(self, pair: int, tokens: int, retained: float) -> float:
        coded = sum(stream.codec.unit_bits for stream in self.directions.layers[pair])
        return MergedBits(
            channels=self.layers.head_dim,
            vectors=tokens * self.vectors,
            retained=retained,
            magnitude_bits=self.arithmetic.magnitude_bits,
            direction_bits=coded / (2 * self.layers.channels),
        ).merged

    def _through_codecs(self, pair: int, directions: IntegerArray) -> npt.NDArray[np.int64]:
        """Rows ``(tokens, 2c)`` of directions, coded and decoded."""
        parts = [
            s.codec.decode(s.codec.encode(directions[:, None, s.start : s.stop]))[:, 0]
            for s in self.directions.layers[pair]
        ]
        return np.concatenate(parts, axis=1)


def check_pairs(pairs: Sequence[tuple[int, int]]) -> None:
    """Raises :class:`UsageError` unless they are of adjacent layers, each in one of them."""
    seen: set[int] = set()
    for lower, upper in pairs:
        if upper != lower + 1 or lower < 0:
            msg = f"merging takes adjacent layers, lower first, not {lower} and {upper}"
            raise UsageError(msg, given=f"{lower}, {upper}", expected=[f"{lower}, {lower + 1}"])
        if seen & {lower, upper}:
            msg = f"layer {min(seen & {lower, upper})} is in two pairs"
            raise UsageError(msg, given=f"{lower}, {upper}")
        seen |= {lower, upper}


def several_tokens(tokens: int) -> UsageError:
    """The error of a codec whose units are of so many tokens."""
    msg = f"layers are merged on codecs of single tokens, since tokens are merged one by one, not of {tokens}"
    return UsageError(msg, given=tokens, expected=["1"])


def direction_statistics(
    calibration: Calibration,
    pairs: Sequence[tuple[int, int]],
    settings: MergeSettings,
    means: IntegerArray,
) -> Calibration:
    """What codecs of the directions are fitted to: a layer a pair, found on the samples of *calibration*.

    A direction's error is multiplied by both layers' magnitudes when it is restored, so its importance is the
    sum of both layers', scaled by the mean squares of each head's magnitudes.

    Args:
        calibration: of the model's layers.
        pairs: that are merged.
        settings: interpolation.
        means: see :class:`MergePlan`.
    """
    arithmetic = settings.arithmetic(calibration.head_dim)
    samples, importances = [], []
    for pair in pairs:
        rows = [calibration.samples[layer].astype(np.int64) for layer in pair]
        found = _merged(rows, [means[layer] for layer in pair], arithmetic)
        samples.append(found.direction.reshape(rows[0].shape))
        total = np.zeros_like(calibration.importances[0])
        for layer, magnitude in zip(pair, (found.first_magnitude, found.second_magnitude), strict=True):
            root = np.sqrt(np.square(magnitude.astype(np.float64)).mean(axis=0))
            factor = np.repeat(np.ldexp(root, -DIRECTION_FRACTION), calibration.head_dim)
            total += calibration.importances[layer] * np.outer(factor, factor)
        importances.append(total)
    return Calibration(
        text=calibration.text,
        heads=calibration.heads,
        head_dim=calibration.head_dim,
        rope=calibration.rope,
        fractions=np.full((len(pairs), 2), DIRECTION_FRACTION),
        means=np.stack([rows.mean(axis=0) for rows in samples]),
        covariances=np.stack([np.cov(rows.T.astype(np.float64)) for rows in samples]),
        importances=np.stack(importances),
        samples=np.stack(samples).astype(np.int16),
    )


def _merged(
    rows: Sequence[IntegerArray], means: Sequence[IntegerArray], arithmetic: MergeArithmetic
) -> Merged:
    """Each head's vectors of rows ``(tokens, 2c)`` of two layers; arrays of shape (tokens, vectors, ...)."""
    lower, upper = (
        saturate(row.astype(np.int64) - mean).reshape(len(row), -1, arithmetic.channels)
        for row, mean in zip(rows, means, strict=True)
    )
    return merge(lower, upper, arithmetic)
