"""Hardware that a layer of a quantized network is run through, and how it is compared with the software."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from hw._checks import check_positive
from hw.arith.requantizer import Requantization
from hw.lut_kernel import TableLookupEngine, activation_words, weight_words
from hw.lut_kernel import vector_results as lookup_results
from hw.mvu import MatrixVectorUnit, input_words, load_words, output_count, vector_results
from hw.reference.requantizer import Scaling, find_scaling, requantize
from hw.verilator import VerilatedStream
from quantizers.errors import unknown_choice
from quantizers.formats import ScalarFormat

_MULTIPLIER_BITS = 16


@dataclass(frozen=True, eq=False)
class LayerData:
    """A layer as matrices, groups first; integers and codes.

    Attributes:
        matrices: weight codes ``(groups, rows, columns)``.
        vectors: activation codes ``(groups, vectors, columns)``.
        starts: integers at which sums start, ``(groups, rows)``.
        sums: the software's, ``(groups, vectors, rows)``.
        scales: what one unit of a sum is worth, ``(groups, rows)``.
    """

    matrices: npt.NDArray[np.int64]
    vectors: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    sums: npt.NDArray[Any]
    scales: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Check:
    """What a comparison of a unit with the software found; see :class:`dse.verification.Verification`."""

    parameters: dict[str, Any]
    accumulator_bits: int
    checked: int
    mismatches: int
    rounding_differences: int | None
    largest_scale_error: float | None
    cycles: int
    cycles_per_second: float


def check_on_mvu(
    found: LayerData,
    weights: ScalarFormat,
    activations: ScalarFormat,
    output: ScalarFormat,
    *,
    pe: int = 4,
    simd: int = 8,
) -> Check:
    """The sums of a matrix-vector unit, biases among them, and then, from one with a requantizer, the codes
    that the layer's output has in the format *output*.
    """
    _, rows, columns = found.matrices.shape
    sizes = {"pe": min(pe, rows), "simd": min(simd, columns)}
    arguments: dict[str, Any] = {"weights": weights, "activations": activations, **sizes}
    arguments |= {"rows": rows, "columns": columns, "has_bias": True}
    unit = MatrixVectorUnit(**arguments)
    bits = unit.accumulator_bits
    sums, sum_cycles, sum_seconds = _simulated(unit, found, {})
    scaling, wanted = _codes(found, output)
    requantization = Requantization(
        format=output,
        multiplier_bits=_MULTIPLIER_BITS,
        shifts=range(int(scaling.shifts.min()), int(scaling.shifts.max()) + 1),
    )
    with_codes = MatrixVectorUnit(**arguments, output=requantization)
    parameters = {"multiplier": scaling.multipliers, "shift": scaling.shifts}
    codes, code_cycles, code_seconds = _simulated(with_codes, found, parameters)
    expected = requantize(found.sums, scaling.multipliers[:, None], scaling.shifts[:, None], output=output)
    cycles = sum_cycles + code_cycles
    return Check(
        parameters=sizes,
        accumulator_bits=bits,
        checked=2 * found.sums.size,
        mismatches=int((sums != found.sums).sum() + (codes != expected).sum()),
        rounding_differences=int((expected != wanted).sum()),
        largest_scale_error=scaling.largest_relative_error,
        cycles=cycles,
        cycles_per_second=cycles / (sum_seconds + code_seconds),
    )


def check_on_tables(
    found: LayerData,
    weights: ScalarFormat,
    activations: ScalarFormat,
    output: ScalarFormat,
    *,
    lanes: int = 8,
    groups: int = 4,
) -> Check:
    """The sums of a table-lookup engine, which knows no biases; *output* is not used."""
    _, rows, columns = found.matrices.shape
    sizes = {"lanes": min(lanes, rows), "groups": groups}
    unit = TableLookupEngine(weights=weights, activations=activations, rows=rows, columns=columns, **sizes)
    bits = unit.accumulator_bits
    vectors = found.vectors.shape[1]
    streams = [
        {
            "weights": np.tile(weight_words(unit, matrix), (vectors, 1)),
            "activations": activation_words(unit, x),
        }
        for matrix, x in zip(found.matrices, found.vectors, strict=True)
    ]
    sums, cycles, seconds = _run(unit, streams, vectors * unit.row_folds, partial(lookup_results, unit))
    return Check(
        parameters=sizes,
        accumulator_bits=bits,
        checked=found.sums.size,
        mismatches=int((sums + found.starts[:, None] != found.sums).sum()),
        rounding_differences=None,
        largest_scale_error=None,
        cycles=cycles,
        cycles_per_second=cycles / seconds,
    )


Unit: TypeAlias = Callable[[LayerData, ScalarFormat, ScalarFormat, ScalarFormat], Check]
UNITS: dict[str, tuple[Callable[..., Check], tuple[str, ...]]] = {
    "mvu": (check_on_mvu, ("pe", "simd")),
    "lut_kernel": (check_on_tables, ("lanes", "groups")),
}
"""Blocks that a layer can be run through, each with the sizes that can be set of it."""


def find_unit(block: str, parameters: Mapping[str, int]) -> Unit:
    """The comparison of a block with the software, its sizes set.

    Raises:
        UsageError: an unknown block or parameter, or a size that is not positive.
    """
    if block not in UNITS:
        raise unknown_choice("block", block, UNITS)
    check, known = UNITS[block]
    for name, value in parameters.items():
        if name not in known:
            raise unknown_choice(f"parameter of block {block!r}", name, known)
        check_positive(name, value)
    return partial(check, **parameters)


def _codes(found: LayerData, output: ScalarFormat) -> tuple[Scaling, npt.NDArray[np.int64]]:
    """The scaling of the output, and its codes with the real scales.

    One scale for the whole output, its largest value for the largest of the format: what is checked is the
    arithmetic, not the choice.
    """
    values = found.sums * found.scales[:, None]
    scale = float(np.abs(values).max()) / output.maximum or 1.0
    ratios = found.scales / scale
    # The shift that brings each multiplier into the upper half of its range.
    shifts = np.floor(np.log2(((1 << _MULTIPLIER_BITS) - 1) / ratios)).astype(int)
    reach = range(min(int(shifts.min()), 0), int(shifts.max()) + 1)
    scaling = find_scaling(ratios, multiplier_bits=_MULTIPLIER_BITS, shifts=reach)
    return scaling, output.encode(values / scale)


def _simulated(
    unit: MatrixVectorUnit, found: LayerData, parameters: dict[str, npt.NDArray[np.int64]]
) -> tuple[npt.NDArray[Any], int, float]:
    """The results ``(groups, vectors, rows)``, each group's matrix loaded in turn; cycles, and seconds."""
    loads = [
        load_words(unit, matrix, bias=start, **{name: values[group] for name, values in parameters.items()})
        for group, (matrix, start) in enumerate(zip(found.matrices, found.starts, strict=True))
    ]
    streams = [
        {"load": load, "inputs": input_words(unit, vectors)}
        for load, vectors in zip(loads, found.vectors, strict=True)
    ]
    count = output_count(unit, found.vectors.shape[1])
    return _run(unit, streams, count, partial(vector_results, unit), first=["load"])


def _run(
    unit: Any,
    streams: list[dict[str, Any]],
    count: int,
    results_of: Callable[[npt.ArrayLike], npt.NDArray[Any]],
    first: Sequence[str] = (),
) -> tuple[npt.NDArray[Any], int, float]:
    """The results of all runs, cycles, and seconds without the building of the model."""
    # Elaborated once, it can only be simulated from here on.
    model = VerilatedStream(unit)
    results, cycles = [], 0
    start = time.perf_counter()
    for inputs in streams:
        trace = model.run(inputs, output_count=count, first=first)
        results.append(results_of(trace.outputs))
        cycles += trace.cycles
    return np.stack(results), cycles, time.perf_counter() - start
