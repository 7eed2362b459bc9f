"""What the tests of rounding share: every scalar format, and the inputs that tell errors apart."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from quantizers.formats import IntegerFormat, MinifloatFormat, ScalarFormat, Specials, TernaryFormat

INTEGERS: list[IntegerFormat] = [
    *(IntegerFormat(bits) for bits in range(2, 17)),
    *(IntegerFormat(bits, signed=False) for bits in range(1, 17)),
]


def _minifloats() -> list[MinifloatFormat]:
    formats = set()
    for e in range(1, 6):
        for m in range(8):
            for signed in (True, False):
                formats |= {MinifloatFormat(e, m, bias, signed) for bias in (None, -3, 8)}
                if (e, m) != (1, 0):  # special codes would leave e1m0 with nothing but zero
                    formats |= {MinifloatFormat(e, m, None, signed, kind) for kind in Specials}
                    formats |= {MinifloatFormat(e, m, 8, signed, kind) for kind in Specials}
    extremes = {MinifloatFormat(e, m, bias) for e in (1, 5) for m in (0, 7) for bias in (-31, 31)}
    return sorted(formats | extremes, key=lambda fmt: fmt.name)


# Every split, sign and kind of special codes; biases of either parity; the extreme biases.
MINIFLOATS = _minifloats()
SCALARS: list[ScalarFormat] = [*INTEGERS, TernaryFormat(), *MINIFLOATS]


def values_and_ties(fmt: ScalarFormat, limit: int = 1 << 16) -> npt.NDArray[np.float64]:
    """Finite values, the ties between neighbours, the overflow threshold and beyond.

    Formats with more than *limit* values give that many of them, the smallest and largest included.
    """
    values = fmt.values()
    finite = np.unique(values[np.isfinite(values)])
    lower = np.unique(np.linspace(0, finite.size - 2, min(limit, finite.size - 1)).astype(np.int64))
    ties = (finite[lower] + finite[lower + 1]) / 2
    step = finite[-1] - finite[-2]
    return np.concatenate([finite[lower], ties, finite[-1] + step * np.array([0, 0.5, 1, 1.5])])


def critical_points(
    fmt: ScalarFormat, scale: float = 1.0, *, dtype: type[np.floating] = np.float64, limit: int = 1 << 16
) -> npt.NDArray:
    """Values and ties times *scale*, zeros, subnormals, huge numbers, infinities; each with the
    numbers of *dtype* beside it; of both signs; and NaN."""
    special = [0.0, 5e-324, 1e-45, 1e-40, 1.1754942e-38, 1e-30, 1e30, 3.4e38, np.inf]
    with np.errstate(over="ignore", under="ignore"):
        points = np.concatenate(
            [values_and_ties(fmt, limit).astype(dtype) * dtype(scale), np.array(special, dtype)]
        )
        points = np.concatenate(
            [points, np.nextafter(points, dtype(np.inf)), np.nextafter(points, dtype(-np.inf))]
        )
    return np.concatenate([points, -points, np.array([np.nan], dtype)])


def random_floats(count: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """float32 of both signs over 80 binades."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(count) * np.exp2(rng.integers(-40, 40, count))).astype(np.float32)


def definition(x: npt.NDArray, fmt: ScalarFormat, scale: npt.NDArray | np.floating) -> npt.NDArray:
    """What the fast paths must give, in the dtype of *x*."""
    with np.errstate(all="ignore"):
        return np.asarray(fmt.round(x / scale) * scale)


def assert_same(actual: npt.NDArray, expected: npt.NDArray) -> None:
    """Equal dtypes, shapes, values, signs (of zeros too), NaN where NaN is expected."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    np.testing.assert_array_equal(actual, expected)
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(actual[numbers]), np.signbit(expected[numbers]))
