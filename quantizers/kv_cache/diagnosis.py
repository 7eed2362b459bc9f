"""What keys and values look like before any codec runs, and which codecs that leaves a chance.

Five properties decide: the angle between adjacent layers (merging), the mean of each channel (removing it),
the largest elements of a vector (rotation), the spread of each channel (a scale for each), and how far the
first token stands apart (keeping it exactly). Keys are best given before RoPE, where a channel has a mean.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from quantizers.errors import UsageError
from quantizers.kv_cache.fixed_point import fraction_bits, to_integers
from quantizers.kv_cache.merge_arithmetic import angle_distance
from quantizers.kv_cache.merging import MergeSettings
from quantizers.kv_cache.uniform import dequantize, quantize

FloatArray = npt.NDArray[np.floating[Any]]

GROUP = 32
"""Elements of a group of the codec that merging is compared with: KIVI, arXiv 2402.02750."""

USUAL_BITS = 4

WORTH_BITS = 0.1
"""A gain that is less is not worth a step of its own: a twentieth of the step from 4 to 2 bits."""


@dataclass(frozen=True, kw_only=True)
class PairDiagnosis:
    """Two adjacent layers, keys or values.

    Attributes:
        lower: index of the lower layer.
        mean_angle: between the vectors of a token and a head, in units of pi; 0.5 is orthogonal.
        small_angles: fraction of the vectors below 0.25 pi.
        merge_error: root mean square error of the merged and restored vectors of both layers, as a fraction
            of the root mean square of the vectors; nothing retained.
    """

    lower: int
    mean_angle: float
    small_angles: float
    merge_error: float


@dataclass(frozen=True, kw_only=True)
class LayerDiagnosis:
    """Keys or values of one layer.

    Attributes:
        layer: its index.
        mean_energy: fraction of the mean square that the channels' means are.
        crest: median over vectors, their channels' means removed, of the largest magnitude over the root mean
            square of the vector.
        channel_spread: largest root mean square of a channel, its mean removed, over the median one.
        channel_gain: half the binary logarithm of the channels' mean variance over their geometric mean one:
            bits an element that a scale for each channel saves (N. Jayant and P. Noll, "Digital Coding of
            Waveforms", 1984, the gain of transform coding).
        first_token: root mean square difference of the first token's vectors from the channels' means, over
            that of the others.
        usual_error: root mean square error of 4-bit groups of 32 elements along the channels, relative.
        half_error: of 2-bit ones.
    """

    layer: int
    mean_energy: float
    crest: float
    channel_spread: float
    channel_gain: float
    first_token: float
    usual_error: float
    half_error: float


@dataclass(frozen=True, kw_only=True)
class TensorDiagnosis:
    """Keys, or values, of all layers.

    Attributes:
        kind: "keys" or "values".
        head_dim: channels of a head.
        layers: one for each.
        pairs: of adjacent layers, one for each but the last.
        merged: the lower layers of the pairs that merging would take: the upper half of the layers.
    """

    kind: str
    head_dim: int
    layers: tuple[LayerDiagnosis, ...]
    pairs: tuple[PairDiagnosis, ...]
    merged: tuple[int, ...]

    @property
    def mean_angle(self) -> float:
        """Of the pairs that merging would take, in units of pi."""
        return float(np.mean([self.pairs[lower].mean_angle for lower in self.merged]))

    @property
    def merge_error(self) -> float:
        """Of these pairs, root mean square."""
        return _rms([self.pairs[lower].merge_error for lower in self.merged])

    @property
    def half_error(self) -> float:
        """Of their layers coded with half the usual bits, root mean square."""
        return _rms([self.layers[lower + upper].half_error for lower in self.merged for upper in (0, 1)])

    @property
    def merging_pays(self) -> bool:
        """Whether merging two layers costs less than coding both with half the bits."""
        return self.merge_error < self.half_error

    @property
    def mean_gain_bits(self) -> float:
        """What removing the channels' means saves: half the binary logarithm of the energy ratio."""
        return float(np.mean([-0.5 * math.log2(max(1 - layer.mean_energy, 1e-12)) for layer in self.layers]))

    @property
    def rotation_gain_bits(self) -> float:
        """What a rotation to normally distributed elements saves, means removed."""
        crest = float(np.mean([math.log2(max(layer.crest, 1e-12)) for layer in self.layers]))
        return crest - math.log2(normal_crest(self.head_dim))

    @property
    def channel_spread(self) -> float:
        """Median over the layers."""
        return float(np.median([layer.channel_spread for layer in self.layers]))

    @property
    def channel_gain_bits(self) -> float:
        """What a scale for each channel saves."""
        return float(np.mean([layer.channel_gain for layer in self.layers]))

    @property
    def first_token(self) -> float:
        """Median over the layers."""
        return float(np.median([layer.first_token for layer in self.layers]))

    def as_json(self) -> dict[str, Any]:
        """All figures."""
        figures = ("mean_angle", "merge_error", "half_error", "merging_pays", "mean_gain_bits")
        more = ("rotation_gain_bits", "channel_spread", "channel_gain_bits", "first_token")
        return {**asdict(self), **{name: getattr(self, name) for name in figures + more}}

    def verdict(self) -> list[str]:
        """What the figures say about each kind of codec, a line each."""
        pays = "can pay" if self.merging_pays else "cannot pay"
        comparison = "less" if self.merging_pays else "more"
        return [
            f"{self.kind}: merging adjacent layers {pays}: they are {self.mean_angle:.3f} pi apart, so that "
            f"merged vectors are off by {self.merge_error:.1%}, {comparison} than the {self.half_error:.1%} "
            f"of {USUAL_BITS // 2}-bit codes, which save as much",
            f"{self.kind}: removing each channel's mean {_worth(self.mean_gain_bits)}",
            f"{self.kind}: a rotation {_worth(self.rotation_gain_bits)} (the means being removed)",
            f"{self.kind}: a scale for each channel {_worth(self.channel_gain_bits)} (the strongest channel "
            f"has {self.channel_spread:.1f} times the spread of the median one)",
            f"{self.kind}: the first token is {self.first_token:.1f} times as far from the channels' means "
            f"as others: {_sink(self.first_token)}",
        ]


def diagnose(tensors: FloatArray, *, kind: str, settings: MergeSettings | None = None) -> TensorDiagnosis:
    """Measures keys or values of one or more sequences.

    Args:
        tensors: shape (layers, sequences, heads, tokens, channels), finite; at least two layers and two
            tokens, and channels a multiple of 32 or at most 32.
        kind: "keys" or "values".
        settings: of the merging.

    Raises:
        UsageError: another shape, or a number that is not finite.
    """
    _check(tensors)
    how = MergeSettings() if settings is None else settings
    layers = tuple(_layer(index, tensor) for index, tensor in enumerate(tensors))
    pairs = tuple(
        _pair(lower, tensors[lower], tensors[lower + 1], how.upper_weight)
        for lower in range(len(tensors) - 1)
    )
    start = min(len(tensors) // 2, len(tensors) - 2)
    merged = tuple(range(start, len(tensors) - 1, 2))
    return TensorDiagnosis(kind=kind, head_dim=tensors.shape[-1], layers=layers, pairs=pairs, merged=merged)


def normal_crest(channels: int) -> float:
    """Median of the largest of so many magnitudes, all normally distributed with variance 1."""
    return NormalDist().inv_cdf((1 + 0.5 ** (1 / channels)) / 2)


def _layer(index: int, x: FloatArray) -> LayerDiagnosis:
    mean = x.mean(axis=(0, 2), keepdims=True)
    centred = x - mean
    square = float((x.astype(np.float64) ** 2).mean())
    norms = np.sqrt((centred**2).mean(axis=-1))
    crest = np.abs(centred).max(axis=-1) / np.where(norms == 0, 1, norms)
    spread = np.sqrt((centred**2).mean(axis=(0, 2)))
    errors = [_code_error(x, bits) for bits in (USUAL_BITS, USUAL_BITS // 2)]
    return LayerDiagnosis(
        layer=index,
        mean_energy=float((mean.astype(np.float64) ** 2).mean()) / square if square else 0.0,
        crest=float(np.median(crest)),
        channel_spread=_over(float(spread.max()), float(np.median(spread))),
        channel_gain=_coding_gain(spread),
        first_token=_over(_root_mean(norms[:, :, :1]), _root_mean(norms[:, :, 1:])),
        usual_error=errors[0],
        half_error=errors[1],
    )


def _pair(lower: int, x: FloatArray, y: FloatArray, upper_weight: float) -> PairDiagnosis:
    angles = angle_distance(x, y) * math.pi
    energies = [(v.astype(np.float64) ** 2).sum(axis=-1) for v in (x, y)]
    # The direction lies on the great circle between both: so far from each, and magnitudes are kept.
    parts = (upper_weight * angles, (1 - upper_weight) * angles)
    lost = sum(
        float((energy * (2 * np.sin(part / 2)) ** 2).sum())
        for energy, part in zip(energies, parts, strict=True)
    )
    total = float(sum(energy.sum() for energy in energies))
    return PairDiagnosis(
        lower=lower,
        mean_angle=float(angles.mean()) / math.pi,
        small_angles=float((angles < math.pi / 4).mean()),
        merge_error=math.sqrt(lost / total) if total else 0.0,
    )


def _code_error(x: FloatArray, bits: int) -> float:
    """Relative root mean square error of groups along the channels, in the codec's own integers."""
    integers = to_integers(x, fraction_bits(float(np.abs(x).max())))
    groups = integers.reshape(-1, min(GROUP, x.shape[-1]))
    difference = dequantize(quantize(groups, bits), bits).astype(np.float64) - groups
    return _over(math.sqrt(float((difference**2).mean())), _root_mean(groups))


def _coding_gain(spread: npt.NDArray[Any]) -> float:
    """Channels that never change need no bits, and are left out."""
    variance = spread[spread > 0].astype(np.float64) ** 2
    return 0.5 * float(np.log2(variance.mean()) - np.log2(variance).mean()) if variance.size else 0.0


def _root_mean(x: npt.NDArray[Any]) -> float:
    return math.sqrt(float((x.astype(np.float64) ** 2).mean()))


def _rms(values: list[float]) -> float:
    return _root_mean(np.array(values))


def _over(a: float, b: float) -> float:
    """A ratio; 1 where both are nothing."""
    return a / b if b else (1.0 if a == 0 else math.inf)


def _worth(bits: float) -> str:
    if bits < WORTH_BITS:
        return f"saves too little to pay ({bits:.2f} bits an element)"
    return f"saves about {bits:.2f} bits an element at equal error"


def _sink(ratio: float) -> str:
    if ratio > 2:
        return "it widens whatever range it shares with others; keep it exactly"
    if ratio < 0.5:
        return "it is small, and a relative error of its own group suffices"
    return "nothing to single out"


def _check(tensors: FloatArray) -> None:
    wanted = "(layers >= 2, sequences, heads, tokens >= 2, channels)"
    if tensors.ndim != 5 or tensors.shape[0] < 2 or tensors.shape[3] < 2:
        msg = f"tensors must be of shape {wanted}, not {tensors.shape}"
        raise UsageError(msg, given=tensors.shape, expected=[wanted])
    channels = tensors.shape[-1]
    if channels > GROUP and channels % GROUP:
        msg = f"heads must have at most {GROUP} channels or a multiple of it, not {channels}"
        raise UsageError(msg, given=channels, expected=[str(channels // GROUP * GROUP)])
    if not np.isfinite(tensors).all():
        msg = "keys and values must be finite numbers"
        raise UsageError(msg, given="NaN or infinity")
