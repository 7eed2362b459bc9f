"""Qronos: correct the past by shaping the future."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from quantizers.moments import Array
from quantizers.recipes.gptq import Order, column_order, gptq_round
from quantizers.recipes.problem import LayerProblem, damped
from quantizers.recipes.steps import ROUNDING, Inputs, Step, check_range
from quantizers.rounding import round_scaled


@dataclass(frozen=True)
class Qronos(Step):
    """Rounds the first column against the float output, refits the rest to it, then goes on as GPTQ.

    Args:
        order: ``activation`` takes the columns of largest input first, ``given`` as they stand.
        inputs: see ``gptq``.
        damping: added to the diagonal, as a fraction of its mean.
    """

    name: ClassVar[str] = "qronos"
    source: ClassVar[str] = "arXiv 2505.11695, theorem 3.1 for the columns after the first"
    stage: ClassVar[int] = ROUNDING

    order: Order = "activation"
    inputs: Inputs = "quantized"
    damping: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self.name, "damping", self.damping, 1e-8, 1.0)

    def solve(self, problem: LayerProblem) -> None:
        gram, cross = damped(problem.moments_for_weights(self.inputs), self.damping, "float")
        rounded = np.empty_like(problem.weights)
        for group in range(len(rounded)):
            columns = column_order(gram[group], self.order)
            square = np.ix_(columns, columns)
            rounded[group][:, columns] = self._round(
                problem.weights[group][:, columns],
                gram[group][square],
                cross[group][square],
                problem,
                group,
                columns,
            )
        problem.rounded = rounded

    @staticmethod
    def _round(
        weights: Array,
        gram: Array,
        cross: Array,
        problem: LayerProblem,
        group: int,
        columns: npt.NDArray[np.intp],
    ) -> Array:
        wanted = weights @ cross.T
        first = (wanted[:, 0] - weights[:, 1:] @ gram[0, 1:]) / gram[0, 0]
        rounded = weights.copy()
        rounded[:, 0] = round_scaled(first, problem.fmt, problem.column_scales[group][:, columns[0]])
        if gram.shape[0] > 1:
            rest = wanted[:, 1:] - rounded[:, :1] * gram[:1, 1:]
            future = np.linalg.solve(gram[1:, 1:], rest.T).T.astype(np.float64, copy=False)
            rounded[:, 1:] = gptq_round(future, gram[1:, 1:], problem, group, columns[1:])
        return rounded
