"""A design point: every choice that decides a result, as one frozen value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from costmodel import content_key
from quantizers.formats import ScalarFormat, parse_scalar_format


@dataclass(frozen=True)
class DesignPoint:
    """One combination of model, formats, quantization and datapath.

    Every field is a column of the result table. ``edge_format`` is the format of the first and the
    last layer; ``calibration_images`` and ``evaluation_images`` are counts (``None``: all there are);
    ``seed`` draws the calibration images and what is sampled from them;
    ``percentile`` is ``None`` where the activation scale does not use one; ``recipe`` is how weights are
    chosen, as :class:`quantizers.recipes.Recipe` writes it.
    """

    workload: str
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

    @property
    def weight_format(self) -> ScalarFormat:
        return parse_scalar_format(self.weights)

    @property
    def activation_format(self) -> ScalarFormat:
        return parse_scalar_format(self.activations)

    @property
    def family(self) -> str:
        """``integer``, ``minifloat``, ... or ``mixed``: what a chart colours by."""
        families = {self.weight_format.family, self.activation_format.family}
        return families.pop() if len(families) == 1 else "mixed"

    @property
    def label(self) -> str:
        """Short text for a chart: ``e2m1`` or ``e2m1/int8``."""
        return self.weights if self.weights == self.activations else f"{self.weights}/{self.activations}"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def key(self, *, tools: Mapping[str, str], data: str) -> str:
        """The point's hash: its choices, the tool versions, and the fingerprint of model and data."""
        return content_key({"design": self.as_dict(), "tools": dict(tools), "data": data})
