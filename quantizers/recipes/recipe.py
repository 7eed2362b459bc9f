"""Recipes: steps in order, and running them on a network."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from quantizers.errors import UsageError
from quantizers.moments import Moments, MomentSums, group_count
from quantizers.prepare import PreparedModel
from quantizers.quantize import (
    LayerSummary,
    QuantizationSettings,
    QuantizedModel,
    quantize,
    summarize,
    weight_scale,
)
from quantizers.recipes.bias_correction import BiasCorrection
from quantizers.recipes.coordinate_descent import CoordinateDescent
from quantizers.recipes.equalization import Equalize
from quantizers.recipes.gain_correction import GainCorrection
from quantizers.recipes.gpfq import Gpfq
from quantizers.recipes.gptq import Gptq
from quantizers.recipes.learned_rounding import LearnedRounding
from quantizers.recipes.lockstep import LockStep, WalkError
from quantizers.recipes.problem import LayerProblem
from quantizers.recipes.qronos import Qronos
from quantizers.recipes.smoothing import SmoothQuant
from quantizers.recipes.steps import ROUND, ROUNDING, Step, parse_step

_ALL = (
    Equalize,
    SmoothQuant,
    Gptq,
    Gpfq,
    Qronos,
    LearnedRounding,
    CoordinateDescent,
    GainCorrection,
    BiasCorrection,
)
STEPS: dict[str, type[Step]] = {step.name: step for step in _ALL}
"""Every step by name."""

_LAYERWISE = "target='layer'"
# Each output given back the variance and the mean that it has in float: what 4-bit inputs take away.
_RESTORED = "gain_correction(limit=1.1) + bias_correction(inputs='quantized')"
NAMED = {
    # Weights that stay close to the float ones (strong damping): with 4-bit inputs, the better the fit
    # to the calibration images, the smaller the outputs, layer after layer.
    "gptq-restored": f"gptq(damping=1.0) + {_RESTORED}",
    "learned-restored": f"learned_rounding(damping=0.1) + {_RESTORED}",
    # The combinations of arXiv 2311.12359: equalization with 20 iterations, SmoothQuant with alpha 0.5,
    # GPTQ in the given order on the layer's own output, learned rounding of 1000 iterations.
    "anchor-bias": "equalize + smoothquant + bias_correction",
    "anchor-gptq": f"equalize + smoothquant + gptq(order='given', {_LAYERWISE}) + bias_correction",
    "anchor-learned": f"equalize + smoothquant + learned_rounding(iterations=1000, {_LAYERWISE})"
    " + bias_correction",
}
"""Combinations with names of their own."""

# Between steps, not inside a step's parentheses.
_JOIN = re.compile(r"\+(?![^()]*\))")


@dataclass(frozen=True)
class Recipe:
    """Steps in the order in which they are taken; none is rounding to nearest.

    Raises:
        UsageError: steps out of order, twice, or several that round the weights.
    """

    steps: tuple[Step, ...] = ()

    def __post_init__(self) -> None:
        for before, after in pairwise(self.steps):
            if before.stage > after.stage:
                msg = f"{after.name} comes before {before.name} in a recipe, not after it: {self}"
                raise UsageError(msg, given=str(self), expected=[f"{after.name} + {before.name}"])
        names = [step.name for step in self.steps]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            msg = f"{twice[0]} is twice in the recipe {self}"
            raise UsageError(msg, given=str(self), expected=["each step once"])
        rounding = [step.name for step in self.steps if step.stage == ROUNDING]
        if len(rounding) > 1:
            msg = (
                f"{rounding[0]} and {rounding[1]} both round the weights; a recipe takes one of them: {self}"
            )
            raise UsageError(msg, given=str(self), expected=rounding)

    def __str__(self) -> str:
        return " + ".join(str(step) for step in self.steps) or ROUND

    @classmethod
    def parse(cls, text: str) -> Recipe:
        """The recipe written as ``step + step(parameter=value)``, or of a name in :data:`NAMED`.

        Raises:
            UsageError: an unknown step or parameter, or steps that do not go together.
        """
        written = NAMED.get(text.strip(), text)
        if written.strip() == ROUND:
            return cls()
        parts = _JOIN.split(written)
        if ROUND in (part.strip() for part in parts):
            msg = f"round is the recipe without steps, not a step: {written.strip()}"
            raise UsageError(msg, given=written.strip(), expected=list(STEPS))
        return cls(tuple(parse_step(part, STEPS) for part in parts))

    @property
    def rewrites(self) -> Recipe:
        """The steps that change the float network only: what points can share."""
        return Recipe(tuple(step for step in self.steps if not step.solves))

    @property
    def solvers(self) -> tuple[Step, ...]:
        """The steps that work layer by layer."""
        return tuple(step for step in self.steps if step.solves)


def recipe_label(text: str) -> str:
    """The name of a recipe that has one, else the recipe as it is written."""
    return next((name for name in NAMED if str(Recipe.parse(name)) == text), text)


def rewritten(prepared: PreparedModel, recipe: Recipe) -> PreparedModel:
    """*prepared* after the recipe's rewrites; *prepared* itself where it has none."""
    for step in recipe.rewrites.steps:
        prepared = step.rewrite(prepared)
    return prepared


