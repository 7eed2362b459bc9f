"""Gain correction: give each output the swing that it has in the float network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from quantizers.errors import UsageError
from quantizers.moments import Array
from quantizers.recipes.problem import LayerProblem
from quantizers.recipes.steps import CORRECTING, Inputs, Step, check_range


@dataclass(frozen=True)
class GainCorrection(Step):
    """Scales each output channel so that it varies as in the float network.

    Weights of least error are too small where their inputs are noisy (regression dilution), and layer
    after layer the differences between images shrink against the biases. The gain goes into the weight
    scale of the channel, so that codes and hardware stay as they are.

    Args:
        limit: gains stay between its inverse and it.
        inputs: as in ``bias_correction``.
    """

    name: ClassVar[str] = "gain_correction"
    source: ClassVar[str] = "arXiv 2006.10518, section 3.4 (batch-norm tuning), in closed form"
    stage: ClassVar[int] = CORRECTING

    limit: float = 1.5
    inputs: Inputs = "quantized"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self.name, "limit", self.limit, 1, 100)

    def solve(self, problem: LayerProblem) -> None:
        if problem.scales.ndim > 2:
            msg = f"gain_correction scales channels, but those of {problem.name} have several scales each"
            raise UsageError(msg, given=problem.name, expected=["one weight scale per channel"])
        moments, own = problem.moments_of(self.inputs).centred(), problem.float_moments.centred()
        wanted = _products(problem.weights, own.gram)
        found = _products(problem.rounded, moments.gram)
        gain = np.clip(np.sqrt(_ratio(wanted, found)), 1 / self.limit, self.limit)
        problem.scales = (problem.scales * gain).astype(np.float32)
        problem.rounded = problem.nearest(problem.rounded * gain[..., None])


def _products(weights: Array, matrix: Array) -> Array:
    """``w matrix w^T`` of each channel: ``(groups, channels)``."""
    result: Array = np.einsum("gci,gij,gcj->gc", weights, matrix, weights, optimize=True)
    return result


def _ratio(wanted: Array, found: Array) -> Array:
    return np.divide(wanted, found, out=np.ones_like(wanted), where=(wanted > 0) & (found > 0))
