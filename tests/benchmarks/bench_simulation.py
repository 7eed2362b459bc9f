"""How fast a 16 x 16 int8 matrix-vector unit is simulated, and how long its compiled model takes to build.

Run from the root of the checkout: ``python tests/benchmarks/bench_simulation.py``. The targets are a million
cycles a second on one core, and 6 s for a build once Verilator's run-time library is compiled.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from hw.arith.addend import MULTIPLIERS
from hw.mvu import MatrixVectorUnit, input_words, load_words, output_count, vector_results
from hw.reference.mvu import matrix_vector
from hw.simulation import simulate_stream
from hw.verilator import VerilatedStream
from quantizers.formats import parse_scalar_format

_INT8 = parse_scalar_format("int8")
_SIZE, _PARALLEL = 64, 16
_VECTORS = 100_000
_VECTORS_IN_AMARANTH = 10


def _unit(multipliers: str, rows: int = _SIZE) -> MatrixVectorUnit:
    return MatrixVectorUnit(
        weights=_INT8,
        activations=_INT8,
        rows=rows,
        columns=_SIZE,
        pe=_PARALLEL,
        simd=_PARALLEL,
        multipliers=multipliers,
    )


def _seconds_to_build(multipliers: str, rows: int = _SIZE) -> tuple[float, VerilatedStream]:
    unit = _unit(multipliers, rows)
    start = time.perf_counter()
    model = VerilatedStream(unit)
    return time.perf_counter() - start, model


def _report(multipliers: str) -> None:
    with tempfile.TemporaryDirectory() as cache:
        os.environ["BITFRONT_CACHE"] = cache
        first, _ = _seconds_to_build(multipliers, _SIZE // 2)
        second, model = _seconds_to_build(multipliers)
        again, _ = _seconds_to_build(multipliers)
    print(
        f"multipliers of {multipliers}: build {first:.1f} s with the run-time library, {second:.1f} s after it, "
        f"{again:.2f} s from cache"
    )
    rng = np.random.default_rng(0)
    matrix = rng.integers(0, 256, (_SIZE, _SIZE))
    vectors = rng.integers(0, 256, (_VECTORS, _SIZE))
    unit = _unit(multipliers)
    items = {"load": load_words(unit, matrix), "inputs": input_words(unit, vectors)}
    start = time.perf_counter()
    trace = model.run(items, output_count=output_count(unit, _VECTORS), first=("load",))
    seconds = time.perf_counter() - start
    checked = vector_results(unit, trace.outputs[: unit.folding.row_folds * 1000])
    expected = matrix_vector(matrix, vectors[:1000], weights=_INT8, activations=_INT8)
    assert np.array_equal(checked, expected)
    print(
        f"  Verilator, with packing and unpacking: {trace.cycles} cycles in {seconds:.2f} s, "
        f"{trace.cycles / seconds / 1e6:.2f} M cycles/s"
    )
    start = time.perf_counter()
    slow = simulate_stream(
        _unit(multipliers),
        {
            "load": items["load"],
            "inputs": items["inputs"][: _VECTORS_IN_AMARANTH * unit.folding.column_folds].tolist(),
        },
        output_count=output_count(unit, _VECTORS_IN_AMARANTH),
        first=("load",),
    )
    seconds = time.perf_counter() - start
    print(f"  Amaranth's simulator: {slow.cycles} cycles, {slow.cycles / seconds / 1e3:.2f} k cycles/s")


def main() -> None:
    for multipliers in MULTIPLIERS:
        _report(multipliers)


if __name__ == "__main__":
    main()
