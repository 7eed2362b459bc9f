"""Pairs of vectors of every kind that merging meets."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.int64]


def integers(x: npt.NDArray[np.float64]) -> Vectors:
    return np.clip(np.rint(x), -32768, 32767).astype(np.int64)


def unrelated(count: int, channels: int, rng: np.random.Generator) -> tuple[Vectors, Vectors]:
    """Lengths from less than a unit to saturation, independent directions."""
    scales = 2.0 ** rng.uniform(-1, 15, (2, count, 1))
    x, y = rng.standard_normal((2, count, channels)) * scales
    return integers(x), integers(y)


def at_angles(
    omega: npt.NDArray[np.float64],
    channels: int,
    rng: np.random.Generator,
    smallest: int = 4,
    largest: int = 15,
) -> tuple[Vectors, Vectors]:
    """Pairs with these angles, before rounding; at least 2 channels."""
    count = len(omega)
    u, other = rng.standard_normal((2, count, channels))
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    other -= (other * u).sum(axis=1, keepdims=True) * u
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    v = np.cos(omega)[:, None] * u + np.sin(omega)[:, None] * other
    scales = 2.0 ** rng.uniform(smallest, largest, (2, count, 1))
    return integers(u * scales[0]), integers(v * scales[1])


def special(channels: int) -> tuple[Vectors, Vectors]:
    """Zeros, extremes, equal and opposite vectors."""
    rng = np.random.default_rng(5)
    zero, low, high = (np.full(channels, value) for value in (0, -32768, 32767))
    some, more = rng.integers(-3000, 3000, (2, channels))
    pairs = [
        *((zero, some), (some, zero), (zero, zero), (low, low), (low, high), (high, high)),
        *((some, some), (some, -some), (some, 3 * some), (some, more), (zero, low)),
    ]
    x, y = (np.array(side) for side in zip(*pairs, strict=True))
    return x, y
