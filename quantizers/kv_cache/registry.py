"""Codecs by name: ``"kivi(bits=4, group=32)"``, ``"rotated(bits=3.25, sinks=1)"``.

A codec is written as its name, and its parameters in parentheses as TOML values. Every codec takes the
options of :class:`CacheScheme`. ``scheme.plan(calibration)`` gives the codecs of all layers of a model.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import numpy as np

from quantizers.errors import UsageError, unknown_choice
from quantizers.kv_cache.cache import Kept
from quantizers.kv_cache.calibration import Calibration
from quantizers.kv_cache.codec import Centred, Codec, Exact
from quantizers.kv_cache.fitting import FLOOR, TEMPERING, integer_means, rotations, transforms
from quantizers.kv_cache.formats_codec import InFormat, Scale
from quantizers.kv_cache.grouped import PerChannel, PerToken
from quantizers.kv_cache.outliers import SplitOutliers, Thresholds
from quantizers.kv_cache.rotated import Rotated
from quantizers.kv_cache.stores import CachePlan, Stream
from quantizers.kv_cache.transform import Transformed
from quantizers.written import describe_written, parse_written, toml_value

LayerStreams = list[Stream]


@dataclass(frozen=True, kw_only=True)
class CacheScheme:
    """A codec with its parameters, for any model; immutable.

    Attributes:
        sinks: first tokens that stay exact, in 16 bits an element.
        residual: newest tokens that stay exact until newer ones come.
        means: each channel's offline mean is subtracted before it is coded.
    """

    name: ClassVar[str]
    source: ClassVar[str]

    sinks: int = 0
    residual: int = 0
    means: bool = False

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for item in fields(self):
            _check_type(self.name, item.name, getattr(self, item.name), hints[item.name])
        self.kept  # noqa: B018 -- checks its values

    def __str__(self) -> str:
        """The bits, and what is not as by default."""
        changed = [
            f"{item.name}={toml_value(getattr(self, item.name))}"
            for item in sorted(fields(self), key=lambda f: f.name in _OPTIONS)
            if item.name == "bits" or getattr(self, item.name) != item.default
        ]
        return f"{self.name}({', '.join(changed)})" if changed else self.name

    @property
    def kept(self) -> Kept:
        """What stays exact."""
        return Kept(self.sinks, self.residual)

    def plan(self, calibration: Calibration) -> CachePlan:
        """The codecs of every layer of the model that *calibration* is of.

        Raises:
            UsageError: parameters that do not fit the model.
        """
        layers = []
        for layer, codecs in enumerate(self._codecs(calibration)):
            streams, start = [], 0
            for codec in codecs:
                stop = start + codec.channels
                if self.means:
                    codec = Centred(codec, means=integer_means(calibration, layer)[start:stop])
                streams.append(Stream(codec, start))
                start = stop
            layers.append(streams)
        return CachePlan(
            name=str(self),
            heads=calibration.heads,
            head_dim=calibration.head_dim,
            fractions=calibration.fractions,
            layers=layers,
            kept=self.kept,
            rope=calibration.rope,
        )

    def _codecs(self, calibration: Calibration) -> list[list[Codec]]:
        """For each layer the codecs of its channels, keys first."""
        raise NotImplementedError


_OPTIONS = tuple(item.name for item in fields(CacheScheme))


@dataclass(frozen=True, kw_only=True)
class Uncompressed(CacheScheme):
    """16-bit integers: the cache that others are compared with."""

    name: ClassVar[str] = "exact"
    source: ClassVar[str] = ""

    def _codecs(self, calibration: Calibration) -> list[list[Codec]]:
        exact: list[Codec] = [Exact(channels=calibration.channels), Exact(channels=calibration.channels)]
        return [exact] * calibration.layers


@dataclass(frozen=True, kw_only=True)
class Kivi(CacheScheme):
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

    def _codecs(self, calibration: Calibration) -> list[list[Codec]]:
        c = calibration.channels
        keys = PerChannel(channels=c, bits=self.bits, group=self.group)
        values = PerToken(channels=c, bits=self.bits, group=self.value_group or _divisor(c, self.group))
        return [[keys, values]] * calibration.layers


@dataclass(frozen=True, kw_only=True)
class TokenGroups(CacheScheme):
    """Keys and values per token in groups of channels.

    Args:
        bits: of a code.
        group: channels of a group.
    """

    name: ClassVar[str] = "per_token"
    source: ClassVar[str] = "arXiv 2402.02750, equation 1"

    bits: int = 4
    group: int = 64

    def _codecs(self, calibration: Calibration) -> list[list[Codec]]:
        codec = PerToken(channels=calibration.channels, bits=self.bits, group=self.group)
        return [[codec, codec]] * calibration.layers


@dataclass(frozen=True, kw_only=True)
class Formats(CacheScheme):
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

    def _codecs(self, calibration: Calibration) -> list[list[Codec]]:
        codec = InFormat(
            channels=calibration.channels, format=self.format, group=self.group, scale=self.scale
        )
        return [[codec, codec]] * calibration.layers


@dataclass(frozen=True, kw_only=True)
class Oaken(CacheScheme):
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
            thresholds=Thresholds.of(rows, outer=self.outer, inner=self.inner),
            outliers=self.outer + self.inner,
            bits=self.bits,
            outlier_bits=self.outlier_bits,
        )


@dataclass(frozen=True, kw_only=True)
class HadamardCodes(CacheScheme):
    """Each head rotated by a Hadamard matrix with random signs, its coefficients in a Lloyd-Max codebook.

    Args:
        bits: an element, scales included where *allocated*; else of each code.
        scale_bits: of a vector's scale, 5 to 16.
        seed: of the signs.
        allocated: each coefficient of each layer has its own bits and gain, found offline.
        lowest: bits that every coefficient has.
        tempering: exponent of the importances, see `quantizers.kv_cache.fitting.tempered`.
    """

    name: ClassVar[str] = "rotated"
    source: ClassVar[str] = "arXiv 2504.19874, section 3.1"

    bits: float = 4
    scale_bits: int = 8
    seed: int = 0
    allocated: bool = False
    lowest: int = 0
    tempering: float = TEMPERING
    means: bool = True

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
            tempering=self.tempering,
        )
        h = calibration.heads
        return [[Rotated(vectors[:h]), Rotated(vectors[h:])] for vectors in found]


Span = Literal["head", "side", "joint"]


@dataclass(frozen=True, kw_only=True)
class CalibratedTransform(CacheScheme):
    """Integer matrices that decorrelate what the loss sees, codes of as many bits as each coefficient needs.

    Args:
        bits: an element; there is no metadata.
        span: a matrix for each head, for all heads of keys and of values ("side"), or for both ("joint").
        entry_bits: of the matrices' entries.
        tempering: exponent of the importances, see `quantizers.kv_cache.fitting.tempered`.
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
        )
        if self.span == "joint":
            return [[Transformed(blocks)] for blocks in found]
        half = len(spans) // 2
        return [[Transformed(blocks[:half]), Transformed(blocks[half:])] for blocks in found]


