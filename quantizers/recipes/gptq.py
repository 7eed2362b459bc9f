"""GPTQ: round column by column, and let the columns still to come make up for the error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from quantizers._rounding_kernels import kernel_steps
from quantizers.moments import Array
from quantizers.recipes import _solver_kernels as kernels
from quantizers.recipes.problem import LayerProblem, damped
from quantizers.recipes.steps import ROUNDING, Inputs, Step, check_range

Order = Literal["activation", "given"]


@dataclass(frozen=True)
class Gptq(Step):
    """Rounds column by column; the columns still to come make up for the error.

    The recursion is exact for each output channel, so there is no block size: blocks only defer
    the same updates.

    Args:
        order: ``activation`` takes the columns of largest input first, ``given`` as they stand.
        inputs: moments of the ``quantized`` network so far, or of the ``float`` one, which all points
            of a study share.
        target: ``float``: what the float layer makes of the float inputs, so that errors of the layers
            before are made up for; ``layer``: of the layer's own inputs, as in the paper.
        damping: added to the diagonal, as a fraction of its mean.
    """

    name: ClassVar[str] = "gptq"
    source: ClassVar[str] = "arXiv 2210.17323; target 'float' as in arXiv 2504.02692"
    stage: ClassVar[int] = ROUNDING

    order: Order = "activation"
    inputs: Inputs = "quantized"
    target: Literal["float", "layer"] = "float"
    damping: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self.name, "damping", self.damping, 1e-8, 1.0)

    def solve(self, problem: LayerProblem) -> None:
        gram, cross = damped(problem.moments_for_weights(self.inputs), self.damping, self.target)
        start = best_weights(problem.weights, gram, cross)
        rounded = np.empty_like(start)
        for group in range(len(start)):
            columns = column_order(gram[group], self.order)
            rounded[group][:, columns] = gptq_round(
                start[group][:, columns], gram[group][np.ix_(columns, columns)], problem, group, columns
            )
        problem.rounded = rounded


def column_order(gram: Array, order: Order) -> npt.NDArray[np.intp]:
    """Columns by falling input energy (stable), or as given."""
    return np.argsort(-np.diag(gram), kind="stable") if order == "activation" else np.arange(len(gram))


def best_weights(weights: Array, gram: Array, cross: Array) -> Array:
    """The unrounded weights of least error: ``(gram)^-1 cross w``; *weights* where they are equal."""
    if cross is gram:
        return weights.copy()
    best = np.linalg.solve(gram, cross @ weights.transpose(0, 2, 1)).transpose(0, 2, 1)
    return best.astype(np.float64, copy=False)


def gptq_round(
    start: Array, gram: Array, problem: LayerProblem, group: int, columns: npt.NDArray[np.intp]
) -> Array:
    """*start* ``(channels, n)`` rounded in its order: *columns* tells which of the problem's they are."""
    scales = np.ascontiguousarray(problem.column_scales[group][:, columns])
    factor = np.ascontiguousarray(np.linalg.cholesky(np.linalg.inv(gram)).T)
    rounded = np.ascontiguousarray(start)
    kernels.gptq(rounded, factor, scales, kernel_steps(problem.fmt.grid))
    return rounded
