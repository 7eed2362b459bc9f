"""GPFQ: greedy path following quantization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from quantizers._rounding_kernels import kernel_steps
from quantizers.recipes import _solver_kernels as kernels
from quantizers.recipes.gptq import Order, column_order
from quantizers.recipes.problem import LayerProblem, damped
from quantizers.recipes.steps import ROUNDING, Inputs, Step, check_range


@dataclass(frozen=True)
class Gpfq(Step):
    """Chooses column by column the value that best continues the layer's output so far.

    Args:
        order: ``activation`` takes the columns of largest input first, ``given`` as they stand.
        inputs: see ``gptq``.
        damping: added to the diagonal, as a fraction of its mean; keeps columns without input apart.
    """

    name: ClassVar[str] = "gpfq"
    source: ClassVar[str] = "arXiv 2201.11113, in the Gram form of arXiv 2409.17092"
    stage: ClassVar[int] = ROUNDING

    order: Order = "activation"
    inputs: Inputs = "quantized"
    damping: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self.name, "damping", self.damping, 1e-8, 1.0)

    def solve(self, problem: LayerProblem) -> None:
        gram, cross = damped(problem.moments_for_weights(self.inputs), self.damping, "float")
        rounded, scales = np.empty_like(problem.weights), problem.column_scales
        for group in range(len(rounded)):
            columns = column_order(gram[group], self.order)
            square = np.ix_(columns, columns)
            chosen = np.zeros_like(rounded[group])
            kernels.gpfq(
                np.ascontiguousarray(problem.weights[group][:, columns]),
                np.ascontiguousarray(gram[group][square]),
                np.ascontiguousarray(cross[group][square]),
                np.ascontiguousarray(scales[group][:, columns]),
                kernel_steps(problem.fmt.grid),
                chosen,
            )
            rounded[group][:, columns] = chosen
        problem.rounded = rounded
