"""Coordinate descent on the grid: move one weight at a time to where the layer's error is least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from quantizers._rounding_kernels import kernel_steps
from quantizers.recipes import _solver_kernels as kernels
from quantizers.recipes.problem import LayerProblem, damped
from quantizers.recipes.steps import IMPROVING, Inputs, Step, check_range


@dataclass(frozen=True)
class CoordinateDescent(Step):
    """Moves one weight at a time to the grid value of least error, until none moves.

    Starts from the weights as the steps before left them; the error never rises.

    Args:
        sweeps: at most so many rounds over all columns.
        inputs, target: see ``gptq``.
        damping: added to the diagonal, as a fraction of its mean.
    """

    name: ClassVar[str] = "coordinate_descent"
    source: ClassVar[str] = "arXiv 2309.01885 (QuantEase), algorithm 2 without outliers"
    stage: ClassVar[int] = IMPROVING

    sweeps: int = 20
    inputs: Inputs = "quantized"
    target: Literal["float", "layer"] = "float"
    damping: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self.name, "sweeps", self.sweeps, 1, 1000)
        check_range(self.name, "damping", self.damping, 1e-8, 1.0)

    def solve(self, problem: LayerProblem) -> None:
        gram, cross = damped(problem.moments_for_weights(self.inputs), self.damping, self.target)
        rounded = problem.rounded.copy()
        residual = problem.weights @ cross.transpose(0, 2, 1) - rounded @ gram
        scales, steps = problem.column_scales, kernel_steps(problem.fmt.grid)
        for group in range(len(rounded)):
            kernels.coordinate_descent(
                rounded[group],
                np.ascontiguousarray(residual[group]),
                np.ascontiguousarray(gram[group]),
                np.ascontiguousarray(scales[group]),
                steps,
                self.sweeps,
            )
        problem.rounded = rounded
