"""Rounding of 16 M float32 elements: Brevitas' own quantizers, our kernel, our torch path, and a copy.

Run from the root of the checkout: ``python tests/benchmarks/bench_rounding.py``. The contenders take
turns, so that a busy machine slows all of them, and the best turn of each counts.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import brevitas.quant.scaled_int
import numpy as np
import torch
from brevitas.core.scaling import ConstScaling
from brevitas.quant.float_base import FloatActBase
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from quantizers.formats import IntegerFormat, MinifloatFormat, ScalarFormat, parse_scalar_format
from quantizers.rounding import quantization_error, round_scaled
from quantizers.torch_rounding import fake_quantize, round_scaled_torch

_ELEMENTS = 1 << 24
_THREADS = 2
_TURNS = 9
_SCALE = 0.0137
_CANDIDATES = 4


def brevitas_quantizer(fmt: ScalarFormat) -> Callable[[Tensor], Tensor]:
    """The ``tensor_quant`` of Brevitas' activation quantizers, with a constant scale."""
    if isinstance(fmt, IntegerFormat):

        class Integer(brevitas.quant.scaled_int.Int8ActPerTensorFloat):
            bit_width = fmt.bits

        int_quant = Integer.tensor_quant.int_quant
        arguments = (torch.tensor(_SCALE), torch.tensor(0.0), torch.tensor(float(fmt.bits)))
        return lambda x: int_quant(*arguments, x)  # type: ignore[no-any-return]
    assert isinstance(fmt, MinifloatFormat)

    class Minifloat(FloatActBase):
        bit_width = fmt.bits
        exponent_bit_width = fmt.exponent_bits
        mantissa_bit_width = fmt.mantissa_bits
        saturating = True
        scaling_impl = ConstScaling(_SCALE)

    float_quant = Minifloat.tensor_quant
    return lambda x: float_quant(x)[0]  # type: ignore[no-any-return]


def contenders(fmt: ScalarFormat, x: Tensor) -> dict[str, Callable[[], object]]:
    array, out = x.numpy(), np.empty(x.shape, np.float32)
    scale = torch.tensor(_SCALE)
    candidates = np.full((1, _CANDIDATES), _SCALE)
    theirs = brevitas_quantizer(fmt)
    return {
        "Brevitas": lambda: theirs(x),
        "fake_quantize (kernel)": lambda: fake_quantize(x, fmt, scale),
        "round_scaled, given out": lambda: round_scaled(array, fmt, _SCALE, out=out),
        "torch fallback": lambda: round_scaled_torch(x, fmt, scale),
        "quantization_error, a candidate": lambda: quantization_error(array[None], fmt, candidates),
        "torch.clone": lambda: x.clone(),
    }


def best_seconds(functions: dict[str, Callable[[], object]]) -> dict[str, float]:
    best = dict.fromkeys(functions, float("inf"))
    for turn in range(_TURNS + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if turn:  # the first one compiles
                best[name] = min(best[name], time.perf_counter() - start)
    best["quantization_error, a candidate"] /= _CANDIDATES
    return best


def main() -> None:
    os.environ["OMP_NUM_THREADS"] = str(_THREADS)
    torch.set_num_threads(_THREADS)
    load = os.getloadavg()[0]
    print(
        f"{_ELEMENTS:,} float32 elements, {_THREADS} threads, best of {_TURNS}; load at the start {load:.1f}"
    )
    x = torch.randn(_ELEMENTS, generator=torch.Generator().manual_seed(0))
    for name in ("e4m3", "e2m1", "int8"):
        fmt = parse_scalar_format(name)
        with torch.no_grad():
            functions = contenders(fmt, x)
            if not torch.equal(brevitas_quantizer(fmt)(x), fake_quantize(x, fmt, _SCALE)):
                sys.exit(f"{name}: Brevitas and the kernel disagree")
            seconds = best_seconds(functions)
        print(f"\n{name:34}{'M elements/s':>14}{'x Brevitas':>12}{'x clone':>10}")
        for contender, duration in seconds.items():
            rate = _ELEMENTS / duration / 1e6
            gain, share = seconds["Brevitas"] / duration, seconds["torch.clone"] / duration
            print(f"  {contender:32}{rate:14.0f}{gain:12.2f}{share:10.2f}")


if __name__ == "__main__":
    main()
