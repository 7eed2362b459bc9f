"""Scales of tensors and of weights: by the largest value, the mean, or the least squared error.

A value x is stored as ``round(x / scale)``. The error as a function of the scale has many minima,
the narrower the fewer values there are, and for a minifloat it nearly repeats every octave: a grid
over several octaves comes first, finer for fewer values, and the surroundings of its best point after.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from quantizers.errors import UsageError
from quantizers.formats import BlockFormat, Format, ScalarFormat
from quantizers.rounding import quantization_error

FloatMatrix = npt.NDArray[np.float32]
ErrorFunction = Callable[[FloatMatrix], npt.NDArray[np.float64]]

# One octave more than what maps the largest value to the format's largest: with few mantissa bits
# the top binade can be too coarse. At most six below: a clipped tail of 1/64 of the range. Clipping
# even one of N values that far costs more than rounding all of them where 4 ** octaves > N.
_OCTAVES_ABOVE = 1
_MOST_OCTAVES_BELOW = 6
# Measured against 400 steps an octave on normal, Laplace and t(3) values, 3 to 8 bits: 95 % of the
# errors are within 1 % for 5,000 values, 3 % for 300, and all within 1 % up to 5 bits for 300.
_STEPS_PER_OCTAVE = (16, 128)
_STEPS_TIMES_VALUES = 8192
# Each refinement looks at 7 points on either side of the best one, 8 times closer together.
_REFINEMENTS = 2
_REFINED_POINTS = 8


def largest_value_scale(largest: npt.NDArray[np.float32], fmt: ScalarFormat) -> npt.NDArray[np.float32]:
    """The scale that maps *largest* (any shape) to the format's largest value; see :func:`positive`."""
    return positive((largest.astype(np.float64) / fmt.maximum).astype(np.float32))


