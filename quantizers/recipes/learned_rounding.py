"""Learned rounding (AdaRound): up or down for each weight, by gradient descent on the layer's error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quantizers.formats import ScalarFormat
from quantizers.moments import Array
from quantizers.recipes.problem import LayerProblem, damped
from quantizers.recipes.steps import ROUNDING, Inputs, Step, check_range

# AdaRound's stretched sigmoid.
_ZETA, _GAMMA = 1.1, -0.1


@dataclass(frozen=True)
class LearnedRounding(Step):
    """Learns for each weight whether to round it up or down, between its own two neighbours.

    The soft weight is ``low + h (high - low)`` with the neighbours ``low <= w <= high`` of this weight
    in the format: their distance differs from binade to binade. ``h`` starts where the weight is. The
    error is the quadratic of the layer's moments, so that an iteration sees all calibration inputs.

    Args:
        iterations: of Adam.
        rate: of Adam.
        regularization: weight of the term that drives h to 0 or 1, relative to the error of rounding
            to nearest.
        warmup: fraction of the iterations without that term; its exponent then falls from 20 to 2.
        inputs, target: see ``gptq``.
        damping: added to the diagonal, as a fraction of its mean.
    """

    name: ClassVar[str] = "learned_rounding"
    source: ClassVar[str] = "arXiv 2004.10568, equations 21 to 25"
    stage: ClassVar[int] = ROUNDING

    iterations: int = 300
    rate: float = 0.03
    regularization: float = 1.0
    warmup: float = 0.2
    inputs: Inputs = "quantized"
    target: Literal["float", "layer"] = "float"
    damping: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self.name, "iterations", self.iterations, 1, 100_000)
        check_range(self.name, "rate", self.rate, 1e-6, 10)
        check_range(self.name, "regularization", self.regularization, 0, 1e6)
        check_range(self.name, "warmup", self.warmup, 0, 0.99)
        check_range(self.name, "damping", self.damping, 1e-8, 1.0)

    def solve(self, problem: LayerProblem) -> None:
        gram, cross = damped(problem.moments_for_weights(self.inputs), self.damping, self.target)
        wanted = problem.weights @ cross.transpose(0, 2, 1)
        low, high = neighbours(problem.weights, problem.fmt, problem.column_scales)
        with torch.enable_grad():
            up = self._learn(
                _float(low), _float(high), _float(gram), _float(wanted),
                _float(problem.weights), _float(problem.rounded),
            )  # fmt: skip
        problem.rounded = np.where(up.numpy(), high, low)

    def _learn(
        self, low: Tensor, high: Tensor, gram: Tensor, wanted: Tensor, weights: Tensor, nearest: Tensor
    ) -> Tensor:
        step = high - low
        fraction = torch.where(step > 0, (weights - low) / step, torch.zeros_like(step)).clamp(0.0, 1.0)
        logits = torch.logit((fraction - _GAMMA) / (_ZETA - _GAMMA)).requires_grad_()
        scale = float(_quadratic(nearest - weights, gram).clamp(min=1e-30))
        optimizer = torch.optim.Adam([logits], lr=self.rate)
        for iteration in range(self.iterations):
            soft = soft_choice(logits)
            values = low + soft * step
            error = ((values @ gram) * values).sum() - 2 * (values * wanted).sum()
            loss = error / scale + self._regularizer(soft, iteration)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return (soft_choice(logits) >= 0.5).detach()

    def _regularizer(self, soft: Tensor, iteration: int) -> Tensor | float:
        progress = (iteration / self.iterations - self.warmup) / (1 - self.warmup)
        if progress < 0:
            return 0.0
        exponent = 2 + 18 * (1 - progress)
        return self.regularization * (1 - (2 * soft - 1).abs() ** exponent).mean()


def _float(array: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).float()


def soft_choice(logits: Tensor) -> Tensor:
    """AdaRound's rectified sigmoid, equation 23."""
    return (torch.sigmoid(logits) * (_ZETA - _GAMMA) + _GAMMA).clamp(0.0, 1.0)


def neighbours(values: Array, fmt: ScalarFormat, scales: npt.NDArray[np.float32]) -> tuple[Array, Array]:
    """The largest grid value not above and the smallest not below each value; the end of the range twice
    beyond it. *scales* broadcasts against *values*."""
    grid = fmt.grid
    # One unit in the last place of float32 away from a grid value is that grid value.
    u = (values.astype(np.float32) / scales.astype(np.float32)).astype(np.float64)
    clipped = np.clip(u, grid.minimum, grid.maximum)
    exponent = np.maximum(np.frexp(np.abs(clipped))[1] - 1, grid.min_exponent)
    step = np.ldexp(1.0, exponent - grid.mantissa_bits)
    ends = np.floor(clipped / step) * step, np.ceil(clipped / step) * step
    low, high = (np.clip(end, grid.minimum, grid.maximum).astype(np.float32) for end in ends)
    factor = scales.astype(np.float32)
    return (low * factor).astype(np.float64), (high * factor).astype(np.float64)


def _quadratic(difference: Tensor, gram: Tensor) -> Tensor:
    return ((difference @ gram) * difference).sum()
