"""What the accumulators of a minifloat MAC cost, and what a floating one loses.

Run from the root of the checkout: ``python tests/benchmarks/bench_accumulators.py``. LUT6 sites of whole units for
dot products of 4608, and the error of the floating sum on normally distributed values in each format, against the
exact sum: the root of the mean squared error over that of the mean squared sum.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from costmodel import synthesize
from hw.binned_mac import BinnedMultiplyAccumulate
from hw.float_mac import FloatMultiplyAccumulate
from hw.mac import MultiplyAccumulate
from hw.reference import float_accumulate, multiply_accumulate
from quantizers.formats import parse_scalar_format

_DOTS, _LENGTH = 200, 4608


def main() -> None:
    rng = np.random.default_rng(0)
    print(f"{'format':8}{'accumulator':14}{'sites':>6}{'FFs':>6}{'delay ns':>10}{'bits':>6}{'error':>10}")
    for name in ("e2m1", "e3m2", "e4m3", "e5m2"):
        fmt = parse_scalar_format(name)
        arguments = {"weights": fmt, "activations": fmt}
        codes = [fmt.encode(rng.normal(0, fmt.maximum / 4, (_DOTS, _LENGTH))) for _ in range(2)]
        exact = multiply_accumulate(*codes, **arguments).astype(float)
        units = {
            "exact": MultiplyAccumulate(**arguments, dot_length=_LENGTH),
            "bins": BinnedMultiplyAccumulate(**arguments, dot_length=_LENGTH),
        }
        for label, unit in units.items():
            _print(name, label, unit, 0.0)
        for guard_bits in (0, 2, 4, 8, 12):
            unit = FloatMultiplyAccumulate(**arguments, dot_length=_LENGTH, guard_bits=guard_bits)
            significands, exponents = float_accumulate(*codes, **arguments, guard_bits=guard_bits)
            values = np.ldexp(significands.astype(float), exponents - unit.first_exponent - guard_bits)
            error = np.sqrt(np.mean((values - exact) ** 2) / np.mean(exact**2))
            _print(name, f"float, {guard_bits} guard", unit, float(error))


def _print(name: str, label: str, unit: object, error: float) -> None:
    cost = synthesize(unit, name=label)
    delay = "" if cost.logic_delay_ns is None else f"{cost.logic_delay_ns:.2f}"
    print(f"{name:8}{label:14}{cost.luts:>6}{cost.ffs:>6}{delay:>10}{unit.accumulator_bits:>6}{error:>10.1e}")


if __name__ == "__main__":
    main()
