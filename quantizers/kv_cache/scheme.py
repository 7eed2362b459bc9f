"""What a codec of the cache is, before it is fitted to a model: its name, its parameters, its plan."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from typing import ClassVar, get_type_hints

from quantizers.errors import UsageError
from quantizers.kv_cache.cache import Kept
from quantizers.kv_cache.calibration import Calibration
from quantizers.kv_cache.codec import Codec
from quantizers.kv_cache.fitting import integer_means
from quantizers.kv_cache.stores import CachePlan, Plan, Stream
from quantizers.written import check_parameter, toml_value


@dataclass(frozen=True, kw_only=True)
class CacheScheme:
    """A codec with its parameters, for any model; immutable.

    Attributes:
        sinks: first tokens that stay exact, in 16 bits an element.
        residual: newest tokens that stay exact until newer ones come.
        means: each channel's offline mean is subtracted before it is coded.

    Raises:
        UsageError: a value of another type, one that is not finite, or one that the codec takes on no model.
    """

    name: ClassVar[str]
    source: ClassVar[str]

    sinks: int = 0
    residual: int = 0
    means: bool = False

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for item in fields(self):
            value = getattr(self, item.name)
            check_parameter(self.name, item.name, value, hints[item.name])
            if hints[item.name] is float:
                _check_finite(self.name, item.name, value)
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

    def check_run(self, *, layers: int, length: int, whole_window: bool = False) -> None:
        """Raise where the codec cannot be run: known before there is a calibration.

        Args:
            layers: of the model.
            length: tokens of a window.
            whole_window: see :class:`~.stores.Plan`.

        Raises:
            UsageError: parameters that fit no such model, or no such window.
        """

    def plan(self, calibration: Calibration) -> Plan:
        """What is made of the cache of the model that *calibration* is of.

        Raises:
            UsageError: parameters that do not fit the model.
        """
        raise NotImplementedError


_OPTIONS = tuple(item.name for item in fields(CacheScheme))


@dataclass(frozen=True, kw_only=True)
class LayerScheme(CacheScheme):
    """A codec that codes each layer by itself."""

    @property
    def unit(self) -> int:
        """Tokens of the largest unit."""
        return 1

    def plan(self, calibration: Calibration) -> CachePlan:
        layers = []
        for layer, codecs in enumerate(self._codecs(calibration)):
            streams, start = [], 0
            for codec in codecs:
                stop = start + codec.channels
                if self.means:
                    codec = codec.centred(integer_means(calibration, layer)[start:stop])
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


def _check_finite(name: str, parameter: str, value: float) -> None:
    # Integers that no float holds are compared exactly, and NaN is not within the bounds either.
    if not abs(value) <= sys.float_info.max:
        msg = f"{name}: {parameter} must be a finite number, not {value}"
        raise UsageError(msg, given=value, expected=["a finite number"])
