"""Which layers are merged, which tokens are not, and how many bits that takes.

A. Liu et al., "MiniCache: KV Cache Compression in Depth Dimension", arXiv 2405.14366. Of a pair of adjacent
layers each token's two vectors become one direction and two magnitudes
(`quantizers.kv_cache.merge_arithmetic`); tokens whose vectors differ too much keep both as they are.

**Two contradictions of the paper**, both sides of which are here. *Retention*: its equation 4 as printed,
``d < d_min + gamma (d_max - d_min)``, retains the most similar tokens, its text the distinct ones; on tokens
of which a few differ the printed rule retains half of the others and merges those few. ``prose`` is the
default.
*Interpolation*: its algorithm 2 swaps t and 1-t against equation 3; ``eq3`` is the default, where the upper
layer has weight t.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from quantizers.errors import UsageError, unknown_choice
from quantizers.kv_cache.fixed_point import BITS
from quantizers.kv_cache.integers import check_range
from quantizers.kv_cache.merge_arithmetic import MergeArithmetic, check_interpolation

Retention = Literal["prose", "printed"]
Convention = Literal["eq3", "alg2"]

GAMMA_BITS = 16
"""Fraction bits of gamma where distances are integers."""

INDEX_BITS = 16
"""Of a retained token's number."""


@dataclass(frozen=True, kw_only=True)
class MergeSettings:
    """How layers are merged.

    Attributes:
        t: interpolation, of which :attr:`upper_weight` follows.
        convention: ``eq3``, t is the weight of the upper layer, or ``alg2``, of the lower one.
        retention: ``prose``, the distinct tokens are retained, or ``printed``, the most similar ones.
        gamma: fraction of the range of distances, 0 to 1.

    Raises:
        UsageError: a value out of range, or an unknown rule.
    """

    t: float = 0.6
    convention: Convention = "eq3"
    retention: Retention = "prose"
    gamma: float = 0.05

    def __post_init__(self) -> None:
        check_interpolation(self.t)
        for kind, given, choices in (
            ("convention", self.convention, get_args(Convention)),
            ("retention", self.retention, get_args(Retention)),
        ):
            if given not in choices:
                raise unknown_choice(kind, given, choices)
        if not 0 <= self.gamma <= 1:
            msg = f"gamma must be from 0 to 1, not {self.gamma!r}"
            raise UsageError(msg, given=self.gamma, expected=["0..1"])

    @property
    def upper_weight(self) -> float:
        """t of the upper layer in equation 3."""
        return self.t if self.convention == "eq3" else 1 - self.t

    @property
    def gamma_code(self) -> int:
        """Gamma as the hardware has it: an integer of 2**-16."""
        return round(self.gamma * (1 << GAMMA_BITS))

    def arithmetic(self, channels: int) -> MergeArithmetic:
        """For vectors of a lower layer, x, and of an upper one, y."""
        return MergeArithmetic(channels=channels, t=self.upper_weight)


def layer_pairs(layers: int, *, start: int | None = None, stop: int | None = None) -> list[tuple[int, int]]:
    """The pairs ``(start, start + 1), (start + 2, start + 3), ...`` below *stop*.

    A last layer without a partner stays as it is: 30 layers from 15 on are 7 pairs, and layer 29.

    Args:
        layers: of the model.
        start: first layer that is merged; by default ``layers // 2``, as in the paper.
        stop: first layer that is not merged any more; by default *layers*.

    Raises:
        UsageError: the range is not one of the model, or has no pair.
    """
    check_range("layers", layers, 1, 1 << 16)
    first = layers // 2 if start is None else start
    end = layers if stop is None else stop
    if not 0 <= first <= end <= layers:
        msg = f"layers {first} to {end - 1} are no range of layers 0 to {layers - 1}"
        raise UsageError(msg, given=f"{first}, {end}", expected=[f"0 <= start <= stop <= {layers}"])
    pairs = [(lower, lower + 1) for lower in range(first, end - 1, 2)]
    if not pairs:
        msg = f"merging takes pairs of layers; from layer {first} to below {end} there is none"
        raise UsageError(msg, given=f"{first}, {end}", expected=[f"stop >= {first + 2}"])
    return pairs


def distinct(distances: npt.ArrayLike, settings: MergeSettings, *, axis: int = -1) -> npt.NDArray[np.bool_]:
    """Which tokens are retained: those beyond gamma of the range of distances on *axis*.

    Of integers exactly: ``prose`` retains where ``(d_max - d) * 2**16 < gamma_code * (d_max - d_min)``,
    ``printed`` where ``d - d_min`` is so small. Where all distances are equal none is retained.

    Args:
        distances: integers, or floats; tokens along *axis*, at least one.
        settings: rule and gamma.
        axis: of the tokens of the prefill.
    """
    d = np.asarray(distances)
    is_integer = d.dtype.kind in "iu"
    d = d.astype(np.int64) if is_integer else d
    low, high = d.min(axis=axis, keepdims=True), d.max(axis=axis, keepdims=True)
    gap = high - d if settings.retention == "prose" else d - low
    if is_integer:
        return np.asarray(gap << GAMMA_BITS < settings.gamma_code * (high - low))
    return np.asarray(gap < settings.gamma * (high - low))


@dataclass(frozen=True, kw_only=True)
class MergedBits:
    """What the vectors of two layers take in memory, of one head or of many, of keys, values or both.

    Every token has a direction and two magnitudes, retained ones too, so that a token's place follows from
    its number; retained tokens have both vectors in 16 bits an element, and their number, beside.

    Attributes:
        channels: elements of a vector.
        vectors: tokens times heads.
        retained: of those vectors, how many are retained; on average, where it is not a whole number.
        magnitude_bits: of a magnitude.
        index_bits: of a retained token's number.
        direction_bits: of an element of a direction, metadata of the codec that is on top included.
    """

    channels: int
    vectors: int
    retained: float
    magnitude_bits: int
    index_bits: int = INDEX_BITS
    direction_bits: float = BITS

    @property
    def exact(self) -> int:
        """Bits of both layers' vectors without merging."""
        return 2 * BITS * self.channels * self.vectors

    @property
    def merged(self) -> float:
        """Bits of directions, magnitudes, retained rows and their numbers."""
        vector = self.channels * self.direction_bits + 2 * self.magnitude_bits
        row = 2 * BITS * self.channels + self.index_bits
        return self.vectors * vector + self.retained * row

    @property
    def ratio(self) -> float:
        """Exact bits for each merged one."""
        return self.exact / self.merged
