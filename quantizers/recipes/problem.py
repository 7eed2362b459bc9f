"""A layer's rounding problem: weights, their grid, and the second moments of the inputs.

A layer of ``groups`` groups is that many independent problems ``y = W x`` with ``W`` of ``(channels,
features)``. With inputs ``x`` of the float network and ``x'`` of the quantized one, what a rounding ``Q``
costs is a quadratic of

    gram = E[x' x'^T],  cross = E[x' x^T]:   E|Q x' - W x|^2 = tr(Q gram Q^T - 2 Q cross W^T) + constant

so no step needs the inputs themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from quantizers.formats import ScalarFormat
from quantizers.moments import Array, Moments
from quantizers.rounding import round_scaled


@dataclass(eq=False)
class LayerProblem:
    """What the steps of a recipe work on, one layer at a time.

    Attributes:
        name: of the layer.
        fmt: of the weights.
        scales: ``(groups, channels)``, or ``(groups, channels, features)``: that of every weight, where
            groups of the features have their own; frozen.
        weights: ``(groups, channels, features)``: those of the float network.
        rounded: the weights on the grid as they stand; at first rounded to nearest.
        bias_shift: ``(groups, channels)``: what is to be added to the bias.
        float_moments: with the float network's own inputs (``cross`` equals ``gram``).
        mean_is_corrected: with which inputs (``float``, ``quantized``) a later step matches the mean of
            every output by its bias, so that the weights need not; empty where none does.
        moments: with the inputs in the network quantized so far; ``None`` where no step asks for it.
    """

    name: str
    fmt: ScalarFormat
    scales: npt.NDArray[np.float32]
    weights: Array
    rounded: Array
    bias_shift: Array
    float_moments: Moments
    moments: Moments | None
    mean_is_corrected: str = ""

    @classmethod
    def of(
        cls,
        name: str,
        weight: Tensor,
        groups: int,
        fmt: ScalarFormat,
        scales: Tensor,
        float_moments: Moments,
        moments: Moments | None,
    ) -> LayerProblem:
        """The problem of a layer's weight ``(out, in / groups, ...)``.

        *scales* has one value per out, or those of every weight in the shape of *weight*.
        """
        channels = weight.shape[0] // groups
        shape = (groups, channels, -1)
        weights = weight.detach().double().reshape(shape).numpy().copy()
        problem = cls(
            name=name,
            fmt=fmt,
            scales=_scales(scales, weight, groups),
            weights=weights,
            rounded=weights,
            bias_shift=np.zeros((groups, channels)),
            float_moments=float_moments,
            moments=moments,
        )
        problem.rounded = problem.nearest(weights)
        return problem

    def nearest(self, values: Array) -> Array:
        """*values* ``(groups, channels, features)`` on the grid."""
        scales = self.scales.reshape(*self.scales.shape[:2], -1)
        return round_scaled(values, self.fmt, scales).astype(np.float64)

    @property
    def column_scales(self) -> npt.NDArray[np.float32]:
        """The scale of every weight: a view ``(groups, channels, features)``."""
        return np.broadcast_to(self.scales.reshape(*self.scales.shape[:2], -1), self.weights.shape)

    def moments_of(self, inputs: str) -> Moments:
        """The moments with ``float`` or ``quantized`` inputs."""
        if inputs == "float" or self.moments is None:
            return self.float_moments
        return self.moments

    def moments_for_weights(self, inputs: str) -> Moments:
        """Those that weights are chosen by: about the means where a bias will match these."""
        moments = self.moments_of(inputs)
        return moments.centred() if inputs == self.mean_is_corrected else moments


def _scales(scales: Tensor, weight: Tensor, groups: int) -> npt.NDArray[np.float32]:
    of_weights = [-1] if scales.numel() > weight.shape[0] else []
    return scales.detach().float().reshape(groups, weight.shape[0] // groups, *of_weights).numpy().copy()


def damped(moments: Moments, damping: float, target: str) -> tuple[Array, Array]:
    """``gram`` and ``cross`` with *damping* times the mean of the diagonal added to both diagonals.

    Both, so that weights which are right as they are stay so. Target ``layer`` makes cross the gram:
    what the layer's own float weights would make of its inputs.
    """
    features = moments.gram.shape[-1]
    level = damping * np.trace(moments.gram, axis1=1, axis2=2) / features
    # An input that is always zero everywhere: any positive level will do.
    ridge = np.where(level > 0, level, 1.0)[:, None, None] * np.eye(features)
    gram = moments.gram + ridge
    return gram, gram if target == "layer" else moments.cross + ridge
