"""Random codes and packed words for the stimuli of the blocks."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from quantizers.formats import ScalarFormat


def sum_meaning(weights: ScalarFormat, activations: ScalarFormat) -> str:
    return f"sum of the products, in units of 2**{weights.grid.lsb_exponent + activations.grid.lsb_exponent}"


def packed(codes: npt.NDArray[np.int64], bits: int) -> int:
    """The codes side by side, the first in the low bits."""
    return sum(code << bits * place for place, code in enumerate(codes.tolist()))


def random_codes(
    fmt: ScalarFormat, count: int | tuple[int, ...], rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Codes that are numbers, each as likely as the others."""
    return rng.choice(np.flatnonzero(np.isfinite(fmt.values())), count).astype(np.int64)


def wrapped(number: int, width: int) -> int:
    """Two's complement; wraps."""
    return number & ((1 << width) - 1)