_ALL: tuple[type[CacheScheme], ...] = (
    Uncompressed,
    Kivi,
    TokenGroups,
    Formats,
    Oaken,
    HadamardCodes,
    CalibratedTransform,
)
SCHEMES: dict[str, type[CacheScheme]] = {scheme.name: scheme for scheme in _ALL}
"""Every codec by name."""


def parse_cache_scheme(text: str) -> CacheScheme:
    """The codec written as ``name`` or ``name(parameter=value, ...)``.

    Raises:
        UsageError: an unknown name or parameter, or a value that it cannot take.
    """
    return parse_written(
        text, SCHEMES, what="a cache codec", kind="cache codec", choices=SCHEMES, example="bits=4"
    )


def describe_cache_scheme(kind: type[CacheScheme]) -> dict[str, Any]:
    """Name, source, what it does and the parameters with their defaults, as they are written."""
    return describe_written(kind)


def _check_type(name: str, parameter: str, value: object, wanted: Any) -> None:
    if get_origin(wanted) is Literal:
        if value not in get_args(wanted):
            raise unknown_choice(f"{parameter} of {name}", value, get_args(wanted))
        return
    is_number = wanted is float and isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number or type(value) is wanted):
        msg = f"{name}: {parameter} must be of type {wanted.__name__}, not {value!r}"
        raise UsageError(msg, given=value, expected=[wanted.__name__])


def _divisor(channels: int, group: int) -> int:
    """The largest number of channels, at most *group*, that fills them evenly."""
    return max(g for g in range(1, min(group, channels) + 1) if channels % g == 0)
