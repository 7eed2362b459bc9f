"""A design point: every choice that decides a result, as one frozen value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from costmodel import content_key
from quantizers.formats import BlockFormat, Format, parse_format


def formats_label(
    weights: str,
    activations: str,
    group: int | None = None,
    tokens: bool = False,
    residuals: str | None = None,
) -> str:
    """Short text for a chart: ``e2m1``, ``e2m1/int8``, ``int4g32/int8t`` in groups and by tokens.

    Where residual additions are quantized too: ``int4 (adds int8)``.
    """
    weights = weights if group is None else f"{weights}g{group}"
    activations = f"{activations}t" if tokens else activations
    pair = weights if weights == activations else f"{weights}/{activations}"
    return pair if residuals is None else f"{pair} (adds {residuals})"


def setting_text(value: Any) -> str:
    """A value as ``--set`` takes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class Design:
    """What a result is of.

    Attributes:
        workload: what is computed; fronts are drawn for each.
    """

    workload: str

    @property
    def family(self) -> str:
        """What a chart colours by."""
        raise NotImplementedError

    @property
    def label(self) -> str:
        """Short text for a chart."""
        raise NotImplementedError

    @classmethod
    def names_of_choices(cls) -> list[frozenset[str]]:
        """The names that :meth:`as_dict` can have."""
        return [frozenset(field.name for field in fields(cls))]

    def as_dict(self) -> dict[str, Any]:
        """Every choice, by name."""
        return asdict(self)

    def as_row(self) -> dict[str, Any]:
        """Its columns in the table of results: every choice, its family and its label."""
        return {**self.as_dict(), "family": self.family, "label": self.label}

    def key(self, *, tools: Mapping[str, str], data: str) -> str:
        """The hash of its choices, the tool versions, and the fingerprint of model and data."""
        return content_key({"design": self.as_dict(), "tools": dict(tools), "data": data})


@dataclass(frozen=True, kw_only=True)
class HardwarePoint(Design):
    """One hardware block with everything that can be set of it.

    Attributes:
        weights, activations: names of formats; ``None``, and no choice, where the block takes none.
        design: the name of the alternative that it belongs to.
        variant: those of its parameters that the study varies, such as ``lanes=8``.
        parameters: all of them, as JSON.
    """

    weights: str | None = None
    activations: str | None = None
    design: str
    variant: str
    block: str
    parameters: str
    part: str

    @property
    def formats(self) -> dict[str, str]:
        """The names of its formats, by role; empty where it takes none."""
        names = {"weights": self.weights, "activations": self.activations}
        return {role: name for role, name in names.items() if name is not None}

    @property
    def family(self) -> str:
        return self.design

    @property
    def label(self) -> str:
        """Formats and what is varied; of a block without either its name."""
        parts = [self.variant] if self.variant else []
        if self.weights is not None and self.activations is not None:
            parts.insert(0, formats_label(self.weights, self.activations))
        return " ".join(parts) or self.block

    @classmethod
    def names_of_choices(cls) -> list[frozenset[str]]:
        """With and without formats."""
        (names,) = super().names_of_choices()
        return [names, names - {"weights", "activations"}]

    def as_dict(self) -> dict[str, Any]:
        """Every choice that there is, by name."""
        choices = super().as_dict()
        return {name: choice for name, choice in choices.items() if choice is not None}


@dataclass(frozen=True)
class DesignPoint(Design):
    """One combination of model, formats, quantization and datapath.

    Every field is a column of the result table. ``weights`` and ``activations`` are names of formats,
    ``edge_format`` is the format of the first and the
    last layer; ``calibration_images`` and ``evaluation_images`` are counts (``None``: all there are);
    ``seed`` draws the calibration images and what is sampled from them;
    ``percentile`` is ``None`` where the activation scale does not use one; ``weight_group`` counts the
    features that share a weight scale (``None``: all of an output channel); ``recipe`` is how weights are
    chosen, as :class:`quantizers.recipes.Recipe` writes it; ``residual_format`` is the format in which two
    activations are added (``None``: float).
    """

    weights: str
    activations: str
    edge_format: str
    integer_weights: str
    weight_scale: str
    activation_scale: str
    percentile: float | None
    bias: str
    unsigned_activations: bool
    recipe: str
    calibration_images: int | None
    evaluation_images: int | None
    block: str
    dot_length: int
    part: str
    seed: int
    weight_group: int | None = None
    activation_granularity: str = "tensor"
    residual_format: str | None = None

    @property
    def weight_format(self) -> Format:
        return parse_format(self.weights)

    @property
    def activation_format(self) -> Format:
        return parse_format(self.activations)

    @property
    def has_integer_sums(self) -> bool:
        """Whether a datapath that multiplies and accumulates integers computes the inner layers: not where
        a sum has several scales."""
        formats = (self.weight_format, self.activation_format)
        return self.weight_group is None and not any(isinstance(fmt, BlockFormat) for fmt in formats)

    @property
    def family(self) -> str:
        """``integer``, ``minifloat``, ... or ``mixed``."""
        families = {self.weight_format.family, self.activation_format.family}
        return families.pop() if len(families) == 1 else "mixed"

    @property
    def label(self) -> str:
        """Its formats as :func:`formats_label` writes them."""
        return formats_label(
            self.weights,
            self.activations,
            self.weight_group,
            self.activation_granularity == "token",
            self.residual_format,
        )


@dataclass(frozen=True)
class CachePoint(Design):
    """A codec of a language model's cache of keys and values.

    Attributes:
        design: the name of the alternative that it belongs to.
        codec: with its parameters, as :func:`quantizers.kv_cache.registry.parse_cache_scheme` takes it.
        evaluation: ``streaming``, where each query sees what the hardware would hold, or ``window``, where it
            sees all tokens coded.
        windows: of the text, each a sequence of its own.
        length: tokens of a window.
        skip: windows of the text before the measured ones.
        calibration_windows: from which means, scales and matrices are made.
        rope: keys are coded after they have been rotated by their position.
        part: FPGA part of the engine that is costed.
    """

    design: str
    codec: str
    evaluation: str
    windows: int
    length: int
    skip: int
    calibration_windows: int
    rope: bool
    part: str

    @property
    def family(self) -> str:
        return self.design

    @property
    def label(self) -> str:
        return self.codec
