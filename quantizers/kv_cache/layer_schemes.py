"""The codecs that code each layer by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from quantizers.kv_cache.calibration import Calibration
from quantizers.kv_cache.codec import Codec, Exact
from quantizers.kv_cache.fitting import FLOOR, TEMPERING, integer_means, rotations, transforms
from quantizers.kv_cache.formats_codec import InFormat, Scale
from quantizers.kv_cache.grouped import PerChannel, PerToken
from quantizers.kv_cache.integers import check_range
from quantizers.kv_cache.limits import check_rotations, check_transforms
from quantizers.kv_cache.outliers import SplitOutliers, Thresholds
from quantizers.kv_cache.packing import WORD_BITS
from quantizers.kv_cache.rotated import Rotated
from quantizers.kv_cache.scheme import LayerScheme
from quantizers.kv_cache.transform import Transformed
from quantizers.kv_cache.uniform import MAX_BITS, MIN_BITS

_MAX_GROUP = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Uncompressed(LayerScheme):
    """16-bit integers: the cache that others are compared with."""

    name: ClassVar[str] = "exact"
    source: ClassVar[str] = ""

    def _codecs(self, calibration: Calibration) -> list[list[Codec]]:
        exact: list[Codec] = [Exact(channels=calibration.channels), Exact(channels=calibration.channels)]
        return [exact] * calibration.layers


@dataclass(frozen=True, kw_only=True)
class Kivi(LayerScheme):
    """Keys per channel in groups of tokens, values per token in groups of channels.

    Args:
        bits: of a code of keys and values.
        group: tokens of a group of keys.
        value_group: channels of a group of values; 0: of all heads together, at most *group*.
    """

    name: ClassVar[str] = "kivi"
    source: ClassVar[str] = "arXiv 2402.02750"

    bits: int = 4
    group: int = 32
    value_group: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("bits", self.bits, MIN_BITS, MAX_BITS)
        check_range("group", self.group, 1, _MAX_GROUP)
        check_range("value_group", self.value_group, 0, _MAX_GROUP)

    @property
    def unit(self) -> int:
        return self.group

    def _codecs(self, calibration: Calibration) -> list[list[Codec]]:
        c = calibration.channels
        keys = PerChannel(channels=c, bits=self.bits, group=self.group)
        values = PerToken(channels=c, bits=self.bits, group=self.value_group or _divisor(c, self.group))
        return [[keys, values]] * calibration.layers


@dataclass(frozen=True, kw_only=True)
class TokenGroups(LayerScheme):
    """Keys and values per token in groups of channels.

    Args:
        bits: of a code.
        group: channels of a group.
    """

    name: ClassVar[str] = "per_token"
    source: ClassVar[str] = "arXiv 2402.02750, equation 1"

    bits: int = 4
    group: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("bits", self.bits, MIN_BITS, MAX_BITS)
        check_range("group", self.group, 1, _MAX_GROUP)

    def _codecs(self, calibration: Calibration) -> list[list[Codec]]:
        codec = PerToken(channels=calibration.channels, bits=self.bits, group=self.group)
        return [[codec, codec]] * calibration.layers


@dataclass(frozen=True, kw_only=True)
class Formats(LayerScheme):
    """Keys and values per token in groups of channels in a number format with a scale.

    Args:
        format: name, such as "e2m1", "int4" or "mxfp4".
        group: channels of a group.
        scale: "half" (IEEE half precision) or "power" (of two, 8 bits); MX formats have their own.
    """

    name: ClassVar[str] = "format"
    source: ClassVar[str] = "OCP MX v1.0; arXiv 2311.12359"

    format: str = "e2m1"
    group: int = 32
    scale: Scale = "half"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._codec(self.group)  # which checks its values

    def _codecs(self, calibration: Calibration) -> list[list[Codec]]:
        codec = self._codec(calibration.channels)
        return [[codec, codec]] * calibration.layers

    def _codec(self, channels: int) -> Codec:
        return InFormat(channels=channels, format=self.format, group=self.group, scale=self.scale)


@dataclass(frozen=True, kw_only=True)
class Oaken(LayerScheme):
    """Outliers on both sides split off by offline thresholds.

    Args:
        bits: of a code of the middle.
        outlier_bits: of a code of an outlier.
        outer: fraction of the largest and smallest elements on the calibration text.
        inner: fraction of the elements around the median.
    """

    name: ClassVar[str] = "oaken"
    source: ClassVar[str] = "arXiv 2503.18599"

    bits: int = 4
    outlier_bits: int = 5
    outer: float = 0.04
    inner: float = 0.06

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("bits", self.bits, MIN_BITS, MAX_BITS)
        check_range("outlier_bits", self.outlier_bits, self.bits, MAX_BITS)
        self._thresholds(np.zeros(1, np.int64))  # which checks the fractions

    def _codecs(self, calibration: Calibration) -> list[list[Codec]]:
        layers: list[list[Codec]] = []
        for layer, rows in enumerate(calibration.samples):
            shift = integer_means(calibration, layer) if self.means else 0
            sides = np.split(rows - shift, 2, axis=1)
            layers.append([self._split(side) for side in sides])
        return layers

    def _split(self, rows: Any) -> Codec:
        return SplitOutliers(
            channels=rows.shape[1],
            thresholds=self._thresholds(rows),
            outliers=self.outer + self.inner,
            bits=self.bits,
            outlier_bits=self.outlier_bits,
        )

    def _thresholds(self, rows: Any) -> Thresholds:
        return Thresholds.of(rows, outer=self.outer, inner=self.inner)


@dataclass(frozen=True, kw_only=True)
class HadamardCodes(LayerScheme):
    """Each head rotated by a Hadamard matrix with random signs, its coefficients in a Lloyd-Max codebook.

    Args:
        bits: an element, scales included where *allocated*; else of each code, 1 to 6.
        scale_bits: of a vector's scale, 5 to 16.
        seed: of the signs, below 2**32.
        allocated: each coefficient of each layer has its own bits, found offline; the codes of a token's
            keys, and of its values, then fill whole words of 32 bits.
        lowest, highest: bits that every coefficient has, and that none has more of; at most 6.
        tempering: exponent of the importances, 0 to 1, see `quantizers.kv_cache.fitting.tempered`.
    """

    name: ClassVar[str] = "rotated"
    source: ClassVar[str] = "arXiv 2504.19874, section 3.1"

    bits: float = 4
    scale_bits: int = 8
    seed: int = 0
    allocated: bool = False
    lowest: int = 0
    highest: int = 5
    tempering: float = TEMPERING
    means: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rotations(
            bits=self.bits,
            scale_bits=self.scale_bits,
            seed=self.seed,
            allocated=self.allocated,
            lowest=self.lowest,
            highest=self.highest,
            tempering=self.tempering,
        )

    def _codecs(self, calibration: Calibration) -> list[list[Codec]]:
        d = calibration.head_dim
        spans = [slice(n * d, (n + 1) * d) for n in range(2 * calibration.heads)]
        found = rotations(
            calibration,
            spans,
            bits=self.bits,
            scale_bits=self.scale_bits,
            seed=self.seed,
            allocated=self.allocated,
            lowest=self.lowest,
            highest=self.highest,
            records=2,
            word_bits=WORD_BITS,
            tempering=self.tempering,
        )
        h = calibration.heads
        return [[Rotated(vectors[:h]), Rotated(vectors[h:])] for vectors in found]


Span = Literal["head", "side", "joint"]


@dataclass(frozen=True, kw_only=True)
class CalibratedTransform(LayerScheme):
    """Integer matrices that decorrelate what the loss sees, codes of as many bits as each coefficient needs.

    Args:
        bits: an element, at most 8; there is no metadata. What a token stores, together or of keys and of
            values, fills whole words of 32 bits.
        span: a matrix for each head, for all heads of keys and of values ("side"), or for both ("joint").
        entry_bits: of the matrices' entries, 4 to 12.
        tempering: exponent of the importances, 0 to 1, see `quantizers.kv_cache.fitting.tempered`.
        floor: of the mean error, added to each coefficient's: what other text may bring.
    """

    name: ClassVar[str] = "transform"
    source: ClassVar[str] = "Karhunen-Loeve transform in the metric of the Fisher information"

    bits: float = 3.25
    span: Span = "head"
    entry_bits: int = 8
    tempering: float = TEMPERING
    floor: float = FLOOR
    means: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_transforms(
            bits=self.bits, entry_bits=self.entry_bits, tempering=self.tempering, floor=self.floor
        )

    def _codecs(self, calibration: Calibration) -> list[list[Codec]]:
        c = calibration.channels
        size = {"head": calibration.head_dim, "side": c, "joint": 2 * c}[self.span]
        spans = [slice(start, start + size) for start in range(0, 2 * c, size)]
        found = transforms(
            calibration,
            spans,
            bits=self.bits,
            entry_bits=self.entry_bits,
            tempering=self.tempering,
            floor=self.floor,
            records=1 if self.span == "joint" else 2,
            word_bits=WORD_BITS,
        )
        if self.span == "joint":
            return [[Transformed(blocks)] for blocks in found]
        half = len(spans) // 2
        return [[Transformed(blocks[:half]), Transformed(blocks[half:])] for blocks in found]


_ALL: tuple[type[LayerScheme], ...] = (
    Uncompressed,
    Kivi,
    TokenGroups,
    Formats,
    Oaken,
    HadamardCodes,
    CalibratedTransform,
)
LAYER_SCHEMES: dict[str, type[LayerScheme]] = {scheme.name: scheme for scheme in _ALL}
"""Every codec of this module by name."""


def _divisor(channels: int, group: int) -> int:
    """The largest number of channels, at most *group*, that fills them evenly."""
    return max(g for g in range(1, min(group, channels) + 1) if channels % g == 0)
