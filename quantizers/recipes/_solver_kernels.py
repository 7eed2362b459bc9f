"""Numba loops of the layer solvers: one output channel after the other, releasing the GIL.

Channels do not depend on each other once the moments are known, so each is solved alone, in float64.
*scales* has the shape of the weights: one scale per column of each channel.
"""

from __future__ import annotations

import numpy as np

from quantizers._rounding_kernels import _jit, _nearest


@_jit
def round_one(value, scale, steps):  # type: ignore[no-untyped-def]
    """The grid value nearest to *value*, computed in float32 as everywhere."""
    return np.float64(np.float32(_nearest(np.float32(value) / scale, steps) * scale))


@_jit
def gptq(weights, factor, scales, steps):  # type: ignore[no-untyped-def]
    """Round ``weights`` ``(channels, n)`` in place, column by column, as GPTQ does.

    *factor* is U with ``inverse(H) = U^T U``, upper triangular.
    """
    channels, n = weights.shape
    for channel in range(channels):
        row, scale = weights[channel], scales[channel]
        for j in range(n):
            rounded = round_one(row[j], scale[j], steps)
            error = (row[j] - rounded) / factor[j, j]
            row[j] = rounded
            for k in range(j + 1, n):
                row[k] -= error * factor[j, k]


@_jit
def gpfq(weights, gram, cross, scales, steps, out):  # type: ignore[no-untyped-def]
    """Greedy path following: each column takes the value that best continues the sum so far."""
    channels, n = weights.shape
    for channel in range(channels):
        row, chosen, scale = weights[channel], out[channel], scales[channel]
        for t in range(n):
            wanted = cross[t, t] * row[t]
            for s in range(t):
                wanted += cross[t, s] * row[s] - gram[t, s] * chosen[s]
            chosen[t] = round_one(wanted / gram[t, t], scale[t], steps)


@_jit
def coordinate_descent(rounded, residual, gram, scales, steps, sweeps):  # type: ignore[no-untyped-def]
    """Move one weight at a time to the grid value of least error, in place, until none moves.

    *residual* ``(channels, n)`` is ``wanted - rounded @ gram`` and is kept so.
    """
    channels, n = rounded.shape
    for channel in range(channels):
        row, r, scale = rounded[channel], residual[channel], scales[channel]
        for _ in range(sweeps):
            moved = False
            for j in range(n):
                new = round_one(row[j] + r[j] / gram[j, j], scale[j], steps)
                change = new - row[j]
                # Equal within rounding: a move must pay, or two values could alternate.
                if change != 0.0 and change * (2.0 * r[j] - change * gram[j, j]) > 0.0:
                    row[j] = new
                    moved = True
                    for k in range(n):
                        r[k] -= change * gram[j, k]
            if not moved:
                break
