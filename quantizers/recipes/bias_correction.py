"""Bias correction: take out what rounding does to the mean of each output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from quantizers.recipes.problem import LayerProblem
from quantizers.recipes.steps import CORRECTING, Inputs, Step


@dataclass(frozen=True)
class BiasCorrection(Step):
    """Shifts each bias so that the layer's mean output is that of the float network.

    Layers without a bias are left alone.

    Args:
        inputs: ``float`` corrects the layer's own rounding, ``(W - Q) E[x]``; ``quantized`` also what
            the layers before have done to the mean of its input, ``W E[x] - Q E[x']``.
    """

    name: ClassVar[str] = "bias_correction"
    source: ClassVar[str] = "arXiv 1906.04721, section 4.2, with measured means"
    stage: ClassVar[int] = CORRECTING

    inputs: Inputs = "float"

    def solve(self, problem: LayerProblem) -> None:
        moments = problem.moments_of(self.inputs)
        problem.bias_shift = np.einsum("gcf,gf->gc", problem.weights, moments.float_mean) - np.einsum(
            "gcf,gf->gc", problem.rounded, moments.mean
        )