def positive(scales: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """*scales* with each zero replaced by the smallest scale above zero, 1 where there is none.

    A channel of zeros works with any scale; one of its neighbours' size keeps a bias on the grid
    of the products precise.
    """
    usable = scales[scales >= np.finfo(np.float32).tiny]
    substitute = usable.min() if usable.size else np.float32(1.0)
    return np.maximum(scales, substitute) if usable.size else np.full_like(scales, substitute)


def least_error_scale(
    largest: npt.NDArray[np.float32], fmt: ScalarFormat, error: ErrorFunction, values: int
) -> npt.NDArray[np.float32]:
    """The scale of least *error* per channel.

    Args:
        largest: the largest magnitude of each channel, ``(C,)``.
        error: from candidates ``(C, S)`` to their errors ``(C, S)``.
        values: number of values in a channel.

    Returns:
        float32 ``(C,)``, above zero (see :func:`positive`); the smallest of the best where errors tie.
    """
    best = largest_value_scale(largest, fmt)
    density = int(np.clip(_STEPS_TIMES_VALUES // values, *_STEPS_PER_OCTAVE))
    octaves_below = min(_MOST_OCTAVES_BELOW, math.ceil(math.log2(values + 1) / 2))
    steps = np.arange(-octaves_below * density, _OCTAVES_ABOVE * density + 1)
    for _ in range(1 + _REFINEMENTS):
        candidates = (best[:, None] * np.exp2(steps / density)[None, :]).astype(np.float32)
        best = np.take_along_axis(candidates, error(candidates).argmin(axis=1)[:, None], axis=1)[:, 0]
        steps = np.arange(1 - _REFINED_POINTS, _REFINED_POINTS)
        density *= _REFINED_POINTS
    return positive(np.where(largest > 0, best, np.float32(0.0)))


def least_error_power_of_two(
    largest: npt.NDArray[np.float32], fmt: ScalarFormat, error: ErrorFunction, values: int
) -> npt.NDArray[np.float32]:
    """The power of two of least *error* per channel: for a minifloat, its best exponent bias.

    Arguments and result as for :func:`least_error_scale`. Every power of two is tried from the one at
    or below half of what that search begins with to the one at or above twice what it ends with.
    """
    octaves_below = min(_MOST_OCTAVES_BELOW, math.ceil(math.log2(values + 1) / 2))
    nearest = np.frexp(largest_value_scale(largest, fmt))[1] - 1
    steps = np.arange(-octaves_below - 1, _OCTAVES_ABOVE + 2)
    candidates = np.ldexp(np.float32(1), nearest[:, None] + steps).astype(np.float32)
    best = np.take_along_axis(candidates, error(candidates).argmin(axis=1)[:, None], axis=1)[:, 0]
    return positive(np.where(largest > 0, best, np.float32(0.0)))


def weight_scales(
    weights: FloatMatrix, fmt: Format, criterion: str, group: int | None = None
) -> npt.NDArray[np.float32]:
    """Scales of *weights* ``(C, N)``, one per output channel or per *group* of its features.

    Args:
        fmt: a block format has scales of its own, one per block, by its own rule: *criterion* and
            *group* do not count then.
        criterion: ``mse`` (least squared error), ``mse_power_of_two`` (the same among the powers of two),
            ``max`` (the largest weight becomes the largest value) or ``mean`` (the mean magnitude
            becomes 1: ternary weights of BitNet b1.58, arXiv 2402.17764, equations 1 to 3).
        group: features that share a scale, in the order of *weights*; the last group may be shorter.

    Returns:
        float32 ``(C,)``, or ``(C, ceil(N / group))`` for groups.
    """
    if isinstance(fmt, BlockFormat):
        return fmt.scale_factors(weights).astype(np.float32)
    if not isinstance(fmt, ScalarFormat):
        msg = f"there is no rule for the scales of {fmt}"
        raise UsageError(msg, given=fmt, expected=["a scalar or a block format"])
    if group is None:
        return _row_scales(weights, fmt, criterion, weights.shape[1])
    channels, features = weights.shape
    # Zeros are zeros for any scale: they add no error to a shorter last group.
    padded = np.pad(weights, [(0, 0), (0, -features % group)])
    counts = np.minimum(group, features - group * np.arange(padded.shape[1] // group))
    rows = padded.reshape(-1, group)
    return _row_scales(rows, fmt, criterion, np.tile(counts, channels)).reshape(channels, -1)


def _row_scales(
    rows: FloatMatrix, fmt: ScalarFormat, criterion: str, count: int | npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """One scale per row; *count* tells how many values of a row are not padding."""
    largest = np.abs(rows).max(axis=1)
    match criterion:
        case "max":
            return largest_value_scale(largest, fmt)
        case "mean":
            return positive((np.abs(rows).sum(axis=1, dtype=np.float64) / count).astype(np.float32))
        case _:
            search = least_error_power_of_two if criterion == "mse_power_of_two" else least_error_scale
            return search(largest, fmt, lambda s: quantization_error(rows, fmt, s), rows.shape[1])


def grouped_order(weight: npt.NDArray[np.float32]) -> FloatMatrix:
    """The features of each output channel in the order in which groups run: ``(C, N)``.

    Input channels run fastest, one place of a convolution's kernel after the other: so a group of
    weights meets inputs of one place, as blocks of inputs along the channels are.

    Args:
        weight: ``(C, channels of a group, *kernel)`` or ``(C, N)``.
    """
    return np.ascontiguousarray(np.moveaxis(weight, 1, -1)).reshape(len(weight), -1)


def scales_of_weights(
    scales: npt.NDArray[np.float32], group: int, shape: tuple[int, ...]
) -> npt.NDArray[np.float32]:
    """The scale of every weight of a tensor of *shape*, for *scales* ``(C, groups)`` of its groups."""
    channels, inputs, *kernel = shape
    features = np.repeat(scales, group, axis=1)[:, : inputs * math.prod(kernel)]
    return np.ascontiguousarray(np.moveaxis(features.reshape(channels, *kernel, inputs), -1, 1))