@torch.no_grad()
def quantize_by(prepared: PreparedModel, settings: QuantizationSettings, recipe: Recipe) -> QuantizedModel:
    """Quantize *prepared*, whose rewrites are done, and let the recipe's solvers choose the weights.

    All layers are solved in one walk through the network, in the order in which they run; a layer that
    runs several times per image is solved for the inputs of its first call.

    Raises:
        WalkError: the network takes different ways for different inputs.
    """
    quantized = quantize(prepared, settings)
    if not recipe.solvers:
        return quantized
    if any(step.needs_quantized_inputs for step in recipe.solvers):
        _walk(quantized, prepared, recipe.solvers)
    else:
        for layer in _weighted(quantized):
            _solve(quantized, prepared, layer, recipe.solvers, None)
    summarize(quantized)
    return quantized


def _weighted(quantized: QuantizedModel) -> list[LayerSummary]:
    return [layer for layer in quantized.layers if layer.weights]


def _walk(quantized: QuantizedModel, prepared: PreparedModel, steps: Sequence[Step]) -> None:
    layers = {layer.name: layer for layer in _weighted(quantized)}
    with ExitStack() as walks:
        walk = walks.enter_context(LockStep(quantized.network, layers, prepared.batches))
        float_walk = None
        # What waits is most of the memory: the float network walks along only where a step needs it.
        if any(step.needs_paired_inputs for step in steps):
            float_walk = walks.enter_context(LockStep(prepared.model, layers, prepared.batches))
        for _ in layers:
            name, moments = _next_moments(walk, float_walk, quantized.network, prepared)
            _solve(quantized, prepared, layers[name], steps, moments)


def _next_moments(
    walk: LockStep, float_walk: LockStep | None, network: nn.Module, prepared: PreparedModel
) -> tuple[str, Moments]:
    """Go to the next layer: its name, and the moments of its inputs in the quantized network.

    ``cross`` is that with the float network's inputs if these are there, else ``gram``. A function of
    its own, so that no input outlives the layer.
    """
    place = walk.advance()
    float_place = place if float_walk is None else float_walk.advance()
    if place is None or float_place is None or place[0] != float_place[0]:
        shown = " and ".join(str(p[0] if p else None) for p in (place, float_place))
        msg = f"the quantized and the float network take different ways: they are before {shown}"
        raise WalkError(msg)
    name, arriving = place
    module: Any = network.get_submodule(name)
    sums = MomentSums(module, len(prepared.batches), prepared.seed)
    if float_walk is None:
        for inputs in arriving:
            sums.add(module.input_quant(inputs).value)
        return name, replace(sums.finish(paired=False), float_mean=prepared.moments[name].mean)
    for inputs, float_inputs in zip(arriving, float_place[1], strict=True):
        sums.add(module.input_quant(inputs).value, float_inputs)
    return name, sums.finish(paired=True)


def _solve(
    quantized: QuantizedModel,
    prepared: PreparedModel,
    layer: LayerSummary,
    steps: Sequence[Step],
    moments: Moments | None,
) -> None:
    module: Any = quantized.network.get_submodule(layer.name)
    problem = LayerProblem.of(
        layer.name,
        prepared.model.get_submodule(layer.name).weight,  # type: ignore[arg-type]
        group_count(module),
        layer.weight_format,
        weight_scale(module),
        prepared.moments[layer.name],
        moments,
    )
    if module.bias is not None:
        problem.mean_is_corrected = next((s.inputs for s in steps if isinstance(s, BiasCorrection)), "")
    before = problem.scales
    for step in steps:
        step.solve(problem)
    if problem.scales is not before:
        scale = weight_scale(module)
        scale.copy_(torch.from_numpy(problem.scales).reshape(scale.shape))
        if module.bias is not None and module.bias_quant.is_quant_enabled:
            module.bias_quant.tensor_quant.step *= torch.from_numpy(problem.scales / before).flatten()
    module.weight.data.copy_(torch.from_numpy(problem.rounded).reshape(module.weight.shape))
    if module.bias is not None:
        module.bias.data += torch.from_numpy(problem.bias_shift).reshape(module.bias.shape).float()
