"""At which accumulator width a quantized network starts to lose accuracy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dse.accuracy import answers, calibration_batches
from dse.metrics import Figure
from dse.ranges import bit_range
from dse.statistics import accuracy_figure, paired_drop
from dse.workloads import load_workload
from quantizers.accumulator import check_accumulator, safe_accumulator_bits, with_accumulator
from quantizers.formats import parse_scalar_format
from quantizers.prepare import prepare
from quantizers.quantize import QuantizationSettings
from quantizers.recipes import Recipe, quantize_by, rewritten

# Narrower accumulators than the one that loses so many points have nothing left to show.
_LOST_POINTS = 20.0
_NARROWEST, _WIDEST = 2, 64


@dataclass(frozen=True)
class WidthResult:
    """A network on accumulators of one width.

    Attributes:
        bits: signed width.
        overflowing_layers: how many layers some input can make overflow.
        accuracy: on the evaluation images.
        drop_points: lost against accumulators that never overflow, on the same images.
    """

    bits: int
    overflowing_layers: int
    accuracy: Figure
    drop_points: Figure

    def as_json(self) -> dict[str, Any]:
        return {
            "accumulator_bits": self.bits,
            "overflowing_layers": self.overflowing_layers,
            "accuracy": self.accuracy.as_json(),
            "accuracy_drop_points": self.drop_points.as_json(),
        }


@dataclass(frozen=True)
class AccumulatorResult:
    """What accumulators of falling width make of a quantized network.

    Attributes:
        design: workload, formats, recipe, overflow and image counts.
        safe_bits: per layer, the narrowest width that no input can overflow.
        accuracy: with accumulators that never overflow.
        widths: widest first.
        not_run_bits: narrower widths that were left out, because more than 20 points were lost before.
    """

    design: dict[str, Any]
    safe_bits: dict[str, int]
    accuracy: Figure
    widths: list[WidthResult]
    not_run_bits: list[int]

    @property
    def falls_at_bits(self) -> int | None:
        """The widest accumulator whose loss is beyond chance: the 95 % interval lies above 0."""
        falling = [w.bits for w in self.widths if w.drop_points.interval and w.drop_points.interval[0] > 0]
        return max(falling, default=None)

    def as_json(self) -> dict[str, Any]:
        """The document of ``dse accumulator --json``."""
        return {
            "design": self.design,
            "safe_bits": max(self.safe_bits.values()),
            "safe_bits_of_layers": self.safe_bits,
            "accuracy": self.accuracy.as_json(),
            "falls_at_bits": self.falls_at_bits,
            "widths": [width.as_json() for width in self.widths],
            "not_run_bits": self.not_run_bits,
        }


def accuracy_by_width(
    workload: str,
    weights: str,
    activations: str,
    *,
    recipe: str = "round",
    overflow: str = "wrap",
    bits: str | None = None,
    data: Path | None = None,
    evaluation_images: int | None = None,
    progress: Callable[[Iterable[int], int], Iterable[int]] | None = None,
) -> AccumulatorResult:
    """Quantize a workload, then run it on accumulators of every width of *bits*, widest first.

    Args:
        weights, activations: formats.
        recipe: see :mod:`quantizers.recipes`.
        overflow: see :func:`quantizers.accumulator.with_accumulator`.
        bits: widths within 2-64 as ``16`` or ``10-20``; by default from one bit less than is always safe
            downwards. Stops where more than 20 points are lost.
        evaluation_images: all if not given.

    Raises:
        UsageError: a format, recipe, workload, width or overflow that is none, before anything is run.
    """
    settings = QuantizationSettings(parse_scalar_format(weights), parse_scalar_format(activations))
    steps = Recipe.parse(recipe)
    on_overflow = check_accumulator(None, overflow)
    wanted = None if bits is None else bit_range(bits, _NARROWEST, _WIDEST)
    loaded = load_workload(workload, data=data, evaluation_images=evaluation_images)
    prepared = rewritten(prepare(loaded.model, calibration_batches(loaded.calibration)), steps)
    quantized = quantize_by(prepared, settings, steps)
    safe = safe_accumulator_bits(quantized)
    weighted = [layer.name for layer in quantized.layers if layer.weights]
    reference = answers(quantized, loaded.evaluation)
    narrower = range(_NARROWEST, max(safe[name] for name in weighted))
    descending = sorted(narrower if wanted is None else wanted, reverse=True)
    results: list[WidthResult] = []
    for width in progress(descending, len(descending)) if progress else descending:
        found = answers(with_accumulator(quantized, width, overflow=on_overflow), loaded.evaluation)
        drop = paired_drop(reference, found)
        overflowing = sum(safe[name] > width for name in weighted)
        results.append(WidthResult(width, overflowing, accuracy_figure(found), drop))
        if drop.value > _LOST_POINTS:
            break
    design = {
        "workload": workload,
        "weights": settings.weights.name,
        "activations": settings.activations.name,
        "recipe": str(steps),
        "overflow": overflow,
        "evaluation_images": len(reference),
    }
    return AccumulatorResult(design, safe, accuracy_figure(reference), results, descending[len(results) :])
